"""The run folder: its lock, its log, its checkpoints, and what they promise.

    RUN/log.jsonl              one record a line, each with an `event`: start, step, eval, resume,
                               summary
    RUN/checkpoint-000200/     state.pt and state.sha256: everything that step 200 onwards depends
                               on; the two newest are kept
    RUN/.lock                  held by the program that trains here

A checkpoint is written under another name, flushed to disk and renamed, so it is either whole or
absent. It notes how long the log was; resuming from it cuts the log back to that length, so every
step is in the log once.
"""

import hashlib
import itertools
import json
import os
import shutil
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from distill.training.processes import same_on_all_ranks
from minitransformer.errors import UserError, first_line
from minitransformer.files import flush, obstacle


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
        if self.folder is None:
            return
        if os.path.lexists(self.folder):
            raise UserError(f"--out {self.folder} exists; choose another name, or pass --resume")
        if (path := obstacle(self.folder)) is not None:
            raise UserError(f"--out {self.folder}: nothing can be made in {path}")

    def create(self, stem: str = "runs/run") -> Path:
        """Make the folder and lock it; without a name it is the first of STEM-1, -2, ... to be new.

        All ranks return the folder of rank 0.
        """
        if self.writes:
            if self.folder is None:
                names = (Path(f"{stem}-{n}") for n in itertools.count(1))
                self.folder = next(name for name in names if not name.exists())
            try:
                self.folder.mkdir(parents=True)
            except OSError as error:
                raise UserError(f"--out {self.folder}: cannot be made ({error.strerror})") from None
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
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be locked ({error.strerror})") from None

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
            try:
                with open(self.log_file, "a", encoding="utf-8") as log:
                    log.write(line + "\n")
            except OSError as error:
                raise UserError(f"{self.log_file}: cannot be written ({error.strerror})") from None

    def records(self) -> list[dict]:
        """Return the log's complete records, the first one `start`; a torn last line is ignored."""
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: no such run folder; pass the --out of a run")
        try:
            lines = self.log_file.read_bytes().split(b"\n")[:-1]
            records = [json.loads(line) for line in lines]
            events = [record["event"] for record in records]
        except (OSError, ValueError, RecursionError, TypeError, KeyError):
            events = []
        if events[:1] != ["start"]:
            raise UserError(
                f"{self.log_file}: has no start record or is damaged; restore it, or start a new"
                " run under another name"
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
        return sorted(p for p in self.folder.glob("checkpoint-*") if p.suffix != ".tmp")

    def save(self, step: int, state: dict) -> None:
        """Write checkpoint `step`; on failure the earlier ones stay and a UserError says why."""
        if not self.writes:
            return
        target = self.folder / f"checkpoint-{step:09d}"
        unfinished = target.with_suffix(".tmp")
        try:
            for killed in self.folder.glob("checkpoint-*.tmp"):
                shutil.rmtree(killed)
            unfinished.mkdir()
            flush(self.log_file)
            state = {**state, "step": step, "log_length": self.log_file.stat().st_size}
            with open(unfinished / "state.pt", "wb") as file:
                torch.save(state, file)
            (unfinished / "state.sha256").write_text(_digest(unfinished / "state.pt"))
            for path in (unfinished / "state.pt", unfinished / "state.sha256", unfinished):
                flush(path)
            shutil.rmtree(target, ignore_errors=True)  # a damaged one of the same step
            os.replace(unfinished, target)
            flush(self.folder)
            for old in self.checkpoints()[:-2]:
                shutil.rmtree(old)
        except (OSError, RuntimeError) as error:
            # torch.save raises a RuntimeError of its own over the OSError of a full disk
            error = error if isinstance(error, OSError) else error.__context__
            if not isinstance(error, OSError):
                raise
            shutil.rmtree(unfinished, ignore_errors=True)
            raise UserError(
                f"checkpoint of step {step} cannot be written to {self.folder}"
                f" ({first_line(error)}); those before are kept, and --resume goes on from them"
            ) from None

    def newest(self) -> dict | None:
        """Return the newest whole checkpoint, None where none was written; name damaged ones."""
        damaged = []
        for folder in reversed(self.checkpoints()):
            try:
                noted = (folder / "state.sha256").read_bytes()
                whole = _digest(folder / "state.pt").encode() == noted
            except OSError:
                whole = False
            if whole:
                return torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
            damaged.append(folder.name)
            print(f"{folder} is damaged, trying the one before", flush=True)
        if damaged:
            raise UserError(
                f"{self.folder}: {' and '.join(damaged)} are damaged and there is no other"
                " checkpoint; start a new run"
            )
        return None

    def remove_checkpoints(self) -> None:
        if self.writes:
            for folder in self.folder.glob("checkpoint-*"):
                shutil.rmtree(folder)


def _inputs(record: dict) -> dict[str, str | None]:
    """Return the hash of everything that a run reads, by its name in messages."""
    hashes = {f"the text {corpus['name']}": corpus["hash"] for corpus in record["text"]}
    hashes["the teacher"] = record["teacher"] and record["teacher"]["hash"]
    hashes["the untrained student"] = record["start"]["hash"]
    return hashes


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
