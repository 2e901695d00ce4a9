"""Sources: what `--data` may name (docs/usage.md, Text), and the documents in it.

    docs                                         the prose that docs.py finds on this machine
    NAME=path/or/glob[:column]                   .txt, .jsonl and .parquet files
    NAME=hub:dataset[:config][:split][:column]   a hub dataset, streamed

An `@N` after the last two declares the size of the corpus in tokens, for the language weights.
"""

import bz2
import glob
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from distill.data.docs import docs_documents, docs_identity
from minitransformer.files import UserError, first_line

LONGEST_DOCUMENT = 100_000  # characters; a longer text is cut, so that memory stays bounded


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
    tokens: int | None = None  # declared size, for the language weights


def parse_source(spec: str) -> Source:
    """Return the source that one value of `--data` names. It looks no further than file names."""
    if spec == "docs":
        return Source("docs", "docs")
    if NOT_UTF8.search(spec):
        raise UserError(f"--data {spec!r}: not UTF-8; rename the file or corpus")
    name, _, where = spec.partition("=")
    if not name or not where:
        raise UserError(
            f"--data {spec}: unknown; give docs, NAME=path/or/glob[:column] or"
            " NAME=hub:dataset[:config][:split][:column]"
        )
    tokens = None
    if not found(where) and re.search(r"@[^/@:]*$", where):
        where, _, size = where.rpartition("@")
        if re.fullmatch(r"\d+(\.\d*)?([eE]\d\d?)?", size):
            tokens = int(float(size))
        if not tokens:
            raise UserError(
                f"--data {spec}: @{size} is not a number of tokens; write for example @1.2e9"
            )
    if where.startswith("hub:"):
        parts = where.removeprefix("hub:").split(":")
        if len(parts) > 4 or not parts[0]:
            raise UserError(f"--data {spec}: expected hub:dataset[:config][:split][:column]")
        dataset, config, split, column = parts + [""] * (4 - len(parts))
        return Source(name, "hub", (), dataset, config, split or "train", column or "text", tokens)
    pattern, column = where, "text"
    if not found(pattern) and ":" in where:
        pattern, _, column = where.rpartition(":")
    paths = found(pattern)
    files = [path for path in paths if not os.path.isdir(path)]
    if not files:
        folder = paths and f"{paths[0]} is a folder; give {os.path.join(paths[0], '*.txt')} or so"
        raise UserError(f"--data {spec}: {folder or f'no file matches {pattern}'}")
    for file in files:
        if NOT_UTF8.search(file):
            raise UserError(f"--data {spec}: the file name {file!r} is not UTF-8; rename it")
        if _reader(file) is None:
            raise UserError(f"--data {spec}: {file} is none of {', '.join(READERS)}")
        if not os.path.isfile(file):
            raise UserError(f"--data {spec}: {file} is no file; is it a link to one that is gone?")
    return Source(name, "files", tuple(files), column=column, tokens=tokens)


def found(pattern: str) -> list[str]:
    """Return the path itself where there is one (it may hold "["), else what the glob matches."""
    return [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern, recursive=True))


def identity(source: Source) -> str:
    """Return what the token cache is keyed by.

    docs: the versions of all packages. Files: path, size, time of change, and a hash of the first,
    middle and last part, which also shows a rewrite that kept size and time.
    """
    if source.kind == "docs":
        return docs_identity()
    part = 2**16  # bytes to hash at each place: thousands of files must not take minutes
    facts: list[Any] = [source.column]
    for file in source.files:
        digest = hashlib.sha256()
        try:
            status = os.stat(file)
            with open(file, "rb") as stream:
                for start in (0, status.st_size // 2 - part // 2, status.st_size - part):
                    stream.seek(max(0, start))
                    digest.update(stream.read(part))
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror})") from None
        facts += [os.path.abspath(file), status.st_size, status.st_mtime_ns, digest.hexdigest()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


# --------------------------------------------------------------------------------------------------
# Documents
# --------------------------------------------------------------------------------------------------


def documents(source: Source, skipped: Counter) -> Iterator[str]:
    """Yield the documents of docs or files in a fixed order; a hub dataset is read by corpus.py.

    A text of more than LONGEST_DOCUMENT characters comes as several documents. Rows without text
    are counted in `skipped` by reason.
    """
    if source.kind == "docs":
        for _, text in docs_documents():
            yield from cut(text)
    for file in source.files:
        for place, row in _reader(file)(file, source.column):
            yield from cut(text_of(row, source.column, f"{file}, {place}", skipped))


def text_of(row: dict, column: str, where: str, skipped: Counter) -> str:
    """Return a row's text, "" where it has none; the reason is counted in `skipped`."""
    value = row.get(column)
    if isinstance(value, str) and value.strip():
        return value
    if column not in row:
        skipped[f"without a column {column!r}"] += 1
    elif value is None:
        skipped["null"] += 1
    elif isinstance(value, str):
        skipped["empty"] += 1
    else:
        raise UserError(f"{where}: column {column!r} holds {type(value).__name__}, not text")
    return ""


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
# Files. A reader takes the columns that are wanted and yields (place, row): where the row stands,
# and its columns.
# --------------------------------------------------------------------------------------------------


def read_txt(file: str, column: str) -> Iterator[tuple[str, dict]]:
    head = "".join(line for _, line in islice(lines(file, LONGEST_DOCUMENT), 1000))
    separated = re.search(r"\n\s*\n", head.strip())  # by a blank line between two others
    text = ""
    # a line without end arrives in parts, so a file of one line costs no more memory than another
    for number, line in lines(file, LONGEST_DOCUMENT):
        place, blank = f"line {number}", not line.strip()
        if not blank:
            text += line
        if len(text) > LONGEST_DOCUMENT:
            *whole, text = cut(text)
            for part in whole:
                yield place, {column: part}
        if text and (blank if separated else line.endswith("\n")):
            yield place, {column: text}
            text = ""
    if text:
        yield "last line", {column: text}


def read_jsonl(file: str | Path, *columns: str) -> Iterator[tuple[str, dict]]:
    for number, line in lines(file):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # not JSON, or a number of thousands of digits
            raise UserError(f"{file}, {place}: not JSON; expected one object a line") from None
        if not isinstance(row, dict):
            kind = type(row).__name__
            name = f"column {columns[0]!r}"
            raise UserError(f"{file}, {place}: holds {kind}, not an object with {name}")
        yield place, row


def read_parquet(file: str | Path, *columns: str) -> Iterator[tuple[str, dict]]:
    """The columns that are not wanted are None: some hold what Python has no value for."""
    import pyarrow  # here, because it takes half a second that other sources need not pay
    import pyarrow.parquet

    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(file)
        names = table.schema_arrow.names
        refuse_twice(file, names, columns)
        for batch in table.iter_batches(64, columns=[*columns]):
            for index in range(len(batch)):
                number += 1
                yield f"row {number}", dict.fromkeys(names) | batch.slice(index, 1).to_pylist()[0]
    except UnicodeDecodeError:
        raise UserError(f"{file}, row {number}: not UTF-8; convert it first") from None
    except (pyarrow.ArrowException, OSError, OverflowError) as error:
        raise UserError(f"{file}: not a readable parquet file ({first_line(error)})") from None


def refuse_twice(file: str | Path, names: list[str], columns: tuple[str, ...]) -> None:
    for column in columns:
        if (count := names.count(column)) > 1:
            raise UserError(f"{file}: {count} columns are called {column!r}; rename all but one")


def open_zstd(file: str, mode: str) -> BinaryIO:
    import pyarrow  # Python has a module of its own for it only from 3.14 on

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(file, mode), "zstd"))


class Streams(io.RawIOBase):
    """The streams of a .bz2 or .xz file. Python's readers take a damaged later one for its end."""

    def __init__(self, file: BinaryIO, decompressor: type):
        self.file, self.decompressor, self.stream = file, decompressor, decompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = b""
        while not data:
            packed = self.stream.unused_data
            if self.stream.needs_input and not (packed := self.file.read(2**16)):
                raise EOFError("the last stream has no end")
            if self.stream.eof:
                while not packed.strip(b"\0"):  # zeros may stand between streams
                    if not (packed := self.file.read(2**16)):
                        return 0
                packed, self.stream = packed.lstrip(b"\0"), self.decompressor()
            data = self.stream.decompress(packed, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.file.close()
        super().close()


def open_streams(file: str, mode: str) -> BinaryIO:
    kind = bz2.BZ2Decompressor if Path(file).suffix == ".bz2" else lzma.LZMADecompressor
    return io.BufferedReader(Streams(io.FileIO(file, mode), kind))


READERS = {".txt": read_txt, ".jsonl": read_jsonl, ".parquet": read_parquet}
OPENERS = {".gz": gzip.open, ".xz": open_streams, ".bz2": open_streams, ".zst": open_zstd}
for suffix in OPENERS:
    READERS |= {f".txt{suffix}": read_txt, f".jsonl{suffix}": read_jsonl}


def _reader(file: str):
    """Return the reader for a file's name, None where there is none."""
    suffixes = Path(file).suffixes
    return READERS.get("".join(suffixes[-2:])) or READERS.get("".join(suffixes[-1:]))


def _open(file: str) -> BinaryIO:
    """Open a file for reading, decompressed; every member, stream or frame in it is read."""
    opener = OPENERS.get(Path(file).suffix, open)
    if opener is not open and os.path.getsize(file) == 0:  # gzip takes it for a whole file
        raise EOFError("0 bytes")
    return opener(file, "rb")


NOT_UTF8 = re.compile("[\udc80-\udcff]")  # how the error handler "surrogateescape" marks a byte


def lines(file: str, limit: int = -1) -> Iterator[tuple[int, str]]:
    """Yield (number, line); a line of more than `limit` characters comes in parts."""
    number, at_start, nuls, size = 0, True, 0, 0
    try:
        with io.TextIOWrapper(_open(file), "utf-8-sig", "surrogateescape") as stream:
            while line := stream.readline(limit):
                if at_start:
                    number += 1
                at_start = line.endswith("\n")
                if bad := NOT_UTF8.search(line):
                    byte = f"byte 0x{ord(bad[0]) & 0xFF:02x}"
                    raise UserError(f"{file}, line {number}: not UTF-8 ({byte}); convert it first")
                nuls, size = nuls + line.count("\0"), size + len(line)
                if nuls > 8 and nuls > size / 50:  # a stray one does no harm
                    problem = f"{nuls} of the first {size} characters are NUL, as in UTF-16"
                    raise UserError(f"{file}, line {number}: {problem}; convert it to UTF-8 first")
                yield number, line
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        problem = f"damaged or cut short behind line {number} ({first_line(error)})"
        raise UserError(f"{file}: {problem}; fetch or compress it again") from None
