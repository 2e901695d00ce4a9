"""The models of a table: runs, their untrained starts, their teachers."""

from dataclasses import asdict, dataclass
from pathlib import Path

from distill.student import build_start
from distill.training.run import Run
from minitransformer.files import UserError
from minitransformer.model import Encoder
from minitransformer.pretrained import load_pretrained, weights_hash
from minitransformer.tokenizer import Tokenizer


@dataclass
class Model:
    """One column of the table.

    settings   of the run of train.py that made it, or that begins with it; None where none did
    trained    whether it is such a run's student, and not its start or a model from elsewhere
    start      a run's untrained start, where it could be rebuilt

    Its fingerprint is what identifies it: hash of its weights, sizes, hash of its tokenizer.
    """

    name: str
    encoder: Encoder
    tokenizer: Tokenizer
    settings: dict | None = None
    trained: bool = False
    teacher: "Model | None" = None
    start: "Model | None" = None

    def __post_init__(self):
        weights, sizes = weights_hash(self.encoder), asdict(self.encoder.config)
        self.fingerprint = {"weights": weights, "config": sizes, "tokenizer": self.tokenizer.hash}

    @property
    def reads_like_teacher(self) -> bool:
        return self.teacher is not None and self.tokenizer.hash == self.teacher.tokenizer.hash


def load_models(runs: list[str], teacher: str | None = None) -> dict[str, Model]:
    """Return all models by name: teachers first, then the runs, each behind its untrained start.

    teacher   compare with this one instead of each run's own
    """
    records = {name: start_record(name) for name in runs}
    teachers, models = {}, {}
    for name, record in records.items():
        own = record["teacher"]["name"] if record and record["teacher"] else None
        teachers[name] = teacher or own
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
    name, teacher = run.name, run.teacher
    if teacher is None:
        return
    if not run.reads_like_teacher:
        raise UserError(f"{name} and its teacher {teacher.name} have different tokenizers")
    if record["teacher"] and record["teacher"]["hash"] != teacher.fingerprint["weights"]:
        print(f"note: {name} learned from a teacher with other weights than {teacher.name}")


def find_start(run: Model, record: dict) -> Model | None:
    """Return the run's untrained start, rebuilt from its settings and checked by the logged hash.

    Where the start cannot be vouched for, a note says why and there is none.
    """
    if record["teacher"] and run.teacher is None:  # --teacher names the run itself
        print(f"note: no column for the start of {run.name}: its teacher is not here")
        return None
    try:
        encoder = build_start(run.settings, run.teacher and run.teacher.encoder).student.eval()
    except UserError as error:
        print(f"note: no column for the start of {run.name}: {error}")
        return None
    name = f"{run.name} (start)"
    start = Model(name, encoder, run.tokenizer, run.settings, teacher=run.teacher)
    logged, rebuilt = record["start"].get("hash"), start.fingerprint["weights"]
    if rebuilt == logged:
        return start
    problem = f"rebuilt from its settings it is {rebuilt:.8}, the log says {logged!s:.8}"
    print(f"note: no column for the start of {run.name}: {problem}")
    return None
