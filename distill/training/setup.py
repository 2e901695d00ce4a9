"""From the settings of a run to its models, optimizer and learning rates."""

import math
from dataclasses import asdict, replace

import torch
from torch import nn

from distill import METHODS
from distill.method import Batch, Method, check_method
from distill.student import Start, build_start, names_model, sizes
from minitransformer.files import UserError
from minitransformer.model import Encoder
from minitransformer.pretrained import load_pretrained, model_hash


def load_models(config) -> tuple[Encoder | None, Start, object, dict]:
    """Return teacher, start, the settings with what they left open, and the record for the log."""
    kind = METHODS[config.method]
    teacher = tokenizer = teacher_record = None
    if kind.needs_teacher or not names_model(config.init):
        teacher, tokenizer = load_pretrained(config.teacher, config.revision)
        teacher.requires_grad_(False)
        teacher_record = {"name": config.teacher, "hash": model_hash(teacher, tokenizer)}
        teacher_record["vectors"] = f"{tokenizer.pooling}, normalize {tokenizer.normalize}"
    start = build_start(asdict(config), teacher)
    if teacher is None and (config.teacher != type(config).teacher or config.revision):
        start.warnings.append("--teacher and --revision are not read: --init names the model")
    if tokenizer and start.tokenizer and tokenizer.hash != start.tokenizer.hash:
        raise UserError("--init and --teacher have different tokenizers; they need the same one")
    start.tokenizer = tokenizer or start.tokenizer  # with the pooling that the student learns
    if kind.masked_text and kind.needs_teacher and teacher.mlm_head is None:
        command = "python train.py --method mlm --init TEACHER"
        raise UserError(f"the teacher has no MLM head; `{command}` gives it one")
    for name, model in (("student", start.student), ("teacher", teacher)):
        if model is not None and config.seq_len > model.config.max_tokens:
            most = f"the {name} has positions for {model.config.max_tokens} tokens"
            raise UserError(f"--seq-len {config.seq_len}, but {most}; give at most that")
    chosen = {"init": start.init, **sizes(start.student.config)}
    for name in ("teacher_layer", "relation_heads"):
        chosen[name] = getattr(start.method, name, None) or getattr(config, name)
    start_record = {"hash": model_hash(start.student, start.tokenizer), "layers": start.layers}
    record = {"teacher": teacher_record, "start": start_record}
    return teacher, start, replace(config, **chosen), record


def freeze_unreached(
    student: Encoder, method: Method, teacher: Encoder | None, batch: Batch
) -> list[str]:
    """Freeze what the method's gradient never reaches; return the names of these parameters."""
    # DistributedDataParallel would wait for their gradients, and weight decay would shrink them
    check_method(method, student, teacher, batch)  # leaves the gradients
    unreached = {name: p for name, p in student.named_parameters() if p.grad is None}
    for parameter in unreached.values():
        parameter.requires_grad_(False)
    student.zero_grad(set_to_none=True)
    method.zero_grad(set_to_none=True)
    return list(unreached)


def make_optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW over the parameters that learn.

    Weight decay acts on matrices of layers and learned projections only: not on vectors (biases and
    norms), nor on embedding tables, in which it would shrink every row that the text never reads.
    """
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.dim() > 1 and p not in tables]
    kept = [p for p in trained if p.dim() < 2 or p in tables]
    groups = [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]
    # eps 1e-6: with 1e-8 a gradient that is rounding noise moves a weight by a full learning rate
    return torch.optim.AdamW(groups, lr, weight_decay=weight_decay, eps=1e-6, fused=True)


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Return the rate of step 0, 1, ...: it rises for a share `warmup` of the steps, then falls."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * (steps - step) / max(1, steps - rising)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
