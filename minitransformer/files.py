"""Files that are either whole or absent, and the cache folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minitransformer.errors import UserError


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
