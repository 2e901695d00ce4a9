"""The student: its sizes, and the weights from which it starts (`--init`).

    random       every weight is drawn anew, N(0, initializer_range)
    embeddings   the teacher's embeddings (their principal directions where the student is
                 narrower) and random layers
    uniform      the teacher's embeddings and evenly spaced layers,     12 -> 6, mha:  1 3 5 6 8 10
                 the first one among them                               12 -> 6, hs:   1 3 5 8 10 12
    first        the teacher's embeddings and its first layers          12 -> 6:       1 .. 6
    last         the teacher's embeddings and the last layers that      12 -> 6, mha:  5 .. 10
                 the method reads                                       12 -> 6, hs:   7 .. 12
    2,4,6        the teacher's embeddings and these layers
    FOLDER       another student (or hub id, or `minilm`), whose sizes are kept

The start follows the method: `uniform` and `last` end at the highest teacher layer that it reads.
MHA and DirectMiniLM read only Q, K and V of layer m: the rest of the student's last block never
learns, so it must come from layer m as well. Copying takes equal width, heads and FFN width.
"""

import re
from dataclasses import dataclass, field, replace

import torch

from distill import METHODS, build_method
from distill.method import Method
from minitransformer.config import EncoderConfig, divisors
from minitransformer.files import UserError
from minitransformer.model import Encoder
from minitransformer.pretrained import load_pretrained
from minitransformer.tokenizer import Tokenizer

NAMED = ("random", "embeddings", "uniform", "first", "last")
SIZES = {
    "student_layers": "num_hidden_layers",
    "student_hidden": "hidden_size",
    "student_heads": "num_attention_heads",
    "student_ffn": "intermediate_size",
}


def sizes(config: EncoderConfig) -> dict[str, int]:
    """Return the sizes under the names of their settings."""
    return {name: getattr(config, key) for name, key in SIZES.items()}


def student_config(teacher: EncoderConfig, settings: dict) -> EncoderConfig:
    """Return the teacher's config at the sizes that the settings give.

    Defaults: half its layers, its width, its heads (or the nearest number that divides the width),
    its FFN width where the widths are equal, else 4 times the student's width.
    """
    given = {key: settings[name] for name, key in SIZES.items() if settings.get(name) is not None}
    width = given.get("hidden_size", teacher.hidden_size)
    heads = min(divisors(width), key=lambda a: (abs(a - teacher.num_attention_heads), -a))
    same = width == teacher.hidden_size
    defaults = {
        "num_hidden_layers": max(1, teacher.num_hidden_layers // 2),
        "num_attention_heads": heads,
        "intermediate_size": teacher.intermediate_size if same else 4 * width,
    }
    return replace(teacher, **{**defaults, **given})


def names_model(init: str | None) -> bool:
    """Return whether `--init` names another model rather than a way to start."""
    listed = re.fullmatch(r"-?\d+(\s*,\s*-?\d+)*", init or "0", re.ASCII)
    return init not in NAMED and not listed


@dataclass
class Start:
    """An untrained student, and the method that will train it."""

    student: Encoder
    method: Method
    init: str
    layers: list[int] = field(default_factory=list)  # the teacher layers it is copied from
    tokenizer: Tokenizer | None = None  # of the folder in `init`; load_models puts the teacher's
    warnings: list[str] = field(default_factory=list)  # a line each


def build_start(settings: dict, teacher: Encoder | None) -> Start:
    """Build the student and the method that the settings describe. The settings of a run's start
    record rebuild that run's untrained student bit for bit.

    Errors: UserError: sizes that contradict the folder of `--init`, or a start that is impossible.
    """
    build = _from_folder if names_model(settings["init"]) else _from_teacher
    start = build(settings, teacher)
    if not start.method.masked_text:
        start.student.mlm_head = None  # it would stay untrained and no longer fit
    return start


def _from_folder(settings: dict, teacher: Encoder | None) -> Start:
    init = settings["init"]
    student, tokenizer = load_pretrained(init)
    for name, size in sizes(student.config).items():
        if settings[name] not in (None, size):
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} {settings[name]}, but --init {init} has {size}; leave it out")
    if not METHODS[settings["method"]].needs_teacher:
        teacher = None
    if student.mlm_head is None:
        student.mlm_head = _random_student(student.config, settings).mlm_head
        _copy_mlm_head(student, teacher)
    method = build_method(settings, student.config, teacher and teacher.config)
    return Start(student, method, init, tokenizer=tokenizer)


def _from_teacher(settings: dict, teacher: Encoder) -> Start:
    config = student_config(teacher.config, settings)
    L_s, L_t = config.num_hidden_layers, teacher.config.num_hidden_layers
    alike = _block(config) == _block(teacher.config) and L_s <= L_t
    init = settings["init"] or ("uniform" if alike else "embeddings")
    if init == "random":  # none beyond --seq-len, which training never reads
        shift = config.max_position_embeddings - config.max_tokens  # RoBERTa counts from pad_id + 1
        config = replace(config, max_position_embeddings=settings["seq_len"] + shift)
    method = build_method(settings, config, teacher.config)
    top = method.teacher_layer
    layers = copied_layers(init, config, teacher.config, top)
    student = _random_student(config, settings)
    if init != "random":
        _copy_embeddings(student, teacher)
        _copy_mlm_head(student, teacher)
    for block, layer in zip(student.blocks, layers, strict=False):
        block.load_state_dict(teacher.blocks[layer - 1].state_dict())
    start = Start(student, method, init, layers)
    own_targets = all(i == j for i, j in getattr(method, "pairs", []))  # hs may map otherwise
    if top and own_targets and layers[:top] == list(range(1, top + 1)):
        matched = f"the student copies teacher layers 1 to {top}, so it already matches them"
        start.warnings.append(f"{matched}; take fewer --student-layers, or --init embeddings")
    return start


def _random_student(config: EncoderConfig, settings: dict) -> Encoder:
    return Encoder(config).reset_parameters(torch.Generator().manual_seed(settings["seed"]))


def copied_layers(init: str, student: EncoderConfig, teacher: EncoderConfig, top) -> list[int]:
    """Return the teacher layer that each student layer copies; [] where none is copied.

    top   the highest teacher layer that the method reads; None: the teacher's last
    """
    if init in ("random", "embeddings"):
        return []
    L_s, L_t = student.num_hidden_layers, teacher.num_hidden_layers
    if _block(student) != _block(teacher):
        says = f"(width, heads, FFN): student {_block(student)}, teacher {_block(teacher)}"
        raise UserError(f"--init {init} needs equal {says}; or take --init embeddings")
    if init in NAMED and L_s > L_t:
        raise UserError(f"--init {init}: {L_s} student layers, but the teacher has only {L_t}")
    top = max(top or L_t, L_s)  # a student deeper than `top` also copies layers above it
    if init == "uniform":
        return spread(L_s, top)
    if init == "first":
        return list(range(1, L_s + 1))
    if init == "last":
        return list(range(top - L_s + 1, top + 1))
    layers = [int(part) for part in init.split(",")]
    if len(layers) != L_s or not all(1 <= layer <= L_t for layer in layers):
        raise UserError(f"--init {init}: list {L_s} layers, one per student layer, from 1 to {L_t}")
    return layers


def spread(layers: int, top: int) -> list[int]:
    """Return layers evenly spaced from 1 to `top`, rounded half up: spread(4, 12) is 1, 5, 8, 12.

    Layer 1 is one of them: it alone was trained to read the embeddings. A single layer is `top`.
    """
    if layers == 1:
        return [top]
    gaps = layers - 1  # in whole numbers: floor(x + 1/2) of x = i (top - 1) / gaps
    return [1 + (2 * i * (top - 1) + gaps) // (2 * gaps) for i in range(layers)]


def _block(config: EncoderConfig) -> tuple[int, int, int]:
    return config.hidden_size, config.num_attention_heads, config.intermediate_size


@torch.no_grad()
def _copy_embeddings(student: Encoder, teacher: Encoder) -> None:
    """Copy the tables; into a narrower student through the word table's principal directions.

    These are U (D_t, D_s) with orthonormal columns. The LayerNorm after the tables keeps its
    initial weights then, since the teacher's belong to other directions.
    """
    D_s, D_t = student.config.hidden_size, teacher.config.hidden_size
    if D_s == D_t:
        student.embeddings.load_state_dict(teacher.embeddings.state_dict())
        return
    if D_s > D_t:
        raise UserError(f"the student's width {D_s} exceeds the teacher's {D_t}; use --init random")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order would be another start, with another hash
    word = teacher.embeddings.word.weight.double()  # (V, D_t)
    _, directions = torch.linalg.eigh(word.T @ word)  # (D_t, D_t), by ascending eigenvalue
    directions = directions[:, -D_s:]  # U (D_t, D_s)
    for name, table in student.embeddings.named_parameters():
        if table.dim() == 2:
            table.copy_(teacher.embeddings.get_parameter(name).double() @ directions)
    torch.set_num_threads(threads)


def _copy_mlm_head(student: Encoder, teacher: Encoder | None) -> None:
    """Copy the teacher's MLM head, where it has one and the widths agree."""
    head = teacher and teacher.mlm_head
    if head is not None and head.dense.in_features == student.config.hidden_size:
        student.mlm_head.load_state_dict(head.state_dict())
