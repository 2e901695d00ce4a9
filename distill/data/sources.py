"""Sources: what `--data` may name (docs/usage.md, Text), and the documents in it.

Files here and on the hub are opened by fsspec and decompressed by pyarrow, not by `datasets`: its
readers stop at a shard with a further column and take a damaged bz2 stream for the end of its file.
"""

import glob
import io
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

import fsspec
import xxhash

from distill.data.built_in import BUILT_IN
from minitransformer.files import UserError, check_regular, first_line

LONGEST_DOCUMENT = 10_000  # characters; a longer text is cut into several documents
PART, PARTS = 2**16, 64  # bytes in a part; parts of a large file that are hashed


@dataclass(frozen=True)
class Source:
    """One corpus as `--data` names it: built in, files, or the files of a hub dataset."""

    name: str
    files: tuple[str, ...] = ()  # paths or URLs; those of a hub dataset are found by look_up
    hub: tuple[str, str, str] | None = None  # dataset, config, split
    column: str = "text"
    tokens: int | None = None  # declared size


def parse_sources(specs: list[str]) -> list[Source]:
    """Return what the values of `--data` name. Cheap: it looks only at a file's beginning."""
    sources = [parse_source(spec) for spec in specs]
    ((name, count),) = Counter(source.name for source in sources).most_common(1)
    if count > 1:
        raise UserError(f"--data: duplicate corpus name {name!r}; give each corpus its own NAME=")
    return sources


def parse_source(spec: str) -> Source:
    if spec in BUILT_IN:
        return Source(spec)
    match = re.fullmatch(r"([^=]+)=(.+?)(?:@(\d+(?:\.\d*)?(?:[eE]\d\d?)?))?", spec)
    if not match:
        raise UserError(f"--data {spec}: unknown; give wordnet, docs, NAME=FILES or NAME=hub:SET")
    name, where, size = match.groups()
    tokens = size and int(float(size))
    if where.startswith("hub:"):
        dataset, config, split, column, *more = where.split(":")[1:] + [""] * 4
        if any(more):
            raise UserError(f"--data {spec}: more than dataset, config, split and column")
        hub = os.path.expanduser(dataset), config or None, split or "train"
        return Source(name, (), hub, column or "text", tokens)
    path, _, column = (where, "", "text") if found(where) else where.rpartition(":")
    files = [file for file in found(path) if not os.path.isdir(file)]
    if not files:
        raise UserError(f"--data {spec}: no such file: {where}; for a folder, give FOLDER/*.txt")
    return Source(name, readable(files, column), None, column, tokens)


def found(pattern: str) -> list[str]:
    """Return the path itself where there is one (it may hold "["), else what the glob matches."""
    pattern = os.path.expanduser(pattern)
    return [pattern] if os.path.lexists(pattern) else sorted({*glob.glob(pattern, recursive=True)})


def look_up(source: Source) -> Source:
    """Return the source of a hub dataset with its files."""
    import datasets  # here, because hub datasets alone need its two seconds of import

    dataset, config, split = source.hub
    try:
        files = datasets.load_dataset_builder(dataset, config).config.data_files[split]
    except Exception as error:  # the library raises a dozen unrelated types
        raise UserError(f"--data {source.name}: {dataset}, {split}: {first_line(error)}") from error
    return replace(source, files=readable(files, source.column))


def readable(files: list[str], column: str) -> tuple[str, ...]:
    for file in files:
        if file_format(file)[0] not in READERS:
            raise UserError(f"--data: {file} is none of {', '.join((*READERS, *COMPRESSIONS))}")
        if column != "text" and file_format(file)[0] == ".txt":
            raise UserError(f"--data: {file}: a .txt has no column {column!r}; leave it out")
        if "://" not in file:
            check_regular(Path(file))
            if file_format(file)[1] and not os.path.getsize(file):  # cut off before it began
                raise UserError(f"--data: {file} is empty, which no compressed file is")
    return tuple(files)


def identity(source: Source) -> str:
    """Return what the token cache is keyed by; a URL of the hub holds the commit."""
    if not source.files:
        return BUILT_IN[source.name][0]()
    names = [os.path.basename(file) for file in source.files]
    digest = xxhash.xxh3_128(repr([source.column, names]).encode())
    for file in source.files:
        if "://" in file:
            digest.update(file.encode())
            continue
        size = os.path.getsize(file)
        digest.update(f"{size} {os.path.getmtime(file)}".encode())
        with open(file, "rb") as stream:
            for start in range(0, size, max(PART, size // PARTS)):
                stream.seek(start)
                digest.update(stream.read(PART))
    return digest.hexdigest()


def documents(source: Source, counts: Counter) -> Iterator[str]:
    """Yield the documents of a source; count what the report says of them in `counts`."""
    for file in source.files or (source.name,):
        try:
            texts = read_file(file, source.column, counts) if source.files else BUILT_IN[file][1]()
            for value in texts:
                if not isinstance(value, str | None):
                    kind = type(value).__name__
                    raise UserError(f"column {source.column!r} holds {kind}, not text")
                if not value or not value.strip():
                    counts["null skipped" if value is None else "empty skipped"] += 1
                    continue
                for start in range(0, len(value), LONGEST_DOCUMENT):
                    yield value[start : start + LONGEST_DOCUMENT]
        except Exception as error:  # of files, compression, parquet or the network: many types
            # the position would be that in a buffer
            says = re.sub(r" in position.*", ", convert it to UTF-8", first_line(error))
            raise UserError(f"--data {source.name}: {file}: {says}") from error


def read_file(file: str, column: str, counts: Counter) -> Iterator[object]:
    import pyarrow  # here, because it takes half a second that `docs` need not pay

    suffix, compression = file_format(file)
    with fsspec.open(file, "rb") as stream:
        if compression:
            packed = pyarrow.CompressedInputStream(stream, COMPRESSIONS[compression])
            stream = io.BufferedReader(packed)
        yield from READERS[suffix](stream, column, counts)


def read_txt(file: BinaryIO, column: str, counts: Counter) -> Iterator[str]:
    """A blank line ends a document; where the first 1,000 lines have none, each is a document."""
    rest = lines(file, 10 * LONGEST_DOCUMENT)
    head = list(islice(rest, 1000))
    separated = re.search(r"\n\s*\n", "".join(head).strip())
    counts["files split at blank lines" if separated else "files split at each line"] += 1
    text = ""
    for line in chain(head, rest, ["\n"]):
        ended = not line.strip() or (text.endswith("\n") and not separated)
        if text and (ended or len(text) + len(line) > LONGEST_DOCUMENT):
            yield text
            text = ""
        text += line if line.strip() else ""


def read_json(file: BinaryIO, column: str, counts: Counter) -> Iterator[object]:
    """One object per line; the first one has to have the column."""
    first = True
    for number, line in enumerate(lines(file, -1), 1):
        if line.strip():
            try:
                row = json.loads(line)
                value = row.get(column)
            except (ValueError, RecursionError, AttributeError):
                raise UserError(f"line {number}: not JSON with one object per line") from None
            if first:
                require(column, row)
            first = False
            yield value


def read_parquet(file: BinaryIO, column: str, counts: Counter) -> Iterator[object]:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(file)
    require(column, table.schema_arrow.names)
    for batch in table.iter_batches(64, columns=[column]):
        yield from batch.column(0).to_pylist()


def require(column: str, names: Collection[str]) -> None:
    if column not in names:
        raise UserError(f"no column {column!r}; its columns are {', '.join(names):.200}")


def lines(file: BinaryIO, limit: int) -> Iterator[str]:
    """Yield the lines of a text; one longer than `limit` comes in parts (-1: no limit)."""
    with io.TextIOWrapper(file, "utf-8") as stream:
        while line := stream.readline(limit):
            if "\0" in (line[:1], line.rstrip("\n")[-1:]):  # beside a UTF-16 line break
                raise UserError("NULs, as in UTF-16; convert it to UTF-8 first")
            yield line.removeprefix("\ufeff")  # of any line: files with a BOM were joined


READERS = {".txt": read_txt, ".parquet": read_parquet}
READERS |= {".jsonl": read_json, ".ndjson": read_json, ".json": read_json}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


def file_format(file: str) -> tuple[str, str]:
    """Return a file's suffix and its compression suffix or "": (".txt", ".gz") for a.txt.gz."""
    name, suffix = os.path.splitext(file.lower())
    return (os.path.splitext(name)[1], suffix) if suffix in COMPRESSIONS else (suffix, "")
