"""The run folder: its log, its checkpoints, and what they promise.

    RUN/log.jsonl              one record a line, each with an `event`: start, step, eval, resume,
                               summary
    RUN/checkpoint-000200/     state.pt and state.sha256: everything that step 200 onwards depends
                               on; the two newest are kept

A checkpoint is written beside its name, flushed to disk and renamed, so it is either whole or not
there. It notes how long the log was; going on from it cuts the log back to that length, so every
step stands in the log once.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch

from minitransformer.config import UserError


class Run:
    """One run folder. Only the process with rank 0 writes (`writes`); all of them read."""

    def __init__(self, folder: str | Path, writes: bool = True):
        self.folder = Path(folder)
        self.log_file = self.folder / "log.jsonl"
        self.writes = writes

    def create(self) -> None:
        if self.writes:
            try:
                self.folder.mkdir(parents=True)
            except OSError as error:
                raise UserError(f"--out {self.folder}: cannot be made ({error.strerror})") from None

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
        """The log's complete records; a last line torn by a kill is left out."""
        if not self.log_file.exists():
            return []
        lines = self.log_file.read_bytes().split(b"\n")[:-1]
        try:
            return [json.loads(line) for line in lines]
        except json.JSONDecodeError:
            raise UserError(
                f"{self.log_file}: holds a line that is not JSON; restore it or start a new run"
            ) from None

    def start_record(self) -> dict:
        if not self.folder.is_dir():
            raise UserError(
                f"{self.folder}: no such run folder; its name is what --out was, or look into runs/"
            )
        records = self.records()
        if not records or records[0].get("event") != "start":
            raise UserError(
                f"{self.log_file}: has no start record; this is no run that train.py began"
            )
        return records[0]

    def cut_log(self, length: int | None) -> None:
        """Cuts the log back to `length` bytes (None: behind its start record)."""
        if self.writes:
            with open(self.log_file, "r+b") as log:
                log.truncate(len(log.readline()) if length is None else length)

    # ---- checkpoints ----

    def checkpoints(self) -> list[Path]:
        return sorted(p for p in self.folder.glob("checkpoint-*") if p.suffix != ".tmp")

    def save(self, step: int, state: dict) -> None:
        """Writes checkpoint `step`; on failure the earlier ones are untouched and a UserError says
        why.
        """
        if not self.writes:
            return
        target = self.folder / f"checkpoint-{step:09d}"
        unfinished = target.with_suffix(".tmp")
        try:
            shutil.rmtree(unfinished, ignore_errors=True)  # of a save that was killed
            unfinished.mkdir()
            _flush(self.log_file)
            state = {**state, "step": step, "log_length": self.log_file.stat().st_size}
            with open(unfinished / "state.pt", "wb") as file:
                torch.save(state, file)
            (unfinished / "state.sha256").write_text(_digest(unfinished / "state.pt"))
            for path in (unfinished / "state.pt", unfinished / "state.sha256", unfinished):
                _flush(path)
            shutil.rmtree(target, ignore_errors=True)  # a damaged one of the same step
            os.replace(unfinished, target)
            _flush(self.folder)
        except (OSError, RuntimeError) as error:  # torch.save wraps a full disk into a RuntimeError
            shutil.rmtree(unfinished, ignore_errors=True)
            good = self.checkpoints()
            kept = f"{good[-1].name} is kept" if good else "there is no earlier one"
            reason = str(error).splitlines()[0]
            raise UserError(
                f"checkpoint of step {step} cannot be written to {self.folder} ({reason}); {kept}"
            ) from None
        for old in self.checkpoints()[:-2]:
            shutil.rmtree(old)

    def newest(self) -> dict | None:
        """The newest checkpoint that is whole, or None where none was written yet. A damaged one is
        named and passed over.
        """
        damaged = []
        for folder in reversed(self.checkpoints()):
            try:
                whole = _digest(folder / "state.pt") == (folder / "state.sha256").read_text()
            except OSError:
                whole = False
            if whole:
                return torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
            damaged.append(folder.name)
            print(f"{folder} is damaged and passed over", flush=True)
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


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Waits until the file, or the folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
