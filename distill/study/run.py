"""The loop: train a row, evaluate it, append a record.

A killed training is resumed from its checkpoint, a killed evaluation from its cache, and a row with
a record is never started again. Several processes may share the list: each row has a lock.
"""

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

from filelock import FileLock, Timeout

from distill.study import help_text
from distill.study.rows import VARIANTS, Row
from distill.training.run import Run
from minitransformer.files import UserError, first_line, read_json, sha256
from minitransformer.pretrained import find_folder

ROOT = Path(__file__).resolve().parents[2]
TASKS = {"english": ["movies", "topics"], "multilingual": ["reviews"]}
# od needs a head for masked words, which the English teacher has not: it learns from this one
WITH_HEAD = "minilm-with-head"
HEAD = "--method mlm --init minilm --lr 2e-4 --steps 500 --batch-size 32 --save-every 100"
# of the command line: what a row's name leaves open
GIVEN = ("data", "data_dir", "tasks", "batch", "seq_len", "rates", "warmup", "heads", "ffn")
KEPT_SETTINGS = ("lr", "batch_size", "accumulate", "seq_len", "steps", "warmup", "precision")


class Study:
    def __init__(self, config: argparse.Namespace):
        """`config` is the command line (__main__.py)."""
        self.config, self.folder = config, config.folder
        self.own_tasks = ["--tasks", *config.tasks]
        self.own_tasks += ["--data-dir", config.data_dir] if config.data_dir else []

    def run(self, rows: list[Row]) -> int:
        """Run the rows without a record, in order; return the exit status."""
        failed = []
        for row in rows:
            try:
                with self._lock(row.name, wait=False):
                    self._finish(row)
            except Timeout:
                print(f"another process runs {row.name}")
            except UserError as error:
                print(f"{row.name}: {error}", flush=True)
                failed.append(row.name)
        if failed:
            print(f"failed, their messages stand above: {', '.join(failed)}")
        return 1 if failed else 0

    def _finish(self, row: Row) -> None:
        """Train, evaluate and record a row. Refuse a command line that differs from that of rows of
        the same student that are already recorded.
        """
        given = {name: getattr(self.config, name) for name in GIVEN}
        given["teacher"] = Path(self._teacher_name(row)).name
        if row.setting == "own":  # two folders may have the same last name
            given["teacher"] += f" {sha256(self._teacher_name(row)):.8}"
        results = self.config.results
        may_differ = {"rates", "teacher"} if row.setting == "english" else {"rates"}
        for record in read_records(results):
            name, before = record["row"], given | record.get("given", {})
            compared = given if name == row.name else given.keys() - may_differ
            changed = [key for key in given if key in compared and before[key] != given[key]]
            if changed and record["student"] == row.student:
                raise UserError(f"{results}: {name} has another {changed[0]}; use other --results")
            if name == row.name:
                return
        print(f"\n== {row.name}", flush=True)
        if row.setting == "own":  # a mistake in --tasks is said before the training
            self._call(str(ROOT / "evaluate.py"), self._teacher(row), *self.own_tasks)
        run = self._train_student(row)
        facts = log_facts(run)
        for record in read_records(results):
            alike = (record["student"], record.get("tokens")) == (row.student, row.tokens)
            if alike and record.get("text", facts["text"]) != facts["text"]:
                raise UserError(
                    f"{results}: {record['row']} read another text; use other --results"
                )
        inputs, models = self._evaluate(row, run)
        for role in [role for role in models if role.startswith("untrained start")]:
            start = models.pop(role)
            if row.method != "od-after-hs":  # whose start is a trained student
                models[f"{role} from {start_label(asdict(row) | facts)}"] = start
        with self._lock("records"):
            known = {record["row"]: record for record in read_records(results)}
            for role, scores in models.items():  # teacher and baselines once for all rows
                if role == "student":
                    record = {"row": row.name, **asdict(row), "given": given, **facts}
                else:
                    record = {"row": f"{row.student}/{role}", "student": row.student}
                    record |= {"method": role, "commit": facts["commit"]}
                before = known.get(record["row"])
                if before is None:
                    append(results, {**record, "inputs": inputs, "scores": scores})
                elif before.get("inputs", inputs) != inputs:
                    raise UserError(f"{results}: teacher or tasks of {record['row']} have changed")
        if row.setting != "own":  # weights of a student of one's own are kept
            shutil.rmtree(self.folder / row.name)

    def _lock(self, name: str, wait: bool = True) -> FileLock:
        file = self.folder / "locks" / name.replace("/", " ")
        file.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(file, timeout=-1 if wait else 0)

    def _train_student(self, row: Row) -> Path:
        """Return the row's run folder, trained; another command line has another folder."""
        run = self.folder / row.name / sha256(" ".join(self.train_flags(row)))[:8] / row.method
        if row.method == "od-after-hs":
            hs = replace(row, method="hs-uniform")
            self._train(run.parent / hs.method, self.train_flags(hs))
            row = replace(row, start=str(run.parent / hs.method))
        self._train(run, self.train_flags(row))
        return run

    def _train(self, folder: Path, flags: list[str]) -> None:
        """Train into `folder`, or resume there; train.py leaves a finished run as it is."""
        log = folder / "log.jsonl"
        if log.exists() and b"\n" in log.read_bytes():
            flags = [*flags, "--resume"]
        elif folder.exists():  # killed before it began
            shutil.rmtree(folder)
        processes = self.config.nproc
        torchrun = f"-m torch.distributed.run --standalone --nproc-per-node={processes}".split()
        program = [*(torchrun if processes > 1 else []), str(ROOT / "train.py")]
        self._call(*program, "--out", str(folder), *flags)

    def train_flags(self, row: Row) -> list[str]:
        config, teacher, method = self.config, self._teacher(row), VARIANTS[row.method]
        steps = max(1, round(row.tokens / (config.batch * config.seq_len)))
        layers, width = row.sizes
        settings = {
            "teacher": teacher,
            "seed": row.seed,
            "steps": steps,
            "batch-size": config.batch // config.nproc,
            "accumulate": 1,
            "seq-len": config.seq_len,
            "warmup": config.warmup,
            "lr": config.rates.get(row.method, config.rates.get("")),
            "student-layers": layers,
            "student-hidden": width,
            "student-heads": config.heads,
            "student-ffn": config.ffn,
            "init": row.start,
            "eval-every": min(steps, 5000),  # seldom: the held-out text is long
            "save-every": min(max(1, steps // 4), 500),
            **method,
        }
        if "teacher-layer" in method:
            depth = read_json(find_folder(teacher) / "config.json")["num_hidden_layers"]
            settings["teacher-layer"] = depth + method["teacher-layer"]
        words = [[f"--{name}", str(v)] for name, v in settings.items() if v is not None]
        words += [["--data", corpus] for corpus in self._data(row)]
        return [part for pair in words for part in pair]

    def _teacher_name(self, row: Row) -> str:
        if row.setting == "english":
            return str(self.folder / WITH_HEAD) if row.method.startswith("od") else "minilm"
        return self.config.teacher or "intfloat/multilingual-e5-small"

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
            return self.config.data
        if row.setting == "english":
            return ["wordnet"]
        with self._lock("help text"):
            files = [help_text.training_text(self.folder / "help", n) for n in help_text.TRAINED]
        return [f"{file.stem}={file}" for file in files]

    def _evaluate(self, row: Row, run: Path) -> tuple[list[str], dict[str, dict]]:
        """Return hashes of teacher and tasks, and {model: {"TASK METRIC": a value a seed}}."""
        out, teacher = run.parent / "evaluation", self._teacher(row)
        tasks = self.own_tasks if row.setting == "own" else ["--tasks", *TASKS[row.setting]]
        words = [str(run), "--teacher", teacher, "--out", str(out), *tasks]
        self._call(str(ROOT / "evaluate.py"), *words)
        roles = {teacher: "teacher", f"{run} (start)": "untrained start"}
        roles[f"{teacher} (first {row.sizes[0]} layers)"] = "cut-off teacher"
        if teacher.endswith(WITH_HEAD):
            roles = {name: f"{role} with MLM head" for name, role in roles.items()}
        roles[str(run)], models = "student", {}
        result = json.loads((out / "results.json").read_text("utf-8"))
        for score in result["rows"]:
            scores = models.setdefault(roles[score["model"]], {})
            scores[f"{score['task']} {score['metric']}"] = score["values"]
        return [result["hashes"][teacher], *result["tasks"].values()], models

    def _call(self, *words: str) -> None:
        """Run a Python program. Ctrl-C reaches it too, and it is given the time to save."""
        print("$ python", *words, flush=True)
        program = subprocess.Popen([sys.executable, *words])
        try:
            program.wait()
        finally:
            status = program.wait()
        if status:
            raise UserError(f"{Path(words[0]).name} ended with status {status}")


def read_records(file: Path) -> list[dict]:
    """Return the records, one JSON object per line."""
    try:
        lines = file.read_text("utf-8").split("\n") if file.exists() else []
        records = [json.loads(line) for line in lines if line.strip()]
        if not all({"row", "student", "method"} <= record.keys() for record in records):
            raise ValueError("not a row of a student")
    except (ValueError, AttributeError) as error:  # AttributeError: not an object
        raise UserError(f"{file}: a line is damaged, remove it ({first_line(error)})") from None
    return records


def append(file: Path, record: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    torn = file.exists() and not file.read_bytes().endswith(b"\n")  # saved by an editor
    with open(file, "a", encoding="utf-8") as records:
        records.write("\n" * torn + json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")


def start_label(record: dict) -> str:
    """Return the teacher layers that a row's start copies or, where there are none, its --init."""
    return ",".join(map(str, record["layers"])) or record["start"]


def log_facts(folder: Path) -> dict:
    """Return what a run's log says: settings, text, machine, held-out losses."""
    log = Run(folder).records()
    start = log[0]
    return {
        "settings": {name: start["settings"][name] for name in KEPT_SETTINGS},
        "layers": start["start"]["layers"],  # of the teacher, which the start copies
        "text_tokens": sum(corpus["tokens"] for corpus in start["text"]),
        "text": [corpus["hash"] for corpus in start["text"]],
        "curve": [[record["step"], record["loss"]] for record in log if record["event"] == "eval"],
        **{name: start[name] for name in ("commit", "machine", "versions")},
    }
