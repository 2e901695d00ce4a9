"""From the settings of a run to its models: teacher, student, method, tokenizer."""

from dataclasses import asdict, dataclass, replace

from distill import METHODS
from distill.method import Batch, Method, check_method
from distill.student import build_start, is_folder, sizes
from minitransformer.files import UserError
from minitransformer.model import Encoder
from minitransformer.pretrained import load_pretrained, weights_hash
from minitransformer.tokenizer import Tokenizer


@dataclass
class Models:
    """What a run trains with. `start` and `teacher_record` are what its log says about them."""

    teacher: Encoder | None
    student: Encoder
    method: Method
    tokenizer: Tokenizer
    teacher_record: dict | None  # name and hash
    start: dict  # hash of the untrained student, and the teacher layers that it copies


def load_models(config) -> tuple[Models, object]:
    """Return the models, and the settings with what they left open filled in.

    Errors: UserError, before any text is read.
    """
    kind = METHODS[config.method]
    teacher = teacher_record = tokenizer = None
    if kind.needs_teacher or not is_folder(config.init):
        teacher, tokenizer = load_pretrained(config.teacher, config.revision)
        teacher.requires_grad_(False)
        teacher_record = {"name": config.teacher, "hash": weights_hash(teacher)}
    start = build_start(asdict(config), teacher)
    student, method = start.student, start.method
    if start.tokenizer is not None:
        if tokenizer is not None and tokenizer.hash != start.tokenizer.hash:
            raise UserError(
                f"the tokenizers differ: --init {config.init} has {start.tokenizer.vocab_size}"
                f" tokens, --teacher {config.teacher} has {tokenizer.vocab_size}; a student must"
                " read as its teacher does"
            )
        tokenizer = start.tokenizer
    method.check_models(student, teacher)
    for name, model in (("student", student), ("teacher", teacher)):
        if model is not None and config.seq_len > model.config.max_tokens:
            raise UserError(
                f"--seq-len {config.seq_len}, but the {name} has positions for"
                f" {model.config.max_tokens} tokens; give at most that"
            )
    chosen = {"init": start.init, **sizes(student.config)}
    for name in ("teacher_layer", "relation_heads"):
        if getattr(method, name, None) is not None:
            chosen[name] = getattr(method, name)
    start_record = {"hash": weights_hash(student), "layers": start.layers}
    models = Models(teacher, student, method, tokenizer, teacher_record, start_record)
    return models, replace(config, **chosen)


def freeze_unreached(
    student: Encoder, method: Method, teacher: Encoder | None, batch: Batch
) -> str:
    """Freeze what the method's gradient never reaches; return a line that names it.

    DistributedDataParallel would wait for these gradients, and weight decay would shrink them.
    """
    check_method(method, student, teacher, batch.sequences(0, 1))
    unreached = {name: p for name, p in student.named_parameters() if p.grad is None}
    for parameter in unreached.values():
        parameter.requires_grad_(False)
    student.zero_grad(set_to_none=True)
    method.zero_grad(set_to_none=True)
    if not unreached:
        return ""
    modules = ", ".join(dict.fromkeys(name.rpartition(".")[0] for name in unreached))
    count = sum(p.numel() for p in unreached.values())
    return f"frozen, this method never reaches them ({count / 1e6:.1f} M parameters): {modules}"
