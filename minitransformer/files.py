"""One-line errors; files that are either whole or absent; JSON files; the cache folder."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST = 390  # characters of a message


class UserError(ValueError):
    """A user error; the message is one line: what is wrong, expected and actual values, remedy."""

    def __init__(self, message: str):
        super().__init__(shortened(message, LONGEST))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; libraries explain themselves in paragraphs."""
    line = str(error).strip().split("\n")[0]
    return shortened(line, 200) or type(error).__name__


def shortened(line: str, length: int) -> str:
    """Cut a line to this many characters, with dots for what was cut."""
    return line if len(line) <= length else line[: length - 4] + " ..."


def flush(path: Path) -> None:
    """Wait until the disk holds what was written to this file or folder."""
    if os.name == "nt" and Path(path).is_dir():
        return  # Windows cannot open folders
    # Windows flushes only what is open for writing
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block succeeds, flush it and rename it to `path`.

    Readers see the old file or the new one, never a part. The process id in the temporary name
    keeps two processes that write the same file apart.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path, default: dict | None = None) -> dict:
    """Return the JSON object in a file, or the default; UserError: no such file, or no object."""
    if default is not None and not path.exists():
        return default
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"no {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path.name}: {first_line(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path.name}: expected a JSON object, not {type(values).__name__}")
    return values


def obstacle(folder: Path) -> Path | None:
    """Return the nearest existing path at or above `folder` if nothing can be made in it."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    usable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
    return None if usable else nearest


def cache_folder() -> Path:
    """Return (and make) $XDG_CACHE_HOME/minitransformer: downloads, token files, cached results."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minitransformer"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{folder} ({error.strerror})"
        raise UserError(f"cannot make the cache folder {reason}; set XDG_CACHE_HOME") from None
    return folder
