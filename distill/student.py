"""The student: its sizes and where it starts (`--init`).

    random       everything drawn anew, N(0, initializer_range)
    embeddings   the teacher's embeddings and random blocks; where the student is narrower, the
                 embeddings' principal directions
    uniform      the teacher's embeddings and its layers u(1), u(2), ..., evenly spaced:  12 -> 6: 2
                 4 6 8 10 12
    first, last  the teacher's embeddings and its first or last layers:                   12 -> 6: 1
                 .. 6 or 7 .. 12
    2,4,6        the teacher's embeddings and these layers
    FOLDER       another student (or hub id, or `embedded`), whose sizes then hold: as the study
                 starts OD from an HS student

A layer can be copied only where student and teacher have the same width, heads and FFN width.
"""

from dataclasses import replace

import torch

from distill import METHODS, build_method
from distill.method import Batch, Method
from minitransformer.config import EncoderConfig
from minitransformer.errors import UserError
from minitransformer.model import Encoder
from minitransformer.pretrained import load_pretrained

NAMED = ("random", "embeddings", "uniform", "first", "last")


def student_config(
    teacher: EncoderConfig, layers=None, hidden=None, heads=None, ffn=None
) -> EncoderConfig:
    """The teacher's config at another size. Defaults: half its layers, its width, its heads (or the
    nearest number of heads that divides the width), FFN 4 times the width.
    """
    layers = layers or max(1, teacher.num_hidden_layers // 2)
    hidden = hidden or teacher.hidden_size
    if heads is None:
        divisors = [a for a in range(1, hidden + 1) if hidden % a == 0]
        heads = min(divisors, key=lambda a: (abs(a - teacher.num_attention_heads), -a))
    return replace(
        teacher,
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=ffn or 4 * hidden,
    )


def is_folder(init: str) -> bool:
    """Whether `--init` names another model rather than a way to start."""
    return init not in NAMED and not all(part.isdigit() for part in init.split(","))


def default_init(student: EncoderConfig, teacher: EncoderConfig) -> str:
    return "uniform" if _same_blocks(student, teacher) and _fits(student, teacher) else "embeddings"


def start_student(
    init: str, config: EncoderConfig, teacher: Encoder, seed: int, *, mlm_head: bool
) -> Encoder:
    """A student of `config` that starts as `init` says (all but FOLDER). Its MLM head, if it is to
    have one, is the teacher's where the widths agree, else random.
    """
    student = Encoder(config, mlm_head=mlm_head)
    student.reset_parameters(torch.Generator().manual_seed(seed))
    if init == "random":
        return student
    layers = _layers(init, config, teacher.config)  # before anything is copied
    _copy_embeddings(student, teacher)
    for block, layer in zip(student.blocks, layers, strict=False):
        block.load_state_dict(teacher.blocks[layer - 1].state_dict())
    if mlm_head:
        _copy_mlm_head(student, teacher)
    return student


def _layers(init: str, student: EncoderConfig, teacher: EncoderConfig) -> list[int]:
    if init == "embeddings":
        return []
    n_s, n_t = student.num_hidden_layers, teacher.num_hidden_layers
    if not _same_blocks(student, teacher):
        ours, theirs = (
            (c.hidden_size, c.num_attention_heads, c.intermediate_size) for c in (student, teacher)
        )
        raise UserError(
            f"--init {init} copies teacher layers, but (width, heads, FFN) are {ours} in the"
            f" student and {theirs} in the teacher;"
            " make them equal or start with --init embeddings"
        )
    if init in NAMED and n_s > n_t:
        raise UserError(
            f"--init {init}: {n_s} student layers, but the teacher has {n_t}; ask for fewer or"
            " list them"
        )
    if init == "uniform":
        return [(2 * i * n_t + n_s) // (2 * n_s) for i in range(1, n_s + 1)]
    if init == "first":
        return list(range(1, n_s + 1))
    if init == "last":
        return list(range(n_t - n_s + 1, n_t + 1))
    layers = [int(part) for part in init.split(",")]
    if len(layers) != n_s:
        raise UserError(
            f"--init {init} lists {len(layers)} layers, but the student has {n_s}; list {n_s}"
        )
    if wrong := [layer for layer in layers if not 1 <= layer <= n_t]:
        raise UserError(f"--init {init}: layer {wrong[0]} is not one of the teacher's 1 to {n_t}")
    return layers


def _fits(student: EncoderConfig, teacher: EncoderConfig) -> bool:
    return student.num_hidden_layers <= teacher.num_hidden_layers


def _same_blocks(student: EncoderConfig, teacher: EncoderConfig) -> bool:
    sizes = ("hidden_size", "num_attention_heads", "intermediate_size")
    return all(getattr(student, size) == getattr(teacher, size) for size in sizes)


@torch.no_grad()
def _copy_embeddings(student: Encoder, teacher: Encoder) -> None:
    """Copies the tables; into a narrower student through U (D_t, D_s), the principal directions of
    the word table.

    U has orthonormal columns, so the three tables keep their sum: (word + position + type) U. The
    LayerNorm behind them keeps its fresh weights then, since the teacher's belong to other
    directions.
    """
    width_s, width_t = student.config.hidden_size, teacher.config.hidden_size
    if width_s == width_t:
        student.embeddings.load_state_dict(teacher.embeddings.state_dict())
        return
    if width_s > width_t:
        raise UserError(
            f"--init embeddings: the student's width {width_s} exceeds the teacher's {width_t};"
            " use --init random"
        )
    word = teacher.embeddings.word.weight.double()  # (V, D_t)
    _, directions = torch.linalg.eigh(word.T @ word)  # (D_t, D_t), columns by ascending eigenvalue
    directions = directions[:, -width_s:]  # U (D_t, D_s)
    # an eigenvector's sign is arbitrary: fix it, so that every machine starts the same student
    directions = directions * torch.sign(
        directions[directions.abs().argmax(dim=0), torch.arange(width_s)]
    )
    for name, table in student.embeddings.named_parameters():
        if table.dim() == 2:
            table.copy_(teacher.embeddings.get_parameter(name).double() @ directions)


def load_models(config):
    """Everything that the settings say of the models; what they left open comes back filled in.

    Returns (teacher or None, student, method, tokenizer, settings). Errors: UserError, before any
    text is read.
    """
    kind = METHODS[config.method]
    folder = config.init if config.init and is_folder(config.init) else None
    teacher = tokenizer = None
    if kind.needs_teacher or not folder:
        teacher, tokenizer = load_pretrained(config.teacher, config.revision)
        teacher.requires_grad_(False)
    if folder:
        student, own = load_pretrained(folder)
        if tokenizer and own.hash != tokenizer.hash:
            raise UserError(
                f"the tokenizers differ: --init {folder} has {own.vocab_size} tokens"
                f" ({own.hash[:8]}), --teacher"
                f" {config.teacher} {tokenizer.vocab_size} ({tokenizer.hash[:8]}); a student"
                " reads with its teacher's"
            )
        tokenizer = own
        for name, size in _sizes(student.config).items():
            if getattr(config, name) not in (None, size):
                flag = "--" + name.replace("_", "-")
                raise UserError(
                    f"{flag} {getattr(config, name)}, but --init {folder} has {size};"
                    f" leave {flag} out"
                )
        if kind.masked_text and student.mlm_head is None:
            add_mlm_head(student, teacher, config.seed)
    else:
        shape = student_config(
            teacher.config,
            config.student_layers,
            config.student_hidden,
            config.student_heads,
            config.student_ffn,
        )
        config = replace(config, init=config.init or default_init(shape, teacher.config))
        student = start_student(config.init, shape, teacher, config.seed, mlm_head=kind.masked_text)
    method = build_method(
        config.method,
        student.config,
        teacher.config if kind.needs_teacher else None,
        mapping=config.mapping,
        teacher_layer=config.teacher_layer,
        relation_heads=config.relation_heads,
        temperature=config.temperature,
        positions=config.positions,
    )
    method.check_models(student, teacher)
    for name, model in (("student", student), ("teacher", teacher)):
        if model is not None and config.seq_len > model.config.max_tokens:
            raise UserError(
                f"--seq-len {config.seq_len}, but the {name} has positions for"
                f" {model.config.max_tokens} tokens; give at most that"
            )
    names = ("teacher_layer", "relation_heads")
    chosen = {name: getattr(method, name) for name in names if hasattr(method, name)}
    return teacher, student, method, tokenizer, replace(config, **_sizes(student.config), **chosen)


def _sizes(config: EncoderConfig) -> dict[str, int]:
    return {
        "student_layers": config.num_hidden_layers,
        "student_hidden": config.hidden_size,
        "student_heads": config.num_attention_heads,
        "student_ffn": config.intermediate_size,
    }


def add_mlm_head(student: Encoder, teacher: Encoder | None, seed: int) -> None:
    """Gives a student without an MLM head one: the teacher's where the widths agree, else a random
    one.
    """
    fresh = Encoder(student.config, mlm_head=True)
    fresh.reset_parameters(torch.Generator().manual_seed(seed))
    student.mlm_head = fresh.mlm_head
    _copy_mlm_head(student, teacher)


def _copy_mlm_head(student: Encoder, teacher: Encoder | None) -> None:
    same_width = teacher is not None and student.config.hidden_size == teacher.config.hidden_size
    if same_width and teacher.mlm_head is not None:
        student.mlm_head.load_state_dict(teacher.mlm_head.state_dict())


def freeze_unreached(student: Encoder, method: Method, teacher, batch: Batch) -> str:
    """Freezes what the method's gradient never reaches, found by asking for one; returns a line
    about it.
    """
    total, _ = method(student, teacher, batch.sequences(0, 1))
    total.backward()
    unreached = {name: p for name, p in student.named_parameters() if p.grad is None}
    for parameter in unreached.values():
        parameter.requires_grad_(False)
    student.zero_grad(set_to_none=True)
    method.zero_grad(set_to_none=True)
    if not unreached:
        return ""
    modules = ", ".join(dict.fromkeys(name.rpartition(".")[0] for name in unreached))
    count = sum(p.numel() for p in unreached.values())
    return f"frozen, since this method never reaches it ({count / 1e6:.1f} M parameters): {modules}"
