"""The run folder: its lock, its log, its checkpoints, and what they promise.

    RUN/log.jsonl                     one record a line, each with an `event`: start, step, eval,
                                      resume, summary
    RUN/checkpoint-000000200-HASH.pt  everything that step 200 onwards depends on, and a hash of
                                      the file's bytes; the two newest are kept
    RUN/.lock                         held by the program that trains here

A checkpoint is written under another name, flushed to disk and renamed, so it is either whole or
absent. It notes how long the log was; resuming from it cuts the log back to that length, so every
step is in the log once.
"""

import hashlib
import itertools
import json
import os
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from distill.training.processes import same_on_all_ranks
from minitransformer.files import UserError, first_line, flush, obstacle


class Run:
    """One run folder. Only the process with rank 0 writes (`writes`); all of them read.

    As a context manager it gives the folder up at the end: its lock is released and removed.
    """

    def __init__(self, folder: str | Path | None, writes: bool = True):
        self.folder = folder and Path(folder)  # None until `create` chooses a name
        self.writes = writes
        self._lock: FileLock | None = None

    @property
    def log_file(self) -> Path:
        return self.folder / "log.jsonl"

    def check_new(self) -> None:
        """Refuse a folder that exists or cannot be made: cheap, so before anything slow."""
        if self.folder and os.path.lexists(self.folder):
            raise UserError(f"--out {self.folder} exists; choose another name, or pass --resume")
        if (path := obstacle(self.folder or Path("runs"))) is not None:
            raise UserError(f"nothing can be made in {path}; name another run folder with --out")

    def create(self, stem: str) -> Path:
        """Make the folder and lock it; without a name it is the first of STEM-1, -2, ... to be new.

        All ranks return the folder of rank 0.
        """
        if self.writes:
            if self.folder is None:
                names = (Path(f"{stem}-{n}") for n in itertools.count(1))
                self.folder = next(name for name in names if not name.exists())
            self.folder.mkdir(parents=True)
            self.lock()
        self.folder = same_on_all_ranks(self.folder)
        return self.folder

    def lock(self) -> None:
        """Refuse a folder in which another program trains now."""
        if not self.writes:
            return
        self._lock = FileLock(self.folder / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"another program trains in {self.folder} now; wait for its end or stop it"
            ) from None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exception) -> None:
        if self._lock and self._lock.is_locked:
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()

    # ---- log ----

    def log(self, event: str, **fields) -> None:
        if self.writes:
            line = json.dumps({"event": event, **fields}, ensure_ascii=False, allow_nan=False)
            with open(self.log_file, "a", encoding="utf-8") as log:
                log.write(line + "\n")

    def records(self) -> list[dict]:
        """Return the log's complete records, the first one `start`; a torn last line is ignored."""
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: no such run folder; pass the --out of a run")
        try:
            lines = self.log_file.read_bytes().split(b"\n")[:-1]
            records = [json.loads(line) for line in lines]
            whole = records[0]["event"] == "start" and isinstance(records[0]["settings"], dict)
            whole = whole and {"teacher", "start", "text"} <= records[0].keys()
        except (OSError, ValueError, TypeError, LookupError):
            whole = False
        if not whole:
            raise UserError(
                f"{self.log_file} is missing, damaged or has no start record; restore it, or start"
                " a new run"
            )
        return records

    def check_unchanged(self, facts: dict) -> None:
        """Refuse to resume with another teacher, start or text than the run began with."""
        before, now = _inputs(self.records()[0]), _inputs(facts)
        for what, hashed in before.items():
            if hashed != now[what]:
                raise UserError(
                    f"{what} has changed since {self.folder} began: sha256 {hashed:.12} then,"
                    f" {now[what]:.12} now; restore it or start a new run"
                )

    def cut_log(self, length: int | None) -> None:
        """Cut the log back to `length` bytes (None: behind its start record)."""
        if not self.writes:
            return
        size = self.log_file.stat().st_size
        if length is not None and size < length:
            raise UserError(
                f"{self.log_file} has {size} bytes, but the checkpoint was saved when it had"
                f" {length}; restore the log or start a new run"
            )
        with open(self.log_file, "r+b") as log:
            log.truncate(len(log.readline()) if length is None else length)

    # ---- checkpoints ----

    def checkpoints(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*.pt"))

    def save(self, step: int, state: dict) -> None:
        """Write checkpoint `step`; on failure the earlier ones stay and a UserError says why."""
        if not self.writes:
            return
        unfinished = self.folder / "checkpoint-unfinished.tmp"
        try:
            flush(self.log_file)
            state = {**state, "step": step, "log_length": self.log_file.stat().st_size}
            with open(unfinished, "wb") as file:
                torch.save(state, file)
            flush(unfinished)
            for damaged in self.folder.glob(f"checkpoint-{step:09d}-*"):
                damaged.unlink()
            name = f"checkpoint-{step:09d}-{_digest(unfinished)}.pt"
            os.replace(unfinished, self.folder / name)
            flush(self.folder)
            for old in self.checkpoints()[:-2]:
                old.unlink()
        except (OSError, RuntimeError) as error:
            # torch.save raises a RuntimeError of its own over the OSError of a full disk
            error = error if isinstance(error, OSError) else error.__context__
            if not isinstance(error, OSError):
                raise
            unfinished.unlink(missing_ok=True)
            raise UserError(
                f"checkpoint of step {step} cannot be written to {self.folder}"
                f" ({first_line(error)}); those before are kept, and --resume goes on from them"
            ) from None

    def newest(self) -> dict | None:
        """Return the newest whole checkpoint, None where none was written; name damaged ones."""
        checkpoints = self.checkpoints()
        for file in reversed(checkpoints):
            if file.stem.endswith(_digest(file)):
                return torch.load(file, map_location="cpu", weights_only=True)
            print(f"{file} is damaged, trying the one before", flush=True)
        if checkpoints:
            raise UserError(f"{self.folder}: all its checkpoints are damaged; start a new run")
        return None

    def remove_checkpoints(self) -> None:
        if self.writes:
            for file in self.folder.glob("checkpoint-*"):
                file.unlink()


def _inputs(record: dict) -> dict[str, str | None]:
    """Return the hash of everything that a run reads, by its name in messages."""
    hashes = {f"the text {corpus['name']}": corpus["hash"] for corpus in record["text"]}
    hashes["the teacher"] = record["teacher"] and record["teacher"]["hash"]
    hashes["the untrained student"] = record["start"]["hash"]
    return hashes


def _digest(file: Path) -> str:
    """Return the first 64 bits of the sha256 of a file, in hex."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
