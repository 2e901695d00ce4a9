"""The models of a table: teachers, baselines, students."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from distill.student import build_start, sizes
from distill.training.run import Run
from minitransformer.files import UserError, shortened
from minitransformer.model import Encoder
from minitransformer.pretrained import load_pretrained, model_hash
from minitransformer.tokenizer import Tokenizer


@dataclass
class Model:
    """One column of the table.

    baselines  what the student must beat: see `cut_teacher` and `untrained_start`
    logged     method and held-out losses, from the run's log
    notes      what a reader of its scores must know
    """

    name: str
    encoder: Encoder
    tokenizer: Tokenizer
    teacher: "Model | None" = None
    baselines: "list[Model]" = field(default_factory=list)
    logged: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.hash = body = model_hash(self.encoder, self.tokenizer)
        if self.encoder.mlm_head is not None:  # no score depends on it
            body = model_hash(first_layers(self.encoder, len(self.encoder.blocks)), self.tokenizer)
        self.key = [body, self.tokenizer.pooling, self.tokenizer.pair_types]


def load_columns(runs: list[str], teacher: str | None = None) -> dict[str, Model]:
    """Return all models by name: teachers first, then the runs, each behind its baselines."""
    logs = {run: Run(run).records() if Path(run, "log.jsonl").exists() else [] for run in runs}
    logged = {run: log[0]["teacher"] if log else None for run, log in logs.items()}
    teachers, models = {}, {}
    for run, log in logs.items():
        source = teacher or (logged[run] and logged[run]["name"])
        revision = log[0]["settings"].get("revision") if source and not teacher else None
        name = teachers[run] = f"{source}@{revision}" if revision else source
        if source and name not in models:
            models[name] = load_model(source, logs.get(source, []), revision)
            models[name].name = name
    for run, log in logs.items():
        model, name = models.get(run) or load_model(run, log), teachers[run]
        if name not in (None, run):
            model.teacher = models[name]
            if log and model.tokenizer.hash != model.teacher.tokenizer.hash:
                raise UserError(f"{run} and teacher {name} have different tokenizers")
            if logged[run] and logged[run]["hash"] != model.teacher.hash:
                model.notes.append(f"{run} learned from another teacher than {name}")
            cut, start = cut_teacher(model), untrained_start(model, log)
            if cut and start and start.key == cut.key:  # --init first
                start = None
            model.baselines = [base for base in (cut, start) if base]
        models |= {base.name: base for base in model.baselines}
        models[run] = model
    return models


def load_model(name: str, log: list[dict], revision: str | None = None) -> Model:
    try:
        model = Model(name, *load_pretrained(name, revision))
    except UserError as error:
        hint = "an unfinished run? resume it. A teacher that was moved? Name it with --teacher"
        raise UserError(f"{shortened(str(error), 270)} ({hint})") from None
    if (most := model.encoder.config.max_tokens) < 128:
        model.notes.append(f"{name} has {most} positions, so its texts are cut there")
    if log:
        loss = log[-1].get("loss_after")
        model.logged = {"method": log[0]["settings"]["method"], "held-out loss": loss}
    return model


def cut_teacher(student: Model) -> Model | None:
    """Return the teacher cut off after the student's number of layers, with nothing trained; None
    where the student is no shallower or has another width, heads or FFN width.
    """
    teacher, layers = student.teacher, student.encoder.config.num_hidden_layers
    config = replace(teacher.encoder.config, num_hidden_layers=layers)
    if sizes(config) != sizes(student.encoder.config) or layers >= len(teacher.encoder.blocks):
        return None
    name = f"{teacher.name} (first {layers} layers)"
    return Model(name, first_layers(teacher.encoder, layers), teacher.tokenizer, teacher=teacher)


def first_layers(encoder: Encoder, layers: int) -> Encoder:
    """Return the encoder's first layers, without its MLM head; the tensors are its own."""
    with torch.device("meta"):
        first = Encoder(replace(encoder.config, num_hidden_layers=layers), mlm_head=False)
    first.load_state_dict(encoder.state_dict(), strict=False, assign=True)
    return first.eval()


def untrained_start(student: Model, log: list[dict]) -> Model | None:
    """Return the student's untrained start, rebuilt from its log; a note says why there is none."""
    if not log:
        return None
    problem = "rebuilt from its settings it is not what the log says"
    try:
        teacher, settings = student.teacher, log[0]["settings"]
        encoder = build_start(settings, teacher.encoder).student.eval()
        start = Model(f"{student.name} (start)", encoder, student.tokenizer, teacher=teacher)
        if start.hash == log[0]["start"]["hash"]:
            return start
    except (UserError, LookupError) as error:  # LookupError: the log of another version
        problem = str(error)
    student.notes.append(f"no column for the untrained start of {student.name}: {problem}")
    return None
