"""The models of a table: runs, their untrained starts, their teachers."""

from dataclasses import dataclass
from pathlib import Path

from distill.evaluation.finetune import fingerprint
from distill.student import rebuild_start
from distill.training.run import Run
from minitransformer.errors import UserError
from minitransformer.model import Encoder
from minitransformer.pretrained import load_pretrained
from minitransformer.tokenizer import Tokenizer


@dataclass
class Model:
    """One column of the table.

    settings   of the run of train.py that made it, or that begins with it; None where none did
    trained    whether it is such a run's student, and not its start or a model from elsewhere
    start      a run's untrained start, where it could be rebuilt
    """

    name: str
    encoder: Encoder
    tokenizer: Tokenizer
    settings: dict | None = None
    trained: bool = False
    teacher: "Model | None" = None
    start: "Model | None" = None

    def __post_init__(self):
        self.fingerprint = fingerprint(self.encoder, self.tokenizer)

    @property
    def reads_like_teacher(self) -> bool:
        return self.teacher is not None and self.tokenizer.hash == self.teacher.tokenizer.hash


def load_models(runs: list[str], teacher: str | None = None) -> dict[str, Model]:
    """Return all models by name: teachers first, then the runs, each behind its untrained start.

    teacher   compare with this one instead of each run's own
    """
    records = {name: start_record(name) for name in runs}
    teachers = {}
    for name, record in records.items():
        own = record["teacher"]["name"] if record and record["teacher"] else None
        teachers[name] = teacher or own
    models = {}
    for name in teachers.values():
        if name is not None and name not in models:
            asked_for = name in runs or teacher is not None
            models[name] = load_model(name, records.get(name), asked_for)
    for name, record in records.items():
        model = models.get(name) or load_model(name, record)
        if teachers[name] not in (None, name):
            model.teacher = models[teachers[name]]
        if record:
            check_teacher(model, record)
            model.start = find_start(model, record)
        if model.start:
            models[model.start.name] = model.start
        models[name] = model
    return models


def start_record(name: str) -> dict | None:
    return Run(name).records()[0] if Path(name, "log.jsonl").exists() else None


def load_model(name: str, record: dict | None, asked_for: bool = True) -> Model:
    try:
        encoder, tokenizer = load_pretrained(name)
    except UserError as error:
        if record and not Path(name, "config.json").exists():
            hint = f"it is unfinished: python train.py --out {name} --resume"
        elif not asked_for:
            hint = "it taught a run; name where it is now with --teacher"
        else:
            raise
        raise UserError(f"{error}; {hint}") from None
    return Model(name, encoder, tokenizer, record and record["settings"], trained=bool(record))


def check_teacher(run: Model, record: dict) -> None:
    """Refuse a teacher that reads otherwise than its student; note one with other weights."""
    if run.teacher is None:
        return
    if not run.reads_like_teacher:
        raise UserError(f"{run.name} and its teacher {run.teacher.name} have different tokenizers")
    if record["teacher"] and record["teacher"]["hash"] != run.teacher.fingerprint["weights"]:
        print(f"note: {run.name} learned from a teacher with other weights than {run.teacher.name}")


def find_start(run: Model, record: dict) -> Model | None:
    """Return the run's untrained start, rebuilt from its settings and checked by the logged hash.

    Where the start cannot be vouched for, a note says why and there is none.
    """
    try:
        encoder = rebuild_start(run.settings, run.teacher and run.teacher.encoder).eval()
    except UserError as error:
        problem = str(error)
    else:
        name, settings = f"{run.name} (start)", run.settings
        start = Model(name, encoder, run.tokenizer, settings, teacher=run.teacher)
        logged, rebuilt = record.get("start", {}).get("hash"), start.fingerprint["weights"]
        if rebuilt == logged:
            return start
        problem = f"rebuilt from its settings it is {rebuilt:.8}, the log says {logged!s:.8}"
    print(f"note: no column for the start of {run.name}: {problem}")
    return None
