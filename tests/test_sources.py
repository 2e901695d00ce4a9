"""Sources: what --data may say, and the documents that files turn into."""

import bz2
import gzip
import json
import os
from collections import Counter

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from distill.data import sources
from distill.data.sources import Source, documents, identity, look_up, parse_source, parse_sources
from minitransformer.files import UserError


def read(spec):
    source = parse_source(spec)
    return list(documents(look_up(source) if source.hub else source, Counter()))


def write(name, content):
    """Write text, bytes, columns (to parquet) or rows (as JSON lines)."""
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    if isinstance(content, dict):
        pyarrow.parquet.write_table(pyarrow.table(content), name)
        return
    if isinstance(content, list):
        content = "\n".join(map(json.dumps, content))
    with open(name, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


COMPRESS = {"gz": gzip.compress, "bz2": bz2.compress}
COMPRESS["zst"] = lambda content: pyarrow.compress(content, "zstd", asbytes=True)
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def test_what_data_may_say(folder, monkeypatch):
    for name in ("a.txt", "b.txt", "c:d.txt", "[a]@b.txt", "sub/f.txt", "F.JSONL.GZ"):
        write(name, "x")
    monkeypatch.setenv("HOME", str(folder))
    files = {
        "*.txt": ("[a]@b.txt", "a.txt", "b.txt", "c:d.txt"),
        "**/**/f.txt": ("sub/f.txt",),
        "c:d.txt": ("c:d.txt",),  # a colon may belong to the name
        "[a]@b.txt:text@3": ("[a]@b.txt",),  # as may these
        "*@b.txt": ("[a]@b.txt",),
        "~/a.t*": (f"{folder}/a.txt",),
    }
    for where, found in files.items():
        assert parse_source(f"web={where}").files == found
    assert parse_sources(["docs", "wordnet"]) == [Source("docs"), Source("wordnet")]
    expected = Source("w", ("F.JSONL.GZ",), None, "body", 2_000_000)
    assert parse_source("w=F.JSONL.GZ:body@2e6") == expected
    hub = (f"{folder}/b", "sw", "validation")
    expected = Source("w", (), hub, "body", 12 * 10**8)
    assert parse_source("w=hub:~/b:sw:validation:body@1.2e9") == expected


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ("web", "unknown; give wordnet, docs"),
        ("w=hub:a:b:c:d:e", "more than dataset, config, split and column"),
        ("web=~/none*.txt", r"no such file: ~/none\*.txt"),
        ("web=a.csv", r"a.csv is none of .txt, .parquet, .jsonl, .ndjson, .json"),
        ("web=folder.t*", r"folder.t\*; for a folder, give FOLDER/\*.txt"),
        ("web=a.txt:body", "a .txt has no column 'body'; leave it out"),
        ("web=cut.txt.gz", "cut.txt.gz is empty, which no compressed file is"),
        ("web=link.*", "cannot read link.txt"),
        ("web=fifo.txt", "fifo.txt is not a regular file"),
        ("web=lfs.txt", "lfs.txt is a Git LFS pointer: run git lfs pull"),
        ("en=a.txt docs en=a.t*", "duplicate corpus name 'en'"),
    ],
)
def test_what_it_may_not(folder, specs, message):
    for name, text in {"a.txt": "x", "a.csv": "x", "lfs.txt": LFS, "cut.txt.gz": ""}.items():
        write(name, text)
    os.mkdir("folder.txt")
    os.symlink("nowhere.txt", "link.txt")
    os.mkfifo("fifo.txt")
    with pytest.raises(UserError, match=message):
        parse_sources(specs.split())


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "\ufeffa\nb\n\n \t\n\nc\r\nd\r\n\r\nfünf 字", ["a\nb\n", "c\nd\n", "fünf 字"]),
        ("a.txt", "\none\ntwo\n\n", ["one\n", "two\n"]),  # no blank line between: each is one
        ("a.txt", "a\0b\n" + "word\n" * 9, ["a\0b\n"] + ["word\n"] * 9),
        ("A.TXT", "one\n\n\ufefftwo", ["one\n", "two"]),  # two files with a BOM, joined
        ("a.jsonl", '{"text": "one"}\n\n\ufeff{"text": "two\\n\\nx"}\r\n', ["one", "two\n\nx"]),
        ("a.Ndjson", '{"text": "one", "x": 1}\n{"x": {"y": []}, "text": "two"}', ["one", "two"]),
        ("a.json", '{"text": "one"}\n{"text": null}\n{"y": 1}\n{"text": " "}', ["one"]),
    ],
)
def test_documents_of_a_file(folder, name, content, expected):
    write(name, content)
    assert read(f"w={name}") == expected


def test_a_column_that_is_not_wanted_may_be_anything_in_any_shard(folder):
    """Also on the hub, whose library stops at the second shard."""
    write("rows/a.jsonl", [{"text": "a", "x": 1}])
    write("rows/b.jsonl", [{"text": "b", "x": {"y": 2}, "z": 3}])
    far = pyarrow.array([2**50], pyarrow.timestamp("ms"))  # no date of Python's
    write("columns/a.parquet", {"text": ["a"], "x": far})
    write("columns/b.parquet", {"z": ["y"], "text": ["b"]})
    for where in ("rows", "columns"):
        assert read(f"w={where}/*") == read(f"w=hub:{where}") == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\ncaf\xe9", "a.txt: .* byte 0xe9, convert it to UTF-8$"),
        ("a.txt", ("слово и слово\n" * 50).encode("utf-16-le"), "NULs, as in UTF-16"),
        ("a.txt", ("слово и слово\n" * 50).encode("utf-16-be"), "NULs, as in UTF-16"),
        ("a.txt", "one line".encode("utf-16-le"), "NULs, as in UTF-16"),
        ("a.jsonl", '{"text": "a"}\n{"text": ', "line 2: not JSON with one object per line"),
        ("a.jsonl", "[" * 100_000, "line 1: not JSON"),
        ("a.jsonl", '{"text": "a"}\n3', "line 2: not JSON with one object"),
        ("a.jsonl", '[{"text": "a"}]', "line 1: not JSON with one object"),
        ("a.jsonl", '{"text": "a"}\n{"text": 3}', "column 'text' holds int, not text"),
        ("a.jsonl", '\n{"n": 1, "b": 2}\nbroken', "no column 'text'; its columns are n, b"),
        ("a.parquet", {"n": [1], "b": ["x"]}, "no column 'text'; its columns are n, b"),
        ("a.parquet", {"text": [["x"]]}, "column 'text' holds list, not text"),
        ("a.parquet", "PAR1 and then nonsense PAR1", "a.parquet: "),
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(folder, name, content, message):
    write(name, content)
    with pytest.raises(UserError, match=f"^--data w: .*{message}"):
        read(f"w={name}")


def test_a_long_text_is_cut(folder):
    write("a.txt", "word " * 50_000)
    assert "".join(read("w=a.txt")) == "word " * 50_000
    assert max(map(len, read("w=a.txt"))) == sources.LONGEST_DOCUMENT
    line, counts = "word " * 100 + "\n", Counter()
    write("b.txt", line * 60 + "\nend")  # cut between lines: no scraps
    expected = [line * 19, line * 19, line * 19, line * 3, "end"]
    assert [*documents(parse_source("w=b.txt"), counts)] == expected
    assert counts == {"files split at blank lines": 1}


@pytest.mark.parametrize("kind", COMPRESS)
def test_compressed_files_with_several_streams(folder, kind):
    text = "".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(3000)).encode()
    first, second = map(COMPRESS[kind], (text[:20_000], text[20_000:]))  # amid a line
    write(f"a.JSONL.{kind}", first + second)
    assert read(f"w=a.JSONL.{kind}") == [f"text {i}" for i in range(3000)]
    broken = [(first + second)[:-1], first + second[: len(second) // 2], first[:-1], first[:5]]
    broken += [first + b"XX" + second[2:], first + second[:3]]
    for content in broken:
        write(f"a.jsonl.{kind}", content)
        with pytest.raises(UserError, match=rf"^--data w: a.jsonl.{kind}: .+"):
            read(f"w=a.jsonl.{kind}")


def test_the_identity_of_files_is_their_content_and_time(folder):
    quarter = 2**22
    contents = [b"one", b"ones", b"twos"]  # also changed at equal size
    contents += [b"x" * i * quarter + b"y" * quarter + b"x" * (3 - i) * quarter for i in range(4)]
    seen = set()
    for content in contents:
        for time in (0, 1):
            write("a.txt", content)
            os.utime("a.txt", (time, time))
            seen.add(identity(parse_source("w=a.txt")))
    assert len(seen) == 2 * len(contents)


def test_files_of_the_hub(folder):
    write("data/a.txt", "one")
    with pytest.raises(UserError, match="--data w: data, test: "):
        read("w=hub:data::test")
    url = "memory://a@1f2e/a.txt.gz"
    with fsspec.open(url, "wb") as file:
        file.write(gzip.compress(b"far\naway"))
    source = Source("w", (url,), ("a", None, "train"))
    assert list(documents(source, Counter())) == ["far\n", "away"]
    assert identity(source) != identity(Source("w", (url.replace("1f2e", "3d4c"),)))
