"""The loop: train a row, evaluate it, append a record.

Everything lies under the work folder, by the row's name. A killed training is resumed from its
checkpoint, a killed evaluation from the cache of fine-tuned models, a row with a record is never
started again. Several processes may share the list, with a lock for each row; the operating system
frees a killed process's locks.
"""

import contextlib
import ctypes
import json
import math
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from distill.study import help_text, languages
from distill.study.rows import METHODS, Row
from minitransformer.files import UserError, read_json
from minitransformer.pretrained import find_folder

ROOT = Path(__file__).resolve().parents[2]
TASKS = {"english": ["movies", "topics"], "multilingual": ["reviews"]}
# od needs a head for masked words, which the English teacher has not: it learns from this one
WITH_HEAD = "minilm-with-head"
HEAD = "--method mlm --init minilm --lr 2e-4 --steps 500 --batch-size 32 --save-every 100"
KEPT_SETTINGS = ("lr", "batch_size", "accumulate", "seq_len", "steps", "warmup", "precision")
LAST_LAYER = re.compile(r"L(-\d+)?")


class OutOfTime(Exception):
    """The hours are over; what was running is saved."""


class Failed(Exception):
    """A process ended with an error, which it has printed."""


@dataclass(frozen=True)
class Study:
    """Where things lie, and what all rows share."""

    folder: Path
    results: Path
    deadline: float = math.inf  # on time.monotonic's clock
    teacher: str | None = None  # of the multilingual setting, or the user's own
    data: tuple[str, ...] = ()  # of the user's own setting, as tasks
    tasks: tuple[str, ...] = ()
    data_dir: str | None = None
    batch: int = 16  # sequences in a step, over all processes
    seq_len: int = 128
    flags: tuple[str, ...] = ()  # for train.py: sizes, warm-up, precision
    rates: dict[str, str] = field(default_factory=dict)  # by method; "": of all others
    processes: int = 1  # of torchrun

    # ---- the loop ----

    def run(self, rows: list[Row]) -> int:
        """Run the rows without a record, in order; return the exit status."""
        failed = []
        try:
            while rows:
                taken = [row for row in rows if not self._attempt(row, failed)]
                if len(taken) == len(rows):  # all that is left is in other processes' hands
                    print(f"another process runs {', '.join(row.name for row in taken)}")
                    break
                rows = taken
        except OutOfTime:
            print("out of time; the same command resumes")
        if failed:
            print(f"failed, their messages stand above: {', '.join(failed)}")
        return 1 if failed else 0

    def _attempt(self, row: Row, failed: list[str]) -> bool:
        """Run a row; return False where another process holds it, or a part that it needs."""
        try:
            with self._lock(row.name):
                self._finish(row)
        except Timeout:
            return False
        except (Failed, UserError) as error:
            print(f"{row.name}: {error}", flush=True)
            failed.append(row.name)
        return True

    def _finish(self, row: Row) -> None:
        given = self._given(row)
        for record in read_records(self.results):
            if record["row"] == row.name:
                if record["given"] != given:
                    was = f"was run with {record['given']}, now {given}"
                    raise UserError(f"in {self.results} it {was}; name other --results")
                return
        if time.monotonic() > self.deadline:
            raise OutOfTime
        print(f"\n== {row.name}", flush=True)
        flags = self.train_flags(row)
        run = self.folder / row.name / row.method
        if row.method == "od-after-hs":
            first = self.folder / row.name / "hs-uniform"
            hs = Row(row.student, "hs-uniform", row.start, row.seed, row.tokens)
            self._train(first, self.train_flags(hs))
            flags += ["--init", str(first)]
        self._train(run, flags)
        record = {"row": row.name, **asdict(row), "given": given, **log_facts(run)}
        began = time.monotonic()
        models = self._evaluate(row, run)
        record["evaluation_seconds"] = round(time.monotonic() - began, 1)
        shared = {key: record[key] for key in ("student", "commit", "machine", "versions")}
        suffix = " with MLM head" if given["teacher"] == WITH_HEAD else ""
        with self._lock("records", wait=True):
            known = {known["row"] for known in read_records(self.results)}
            for role in [role for role in ("teacher", "cut-off") if role in models]:
                method = role + suffix
                reference = {"row": f"{row.student}/{method}", **shared, "method": method}
                if reference["row"] not in known:
                    append(self.results, {**reference, "models": {role: models[role]}})
            own = {role: models[role] for role in ("start", "student") if role in models}
            append(self.results, {**record, "models": own})
        shutil.rmtree(self.folder / row.name)

    @contextlib.contextmanager
    def _lock(self, name: str, wait: bool = False) -> Iterator[None]:
        """Keep other processes out; where one is in, wait for it or raise Timeout."""
        file = self.folder / "locks" / name.replace("/", " ")
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file, timeout=-1 if wait else 0):
            yield

    def _given(self, row: Row) -> dict:
        """Return what the row's name leaves open; names of folders without their places."""
        return {
            "teacher": Path(self._teacher_name(row)).name,
            "data": [corpus.partition("=")[0] for corpus in self.data],
            "tasks": [Path(task).name for task in self.tasks],
            "batch": [self.batch, self.seq_len],
            "flags": [*self.flags, *self._rate(row)],
        }

    # ---- training ----

    def _train(self, folder: Path, flags: list[str]) -> None:
        """Train into `folder`, or resume there, or leave it where it is finished."""
        log = read_log(folder)
        if log and log[-1]["event"] == "summary":
            return
        if log:
            flags = ["--resume"]
        elif folder.exists():  # killed before it began
            shutil.rmtree(folder)
        launcher = ["-m", "torch.distributed.run", "--standalone"]
        launcher += [f"--nproc-per-node={self.processes}"]
        program = [*(launcher if self.processes > 1 else []), str(ROOT / "train.py")]
        self._call(*program, "--out", str(folder), *flags)

    def train_flags(self, row: Row) -> list[str]:
        """Return train.py's flags; those of the method stand last, so that they hold."""
        teacher, steps = self._teacher(row), round(row.tokens / (self.batch * self.seq_len))
        layers, width = row.sizes
        flags = ["--teacher", teacher, "--seed", str(row.seed), "--seq-len", str(self.seq_len)]
        flags += ["--batch-size", str(self.batch // self.processes), "--steps", str(max(1, steps))]
        flags += ["--student-layers", str(layers), "--student-hidden", str(width)]
        every = str(max(1, steps // 4))
        flags += ["--eval-every", every, "--save-every", every, *self.flags]
        flags += [word for corpus in self._data(row) for word in ("--data", corpus)]
        if row.start != "default" and row.method != "od-after-hs":
            flags += ["--init", row.start]
        flags += self._rate(row)
        words = METHODS[row.method].split()
        if any(map(LAST_LAYER.fullmatch, words)):
            depth = read_json(find_folder(teacher) / "config.json")["num_hidden_layers"]
            words = [
                str(depth + int(word[1:] or 0)) if LAST_LAYER.fullmatch(word) else word
                for word in words
            ]
        return flags + words

    def _rate(self, row: Row) -> list[str]:
        rate = self.rates.get(row.method, self.rates.get(""))
        return ["--lr", rate] if rate else []

    def _teacher_name(self, row: Row) -> str:
        if row.setting == "english":
            return str(self.folder / WITH_HEAD) if row.method.startswith("od") else "minilm"
        return self.teacher or "intfloat/multilingual-e5-small"

    def _teacher(self, row: Row) -> str:
        """Return the teacher's name; the one with an MLM head is trained on the first call."""
        name = self._teacher_name(row)
        if name.endswith(WITH_HEAD):
            with self._lock(WITH_HEAD):
                self._train(Path(name), HEAD.split())
        return name

    def _data(self, row: Row) -> list[str]:
        """Return the values of --data; the texts are made on the first call."""
        if row.setting == "own":
            return list(self.data)
        folder = self.folder / "help"
        with self._lock("help text", wait=True):
            if row.setting == "english":
                return ["docs", f"help={help_text.training_text(folder, help_text.ENGLISH)}"]
            files = {name: help_text.training_text(folder, name) for name in help_text.TRAINED}
            return [f"{name}={file}" for name, file in files.items()]

    # ---- evaluation ----

    def _evaluate(self, row: Row, run: Path) -> dict[str, dict]:
        """Return {teacher, cut-off, start or student: {"scores": ..., "measures": ...}}."""
        out, teacher = run.parent / "evaluation", self._teacher(row)
        tasks = TASKS.get(row.setting, self.tasks)
        flags = [str(run), "--teacher", teacher, "--out", str(out), "--tasks", *tasks]
        if self.data_dir:
            flags += ["--data-dir", self.data_dir]
        self._call(str(ROOT / "evaluate.py"), *flags)
        results = json.loads((out / "results.json").read_text("utf-8"))
        roles = {teacher: "teacher", str(run): "student", f"{run} (start)": "start"}
        roles[f"{teacher} (first {row.sizes[0]} layers)"] = "cut-off"
        models = {}
        for facts in results["models"]:
            numbers = {key: v for key, v in facts.items() if isinstance(v, int | float)}
            models[roles[facts["model"]]] = {"scores": {}, "measures": numbers}
        for score in results["rows"]:
            scores = models[roles[score["model"]]]["scores"]
            scores[f"{score['task']} {score['metric']}"] = score["values"]
        if row.setting == "multilingual":
            found = languages.retrieval(str(run), teacher, self.folder / "help")
            for name, shares in found.items():
                if roles[name] in models:
                    models[roles[name]]["retrieval"] = shares
        return models

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


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent is killed (Linux): else it would train on
    while the next `run` wants the same folder.
    """
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


# ---- records and logs ----------------------------------------------------------------------------


def read_records(file: Path) -> list[dict]:
    """Return the records, one JSON object a line."""
    records = []
    for number, line in enumerate(file.read_text("utf-8").splitlines() if file.exists() else [], 1):
        try:
            records.append(json.loads(line))
            records[-1]["row"]
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{file}, line {number}: not a record; remove the line") from None
    return records


def append(file: Path, record: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a", encoding="utf-8") as records:
        records.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")


def read_log(folder: Path) -> list[dict]:
    """Return the whole lines of a run's log; [] where it has not begun."""
    file = folder / "log.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def log_facts(folder: Path) -> dict:
    """Return what a run's log says: settings, text, machine; held-out losses; seconds of steps."""
    log = read_log(folder)
    start = log[0]
    settings = {name: start["settings"][name] for name in KEPT_SETTINGS}
    step_tokens = start["sequences_a_step"] * settings["seq_len"]
    speeds = [record["tokens_per_s"] for record in log if record["event"] == "step"]
    # by the median step: a machine that slept in one would count its sleep
    seconds = round(len(speeds) * step_tokens / max(1, statistics.median(speeds)), 1)
    return {
        "settings": settings,
        "layers": start["start"]["layers"],  # of the teacher, which the start copies
        "text_tokens": sum(corpus["tokens"] for corpus in start["text"]),
        "tokens_read": step_tokens * len(speeds),
        "curve": [[record["step"], record["loss"]] for record in log if record["event"] == "eval"],
        "seconds": seconds,
        **{name: start[name] for name in ("commit", "machine", "versions")},
    }
