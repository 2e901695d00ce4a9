"""The run folder: its log and checkpoints, and how a run begins, resumes and is stopped.

    RUN/log.jsonl                     one record per line, each with an `event`: start, step, eval,
                                      resume, summary
    RUN/checkpoint-000000200-HASH.pt  the state after 200 steps, HASH of its bytes; two are kept
    RUN/.lock                         held by the program that trains here

A checkpoint is either whole or absent. It notes the log's length and hash; resuming from it cuts
the log back to that length, so every step is in the log once.
"""

import contextlib
import hashlib
import itertools
import json
import os
import pickle
import signal
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from distill.training.cli import flag
from distill.training.processes import world
from minitransformer.files import UserError, flush, sha256

# settings that a resume may change: they alter how the run continues, not what it is
MAY_CHANGE = "out resume batch_size accumulate device threads save_every eval_every lr clip".split()
MAY_CHANGE += ["teacher", "revision"]  # it may have been moved; its hash must be the same


class Run:
    """One run folder. Only the process with rank 0 writes (`writes`); all of them read."""

    def __init__(self, folder: str | Path | None, writes: bool = True):
        self.folder = folder and Path(folder)  # None until `open` chooses a name
        self.writes = writes

    @property
    def log_file(self) -> Path:
        return self.folder / "log.jsonl"

    @contextlib.contextmanager
    def open(self, stem: str, resume: bool = False) -> Iterator["Run"]:
        """Lock the folder during the block. Create it unless resuming; remove it if no run began.
        Without a name, the first free one of STEM-1, STEM-2, ... is taken.
        """
        if not self.writes:
            yield self
            return
        if self.folder is None:
            names = (Path(f"{stem}-{n}") for n in itertools.count(1))
            self.folder = next(name for name in names if not os.path.lexists(name))
        if not resume:
            self.folder.mkdir(parents=True, exist_ok=True)
            # a program that was killed before its first step leaves nothing but its lock
            if set(os.listdir(self.folder)) - {".lock"}:
                raise UserError(f"--out {self.folder} exists; choose another name, or --resume")
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"another program trains in {self.folder}; wait or stop it") from None
        try:
            yield self
        finally:
            if self.log_file.exists() and b"\n" not in self.log_file.read_bytes():
                self.log_file.unlink()  # half a start record
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()
            with contextlib.suppress(OSError):  # not empty: a run began
                self.folder.rmdir()

    def log(self, event: str, **fields) -> None:
        if self.writes:
            line = json.dumps({"event": event, **fields}, ensure_ascii=False, allow_nan=False)
            with open(self.log_file, "a", encoding="utf-8") as log:
                log.write(line + "\n")

    def records(self) -> list[dict]:
        """Return the records, `start` first, up to a torn or, if unfinished, a damaged line."""
        records = []
        try:
            for line in self.log_file.read_bytes().split(b"\n")[:-1]:
                records.append(dict(json.loads(line)))
        except (OSError, ValueError, TypeError):
            records = records if self.checkpoints() else []
        if records and {"settings", "teacher", "start", "text"} <= records[0].keys():
            return records
        raise UserError(f"{self.log_file} is missing, damaged or has no start record")

    def cut_log(self, length: int | None) -> None:
        """Cut the log back to `length` bytes (None: after its start record)."""
        if self.writes:
            with open(self.log_file, "r+b") as log:
                log.truncate(len(log.readline()) if length is None else length)

    def _log_hash(self, length: int) -> str:
        return hashlib.sha256(self.log_file.read_bytes()[:length]).hexdigest()

    def checkpoints(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*.pt"))

    def save(self, step: int, state: dict) -> None:
        """Write checkpoint `step`; on failure the earlier ones stay."""
        if not self.writes:
            return
        unfinished = self.folder / "checkpoint-unfinished.tmp"
        try:
            flush(self.log_file)
            length = self.log_file.stat().st_size
            state = state | {"step": step, "log_length": length, "log_hash": self._log_hash(length)}
            with open(unfinished, "wb") as file:
                torch.save(state, file)
            flush(unfinished)
            name = f"checkpoint-{step:09d}-{_digest(unfinished)}.pt"
            os.replace(unfinished, self.folder / name)
            flush(self.folder)
            for old in self.checkpoints()[:-2]:
                old.unlink()
        finally:
            unfinished.unlink(missing_ok=True)

    def newest(self) -> dict | None:
        """Return the newest whole checkpoint, None where none was written; name damaged ones."""
        checkpoints = self.checkpoints()
        for file in reversed(checkpoints):
            if not file.stem.endswith(_digest(file)):
                print(f"{file} is damaged, trying the one before")
                continue
            try:
                state = torch.load(file, map_location="cpu", weights_only=True)
                if self._log_hash(state["log_length"]) == state.get("log_hash"):
                    return state
                print(f"{file} is not of this log.jsonl, trying the one before")
            except pickle.UnpicklingError:  # its message advises to run the code
                raise UserError(f"{file} holds code, so no run wrote it; delete it") from None
        if checkpoints:
            raise UserError(f"{self.folder}: none of its checkpoints can be used; start a new run")
        return None

    def remove_checkpoints(self) -> None:
        """Remove them, and what a killed program left unfinished; the log has to be on disk."""
        if self.writes:
            flush(self.log_file)
            for file in [*self.checkpoints(), *self.folder.glob("*.tmp")]:
                file.unlink()


def _digest(file: Path) -> str:
    """Return the first 64 bits of the sha256 of a file, in hex."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def resumed_settings(config_class: type, given: dict) -> dict:
    """Return the settings of the run that `--out` names, changed by those given with --resume."""
    if "out" not in given:
        raise UserError("--resume needs the run folder: name it with --out")
    # the newest: an earlier resume may have changed them
    settings = [r["settings"] for r in Run(given["out"]).records() if "settings" in r][-1]
    if settings.keys() != {f.name for f in fields(config_class)}:
        raise UserError(f"{given['out']} was begun by another version of this program; use that")
    for name, value in given.items():
        if name not in MAY_CHANGE and value not in (settings[name], "auto"):
            then = f"but {given['out']} was started with {settings[name]}"
            raise UserError(f"{flag(name)} {value}, {then}; leave {flag(name)} out to resume it")
    return settings | {name: value for name, value in given.items() if name in MAY_CHANGE}


def is_finished(run: Run) -> bool:
    """Say so if the run is finished, and return whether it is."""
    last = run.records()[-1]
    if last["event"] != "summary":
        return False
    run.remove_checkpoints()  # it may have been killed between its summary and this
    print(f"{run.folder} is finished: held-out loss {last['loss_after']:.4f}")
    return True


def input_hashes(record: dict) -> dict[str, str | None]:
    """Return the hash of everything that a run reads, by its name in messages."""
    hashes = {f"the text {corpus['name']}": corpus["hash"] for corpus in record["text"]}
    hashes["the teacher"] = record["teacher"] and record["teacher"]["hash"]
    if vectors := (record["teacher"] or {}).get("vectors"):
        hashes["how the teacher makes sentence vectors"] = sha256(vectors)
    hashes["the untrained student"] = record["start"]["hash"]
    return hashes


def resume(run: Run, record: dict, parts: dict) -> tuple[int, int]:
    """Load the newest checkpoint, cut the log back to it, return (steps done, sequences read)."""
    records, checkpoint = run.records(), run.newest()
    before, now = input_hashes(records[0]), input_hashes(record)
    if checkpoint:  # it replaces the start, whose last bits may differ on another processor
        del now["the untrained student"]
    for what, then in before.items():
        if then != now.get(what, then):
            change = f"sha256 {then:.12} then, {now[what]:.12} now; restore it or start a new run"
            raise UserError(f"{what} has changed since {run.folder} began: {change}")
    if not checkpoint and (run.folder / "config.json").exists():
        raise UserError(f"{run.folder} holds a finished student, but its log.jsonl lacks the end")
    run.cut_log(checkpoint and checkpoint["log_length"])
    step = sequences = 0
    if checkpoint:
        step, sequences = checkpoint["step"], checkpoint["sequences"]
        for name, part in parts.items():
            part.load_state_dict(checkpoint[name])
    print(f"resuming {run.folder} at step {step} ({sequences} sequences read)")
    last = [r for r in records if "sequences_a_step" in r][-1]  # of the start or a resume
    for what in ("commit", "versions"):
        if record[what] != last[what]:
            print(f"note: {what} {last[what]} before, {record[what]} from here on")
    if (size := last["sequences_a_step"]) != record["sequences_a_step"]:
        turns, rest = divmod(size, record["settings"]["batch_size"] * world())
        remedy = "" if rest else f"; --accumulate {turns} restores that"
        print(f"WARNING: a step has {record['sequences_a_step']} sequences, not {size}{remedy}")
    run.log("resume", step=step, **record)
    return step, sequences


class Signals(contextlib.ExitStack):
    """Let the step in progress finish, so that it is saved, on a signal or, under torchrun, when
    torchrun itself is gone. Handlers stand from `listen` to the end of the context.
    """

    def __init__(self):
        super().__init__()
        self.received = 0
        self._launcher = os.getppid() if world() > 1 else None

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup's choice stays
                self.callback(signal.signal, number, signal.signal(number, self._note))

    def _note(self, number: int, frame) -> None:
        self.received = self.received or number

    def vote(self, device: torch.device) -> torch.Tensor:
        """Return 1 if this process is to stop, else 0, to be summed over the ranks."""
        orphaned = self._launcher not in (None, os.getppid())
        return torch.full((), float(orphaned or self.received > 0), device=device)
