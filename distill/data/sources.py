"""Text: where documents come from. `docs` (already on every machine), files, hub datasets.

`--data` may be given several times; each value names one corpus:

    docs                                      English prose of the installed libraries' docstrings
                                              and the Python reference
    NAME=path/or/glob[:column]                .txt (documents end at a blank line), .jsonl, .parquet
                                              (column: default `text`)
    NAME=hub:dataset[:config][:split][:column]   a hub dataset, streamed, never on disk as a whole

An `@N` behind the last two declares the corpus' size in tokens (`sw=hub:uonlp/CulturaX:sw@1.2e9`),
which several corpora need for their language weights where a stream does not declare it itself.

This file turns a source into an iterator of plain strings; data.py turns strings into batches.
"""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distill.data.docs import docs_documents, docs_identity
from minitransformer.errors import UserError

LONGEST_PIECE = 100_000  # characters; a file without a single blank line must not become one string


@dataclass(frozen=True)
class Source:
    """One corpus as `--data` names it; `kind` is docs, files or hub."""

    name: str
    kind: str
    files: tuple[str, ...] = ()
    dataset: str = ""
    config: str = ""
    split: str = "train"
    column: str = "text"
    tokens: int | None = None  # declared size n, for the language weights


def parse_source(spec: str) -> Source:
    """`docs` | NAME=path/or/glob[:column] | NAME=hub:dataset[:config][:split][:column], each but
    docs with an optional @tokens.
    """
    if spec == "docs":
        return Source("docs", "docs")
    name, equals, where = spec.partition("=")
    if not equals or not name or not where:
        raise UserError(
            f"--data {spec}: unknown; give docs, NAME=path/or/glob[:column] or"
            " NAME=hub:dataset[:config][:split][:column]"
        )
    where, at, size = where.rpartition("@") if re.search(r"@[^/@]*$", where) else (where, "", "")
    tokens = None
    if at:
        try:
            tokens = int(float(size))
        except (ValueError, OverflowError):
            tokens = 0
        if tokens <= 0:
            raise UserError(
                f"--data {spec}: @{size} is not a number of tokens; write for example @1.2e9"
            )
    if where.startswith("hub:"):
        parts = where[4:].split(":")
        if len(parts) > 4 or not parts[0]:
            raise UserError(f"--data {spec}: expected hub:dataset[:config][:split][:column]")
        dataset, config, split, column = parts + [""] * (4 - len(parts))
        return Source(name, "hub", (), dataset, config, split or "train", column or "text", tokens)
    pattern, column = where, "text"
    if not glob.glob(pattern, recursive=True) and ":" in where:
        pattern, _, column = where.rpartition(":")
    files = tuple(sorted(f for f in glob.glob(pattern, recursive=True) if os.path.isfile(f)))
    if not files:
        raise UserError(f"--data {spec}: no file matches {pattern}")
    for file in files:
        if Path(file).suffix not in READERS:
            raise UserError(f"--data {spec}: {file} is none of {', '.join(READERS)}")
    return Source(name, "files", files, column=column, tokens=tokens)


def documents(source: Source) -> Iterator[str]:
    """The source's documents, in a fixed order (hub datasets are read by data.py, which keeps their
    position).
    """
    if source.kind == "docs":
        yield from (text for _, text in docs_documents())
    for file in source.files:
        yield from READERS[Path(file).suffix](file, source.column)


def identity(source: Source) -> str:
    """What the token cache is keyed by: for files path, size and time of change; for docs the
    versions of all packages.
    """
    if source.kind == "docs":
        return docs_identity()
    facts = [(os.path.abspath(f), os.path.getsize(f), os.stat(f).st_mtime_ns) for f in source.files]
    return hashlib.sha256(json.dumps([facts, source.column]).encode()).hexdigest()


# --------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------


def read_txt(file: str, column: str) -> Iterator[str]:
    piece, size = [], 0
    for line in _lines(file):
        # a line without end arrives in chunks, so a file of one line costs no more memory than
        # another
        if line.strip():
            piece.append(line)
            size += len(line)
        if (not line.strip() or size >= LONGEST_PIECE) and piece:
            yield "".join(piece)
            piece, size = [], 0
    if piece:
        yield "".join(piece)


def read_jsonl(file: str, column: str) -> Iterator[str]:
    for number, line in enumerate(_lines(file, limit=-1), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[column]
        except (KeyError, TypeError, IndexError):
            raise UserError(
                f"{file}, line {number}: no column {column!r}; name it as NAME={file}:COLUMN"
            ) from None
        except (ValueError, RecursionError):  # not JSON, or a number of thousands of digits
            raise UserError(
                f"{file}, line {number}: not JSON; expected one object a line"
            ) from None
        yield _string(text, f"{file}, line {number}: column {column!r}")


def read_parquet(file: str, column: str) -> Iterator[str]:
    import pyarrow  # here, because it takes half a second that other sources need not pay
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        if column not in table.schema_arrow.names:
            names = ", ".join(table.schema_arrow.names)
            raise UserError(
                f"{file}: no column {column!r}, but {names}; name it as NAME={file}:COLUMN"
            )
        row = 0
        for batch in table.iter_batches(batch_size=1000, columns=[column]):
            for text in batch.column(0).to_pylist():
                row += 1
                yield _string(text, f"{file}, row {row}: column {column!r}")
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{file}: not a readable parquet file ({str(error).splitlines()[0]})"
        ) from None


READERS = {".txt": read_txt, ".jsonl": read_jsonl, ".parquet": read_parquet}


def _string(text, where: str) -> str:
    if not isinstance(text, str):
        raise UserError(f"{where} holds {type(text).__name__}, not text")
    return text.encode("utf-8", "replace").decode()  # JSON can hold half of a surrogate pair


def _lines(file: str, limit: int = LONGEST_PIECE) -> Iterator[str]:
    number = 0
    try:
        with open(file, encoding="utf-8-sig") as stream:
            while line := stream.readline(limit):
                number += 1
                yield line
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}, near line {number + 1}: not UTF-8 ({error.reason}); convert it first"
        ) from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None


# --------------------------------------------------------------------------------------------------
# docs: the prose that every machine has
# --------------------------------------------------------------------------------------------------
