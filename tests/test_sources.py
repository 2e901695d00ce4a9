"""Sources: what --data may say, and the documents that files turn into."""

import bz2
import gzip
import json
import lzma
import os
import re
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest

from distill.data import sources
from distill.data.sources import LONGEST_DOCUMENT, cut, documents, identity, parse_source
from minitransformer.files import UserError


def read(spec):
    return list(documents(parse_source(spec), Counter()))


def skipped(spec):
    reasons = Counter()
    list(documents(parse_source(spec), reasons))
    return dict(reasons)


def zstd(content):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


COMPRESS = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress, "zst": zstd}


def test_what_data_may_say(folder):
    for name in ("a.txt", "b.txt", "c:d.txt", "e.jsonl", "f.jsonl.gz", "[a]@b.txt"):
        (folder / name).write_text("x")
    (folder / "sub").mkdir()
    (folder / "sub" / "f.txt").write_text("x")
    assert parse_source("docs") == sources.Source("docs", "docs")
    source = parse_source("web=*.txt")
    assert (source.name, source.kind, source.column) == ("web", "files", "text")
    assert source.files == ("[a]@b.txt", "a.txt", "b.txt", "c:d.txt")
    assert parse_source("web=**/*.txt").files[-1] == os.path.join("sub", "f.txt")
    assert parse_source("web=c:d.txt").files == ("c:d.txt",)  # a colon may belong to the name
    for where in ("[a]@b.txt", "[a]@b.txt:text", "[a]@b.txt@3", "*@b.txt"):  # as may these
        assert parse_source(f"web={where}").files == ("[a]@b.txt",)
    assert parse_source("web=f.jsonl.gz:body").column == "body"
    assert parse_source("web=a.txt@2e6").tokens == 2_000_000
    expected = sources.Source("sw", "hub", (), "uonlp/CulturaX", "sw", tokens=1_200_000_000)
    assert parse_source("sw=hub:uonlp/CulturaX:sw@1.2e9") == expected
    expected = sources.Source("w", "hub", (), "a/b", "", "validation", "body")
    assert parse_source("w=hub:a/b::validation:body") == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "unknown; give docs"),
        ("=a.txt", "unknown"),
        ("web=", "unknown"),
        ("web=none*.txt", r"no file matches none\*"),
        ("web=a.csv", "a.csv is none of .txt, .jsonl, .parquet"),
        ("web=a.parquet.gz", "a.parquet.gz is none of"),
        ("web=folder.txt", r"folder.txt is a folder; give folder.txt/\*.txt"),
        ("web=fol*:body", r"folder.txt is a folder; give folder.txt/\*.txt"),
        ("web=l*.txt", r"link.txt is no file; is it a link to one that is gone\?"),
        ("web=caf\udce9.txt", r"'web=caf\\udce9.txt': not UTF-8; rename"),
        ("caf\udce9=a.txt", r"'caf\\udce9=a.txt': not UTF-8; rename"),
        ("web=ca*", r"the file name 'caf\\udce9.txt' is not UTF-8; rename it"),
        ("web=hub:", "expected hub:dataset"),
        ("web=hub:a:b:c:d:e", "expected hub:dataset"),
        ("web=hub:a@many", "@many is not a number"),
        ("web=a.csv@-5", "@-5 is not a number"),
        ("web=a.csv@1e400", "@1e400 is not a number"),
    ],
)
def test_what_it_may_not(folder, spec, message):
    (folder / "a.csv").write_text("x")
    (folder / "a.parquet.gz").write_text("x")
    (folder / "caf\udce9.txt").write_text("x")
    (folder / "folder.txt").mkdir()
    (folder / "link.txt").symlink_to("nowhere.txt")
    with pytest.raises(UserError, match=message):
        parse_source(spec)


@pytest.mark.parametrize("read_all", [identity, lambda source: list(documents(source, Counter()))])
def test_a_file_that_is_gone_since(folder, read_all):
    (folder / "a.txt").write_text("x")
    source = parse_source("web=a.txt")
    (folder / "a.txt").unlink()
    with pytest.raises(UserError, match=r"a.txt: .*No such file"):
        read_all(source)


def test_a_file_is_known_by_path_size_time_and_content(folder):
    file, seen = folder / "a.txt", set()
    for content, time in (("one", 0), ("ones", 0), ("ones", 1), ("twos", 1)):
        file.write_text(content)
        os.utime(file, ns=(time, time))
        seen.add(identity(parse_source("w=a.txt")))
    assert len(seen) == 4
    assert identity(parse_source(f"other={file}")) in seen


def test_txt_documents_end_at_blank_lines_or_are_lines(folder):
    (folder / "a.txt").write_bytes("\ufeffone\ntwo\n\n \t\n\nthree\r\nfour\r\n\r\nfünf 字".encode())
    assert read("w=a.txt") == ["one\ntwo\n", "three\nfour\n", "fünf 字"]
    for content, expected in (
        ("\n\n\n", []),
        ("\none\ntwo\n\n", ["one\n", "two\n"]),  # no blank line between: each is a document
        ("one\n" * 60_000, ["one\n"] * 60_000),  # of more than one bound
    ):
        (folder / "b.txt").write_text(content)
        assert read("w=b.txt") == expected


def test_no_text_is_longer_than_the_bound_and_no_word_is_cut(folder):
    """A line, a file without blank lines, or a value of gigabytes must not be tokenised at once."""
    words, lines = "word " * 50_000, "a line\n" * 50_000
    (folder / "a.txt").write_text(words)
    (folder / "b.txt").write_text(lines.replace("\n", "\n\n", 1))
    (folder / "c.jsonl").write_text(json.dumps({"text": words}))
    pyarrow.parquet.write_table(pyarrow.table({"text": [lines]}), folder / "d.parquet")
    for name in ("a.txt", "b.txt", "c.jsonl", "d.parquet"):
        parts = read(f"w={name}")
        assert "".join(parts) == (words if name in ("a.txt", "c.jsonl") else lines)
        assert LONGEST_DOCUMENT - 10 < max(map(len, parts)) <= LONGEST_DOCUMENT
        assert all(part.split()[0] in ("word", "a") for part in parts)
        assert all(part.split()[-1] in ("word", "line") for part in parts)
    (folder / "e.txt").write_text("x" * 250_000)  # one word
    assert list(map(len, read("w=e.txt"))) == [100_000, 100_000, 50_000]
    word = "x" * 60_000
    assert [part.split() for part in cut(" ".join([word] * 3))] == [[word]] * 3


def test_rows_without_text_are_counted_by_reason(folder):
    rows = [{"text": "a\nb", "body": "c"}, {"text": ""}, {"text": None}, {"body": "d"}]
    rows += [{"text": " "}]
    (folder / "a.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
    assert read("w=a.jsonl") == ["a\nb"]
    assert skipped("w=a.jsonl") == {"empty": 2, "null": 1, "without a column 'text'": 1}
    assert read("w=a.jsonl:body") == ["c", "d"]


def test_parquet(folder):
    table = pyarrow.table({"text": ["a", "b", "c"], "n": [1, 2, 3], "t": ["d", None, "f"]})
    pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=2)
    assert read("w=a.parquet") == ["a", "b", "c"]
    assert read("w=a.parquet:t") == ["d", "f"]
    with pytest.raises(UserError, match=r"row 1: column 'n' holds int, not text"):
        read("w=a.parquet:n")
    assert skipped("w=a.parquet:body") == {"without a column 'body'": 3}


def test_several_files_in_the_order_of_their_names_with_nulls_in_the_last(folder):
    (folder / "b.txt").write_text("two")
    (folder / "a.jsonl").write_text('{"text": "one"}')
    for number, texts in enumerate((["x"], ["y", None], [None, None])):
        table = pyarrow.table({"text": texts})
        pyarrow.parquet.write_table(table, folder / f"c{number}.parquet")
    assert read("w=*") == ["one", "two", "x", "y"]
    assert skipped("w=*") == {"null": 3}


@pytest.mark.parametrize("kind", COMPRESS)
def test_compressed_files_with_several_members(folder, kind):
    compress = COMPRESS[kind]
    rows = [json.dumps({"text": f"text {i}"}) + "\n" for i in range(3000)]
    text = "".join(rows).encode()
    halves = text[:20_000], text[20_000:]  # amid a line
    whole = b"".join(map(compress, halves))
    file = folder / f"a.jsonl.{kind}"
    file.write_bytes(whole)
    assert read(f"w={file}") == [f"text {i}" for i in range(3000)]
    (folder / f"b.txt.{kind}").write_bytes(compress("\ufeffone\n\nzwölf\r\n".encode()))
    assert read(f"w=b.txt.{kind}") == ["one\n", "zwölf\n"]
    first = len(compress(halves[0]))
    if kind != "zst":  # zeros may stand between streams, but nothing else
        zeros = bytes(2**17)
        file.write_bytes(whole[:first] + zeros + whole[first:] + compress(b"") + zeros)
        assert read(f"w={file}") == [f"text {i}" for i in range(3000)]
    for junk in (b"XX", b"junk" * 2**15):
        file.write_bytes(whole[:first] + junk + whole[first + len(junk) :])
        with pytest.raises(UserError, match=f"a.jsonl.{kind}: damaged or cut short behind line"):
            read(f"w={file}")
    for end in (len(whole) - 1, len(whole) // 2, first + 3, first - 1, 5, 0):
        file.write_bytes(whole[:end])
        with pytest.raises(UserError, match=f"a.jsonl.{kind}: damaged or cut short .*; fetch") as e:
            read(f"w={file}")
        assert "\n" not in str(e.value)
    file.write_bytes(b"plain text, not compressed at all, and of some length")
    with pytest.raises(UserError, match="damaged or cut short"):
        read(f"w={file}")


@pytest.mark.parametrize("kind", ["", ".gz", ".zst"])
def test_broken_lines_are_named_by_the_true_line(folder, kind):
    compress = COMPRESS.get(kind[1:], bytes)
    good = [json.dumps({"text": "x" * (i % 300)}).encode() for i in range(2000)]
    for bad, message in (
        (b'{"text": "caf\xe9"}', "not UTF-8 (byte 0xe9); convert it first"),
        (b'{"text": "caf\xc3', "not UTF-8 (byte 0xc3)"),
        (b'{"text": ', "not JSON; expected one object a line"),
        (b"nonsense", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"text": ' + b"1" * 5000 + b"}", "not JSON"),
        (b'["text"]', "holds list, not an object with column 'text'"),
        (b"3", "holds int, not an object"),
        (b'{"text": 3}', "column 'text' holds int, not text"),
        (b'{"text": ["x"]}', "column 'text' holds list, not text"),
    ):
        lines = [*good[:1234], bad, *good[1234:]]
        (folder / f"a.jsonl{kind}").write_bytes(compress(b"\n".join(lines)))
        with pytest.raises(UserError, match=re.escape(f"a.jsonl{kind}, line 1235: {message}")):
            read(f"w=a.jsonl{kind}")
    text = b"fine\n" * 999 + b"y" * 250_000 + b" \xff\nfine\n"  # a line that is read in parts
    (folder / f"a.txt{kind}").write_bytes(compress(text))
    with pytest.raises(UserError, match=rf"a.txt{kind}, line 1000: not UTF-8 \(byte 0xff\)"):
        read(f"w=a.txt{kind}")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("text", ["hello, world\n", "word\n", "привет мир\n", "слово\n"])
def test_nuls_are_a_sign_of_another_encoding(folder, encoding, text):
    (folder / "a.txt").write_bytes((text * 50).encode(encoding))
    (folder / "a.jsonl").write_bytes(json.dumps({"text": text * 9}).encode(encoding))
    for name in ("a.txt", "a.jsonl"):
        with pytest.raises(UserError, match=rf"{name}, line \d+: .* NUL, .*; convert it to UTF-8"):
            read(f"w={name}")
    (folder / "b.txt").write_text("a\0b\n" + text * 999 + "\0" * 8)  # strays do no harm
    assert len(read("w=b.txt")) == 1001


def test_a_parquet_file_with_what_cannot_be_read(folder):
    far = pyarrow.array([2**50] * 70, pyarrow.timestamp("ms"))
    data = pyarrow.array([b"x"] * 69 + [b"caf\xe9"]).buffers()
    bad = pyarrow.Array.from_buffers(pyarrow.string(), 70, data)
    table = pyarrow.table([["y"] * 70, far, bad, bad, bad], names=["text", "far", "bad", "c", "c"])
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    assert read("w=a.parquet") == ["y"] * 70  # the other columns are not wanted
    for column, message in (
        ("bad", "a.parquet, row 70: not UTF-8; convert it first"),
        ("far", "a.parquet: not a readable parquet file .date value out of range"),
        ("c", "a.parquet: 2 columns are called 'c'; rename all but one"),
    ):
        with pytest.raises(UserError, match=message):
            read(f"w=a.parquet:{column}")


@pytest.mark.parametrize("content", [b"", b"PAR1 and then nonsense PAR1"])
def test_a_damaged_parquet_file(folder, content):
    (folder / "a.parquet").write_bytes(content)
    with pytest.raises(UserError, match="not a readable parquet file"):
        read("w=a.parquet")
