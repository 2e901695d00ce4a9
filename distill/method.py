"""What a method is: which tensors of teacher and student it reads, and the loss it returns.

Dotted lines (:) show the four places where methods read the two encoders:

    hidden[i-1] ─┬─ Q, K, V ─ attention ─ output ─(+)─ norm ─┬─ FFN ─(+)─ norm ── hidden[i] ─ ...
                 │     :                           │         │        │               :
                 └─────:───────────────────────────┘         └────────┘               :
                       :                                                              :
      mha            relations of the tokens within Q, K, V                           :
      direct-minilm  the vectors of Q, K, V themselves               hs   the hidden states

    ... ─ hidden[L] ─ MLM head ─ logits
                                   :
      od   as the teacher predicts     mlm   the true words

A method is one nn.Module. Its parameters are learned projections from student to teacher space
(most methods have none); optimizer and checkpoint hold them, the exported student never does.
Its forward runs both encoders only as far up as it needs and returns (sum, count): the loss of an
optimizer step is the sum over all its micro-batches and ranks, divided by their count.

Size letters as in minitransformer/model.py; arguments always in the order (student, teacher, mask).
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from minitransformer.config import divisors
from minitransformer.files import UserError

# by default Q, K and V are learned from teacher layer m = L_t - FROM_TOP (docs/defaults.md)
FROM_TOP = 2
NARROWEST = 8  # width of a relation head by default; MiniLMv2's are 8 and wider


@dataclass
class Batch:
    """B sequences of N tokens; for methods that read masked text also what to predict.

    ids         (B, N) int64
    mask        (B, N) bool         True = real token
    masked_ids  (B, N) int64        the ids with some tokens masked, or None
    positions   (M,) int64          the tokens to predict, of the B * N, or None
    full        bool                every token is real; found on the CPU, since asking a GPU
                                    would make the program wait for it
    """

    ids: Tensor
    mask: Tensor
    masked_ids: Tensor | None = None
    positions: Tensor | None = None
    full: bool | None = None

    def __post_init__(self):
        if self.full is None:
            self.full = bool(self.mask.all())

    @property
    def attention_mask(self) -> Tensor | None:
        """The mask, or None where the batch is full: attention is faster without one."""
        return None if self.full else self.mask

    def to(self, device) -> "Batch":
        tensors = {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **{k: x.to(device, non_blocking=True) for k, x in tensors.items()})


class Method(nn.Module):
    """Base of all methods; constructed from the EncoderConfigs of both models and its settings."""

    settings: tuple[str, ...] = ()  # keyword arguments of __init__: flags of train.py
    peak_lr = 1e-3  # where --lr is not given
    plain = False  # True: compute the formula in the method's file, not its form in distill/lean/
    masked_text = False  # True: reads batch.masked_ids and predicts at batch.positions
    needs_teacher = True
    teacher_layer: int | None = None  # the highest teacher layer that is read; None: no teacher

    def describe(self) -> str:
        """Return one line for the log: which layers, heads or positions."""
        raise NotImplementedError

    def forward(self, student, teacher, batch):
        """Return (sum, count), float32 scalars; gradient to the student and to own parameters."""
        raise NotImplementedError


def check_method(method, student, teacher, batch):
    """Run the method forward and backward; refuse what would break training. Leaves gradients."""
    name, result = type(method).__name__, method(student, teacher, batch)
    found = [
        f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        for x in (result if isinstance(result, tuple) else (result,))
    ]
    if found != ["torch.float32 ()", "torch.float32 ()"]:
        raise UserError(f"{name}: forward returned {found}, not two float32 scalars (sum, count)")
    if not result[0].requires_grad:
        raise UserError(f"{name}: its sum has no gradient: nothing of the student leads to it")
    result[0].backward()
    idle = [key for key, p in method.named_parameters() if p.requires_grad and p.grad is None]
    if idle:
        raise UserError(f"{name}: its sum does not depend on its parameters {', '.join(idle)}")


class QKVMethod(Method):
    """Base of the methods that compare Q, K and V of student layer L_s and teacher layer m."""

    settings = ("teacher_layer", "relation_heads")
    what = "Q, K, V"

    def __init__(self, student, teacher, teacher_layer=None, relation_heads=None):
        super().__init__()
        self.student_layer, layers = student.num_hidden_layers, teacher.num_hidden_layers
        # at least the student's depth + 1: a copy of layers 1 to m already matches layer m
        default = max(layers - FROM_TOP, min(self.student_layer + 1, layers))
        self.teacher_layer = choose_teacher_layer(layers, teacher_layer, default)
        widths = student.hidden_size, teacher.hidden_size
        self.relation_heads = choose_heads(*widths, relation_heads)
        self.head_widths = [width // self.relation_heads for width in widths]

    def describe(self):
        d_s, d_t = self.head_widths
        layers = f"student layer {self.student_layer}, teacher layer {self.teacher_layer}"
        heads = f"{self.relation_heads} relation heads of width {d_s} (student) and {d_t} (teacher)"
        return f"{self.what}: {layers}, {heads}"

    def compare(self, name, student, teacher, batch):
        """Return (sum, count) for one of Q, K, V; `name` is "query", "key" or "value"."""
        raise NotImplementedError

    def forward(self, student, teacher, batch):
        with torch.no_grad():
            targets = qkv_of(teacher, batch, self.teacher_layer)
        states = qkv_of(student, batch, self.student_layer)
        parts = [self.compare(name, states[name], targets[name], batch) for name in states]
        return sum(total for total, _ in parts), parts[0][1]  # the count is the same for all three


def qkv_of(encoder, batch, layer):
    """Return Q, K and V of that layer by name, (B, N, D) each; nothing above it is computed."""
    output = encoder(batch.ids, batch.attention_mask, stop=(layer, "qkv"), keep="last")
    return {"query": output.queries[-1], "key": output.keys[-1], "value": output.values[-1]}


def hidden_at(encoder, batch, positions):
    """Return the last hidden states of masked text at these positions, (M, D)."""
    hidden = encoder(batch.masked_ids, batch.attention_mask, keep="last").hidden[-1]  # (B, N, D)
    return hidden.flatten(0, 1)[positions]


def logits_at(encoder, batch, positions):
    """Return what the encoder predicts at these positions of masked text, (M, V)."""
    return encoder.mlm_logits(hidden_at(encoder, batch, positions))


def choose_teacher_layer(layers, teacher_layer, default):
    """Return teacher layer m (1 to `layers`) as given, else the default."""
    if teacher_layer is None:
        return default
    if not 1 <= teacher_layer <= layers:
        raise UserError(f"teacher layer {teacher_layer}: the teacher has layers 1 to {layers}")
    return teacher_layer


def choose_heads(student_width, teacher_width, relation_heads=None):
    """Return R as given if it divides both widths, else the common divisor nearest to MiniLMv2's 48
    (of two, the larger) that leaves each relation head at least 8 wide; 1 where none does.
    """
    common = divisors(student_width, teacher_width)
    if relation_heads is None:
        wide = [R for R in common if min(student_width, teacher_width) // R >= NARROWEST] or [1]
        return min(wide, key=lambda heads: (abs(heads - 48), -heads))
    if relation_heads not in common:
        says = f"{relation_heads} relation heads do not divide the widths {student_width} and"
        raise UserError(f"{says} {teacher_width}; these do: {', '.join(map(str, common))}")
    return relation_heads


def check_tokens(student, teacher, mask):
    """Refuse (B, N, D) tensors and a (B, N) bool mask that do not have the same (B, N)."""
    if mask.dtype != torch.bool:  # ~mask of 0 and 1 would be -1 and -2
        raise UserError(f"the mask is {mask.dtype}, not torch.bool; pass mask.bool()")
    s, t, m = (tuple(x.shape) for x in (student, teacher, mask))
    if not len(s) == len(t) == 3 or not s[:2] == t[:2] == m:
        raise UserError(f"student {s}, teacher {t}, mask {m}: not (B, N, D_s), (B, N, D_t), (B, N)")


def initial_maps(count, student_width, teacher_width):
    """Return (count, D_s, D_t) maps: identity, or semi-orthogonal, keeping lengths and angles."""
    if student_width == teacher_width:
        return torch.eye(student_width).repeat(count, 1, 1)
    generator = torch.Generator().manual_seed(0)  # every rank and resumed process has the same
    maps = torch.empty(count, student_width, teacher_width)
    for one_map in maps:
        nn.init.orthogonal_(one_map, generator=generator)
    return maps


def in_float32(tensor):
    """Return the tensor as float32, in which losses are summed; float64 stays float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def no_autocast(tensor):
    """Return a context in which products of float32 tensors are computed in float32."""
    device = tensor.device.type
    known = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if known else nullcontext()
