"""The student: its sizes and where it starts (`--init`).

    random       everything drawn anew, N(0, initializer_range)
    embeddings   the teacher's embeddings and random blocks; where the student is narrower, the embeddings' principal directions
    uniform      the teacher's embeddings and its layers u(1), u(2), ..., evenly spaced:  12 -> 6: 2 4 6 8 10 12
    first, last  the teacher's embeddings and its first or last layers:                   12 -> 6: 1 .. 6 or 7 .. 12
    2,4,6        the teacher's embeddings and these layers
    FOLDER       another student (or hub id, or `embedded`), whose sizes then hold: as the study starts OD from an HS student

A layer can be copied only where student and teacher have the same width, heads and FFN width.
"""

import dataclasses

import torch

from minitransformer.config import EncoderConfig, UserError
from minitransformer.model import Encoder

NAMED = ("random", "embeddings", "uniform", "first", "last")


def student_config(teacher: EncoderConfig, layers=None, hidden=None, heads=None, ffn=None) -> EncoderConfig:
    """The teacher's config at another size. Defaults: half its layers, its width, its heads (or the nearest number of heads that
    divides the width), FFN 4 times the width."""
    layers = layers or max(1, teacher.num_hidden_layers // 2)
    hidden = hidden or teacher.hidden_size
    if heads is None:
        divisors = [a for a in range(1, hidden + 1) if hidden % a == 0]
        heads = min(divisors, key=lambda a: (abs(a - teacher.num_attention_heads), -a))
    return dataclasses.replace(
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


def start_student(init: str, config: EncoderConfig, teacher: Encoder, seed: int, *, mlm_head: bool) -> Encoder:
    """A student of `config` that starts as `init` says (all but FOLDER). Its MLM head, if it is to have one, is the teacher's
    where the widths agree, else random."""
    student = Encoder(config, mlm_head=mlm_head)
    student.reset_parameters(torch.Generator().manual_seed(seed))
    if init == "random":
        return student
    layers = _layers(init, config, teacher.config)  # before anything is copied
    _copy_embeddings(student, teacher)
    for block, layer in zip(student.blocks, layers, strict=False):
        block.load_state_dict(teacher.blocks[layer - 1].state_dict())
    if mlm_head and teacher.mlm_head is not None and config.hidden_size == teacher.config.hidden_size:
        student.mlm_head.load_state_dict(teacher.mlm_head.state_dict())
    return student


def _layers(init: str, student: EncoderConfig, teacher: EncoderConfig) -> list[int]:
    if init == "embeddings":
        return []
    n_s, n_t = student.num_hidden_layers, teacher.num_hidden_layers
    if not _same_blocks(student, teacher):
        ours, theirs = ((c.hidden_size, c.num_attention_heads, c.intermediate_size) for c in (student, teacher))
        raise UserError(
            f"--init {init} copies teacher layers, but (width, heads, FFN) are {ours} in the student and {theirs} in the teacher;"
            " make them equal or start with --init embeddings"
        )
    if init in NAMED and n_s > n_t:
        raise UserError(f"--init {init}: {n_s} student layers, but the teacher has {n_t}; ask for fewer or list them")
    if init == "uniform":
        return [(2 * i * n_t + n_s) // (2 * n_s) for i in range(1, n_s + 1)]
    if init == "first":
        return list(range(1, n_s + 1))
    if init == "last":
        return list(range(n_t - n_s + 1, n_t + 1))
    layers = [int(part) for part in init.split(",")]
    if len(layers) != n_s:
        raise UserError(f"--init {init} lists {len(layers)} layers, but the student has {n_s}; list {n_s}")
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
    """Copies the tables; into a narrower student through U (D_t, D_s), the principal directions of the word table.

    U has orthonormal columns, so the three tables keep their sum: (word + position + type) U. The LayerNorm behind them keeps
    its fresh weights then, since the teacher's belong to other directions.
    """
    width_s, width_t = student.config.hidden_size, teacher.config.hidden_size
    if width_s == width_t:
        student.embeddings.load_state_dict(teacher.embeddings.state_dict())
        return
    if width_s > width_t:
        raise UserError(
            f"--init embeddings: the student's width {width_s} exceeds the teacher's {width_t}; use --init random"
        )
    word = teacher.embeddings.word.weight.double()  # (V, D_t)
    _, directions = torch.linalg.eigh(word.T @ word)  # (D_t, D_t), columns by ascending eigenvalue
    directions = directions[:, -width_s:]  # U (D_t, D_s)
    # an eigenvector's sign is arbitrary: fix it, so that every machine starts the same student
    directions = directions * torch.sign(directions[directions.abs().argmax(dim=0), torch.arange(width_s)])
    for name, table in student.embeddings.named_parameters():
        if table.dim() == 2:
            table.copy_(teacher.embeddings.get_parameter(name).double() @ directions)


def add_mlm_head(student: Encoder, teacher: Encoder | None, seed: int) -> None:
    """Gives a loaded student without an MLM head one: the teacher's where the widths agree, else a random one."""
    if student.mlm_head is not None:
        return
    student.mlm_head = Encoder(dataclasses.replace(student.config, num_hidden_layers=1), mlm_head=True).reset_parameters(
        torch.Generator().manual_seed(seed)
    ).mlm_head
    if teacher is not None and teacher.mlm_head is not None and student.config.hidden_size == teacher.config.hidden_size:
        student.mlm_head.load_state_dict(teacher.mlm_head.state_dict())
