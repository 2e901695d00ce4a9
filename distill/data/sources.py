"""Sources: what `--data` may name (docs/usage.md, Text), and the documents in it.

    docs                                         the prose that docs.py finds on this machine
    NAME=path/or/glob[:column]                   text, JSON and parquet files
    NAME=hub:dataset[:config][:split][:column]   a hub dataset of such files

An `@N` after the last two declares the size of the corpus in tokens, for the language weights.

Files here and on the hub are opened by fsspec and decompressed by pyarrow, not by `datasets`: its
readers stop at a shard with a further column, need 6 GB for a line of 1 GB, and take a damaged bz2
stream for the end of its file.
"""

import glob
import io
import json
import lzma
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import BinaryIO

import fsspec
import xxhash

from distill.data.docs import docs_identity, docs_texts
from minitransformer.files import UserError, first_line

LONGEST_DOCUMENT = 10_000  # characters; a longer text is cut into several documents
LONGEST_LINE = 2**26  # characters of a line of JSON
PART, PARTS = 2**16, 64  # of a large file so many parts of so many bytes are hashed
FORM = "NAME=path/or/glob[:column] or NAME=hub:dataset[:config][:split][:column]"


@dataclass(frozen=True)
class Source:
    """One corpus as `--data` names it: `docs`, files, or the files of a hub dataset."""

    name: str
    files: tuple[str, ...] = ()  # paths or URLs; those of a hub dataset are found by look_up
    hub: tuple[str, str, str] | None = None  # dataset, config, split
    column: str = "text"
    tokens: int | None = None  # declared size


def parse_sources(specs: list[str]) -> list[Source]:
    """Return what the values of `--data` name. Cheap: it looks no further than file names."""
    sources = [parse_source(spec) for spec in specs]
    ((name, count),) = Counter(source.name for source in sources).most_common(1)
    if count > 1:
        raise UserError(f"--data: duplicate corpus name {name!r}; give each corpus its own NAME=")
    return sources


def parse_source(spec: str) -> Source:
    if spec == "docs":
        return Source("docs")
    match = re.fullmatch(r"([^=]+)=(.+?)(?:@(\d+(?:\.\d*)?(?:[eE]\d\d?)?))?", spec)
    if not match:
        raise UserError(f"--data {spec}: unknown; give docs, {FORM}")
    name, where, size = match.groups()
    tokens = int(float(size)) if size else None
    if where.startswith("hub:"):
        dataset, config, split, column = (where.split(":")[1:] + [""] * 4)[:4]
        hub = os.path.expanduser(dataset), config or None, split or "train"
        return Source(name, (), hub, column or "text", tokens)
    column = "text"
    if not found(where) and ":" in where:
        where, _, column = where.rpartition(":")
    files = [path for path in found(where) if not os.path.isdir(path)]
    if not files:
        problem = "a folder; give its files, as FOLDER/*.txt" if found(where) else "no such file"
        raise UserError(f"--data {spec}: {where}: {problem}")
    return Source(name, readable(spec, files), None, column, tokens)


def found(pattern: str) -> list[str]:
    """Return the path itself where there is one (it may hold "["), else what the glob matches."""
    pattern = os.path.expanduser(pattern)
    return [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern, recursive=True))


def look_up(source: Source) -> Source:
    """Return the source of a hub dataset with its files, and with its size if that is known."""
    import datasets  # here, because hub datasets alone need its two seconds of import

    dataset, config, split = source.hub
    datasets.disable_progress_bars()
    try:
        builder = datasets.load_dataset_builder(dataset, config)
        files = builder.config.data_files[split]
    except Exception as error:  # the library raises a dozen unrelated types
        problem = f"cannot open split {split} of the hub dataset {dataset} ({first_line(error)})"
        raise UserError(f"--data {source.name}: {problem}") from error
    info = (builder.info.splits or {}).get(split)
    tokens = source.tokens or (info and info.num_bytes // 4)
    return replace(source, files=readable(source.name, files), tokens=tokens)


def readable(name: str, files: list[str]) -> tuple[str, ...]:
    """Return the files of a corpus; refuse those that no reader is for."""
    for file in files:
        if file_format(file) is None:
            known = f"{', '.join(READERS)}, nor compressed as {', '.join(COMPRESSIONS)}"
            raise UserError(f"--data {name}: {file} is none of {known}")
        if "://" not in file and not os.path.isfile(file):  # a pipe would wait for ever
            raise UserError(f"--data {name}: {file} is not a file, or a link to one that is gone")
    return tuple(files)


def identity(source: Source) -> str:
    """Return what the token cache is keyed by.

    docs: the versions of all packages. Files: names, times of change, sizes and content, of large
    files at PARTS places. A URL on the hub holds the commit.
    """
    if not source.files:
        return docs_identity()
    digest = xxhash.xxh3_128(repr([source.column, *map(os.path.basename, source.files)]).encode())
    for file in source.files:
        if "://" in file:
            digest.update(file.encode())
            continue
        with open(file, "rb") as stream:
            status = os.fstat(stream.fileno())
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
            step = max(PART, status.st_size // PARTS)
            for start in (*range(0, status.st_size, step), max(0, status.st_size - PART)):
                stream.seek(start)
                digest.update(stream.read(PART))
    return digest.hexdigest()


def documents(source: Source, skipped: Counter) -> Iterator[str]:
    """Yield the documents of a source in a fixed order; a long text is cut into several.

    Rows without text are counted in `skipped` by reason.
    """
    if not source.files:
        for text in docs_texts():
            yield from cut(text)
    for file in source.files:
        try:
            for place, value in read_file(file, source.column):
                if value is not None and not isinstance(value, str):
                    problem = f"holds {type(value).__name__}, not text"
                    raise UserError(f"{place}: column {source.column!r} {problem}")
                if value and value.strip():
                    yield from cut(value)
                else:
                    skipped["null" if value is None else "empty"] += 1
        except Exception as error:  # of files, compression, parquet or the network: many types
            advice = "; convert it to UTF-8 first" if isinstance(error, UnicodeError) else ""
            message = f"--data {source.name}: {file}: {first_line(error)}{advice}"
            raise UserError(message) from error


def cut(text: str) -> list[str]:
    starts = range(0, len(text), LONGEST_DOCUMENT)
    return [text[start : start + LONGEST_DOCUMENT] for start in starts]


# A reader takes an open file and the column that is wanted, and yields (place, value).


def read_file(file: str, column: str) -> Iterator[tuple[str, object]]:
    import pyarrow  # here, because it takes half a second that `docs` need not pay

    reader, compression = file_format(file)
    with fsspec.open(file, "rb") as stream:
        if stream.read(24) == b"version https://git-lfs.":
            raise UserError("a Git LFS pointer: run git lfs pull")
        stream.seek(0)
        if compression == "xz":
            stream = lzma.LZMAFile(stream)  # noqa: SIM115 - closed with the file below it
        elif compression:
            packed = pyarrow.PythonFile(stream, mode="r")
            stream = io.BufferedReader(pyarrow.CompressedInputStream(packed, compression))
        yield from reader(stream, column)


def read_txt(file: BinaryIO, column: str) -> Iterator[tuple[str, str]]:
    """A blank line ends a document; where the first 1,000 lines have none, each is a document."""
    numbered = lines(file, 10 * LONGEST_DOCUMENT)
    head = list(islice(numbered, 1000))
    separated = re.search(r"\n\s*\n", "".join(line for _, line in head).strip())
    text, place = "", ""
    for place, line in chain(head, numbered):
        blank = not line.strip()
        text += "" if blank else line
        ended = blank if separated else line.endswith("\n")
        if text and (ended or len(text) > LONGEST_DOCUMENT):
            yield place, text
            text = ""
    if text:
        yield place, text


def read_json(file: BinaryIO, column: str) -> Iterator[tuple[str, object]]:
    """One object a line, or one array of objects in the whole file."""
    numbered, names, count = lines(file, LONGEST_LINE), {}, 0
    for place, line in numbered:
        while line.startswith("[") and len(line) < LONGEST_LINE and (more := next(numbered, None)):
            line += more[1]
        if len(line) >= LONGEST_LINE:
            raise UserError(f"{place}: more than {LONGEST_LINE:,} characters; split it")
        try:
            value = json.loads(line) if line.strip() else []
        except (ValueError, RecursionError):  # not JSON, or a number of thousands of digits
            raise UserError(f"{place}: not JSON; expected one object a line") from None
        for row in value if isinstance(value, list) else [value]:
            if not isinstance(row, dict):
                raise UserError(f"{place}: {type(row).__name__}, not an object with {column!r}")
            names |= dict.fromkeys(row)
            count += 1
            if count == 100:  # a wrong column is refused before all is read
                require(column, list(names))
            yield place, row.get(column)
    if names:
        require(column, list(names))


def read_parquet(file: BinaryIO, column: str) -> Iterator[tuple[str, object]]:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(file)
    require(column, table.schema_arrow.names)
    batches = table.iter_batches(64, columns=[column])
    values = chain.from_iterable(batch.column(0).to_pylist() for batch in batches)
    return ((f"row {number}", value) for number, value in enumerate(values, 1))


def require(column: str, names: list[str]) -> None:
    if (count := names.count(column)) != 1:
        listed = ", ".join(names)
        raise UserError(f"{count or 'no'} column {column!r}; its columns are {listed:.200}")


def lines(file: BinaryIO, limit: int) -> Iterator[tuple[str, str]]:
    """Yield (place, line); a line of more than `limit` characters comes in parts."""
    nuls = size = 0
    with io.TextIOWrapper(file, "utf-8-sig") as stream:
        for number, line in enumerate(iter(lambda: stream.readline(limit), ""), 1):
            nuls, size = nuls + line.count("\0"), size + len(line)
            if nuls > 8 and nuls > size / 50:  # a stray one does no harm
                raise UserError(f"line {number}: NULs, as in UTF-16; convert it to UTF-8 first")
            yield f"line {number}", line.removeprefix("\ufeff")  # files with a BOM were joined


READERS = {".txt": read_txt, ".parquet": read_parquet}
READERS |= {".jsonl": read_json, ".ndjson": read_json, ".json": read_json}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".xz": "xz"}


def file_format(file: str) -> tuple[Callable, str | None] | None:
    """Return the reader for a file's name and its compression; None where there is no reader."""
    name, suffix = os.path.splitext(file.lower())
    compression = COMPRESSIONS.get(suffix)
    reader = READERS.get(os.path.splitext(name)[1] if compression else suffix)
    return (
        None
        if reader is None or (compression and reader is read_parquet)
        else (reader, compression)
    )
