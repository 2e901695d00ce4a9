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
from safetensors import SafetensorError
from safetensors.torch import save_file

from minitransformer.errors import UserError, first_line
from minitransformer.files import flush


class Run:
    """One run folder. Only the process with rank 0 writes (`writes`); all of them read."""

    def __init__(self, folder: str | Path, writes: bool = True):
        self.folder = Path(folder)
        self.log_file = self.folder / "log.jsonl"
        self.writes = writes

    def check_new(self) -> None:
        """Refuses a folder that is there or cannot be made: cheap, so before anything slow."""
        if os.path.lexists(self.folder):
            raise UserError(
                f"--out {self.folder} exists; choose another name, or go on with --resume"
            )
        above = next(folder for folder in self.folder.absolute().parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise UserError(f"--out {self.folder}: nothing can be made in {above}")

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
        """The log's complete records, the first one `start`; a last line torn by a kill is left
        out.
        """
        if not self.folder.is_dir():
            raise UserError(
                f"{self.folder}: no such run folder; its name is what --out was, or look into runs/"
            )
        try:
            lines = self.log_file.read_bytes().split(b"\n")[:-1]
            records = [json.loads(line) for line in lines]
        except FileNotFoundError:
            records = []
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{self.log_file}: cannot be read ({first_line(error)}); restore it or start a new"
                " run"
            ) from None
        if (
            not records
            or not all(isinstance(r, dict) and "event" in r for r in records)
            or (records[0]["event"] != "start")
        ):
            raise UserError(
                f"{self.log_file}: has no start record; nothing was trained here, so start a new"
                " run under another name"
            )
        return records

    def newest_with(self, key: str) -> dict:
        """The start record, or that of the newest resume; settings may have changed in between."""
        return [record for record in self.records() if key in record][-1]

    def check_unchanged(self, facts: dict) -> None:
        """Refuses to go on with another teacher or text than the run began with."""
        was, now = (
            {"the teacher": r["teacher"] and r["teacher"]["hash"]}
            | {f"the text {corpus['name']}": corpus["hash"] for corpus in r["text"]}
            for r in (self.records()[0], facts)
        )
        for what in was:
            if was[what] != now[what]:
                raise UserError(
                    f"{what} has changed since {self.folder} began: sha256 {was[what]:.12} then,"
                    f" {now[what]:.12} now; restore it or start a new run"
                )

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
            good = self.checkpoints()
            kept = f"{good[-1].name} is kept" if good else "there is no earlier one"
            raise UserError(
                f"checkpoint of step {step} cannot be written to {self.folder}"
                f" ({first_line(error)}); {kept}"
            ) from None

    def newest(self) -> dict | None:
        """The newest checkpoint that is whole, or None where none was written yet. A damaged one is
        named and passed over.
        """
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


def write_tensors(file: Path, tensors: dict) -> None:
    """A safetensors file that is either whole or not there."""
    unfinished = file.with_suffix(".tmp")
    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, unfinished)
        flush(unfinished)
        os.replace(unfinished, file)
    except (OSError, SafetensorError) as error:
        unfinished.unlink(missing_ok=True)
        raise UserError(f"{file}: cannot be written ({first_line(error)})") from None
