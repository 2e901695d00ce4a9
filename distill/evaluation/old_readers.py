"""Readers that evaluation/tasks.py still uses; they go with its own readers."""

import bz2
import gzip
import io
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from minitransformer.files import UserError, first_line


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


OPENERS = {".gz": gzip.open, ".xz": open_streams, ".bz2": open_streams, ".zst": open_zstd}


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
