"""Sources: what --data may say, and the documents that files and docstrings turn into."""

import json
import os
import threading

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from distill.data import sources as text
from distill.data.sources import documents, identity, parse_source
from minitransformer.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(spec):
    return list(documents(parse_source(spec)))


# ---- --data --------------------------------------------------------------------------------------


def test_what_data_may_say(folder):
    for name in ("a.txt", "b.txt", "c:d.txt", "e.jsonl"):
        (folder / name).write_text("x")
    (folder / "sub").mkdir()
    (folder / "sub" / "f.txt").write_text("x")
    assert parse_source("docs") == text.Source("docs", "docs")
    source = parse_source("web=*.txt")
    assert (source.name, source.kind, source.column) == ("web", "files", "text")
    assert source.files == ("a.txt", "b.txt", "c:d.txt")
    assert parse_source("web=**/*.txt").files[-1] == os.path.join("sub", "f.txt")
    assert parse_source("web=c:d.txt").files == ("c:d.txt",)  # a colon may belong to the name
    assert parse_source("web=e.jsonl:body").column == "body"
    assert parse_source("web=a.txt@2e6").tokens == 2_000_000
    hub = parse_source("sw=hub:uonlp/CulturaX:sw@1.2e9")
    assert (hub.dataset, hub.config, hub.split, hub.column, hub.tokens) == (
        "uonlp/CulturaX",
        "sw",
        "train",
        "text",
        1_200_000_000,
    )
    hub = parse_source("w=hub:a/b::validation:body")
    assert (hub.dataset, hub.config, hub.split, hub.column) == ("a/b", "", "validation", "body")
    assert hub.tokens is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nonsense", "unknown; give docs"),
        ("", "unknown; give docs"),
        ("=a.txt", "unknown"),
        ("web=", "unknown"),
        ("web=none*.txt", r"no file matches none\*"),
        ("web=.", "no file matches"),
        ("web=a.csv", "a.csv is none of .txt, .jsonl, .parquet"),
        ("web=hub:", "expected hub:dataset"),
        ("web=hub:a:b:c:d:e", "expected hub:dataset"),
        ("web=hub:a@many", "@many is not a number"),
        ("web=a.csv@-5", "@-5 is not a number"),
        ("web=a.csv@1e400", "@1e400 is not a number"),
        ("web=a.csv@nan", "@nan is not a number"),
    ],
)
def test_what_it_may_not(folder, spec, message):
    (folder / "a.csv").write_text("x")
    with pytest.raises(UserError, match=message):
        parse_source(spec)


def test_a_file_is_known_by_path_size_and_time(folder):
    file = folder / "a.txt"
    file.write_text("one")
    seen = {identity(parse_source("w=a.txt"))}
    assert identity(parse_source(f"other={file}")) in seen
    file.write_text("ones")
    seen.add(identity(parse_source("w=a.txt")))
    os.utime(file, ns=(0, 0))
    seen.add(identity(parse_source("w=a.txt")))
    assert len(seen) == 3


# ---- files ---------------------------------------------------------------------------------------


def test_txt_documents_end_at_blank_lines(folder):
    (folder / "a.txt").write_bytes("\ufeffone\ntwo\n\n \t\n\nthree\r\nfour\r\n\r\nfünf 字".encode())
    assert read("w=a.txt") == ["one\ntwo\n", "three\nfour\n", "fünf 字"]
    (folder / "b.txt").write_text("\n\n\n")
    assert read("w=b.txt") == []


def test_txt_without_a_blank_line_or_without_any_end_of_line_comes_in_pieces(folder):
    """A file of gigabytes must not become one string."""
    (folder / "a.txt").write_text("word word\n" * 50_000)
    pieces = read("w=a.txt")
    assert "".join(pieces) == "word word\n" * 50_000
    assert max(map(len, pieces)) <= text.LONGEST_PIECE + 10
    (folder / "a.txt").write_text("x" * 350_000)
    assert list(map(len, read("w=a.txt"))) == [100_000, 100_000, 100_000, 50_000]


def test_jsonl(folder):
    rows = [{"text": "a\nb", "body": "c"}, {"text": ""}, {"text": "half \ud83d of a pair"}]
    lines = [json.dumps(row) for row in rows]
    (folder / "a.jsonl").write_text("\n\n".join(lines))
    assert read("w=a.jsonl") == ["a\nb", "", "half ? of a pair"]
    (folder / "a.jsonl").write_text(lines[0])
    assert read("w=a.jsonl:body") == ["c"]


def test_parquet(folder):
    table = pyarrow.table({"text": ["a", "b", "c"], "n": [1, 2, 3], "t": ["d", None, "f"]})
    pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=2)
    assert read("w=a.parquet") == ["a", "b", "c"]
    with pytest.raises(UserError, match=r"row 1: column 'n' holds int, not text"):
        read("w=a.parquet:n")
    with pytest.raises(UserError, match=r"row 2: column 't' holds NoneType, not text"):
        read("w=a.parquet:t")
    with pytest.raises(UserError, match="no column 'body', but text, n, t; name it as"):
        read("w=a.parquet:body")


def test_several_files_in_the_order_of_their_names(folder):
    (folder / "b.txt").write_text("two")
    (folder / "a.jsonl").write_text('{"text": "one"}')
    pyarrow.parquet.write_table(pyarrow.table({"text": ["three"]}), folder / "c.parquet")
    assert read("w=*") == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\nfine\n\xff\xfe", r"a.txt, near line \d: not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\nnonsense', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl, line 1: not JSON"),
        ("a.jsonl", b'{"text": ' + b"1" * 5000 + b"}", "a.jsonl, line 1: not JSON"),
        (
            "a.jsonl",
            b'{"body": "x"}',
            "a.jsonl, line 1: no column 'text'; name it as NAME=a.jsonl:COL",
        ),
        ("a.jsonl", b'["text"]', "a.jsonl, line 1: no column 'text'"),
        ("a.jsonl", b'"text"', "a.jsonl, line 1: no column 'text'"),
        ("a.jsonl", b"3", "a.jsonl, line 1: no column 'text'"),
        ("a.jsonl", b'{"text": 3}', "a.jsonl, line 1: column 'text' holds int, not text"),
        ("a.jsonl", b"\xff\xfe", "a.jsonl, near line 1: not UTF-8"),
        ("a.parquet", b"", "a.parquet: not a readable parquet file"),
        ("a.parquet", b"PAR1 and then nonsense PAR1", "a.parquet: not a readable parquet file"),
    ],
)
def test_files_that_cannot_be_read_are_named_with_the_line(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(f"w={name}")


def test_a_file_that_is_gone_when_its_turn_comes(folder):
    (folder / "a.txt").write_text("x")
    source = parse_source("w=a.txt")
    (folder / "a.txt").unlink()
    with pytest.raises(UserError, match=r"a.txt: cannot be read \(No such file"):
        list(documents(source))


# ---- docs ----------------------------------------------------------------------------------------

MODULE = '''
"""This is a paragraph of the module with more than eight words in it.

>>> 1 + 1 and more words that make a long line of an example session

Too short.

The same paragraph stands here and in another module with many words.
"""

class A:
    """A class has words, too, and they are read like those of modules."""

    def f():
        """if (x := a[i]) != {**b}: return c->d << 3; e |= ~f; g = h % j == 0 && k || l"""
'''


def test_docs_are_the_prose_of_docstrings(folder, monkeypatch):
    (folder / "lib").mkdir()
    (folder / "lib" / "one.py").write_text(MODULE)
    (folder / "lib" / "two.py").write_text(
        '"""The same paragraph stands here and in another module with many words."""'
    )
    (folder / "lib" / "three.py").write_text('"""print this is Python two with a docstring\n')
    modules = [
        (name, text._docstrings(folder / "lib" / f"{name}.py")) for name in ("one", "two", "three")
    ]
    monkeypatch.setattr(text, "_all_docstrings", lambda: modules)
    expected = [
        (
            "one",
            "This is a paragraph of the module with more than eight words in it.\n"
            "The same paragraph stands here and in another module with many words.\n"
            "A class has words, too, and they are read like those of modules.",
        )
    ]
    assert text.docs_documents() == expected
    monkeypatch.setattr(text, "_all_docstrings", lambda: 1 / 0)  # from the cache now
    assert text.docs_documents() == expected
    assert read("docs") == [expected[0][1]]
    monkeypatch.setattr(text, "docs_identity", lambda: "another version of a library")
    with pytest.raises(ZeroDivisionError):
        text.docs_documents()


def test_several_processes_may_want_the_same_token_file_at_once(folder, monkeypatch):
    """Threads with a lock file each behave as processes do: one writes, the others wait."""
    from test_data import CountingTokenizer

    from distill.data import corpus

    (folder / "a.txt").write_text(" ".join(map(str, range(10, 5000))))
    whole, writing, made = corpus._write_tokens, [], []

    def write(*args):
        assert not writing
        writing.append(0)
        threading.Event().wait(0.05)
        made.append(whole(*args))
        writing.clear()
        return made[-1]

    monkeypatch.setattr(corpus, "_write_tokens", write)
    results = []
    threads = [
        threading.Thread(
            target=lambda: results.append(
                corpus.tokenise(parse_source("w=a.txt"), CountingTokenizer())
            )
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert results == [results[0]] * 4
    assert len(np.fromfile(results[0][0], "uint16")) == 4991
