"""One-line errors; files that are either whole or absent; JSON files; the cache folder."""

import hashlib
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """A user error; the message is one line: what is wrong, expected and actual values, remedy."""

    def __init__(self, message: str):
        super().__init__(shortened(printable(message), 390))


def printable(text: str) -> str:
    """Return the text on one line, with escapes for control characters, which a terminal obeys."""
    line = text.replace("\n", " ")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; libraries explain themselves in paragraphs."""
    line = str(error).strip().split("\n")[0]
    return shortened(line, 200) or type(error).__name__


def shortened(line: str, length: int) -> str:
    """Cut a line to this many characters, with dots for what was cut."""
    return line if len(line) <= length else line[: length - 4] + " ..."


def flush(path: Path) -> None:
    """Wait until the disk holds what was written to this file or folder."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block succeeds, flush it and rename it to `path`."""
    # machine and process in its name keep two writers apart
    temporary = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say which one
        raise
    finally:
        temporary.unlink(missing_ok=True)


def check_regular(path: Path) -> None:
    """Refuse a pipe or device, which may never end, and what Git LFS leaves in a file's place."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path.name} is not a regular file")
        with open(path, "rb") as file:
            if file.read(40).startswith(b"version https://git-lfs.github.com/spec"):
                raise UserError(f"{path.name} is a Git LFS pointer: run git lfs pull")
    except OSError as error:
        raise UserError(f"cannot read {path.name}: {error.strerror}") from error


def read_json(path: Path, default: dict | list | None = None) -> dict | list:
    """Return the content of a JSON file: of the default's type or, without one, an object.
    A missing file gives the default. UserError: no file and no default, unreadable, another type.
    """
    if default is not None and not path.exists():
        return default
    check_regular(path)
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path.name}: {first_line(error)}") from error
    kind = dict if default is None else type(default)
    if not isinstance(values, kind):
        wanted = "array" if kind is list else "object"
        raise UserError(f"{path.name}: expected a JSON {wanted}, not {type(values).__name__}")
    return values


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_hashed(path: Path, values: dict) -> None:
    """Write a JSON object below its sha256, for a cache."""
    text = json.dumps(values)
    with atomic(path) as temporary:
        temporary.write_text(f"{sha256(text)}\n{text}")


def read_hashed(path: Path) -> dict | None:
    """Return what write_hashed wrote; None where it is missing, cut off or changed."""
    try:
        digest, _, text = path.read_text().partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    return json.loads(text) if digest == sha256(text) else None


def cache_folder() -> Path:
    """Return (and make) $XDG_CACHE_HOME/minitransformer: downloads, token files, cached results."""
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = Path(cache, "minitransformer").expanduser()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        raise UserError(f"cannot make the cache folder: {error}; set XDG_CACHE_HOME") from None
    return folder
