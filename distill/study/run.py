"""Run units: train.py and evaluate.py as processes, one record for each unit that is finished.

Everything lies under the work folder, by the unit's name: `run` (train.py's run folder) and
`evaluation`. A killed training goes on from its checkpoint, a killed evaluation from the cache of
fine-tuned models, a unit with a record is never started again. Several processes may run the same
study: each takes the next unit that is neither finished nor taken, and waits for a training that it
needs and another does. The operating system frees a killed process's locks.
"""

import contextlib
import ctypes
import json
import math
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
import torch

from distill.data.batches import Text
from distill.evaluation.as_is import guesses
from distill.study import help_text
from distill.study.records import Records
from distill.study.units import BATCH, LENGTH, METHODS, RATES, TEACHER_BATCH, Unit, teacher_unit
from distill.training.run import Run
from minitransformer.files import UserError
from minitransformer.pretrained import find_folder, load_pretrained, read_json, weights_hash

ROOT = Path(__file__).resolve().parents[2]
# without docs-next: between seeds of fine-tuning its score has a standard deviation of 5 points
# (docs/evaluation.md), more than the methods differ by
ENGLISH_TASKS = ("docs-library", "docs-order")
KEPT_FACTS = ("commit", "versions", "machine", "settings", "text", "teacher", "start", "processes")


class OutOfTime(Exception):
    """The hours are over; what was running is saved."""


class Failed(Exception):
    """A process ended with an error, which it has printed."""


@dataclass(frozen=True)
class Study:
    """Where things lie, and what the settings need. `rates`: search learning rates first."""

    folder: Path
    records: Records
    scale: float
    rates: bool
    deadline: float  # on time.monotonic's clock
    teacher_steps: int  # of the English one
    teacher: str  # of the multilingual setting, or of the user's own
    data: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()

    def run(self, units: list[Unit]) -> int:
        """Run what has no record yet, in order; return the exit status."""
        failed, taken, late = [], [], False
        try:
            for unit in units:
                try:
                    with self._lock(f"unit {unit.name}", wait=False):
                        self._finish(unit, units)
                except filelock.Timeout:
                    taken.append(unit.name)
                except Failed as error:
                    print(error, flush=True)
                    failed.append(unit.name)
        except OutOfTime:
            late = True
        if taken:
            print(f"another process runs {', '.join(taken)}")
        if failed:
            print(f"failed, their messages stand above: {', '.join(failed)}")
        if late:
            print("out of time; the same command goes on")
        return 1 if failed else 0

    def _finish(self, unit: Unit, units: list[Unit]) -> None:
        if unit.name in self.records.units():
            return
        if time.monotonic() > self.deadline:
            raise OutOfTime
        print(f"\n== {unit.name}", flush=True)
        self._check_teacher(unit)
        if unit.method == "teacher":
            record = self._teacher_record()
        elif unit.seed is None:
            record = self._rates_record(unit)
        else:
            record = self._student_record(unit)
        with self._lock("records"):
            facts = {"scale": self.scale, "threads": torch.get_num_threads()}
            self.records.append({"unit": unit.name, **facts, **record})
            self._remove_weights(units)

    @contextlib.contextmanager
    def _lock(self, name: str, wait: bool = True) -> Iterator[None]:
        """Keep other processes of this study out; where one is in, wait for it or raise Timeout."""
        file = self.folder / "locks" / name.replace("/", " ")
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(file)
        left = self.deadline - time.monotonic()
        longest = -1 if math.isinf(left) else max(10.0, left)  # -1: for ever
        try:
            lock.acquire(timeout=longest if wait else 0)
        except filelock.Timeout:
            if wait:
                raise OutOfTime from None
            raise
        try:
            yield
        finally:
            lock.release()

    def _check_teacher(self, unit: Unit) -> None:
        """Refuse to mix students of two teachers in one file of records."""
        same = [r for r in self.records.read() if r.get("student") == unit.student.name]
        earlier = next((r for r in same if r.get("teacher")), None)  # mlm's may have none
        if unit.method == "teacher" or earlier is None:
            return
        teacher = self._teacher(unit.setting)
        if unit.setting == "english":  # the steps name it: trained elsewhere, its bits may differ
            was, now = Path(earlier["settings"]["teacher"]).name, Path(teacher).name
        else:
            was, now = earlier["teacher"]["hash"], weights_hash(load_pretrained(teacher)[0])
        if was != now:
            raise UserError(
                f"{self.records.file} has {unit.student.name} from another teacher ({was:.12}, now"
                f" {now:.12}); name another file with --results"
            )

    # ---- the three kinds of records ----

    def _teacher_record(self) -> dict:
        run = self._train_teacher()
        facts = log_facts(run)
        accuracy = mlm_accuracy(run, facts["settings"]["data"])
        return {**facts, "perplexity": math.exp(facts["curve"][-1][1]), "accuracy": accuracy}

    def _rates_record(self, unit: Unit) -> dict:
        losses, seconds, record = {}, 0.0, identity(unit)
        for rate in RATES:
            folder = self.folder / unit.name / f"{rate:g}"
            losses[rate] = None  # where it diverges
            try:
                self._train(folder, self._flags(unit, seed=0, rate=rate))
            except Failed as error:
                print(error, flush=True)
                continue
            facts = log_facts(folder)
            losses[rate] = facts["curve"][-1][1]
            seconds += facts["seconds"]
            record |= {name: facts[name] for name in KEPT_FACTS if name in facts}
        sound = {rate: loss for rate, loss in losses.items() if loss is not None}
        if not sound:
            raise Failed(f"{unit.name}: no learning rate led to a finite loss")
        best = min(sound, key=sound.__getitem__)
        return {**record, "rates": list(losses.items()), "best": best, "seconds": seconds}

    def _student_record(self, unit: Unit) -> dict:
        run = self._trained(unit)
        evaluation = self.folder / unit.name / "evaluation"
        began = time.monotonic()
        results = self._evaluate(unit, run, evaluation)
        record = {**identity(unit), **log_facts(run), "rate_from": self._rate(unit)[1]}
        if unit.first:
            first = log_facts(self._trained(unit.first))
            record["first"] = {"unit": unit.first.name, "seconds": first["seconds"]}
        record["evaluation_seconds"] = round(time.monotonic() - began, 1)
        return {**record, **results}

    # ---- training ----

    def _trained(self, unit: Unit) -> Path:
        """Return the run folder of the unit's student, trained now if it is not there."""
        run = self.folder / unit.name / "run"
        flags = self._flags(unit, unit.seed, self._rate(unit)[0])
        if unit.first:
            flags += ["--init", str(self._trained(unit.first))]
        self._train(run, flags)
        return run

    def _train(self, folder: Path, flags: list[str]) -> None:
        """Train into `folder`, or go on there, or leave it as it is where it is finished."""
        with self._lock(f"training {folder.relative_to(self.folder)}"):
            if folder.exists():
                try:
                    finished = Run(folder).records()[-1]["event"] == "summary"
                except UserError:  # killed before it began
                    shutil.rmtree(folder)
                else:
                    if finished:
                        return
                    flags = ["--resume"]
            self._call(str(ROOT / "train.py"), "--out", str(folder), *flags)

    def _train_teacher(self) -> Path:
        unit = teacher_unit(self.teacher_steps)
        run = self.folder / unit.name
        flags = f"--method mlm --init minilm --lr 2e-4 --steps {unit.steps}"
        flags += f" --batch-size {TEACHER_BATCH} --seq-len {LENGTH}"
        flags += " --save-every 100 --eval-every 250"
        self._train(run, flags.split())
        return run

    def _teacher(self, setting: str) -> str:
        return str(self._train_teacher()) if setting == "english" else self.teacher

    def _flags(self, unit: Unit, seed: int, rate: float | None) -> list[str]:
        student, method = unit.student, METHODS[unit.method]
        teacher = self._teacher(unit.setting)
        evaluations = 4 if unit.seed is not None else 1  # a search asks for the last loss alone
        every = max(1, unit.steps // evaluations)
        flags = [*method.flags.split(), "--teacher", teacher, "--seed", str(seed)]
        flags += ["--steps", str(unit.steps), "--batch-size", str(BATCH), "--seq-len", str(LENGTH)]
        flags += ["--eval-every", str(every), "--save-every", str(every)]
        flags += ["--student-layers", str(student.layers), "--student-hidden", str(student.hidden)]
        if method.from_top is not None:
            layers = read_json(find_folder(teacher) / "config.json")["num_hidden_layers"]
            flags += ["--teacher-layer", str(max(1, layers - method.from_top))]
        init = method.init or student.init
        if init and not method.first:
            flags += ["--init", init]
        if rate is not None:
            flags += ["--lr", f"{rate:g}"]
        for corpus in self._data(unit.setting):
            flags += ["--data", corpus]
        return flags

    def _data(self, setting: str) -> tuple[str, ...]:
        if setting == "multilingual":
            folder = self.folder / "help"
            with self._lock("help text"):
                help_text.build(folder)
            return tuple(f"{name}={folder / name}.txt" for name in help_text.TRAINED)
        return ("docs",) if setting == "english" else self.data

    def _rate(self, unit: Unit) -> tuple[float | None, str]:
        """Return the learning rate (None: train.py's own) and where it comes from."""
        if self.rates:
            with self._lock(f"unit {unit.rates.name}", wait=False):
                pass  # where another process is searching it, the unit is left to that one too
            wanted = identity(unit.rates) | {"tokens": None}
            for record in self.records.read():
                if {name: record.get(name) for name in wanted} | {"tokens": None} == wanted:
                    return record["best"], record["unit"]
            raise Failed(f"{unit.name}: its learning rate was not searched ({unit.rates.name})")
        return None, "defaults"

    # ---- evaluation ----

    def _evaluate(self, unit: Unit, run: Path, out: Path) -> dict:
        tasks = {"english": ENGLISH_TASKS, "multilingual": ("none",)}.get(unit.setting, self.tasks)
        teacher = ["--teacher", self._teacher(unit.setting)]  # a run of mlm has none of its own
        flags = [str(run), *teacher, "--out", str(out), "--tasks", *tasks]
        self._call(str(ROOT / "evaluate.py"), *flags)
        results = json.loads((out / "results.json").read_text())
        rows = results["rows"]
        if unit.setting == "multilingual":
            languages = out / "languages.json"
            flags = [str(run), *teacher, "--help-text", str(self.folder / "help")]
            self._call("-m", "distill.study.multilingual", *flags, "--out", str(languages))
            rows = rows + json.loads(languages.read_text())
        roles = {str(run): "student", f"{run} (start)": "start"}
        scores: dict[str, list[dict]] = {"student": [], "start": [], "teacher": []}
        for row in rows:
            kept = {name: row[name] for name in ("task", "metric", "values", "chance")}
            scores[roles.get(row["model"], "teacher")].append(kept)
        models = {roles.get(facts["model"], "teacher"): facts for facts in results["models"]}
        return {"scores": scores, "models": models, "evaluation": results["settings"]}

    # ---- processes ----

    def _call(self, *words: str) -> None:
        """Run a Python program until it ends or the hours are over; then it is asked to stop."""
        print("$ python", *words, flush=True)
        kill_too = die_with_parent if sys.platform == "linux" else None
        process = subprocess.Popen([sys.executable, *words], preexec_fn=kill_too)
        left = self.deadline - time.monotonic()
        try:
            process.wait(None if math.isinf(left) else max(0.0, left))
        except subprocess.TimeoutExpired:
            process.terminate()  # train.py saves its step first
            process.wait()
            raise OutOfTime from None
        except KeyboardInterrupt:  # the process has had its own Ctrl-C
            process.wait()
            raise
        if process.returncode:
            raise Failed(f"{Path(words[0]).name} failed with status {process.returncode}")

    def _remove_weights(self, units: list[Unit]) -> None:
        """Remove the runs that have a record and from which no second phase is still to start."""
        done = self.records.units()
        for unit in units:
            if unit.name in done and unit.method != "teacher":
                used = [unit] if unit.seed is None or not unit.first else [unit, unit.first]
                for finished in used:
                    only_a_phase = finished is not unit and METHODS[unit.method].equal_cost
                    free = finished.name in done and not finished.starts_others(done)
                    if only_a_phase or free:
                        shutil.rmtree(self.folder / finished.name, ignore_errors=True)


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent is killed (Linux): else it would train on
    while the next `run` wants the same folder.
    """
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


def identity(unit: Unit) -> dict:
    names = {"setting": unit.setting, "student": unit.student.name, "method": unit.method}
    return {**names, "seed": unit.seed, "tokens": unit.tokens}


def log_facts(folder: Path) -> dict:
    """Return what a run's log says: settings, text, machine; held-out losses; seconds of steps."""
    log = Run(folder).records()
    start = log[0]
    tokens = start["sequences_a_step"] * start["settings"]["seq_len"]
    speeds = [record["tokens_per_s"] for record in log if record["event"] == "step"]
    # by the median step: a machine that slept in one would count its sleep
    seconds = len(speeds) * tokens / max(1, statistics.median(speeds))
    curve = [[record["step"], record["loss"]] for record in log if record["event"] == "eval"]
    facts = {name: start[name] for name in KEPT_FACTS if name in start}
    facts["settings"] = {name: value for name, value in start["settings"].items() if name != "out"}
    return {**facts, "curve": curve, "tokens_read": tokens * len(speeds), "seconds": seconds}


@torch.inference_mode()
def mlm_accuracy(folder: Path, data: list[str]) -> float:
    """Return the share of masked held-out positions at which the model's first guess is right."""
    encoder, tokenizer = load_pretrained(str(folder))
    right = count = 0
    for batch in Text(data, tokenizer, LENGTH).held_out(BATCH, masked=True):
        hits = guesses(encoder, batch) == batch.ids.flatten()[batch.positions]
        right += int(hits.sum())
        count += len(hits)
    return right / count
