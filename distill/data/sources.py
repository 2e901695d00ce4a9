"""Sources: what `--data` may name (docs/usage.md, Text), and the documents in it.

    docs                                         the prose that docs.py finds on this machine
    NAME=path/or/glob[:column]                   text, JSON and parquet files
    NAME=hub:dataset[:config][:split][:column]   a hub dataset: the same kinds of files, on the hub

An `@N` after the last two declares the size of the corpus in tokens, for the language weights.

Files of both are opened by fsspec and decompressed by pyarrow: unlike the readers of `datasets`,
they need not parse the columns that are not wanted, can stop in a line of gigabytes, and raise an
error for every damaged stream.
"""

import glob
import io
import json
import lzma
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, BinaryIO

import fsspec
import numpy as np
import xxhash

from distill.data.docs import docs_documents, docs_identity
from minitransformer.files import UserError, first_line

LONGEST_DOCUMENT = 10_000  # characters; a longer text is cut into several documents
LONGEST_LINE = 2**26  # characters of a line of JSON
PART, PARTS = 2**16, 64  # bytes of a large file that are hashed, and at how many places


@dataclass(frozen=True)
class Source:
    """One corpus as `--data` names it; `kind` is docs, files or hub."""

    name: str
    kind: str
    files: tuple[str, ...] = ()  # paths; of a hub dataset URLs, once look_up has found them
    dataset: str = ""
    config: str = ""
    split: str = "train"
    column: str = "text"
    tokens: int | None = None  # declared size, for the language weights
    rows: Any = None  # a hub dataset that is not made of the files read here


def parse_sources(specs: list[str]) -> list[Source]:
    """Return what the values of `--data` name. Cheap: it looks no further than file names."""
    sources = [parse_source(spec) for spec in specs]
    name, count = Counter(source.name for source in sources).most_common(1)[0]
    if count > 1:
        raise UserError(f"--data: duplicate corpus name {name!r}; give each corpus its own NAME=")
    return sources


def parse_source(spec: str) -> Source:
    """Return the source that one value of `--data` names. It looks no further than file names."""
    if spec == "docs":
        return Source("docs", "docs")
    if re.search("[\ud800-\udfff]", spec):
        raise UserError(f"--data {spec!r}: not UTF-8; rename the file or corpus")
    name, _, where = spec.partition("=")
    if not (name and where):
        raise UserError(
            f"--data {spec}: unknown; give docs, NAME=path/or/glob[:column] or"
            " NAME=hub:dataset[:config][:split][:column]"
        )
    tokens, size = None, re.search(r"@([^/@:]*)$", where)
    if size and not found(where):
        where = where[: size.start()]
        if re.fullmatch(r"\d+(\.\d*)?([eE]\d\d?)?", size[1]):
            tokens = int(float(size[1]))
        if not tokens:
            raise UserError(
                f"--data {spec}: {size[0]} is not a number of tokens; write for example @1.2e9"
            )
    if where.startswith("hub:"):
        parts = where.removeprefix("hub:").split(":")
        if len(parts) > 4 or not parts[0]:
            raise UserError(f"--data {spec}: expected hub:dataset[:config][:split][:column]")
        dataset, config, split, column = parts + [""] * (4 - len(parts))
        dataset = os.path.expanduser(dataset)
        return Source(name, "hub", (), dataset, config, split or "train", column or "text", tokens)
    column = "text"
    if not found(where) and ":" in where:
        where, _, column = where.rpartition(":")
    paths = found(where)
    files = [path for path in paths if not os.path.isdir(path)]
    if not files:
        folder = paths and f"{paths[0]} is a folder; give {os.path.join(paths[0], '*.txt')} or so"
        raise UserError(f"--data {spec}: {folder or f'no file matches {where}'}")
    for file in files:
        if file_format(file) is None:
            known = f"{', '.join(READERS)}, or one of them as {', '.join(COMPRESSIONS)}"
            raise UserError(f"--data {spec}: {file} is none of {known}")
        if not os.path.isfile(file):
            raise UserError(f"--data {spec}: {file} is not a file, or a link to one that is gone")
    return Source(name, "files", tuple(files), column=column, tokens=tokens)


def found(pattern: str) -> list[str]:
    """Return the path itself where there is one (it may hold "["), else what the glob matches."""
    pattern = os.path.expanduser(pattern)
    return [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern, recursive=True))


def look_up(source: Source) -> Source:
    """Return the source of a hub dataset with its files, and with its size if that is known."""
    import datasets  # here, because hub datasets alone need its two seconds of import

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its errors are raised as well
    try:
        builder = datasets.load_dataset_builder(source.dataset, source.config or None)
        files = builder.config.data_files or {}
        if source.split not in files:
            raise UserError(f"no split {source.split!r}, only {', '.join(map(str, files))}")
        source = replace(source, files=tuple(files[source.split]))
        split = (builder.info.splits or {}).get(source.split)
        if split and not source.tokens:
            source = replace(source, tokens=split.num_bytes // 4)
        if all(map(file_format, source.files)):
            return source
        rows = builder.as_streaming_dataset(source.split).select_columns([source.column])
    except Exception as error:  # the library raises a dozen unrelated types
        raise UserError(
            f"--data {source.name}: cannot open the hub dataset {source.dataset}"
            f" ({first_line(error)})"
        ) from error
    return replace(source, rows=rows)


def identity(source: Source) -> str:
    """Return what the token cache is keyed by.

    docs: the versions of all packages. Files: path, size, time of change, and a hash of the
    content, of large files at PARTS places. Hub: the URLs of its files, which hold the commit.
    """
    if source.kind == "docs":
        return docs_identity()
    digest = xxhash.xxh3_128(source.column.encode())
    for file in source.files:
        digest.update(file.encode("utf-8", "replace"))
        if source.kind == "hub" and not os.path.exists(file):
            continue
        status = os.stat(file)
        digest.update(f"{os.path.abspath(file)} {status.st_size} {status.st_mtime_ns}".encode())
        starts = np.linspace(0, max(0, status.st_size - PART), PARTS).astype(int)
        if status.st_size <= PART * PARTS:
            starts = range(0, status.st_size, PART)
        with open(file, "rb") as stream:
            for start in starts:
                stream.seek(start)
                digest.update(stream.read(PART))
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------
# Documents
# --------------------------------------------------------------------------------------------------


def documents(source: Source, skipped: Counter) -> Iterator[str]:
    """Yield the documents of a source in a fixed order.

    A text of more than LONGEST_DOCUMENT characters comes as several documents. Rows without text
    are counted in `skipped` by reason.
    """
    if source.kind == "docs":
        for _, text in docs_documents():
            yield from cut(text)
    elif source.rows is not None:
        rows = ((f"row {number}", row) for number, row in enumerate(source.rows, 1))
        yield from texts(source, source.dataset, rows, skipped)
    else:
        for file in source.files:
            yield from texts(source, file, read_file(file, source.column), skipped)


def texts(
    source: Source, file: str, rows: Iterable[tuple[str, dict]], skipped: Counter
) -> Iterator[str]:
    """Yield the documents in the rows of a file; an error names the corpus, the file and the row.

    rows   (place, row): where the row stands, and its columns
    """
    column, names = source.column, {}
    try:
        for count, (place, row) in enumerate(rows, 1):
            names.update(row)
            if count == 100 and column not in names:
                break
            value = row.get(column)
            if isinstance(value, str) and value.strip():
                yield from cut(value)
            elif isinstance(value, str | None):
                absent = "null" if column in row else f"without a column {column!r}"
                skipped[absent if value is None else "empty"] += 1
            else:
                raise UserError(
                    f"{place}: column {column!r} holds {type(value).__name__}, not text"
                )
        if names and column not in names:
            raise UserError(f"no column {column!r}; its columns are {', '.join(names):.200}")
    except Exception as error:  # of files, compression, parquet or the network: unrelated types
        advice = "; convert it to UTF-8 first" if isinstance(error, UnicodeError) else ""
        message = f"--data {source.name}: {file}: {first_line(error)}{advice}"
        raise UserError(message) from error


def cut(text: str) -> Iterator[str]:
    """Yield the text in parts of at most LONGEST_DOCUMENT characters; each ends a line or word."""
    start = 0
    while len(text) - start > LONGEST_DOCUMENT:
        end = start + LONGEST_DOCUMENT
        place = text.rfind("\n", start + LONGEST_DOCUMENT // 2, end) + 1
        place = place or text.rfind(" ", start, end + 1)
        if place <= start:  # one word of that length
            place = end
        yield text[start:place]
        start = place
    if start < len(text):
        yield text[start:]


# --------------------------------------------------------------------------------------------------
# Files. A reader takes an open file and the column that is wanted, and yields (place, row).
# --------------------------------------------------------------------------------------------------


def read_file(file: str, column: str) -> Iterator[tuple[str, dict]]:
    """Yield the rows of a path or URL."""
    reader, compression = file_format(file)
    with fsspec.open(file, "rb") as packed:
        if packed.read(24) == b"version https://git-lfs.":
            raise UserError("a Git LFS pointer: run git lfs pull")
        packed.seek(0)
        yield from reader(decompressed(packed, compression), column)


def decompressed(file: BinaryIO, compression: str | None) -> BinaryIO:
    import pyarrow  # here, because it takes half a second that `docs` need not pay

    if compression == "xz":
        return lzma.open(file)
    if compression:
        file = pyarrow.PythonFile(file, mode="r")
        return io.BufferedReader(pyarrow.CompressedInputStream(file, compression))
    return file


def read_txt(file: BinaryIO, column: str) -> Iterator[tuple[str, dict]]:
    """A blank line ends a document; where the first 1,000 lines have none, each is a document."""
    numbered = lines(file, LONGEST_DOCUMENT)
    head = list(islice(numbered, 1000))
    separated = re.search(r"\n\s*\n", "".join(line for _, line in head).strip())
    text = ""
    for number, line in chain(head, numbered):
        place, blank = f"line {number}", not line.strip()
        if not blank:
            text += line
        if len(text) > LONGEST_DOCUMENT:  # memory stays bounded, also where no line ever ends
            *whole, text = cut(text)
            for part in whole:
                yield place, {column: part}
        if text and (blank if separated else line.endswith("\n")):
            yield place, {column: text}
            text = ""
    if text:
        yield "last line", {column: text}


def read_json(file: BinaryIO, column: str) -> Iterator[tuple[str, dict]]:
    """One object a line, or one array of objects in the whole file."""
    numbered = lines(file, LONGEST_LINE)
    for number, line in numbered:
        is_array = number == 1 and line.lstrip().startswith("[")
        while is_array and len(line) < LONGEST_LINE and (more := next(numbered, None)):
            line += more[1]
        if len(line) >= LONGEST_LINE:
            what = "an array" if is_array else "one line"
            raise UserError(f"line {number}: more than {LONGEST_LINE:,} characters in {what}")
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):  # not JSON, or a number of thousands of digits
            raise UserError(f"line {number}: not JSON; expected one object a line") from None
        for row in value if is_array else [value]:
            if not isinstance(row, dict):
                kind = type(row).__name__
                raise UserError(f"line {number}: holds {kind}, not an object with {column!r}")
            yield f"line {number}", row


def read_parquet(file: BinaryIO, column: str) -> Iterator[tuple[str, dict]]:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(file)
    names = table.schema_arrow.names
    if names.count(column) != 1:
        count = names.count(column) or "no"
        raise UserError(f"{count} column {column!r}; its columns are {', '.join(names):.200}")
    batches = table.iter_batches(64, columns=[column])
    values = chain.from_iterable(batch.column(0).to_pylist() for batch in batches)
    for number, value in enumerate(values, 1):
        yield f"row {number}", {column: value}


def lines(file: BinaryIO, limit: int) -> Iterator[tuple[int, str]]:
    """Yield (number, line); a line of more than `limit` characters comes in parts."""
    number, at_start, nuls, size = 0, True, 0, 0
    with io.TextIOWrapper(file, "utf-8-sig") as stream:
        while line := stream.readline(limit):
            number += at_start
            at_start = line.endswith("\n")
            nuls, size = nuls + line.count("\0"), size + len(line)
            if nuls > 8 and nuls > size / 50:  # a stray one does no harm
                problem = f"{nuls} of the first {size} characters are NUL, as in UTF-16"
                raise UserError(f"line {number}: {problem}; convert it to UTF-8 first")
            yield number, line.removeprefix("\ufeff")  # files with a BOM were joined


READERS = {".txt": read_txt, ".parquet": read_parquet}
READERS |= dict.fromkeys((".jsonl", ".ndjson", ".json"), read_json)
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".xz": "xz"}


def file_format(file: str) -> tuple[Callable, str | None] | None:
    """Return the reader for a file's name and its compression; None where there is no reader."""
    name, suffix = os.path.splitext(file.lower())
    compression = COMPRESSIONS.get(suffix)
    if compression:
        suffix = os.path.splitext(name)[1]
    if suffix not in READERS or (compression and suffix == ".parquet"):
        return None
    return READERS[suffix], compression
