"""The models of a table: teachers, what costs no training, students."""

from dataclasses import dataclass, replace
from pathlib import Path

from distill.student import build_start
from distill.training.run import Run
from minitransformer.files import UserError, printable
from minitransformer.model import Encoder
from minitransformer.pretrained import load_pretrained, model_hash
from minitransformer.tokenizer import Tokenizer


@dataclass
class Model:
    """One column of the table.

    settings   of the run of train.py whose student it is; None for any other model
    baseline   what the student must beat, since it costs no training: the teacher cut off after as
               many layers as the student has, or else the run's untrained start
    loss_before   the logged held-out loss of the run's untrained start
    """

    name: str
    encoder: Encoder
    tokenizer: Tokenizer
    settings: dict | None = None
    teacher: "Model | None" = None
    baseline: "Model | None" = None
    loss_before: float | None = None

    def __post_init__(self):
        self.hash = model_hash(self.encoder, self.tokenizer)

    @property
    def reads_like_teacher(self) -> bool:
        return self.teacher is not None and self.tokenizer.hash == self.teacher.tokenizer.hash


def load_columns(runs: list[str], teacher: str | None = None) -> dict[str, Model]:
    """Return all models by name: teachers first, then the runs, each behind its baseline.

    teacher   compare with this one instead of each run's own
    """
    logs = {name: Run(name).records() if Path(name, "log.jsonl").exists() else [] for name in runs}
    teachers, models = {}, {}
    for name, log in logs.items():
        own = log[0]["teacher"]["name"] if log and log[0]["teacher"] else None
        teachers[name] = teacher or own
    for name in teachers.values():
        if name is not None and name not in models:
            asked_for = name in runs or teacher is not None
            models[name] = load_model(name, logs.get(name, []), asked_for)
    for name, log in logs.items():
        model = models.get(name) or load_model(name, log)
        if teachers[name] not in (None, name):
            model.teacher = models[teachers[name]]
            check_teacher(model, log)
            model.baseline = cut_teacher(model, models) or untrained_start(model, log)
        if model.baseline:
            models[model.baseline.name] = model.baseline
        models[name] = model
    return models


def load_model(name: str, log: list[dict], asked_for: bool = True) -> Model:
    try:
        encoder, tokenizer = load_pretrained(name)
    except UserError as error:
        if log and not Path(name, "config.json").exists():
            hint = f"it is unfinished: python train.py --out {name} --resume"
        elif not asked_for:
            hint = "it taught a run; name where it is now with --teacher"
        else:
            raise
        raise UserError(f"{error}; {hint}") from None
    model = Model(name, encoder, tokenizer)
    if log:
        model.settings = log[0]["settings"]
        losses = (record["loss"] for record in log if record["event"] == "eval")
        model.loss_before = next(losses, None)
    return model


def check_teacher(run: Model, log: list[dict]) -> None:
    """Refuse a teacher that reads otherwise than its student; note one that is not the run's."""
    if not log:
        return
    name, teacher = run.name, run.teacher
    if not run.reads_like_teacher:
        raise UserError(f"{name} and its teacher {teacher.name} have different tokenizers")
    if log[0]["teacher"] and log[0]["teacher"]["hash"] != teacher.hash:
        print(printable(f"note: {name} learned from another teacher than {teacher.name}"))


def cut_teacher(run: Model, models: dict[str, Model]) -> Model | None:
    """Return the teacher cut off after the student's number of layers, with nothing trained.

    None where the student is not a shallower encoder of its teacher's width, heads and FFN width.
    """
    teacher, layers = run.teacher, run.encoder.config.num_hidden_layers
    config = replace(teacher.encoder.config, num_hidden_layers=layers)
    names = ("hidden_size", "num_attention_heads", "intermediate_size")
    alike = all(getattr(config, name) == getattr(run.encoder.config, name) for name in names)
    if not alike or layers >= len(teacher.encoder.blocks):
        return None
    name = f"{teacher.name} (first {layers} layers)"
    if name in models:
        return models[name]
    encoder = Encoder(config, mlm_head=teacher.encoder.mlm_head is not None)
    # not strict: the layers above have no place; assigned: the tensors are the teacher's own
    encoder.load_state_dict(teacher.encoder.state_dict(), strict=False, assign=True)
    return Model(name, encoder.eval(), teacher.tokenizer, teacher=teacher)


def untrained_start(run: Model, log: list[dict]) -> Model | None:
    """Return the run's untrained start, rebuilt from its settings and checked by the logged hash.

    Where the start cannot be vouched for, a note says why and there is none.
    """
    if not log:
        return None
    name, problem = f"{run.name} (start)", "rebuilt from its settings it is not what the log says"
    try:
        encoder = build_start(run.settings, run.teacher.encoder).student.eval()
        start = Model(name, encoder, run.tokenizer, teacher=run.teacher)
        if start.hash == log[0]["start"].get("hash"):
            return start
    except UserError as error:
        problem = str(error)
    print(printable(f"note: no column for the untrained start of {run.name}: {problem}"))
    return None
