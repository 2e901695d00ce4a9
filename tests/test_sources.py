"""Sources: what --data may say, and the documents that files turn into."""

import bz2
import gzip
import json
import lzma
import os
import resource
from collections import Counter

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from distill.data import sources
from distill.data.sources import Source, documents, identity, look_up, parse_source, parse_sources
from minitransformer.files import UserError


def read(spec, skipped=None):
    source = parse_source(spec)
    source = look_up(source) if source.hub else source
    return list(documents(source, Counter() if skipped is None else skipped))


def write(folder, **files):
    """Write files of bytes, text, columns (parquet) or rows (JSON); `a_txt` is a.txt."""
    for name, content in files.items():
        file = folder / name.replace("_", ".")
        if isinstance(content, dict):
            pyarrow.parquet.write_table(pyarrow.table(content), file, row_group_size=2)
        elif isinstance(content, list):
            file.write_text("\n".join(map(json.dumps, content)))
        else:
            file.write_bytes(content.encode() if isinstance(content, str) else content)


def zstd(content):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


COMPRESS = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress, "zst": zstd}
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def test_what_data_may_say(folder, monkeypatch):
    write(folder, a_txt="x", b_txt="x", e_jsonl="x", F_JSONL_GZ="x")
    for name in ("c:d.txt", "[a]@b.txt", "sub/f.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    assert parse_source("docs") == Source("docs")
    assert parse_source("web=*.txt") == Source("web", ("[a]@b.txt", "a.txt", "b.txt", "c:d.txt"))
    assert parse_source("web=**/*.txt").files[-1] == os.path.join("sub", "f.txt")
    assert parse_source("web=c:d.txt").files == ("c:d.txt",)  # a colon may belong to the name
    for where in ("[a]@b.txt", "[a]@b.txt:text", "[a]@b.txt@3", "*@b.txt"):  # as may these
        assert parse_source(f"web={where}").files == ("[a]@b.txt",)
    assert parse_source("web=F.JSONL.GZ:body").column == "body"
    assert parse_source("web=a.txt@2e6").tokens == 2_000_000
    monkeypatch.setenv("HOME", str(folder))
    assert parse_source("web=~/a.t*").files == (f"{folder}/a.txt",)
    hub = ("uonlp/CulturaX", "sw", "train")
    assert parse_source("sw=hub:uonlp/CulturaX:sw@1.2e9") == Source(
        "sw", (), hub, "text", 12 * 10**8
    )
    hub = (f"{folder}/b", None, "validation")
    assert parse_source("w=hub:~/b::validation:body") == Source("w", (), hub, "body")


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([""], "unknown; give docs"),
        (["=a.txt"], "unknown"),
        (["web="], "unknown"),
        (["web=none*.txt"], r"none\*.txt: no such file"),
        (["web=~/none.txt"], "~/none.txt: no such file"),
        (["web=a.txt@many"], "a.txt@many: no such file"),
        (["web=a.csv"], r"a.csv is none of .txt, .parquet, .jsonl, .ndjson, .json"),
        (["web=a.parquet.gz"], "a.parquet.gz is none of"),
        (["web=folder.txt"], r"folder.txt: a folder; give its files, as FOLDER/\*.txt"),
        (["web=fol*:body"], "a folder; give its files"),
        (["web=l*.txt"], "link.txt is not a file, or a link to one that is gone"),
        (["web=fifo.txt"], "fifo.txt is not a file"),
        (["en=a.txt", "docs", "en=*.txt"], "duplicate corpus name 'en'"),
    ],
)
def test_what_it_may_not(folder, specs, message):
    write(folder, a_txt="x", a_csv="x", a_parquet_gz="x")
    (folder / "folder.txt").mkdir()
    (folder / "link.txt").symlink_to("nowhere.txt")
    os.mkfifo(folder / "fifo.txt")
    with pytest.raises(UserError, match=message):
        parse_sources(
            [spec.replace("*.txt", "a*.txt") if "en=" in spec else spec for spec in specs]
        )


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "\ufeffone\ntwo\n\n \t\n\nthree\r\nfour\r\n\r\nfünf 字", 3),
        ("a.txt", "\none\ntwo\n\n", ["one\n", "two\n"]),  # no blank line between: each is one
        ("a.txt", "one\n" * 60_000, ["one\n"] * 60_000),
        ("a.txt", "a\0b\n" + "word\n" * 999, 1000),  # a stray NUL does no harm
        ("a.txt", "", []),
        ("A.TXT", "one\n\n\ufefftwo", ["one\n", "two"]),  # two files with a BOM, joined
        ("a.jsonl", '{"text": "one"}\n\n\ufeff{"text": "two\\n\\nx"}\r\n', ["one", "two\n\nx"]),
        ("a.Ndjson", '{"text": "one", "x": 1}\n{"x": {"y": []}, "text": "two"}', ["one", "two"]),
        ("a.json", '[{"text": "one"},\n {"text": "two", "x": 1}]\n', ["one", "two"]),
        ("a.json", '{"text": "one"}\n{"text": null}\n{"y": 1}\n{"text": " "}', ["one"]),
    ],
)
def test_documents_of_a_file(folder, name, content, expected):
    (folder / name).write_bytes(content.encode())
    found = read(f"w={name}")
    assert (len(found) if isinstance(expected, int) else found) == expected


def test_a_column_that_is_not_wanted_may_be_anything_in_any_shard(folder):
    """Also on the hub, whose library stops at the second shard."""
    for name in ("rows", "columns"):
        (folder / name).mkdir()
    rows = [{"text": "a", "x": 1}], [{"text": "b", "x": {"y": 2}, "z": 3}]
    write(folder / "rows", a_jsonl=rows[0], b_jsonl=rows[1])
    far = pyarrow.array([2**50], pyarrow.timestamp("ms"))  # no date of Python's
    other = {"z": ["y"], "text": ["b"]}
    write(folder / "columns", a_parquet={"text": ["a"], "x": far}, b_parquet=other)
    for where in ("rows", "columns"):
        assert read(f"w={where}/*") == read(f"w=hub:{where}") == ["a", "b"]
    skipped = Counter()
    write(folder, e_parquet={"text": ["e", None]}, f_parquet={"text": pyarrow.array([None, None])})
    assert read("w=*.parquet", skipped) == ["e"]
    assert skipped == {"null": 3}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", LFS, "a.txt: a Git LFS pointer: run git lfs pull"),
        ("a.parquet", LFS, "a.parquet: a Git LFS pointer: run git lfs pull"),
        ("a.txt", b"fine\ncaf\xe9", r"a.txt: .* byte 0xe9 .*; convert it to UTF-8 first"),
        ("a.jsonl", b'{"text": "caf\xe9"}', "byte 0xe9 .* convert it to UTF-8"),
        ("a.txt", ("слово и слово\n" * 50).encode("utf-16-le"), "line .*NULs, as in UTF-16"),
        ("a.txt", "word".encode("utf-16"), "convert it to UTF-8"),
        ("a.jsonl", '{"text": "a"}\n{"text": ', "line 2: not JSON; expected one object a line"),
        ("a.jsonl", "[" * 100_000, "line 1: not JSON"),
        ("a.jsonl", '{"text": ' + "1" * 5000 + "}", "line 1: not JSON"),
        ("a.jsonl", '{"text": "a"}\n3', "line 2: int, not an object with 'text'"),
        ("a.jsonl", '{"text": "a"}\n{"text": 3}', "line 2: column 'text' holds int, not text"),
        ("a.jsonl", [{"n": 1, "b": "x"}] * 3, "no column 'text'; its columns are n, b"),
        ("a.jsonl", '{"n": 1}\n' * 100 + "broken", "no column 'text'; its columns are n"),
        ("a.parquet", {"n": [1], "b": ["x"]}, "no column 'text'; its columns are n, b"),
        ("a.parquet", {"text": [["x"]]}, "row 1: column 'text' holds list, not text"),
        ("a.parquet", "PAR1 and then nonsense PAR1", "a.parquet: "),
        ("a.jsonl", '{"text": "' + "x" * 1000 + '"}', "line 1: more than 1,000 characters"),
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(folder, monkeypatch, name, content, message):
    if "1,000" in message:
        monkeypatch.setattr(sources, "LONGEST_LINE", 1000)
    write(folder, **{name: content})
    with pytest.raises(UserError, match=f"^--data w: .*{message}"):
        read(f"w={name}")


def test_two_columns_of_one_name(folder):
    table = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    with pytest.raises(UserError, match="2 column 'text'; its columns are text, text"):
        read("w=a.parquet")


def test_a_long_text_is_cut_and_a_line_of_gigabytes_takes_little_memory(folder):
    write(folder, a_txt="word " * 50_000, b_jsonl=[{"text": "line\n\n" * 50_000}])
    for name in ("a.txt", "b.jsonl"):
        parts = read(f"w={name}")
        assert "".join(parts) in ("word " * 50_000, "line\n\n" * 50_000)
        assert max(map(len, parts)) == sources.LONGEST_DOCUMENT
    with gzip.open(folder / "c.jsonl.gz", "wb", 1) as file:
        file.write(b'{"text": "')
        for _ in range(800):
            file.write(b"x" * 2**20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="line 1: more than 67,108,864 characters"):
        read("w=c.jsonl.gz")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB


@pytest.mark.parametrize("kind", COMPRESS)
def test_compressed_files_with_several_streams(folder, kind):
    compress, file = COMPRESS[kind], folder / f"a.jsonl.{kind}"
    text = "".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(3000)).encode()
    first = compress(text[:20_000])  # amid a line
    whole = first + compress(text[20_000:])
    file.write_bytes(whole)
    assert read(f"w={file}") == [f"text {i}" for i in range(3000)]
    (folder / f"b.TXT.{kind}").write_bytes(compress("\ufeffone\n\nzwölf\r\n".encode()))
    assert read(f"w=b.TXT.{kind}") == ["one\n", "zwölf\n"]
    broken = [whole[:end] for end in (-1, len(whole) // 2, len(first) - 1, 5)]
    broken.append(b"plain text, not compressed at all, and of some length")
    if kind != "xz":  # Python's lzma takes a damaged second stream for the end
        broken += [whole[: len(first)] + b"XX" + whole[len(first) + 2 :], whole[: len(first) + 3]]
    for content in broken:
        file.write_bytes(content)
        with pytest.raises(UserError, match=rf"^--data w: .*a.jsonl.{kind}: .+"):
            read(f"w={file}")


def test_the_identity_of_files_is_their_content_and_time(folder):
    seen = set()
    for content in (b"one", b"ones", b"twos", b"x" * 2**20, b"x" * 2**24):
        for time in (0, 1):
            write(folder, a_txt=content)
            os.utime("a.txt", ns=(time, time))
            seen.add(identity(parse_source("w=a.txt")))
    assert len(seen) == 10
    for size in (2**20, 2**24):  # changed at equal size and time
        for start in range(0, size, size // 4):
            write(folder, a_txt=b"x" * start + b"y" * (size // 4) + b"x" * (size * 3 // 4 - start))
            os.utime("a.txt", ns=(0, 0))
            seen.add(identity(parse_source("other=a.txt")))
    assert len(seen) == 18


def test_files_of_the_hub(folder, monkeypatch):
    (folder / "hub").mkdir()
    (folder / "hub" / "a.txt").write_text("one\ntwo")
    with pytest.raises(UserError, match="cannot open split test of the hub dataset hub"):
        read("w=hub:hub::test")
    with pytest.raises(UserError, match="cannot open split train of the hub dataset none/none"):
        read("w=hub:none/none")
    url = "memory://a@1f2e/a.txt.gz"
    with fsspec.open(url, "wb") as file:
        file.write(gzip.compress(b"far\naway"))
    source = Source("w", (url,), ("a", None, "train"))
    assert list(documents(source, Counter())) == ["far\n", "away"]
    assert identity(source) != identity(Source("w", (url.replace("1f2e", "3d4c"),)))
    monkeypatch.setattr(fsspec, "open", lambda *a: 1 / 0)
    with pytest.raises(UserError, match=r"--data w: memory://.*/a.txt.gz: division by zero"):
        list(documents(source, Counter()))
