"""What every distillation method tells the training loop, and the checks that the losses share.

A method is one nn.Module. Its parameters are the learned maps from student to teacher space (most
have none); they belong to the optimizer and the checkpoint, never to the exported student. Its
forward runs both encoders as far up as it needs and returns (sum, count): the loss of an optimizer
step is the sum over all its micro-batches and ranks divided by their count, so how the step is cut
up changes nothing.

Size letters as in minitransformer/model.py; arguments always in the order (student, teacher, mask).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minitransformer.errors import UserError
from minitransformer.model import all_real


@dataclass
class Batch:
    """B sequences of N tokens, and for methods that read masked text what is to be predicted.

    ids         (B, N) int64
    mask        (B, N) bool         True = real token
    masked_ids  (B, N) int64        the ids with some tokens masked, or None
    positions   (M,) int64          where a word is to be predicted, or None
    real        (tokens,) int64     where a real token is; worked out from the mask

    `positions` and `real` are indices into the B * N tokens, made on the CPU. To index with a
    boolean mask instead would make a GPU wait, because its result has no size known beforehand.
    """

    ids: Tensor
    mask: Tensor
    masked_ids: Tensor | None = None
    positions: Tensor | None = None
    real: Tensor | None = None

    def __post_init__(self):
        if self.real is None:
            self.real = self.mask.flatten().nonzero().flatten()

    def to(self, device) -> "Batch":
        moved = {
            name: tensor if tensor is None else tensor.to(device, non_blocking=True)
            for name, tensor in vars(self).items()
        }
        return Batch(**moved)

    def sequences(self, start: int, stop: int) -> "Batch":
        """Return the batch of sequences start, ..., stop - 1 alone."""
        masked_ids, positions, N = self.masked_ids, self.positions, self.ids.shape[1]
        if masked_ids is not None:
            masked_ids = masked_ids[start:stop]
        if positions is not None:
            inside = (positions >= start * N) & (positions < stop * N)
            positions = positions[inside] - start * N
        return Batch(self.ids[start:stop], self.mask[start:stop], masked_ids, positions)


class Method(nn.Module):
    """Base of OD, HS, MHA, DirectMiniLM and MLM."""

    masked_text = (
        False  # reads batch.masked_ids instead of batch.ids, and predicts at batch.positions
    )
    needs_teacher = True

    def describe(self):
        """One line for the log: which layers, heads or positions."""
        raise NotImplementedError

    def check_models(self, student, teacher):
        """Refuse models that are unfit for what their configs do not tell. Cheap: call it early."""

    def forward(self, student, teacher, batch):
        """-> (sum, count), two float32 scalars; gradient to the student and to own parameters."""
        raise NotImplementedError


def check_tokens(student, teacher, mask):
    """Both (B, N, ·) tensors and the (B, N) mask must speak of the same tokens."""
    if student.dim() != 3 or teacher.dim() != 3:
        raise UserError(
            f"student and teacher must be (B, N, D): got {tuple(student.shape)}"
            f" and {tuple(teacher.shape)}"
        )
    shapes = tuple(student.shape[:2]), tuple(teacher.shape[:2]), tuple(mask.shape)
    if len(set(shapes)) > 1:
        raise UserError(
            "student, teacher and mask differ in (sequences, tokens):"
            f" {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )


def check_heads(relation_heads, *widths):
    """Relation heads must divide every width; if not, say which numbers do."""
    if relation_heads < 1 or any(width % relation_heads for width in widths):
        fitting = ", ".join(str(heads) for heads in common_divisors(*widths))
        raise UserError(
            f"{relation_heads} relation heads do not divide the width"
            f" {' and '.join(map(str, dict.fromkeys(widths)))}; these do: {fitting}"
        )


def common_divisors(*widths):
    return [n for n in range(1, min(widths) + 1) if not any(width % n for width in widths)]


def choose_heads(student_width, teacher_width, relation_heads=None):
    """R as given, else the common divisor nearest to MiniLMv2's 48 (of two as near, the larger)."""
    if relation_heads is None:
        divisors = common_divisors(student_width, teacher_width)
        return min(divisors, key=lambda heads: (abs(heads - 48), -heads))
    check_heads(relation_heads, student_width, teacher_width)
    return relation_heads


def choose_teacher_layer(teacher_layers, teacher_layer=None):
    """Layer m (1..L_t) as given, else L_t - 1: the study's upper-middle layer, at least 1."""
    if teacher_layer is None:
        return max(1, teacher_layers - 1)
    if not 1 <= teacher_layer <= teacher_layers:
        raise UserError(
            f"teacher layer {teacher_layer} is out of range: the teacher has layers"
            f" 1 to {teacher_layers}"
        )
    return teacher_layer


def evenly_spaced(student_layers, top):
    """Return the teacher layer of each student layer: i * top / L_s, rounded half up.

    evenly_spaced(6, 12) == [2, 4, 6, 8, 10, 12]
    """
    L_s = student_layers
    return [(2 * i * top + L_s) // (2 * L_s) for i in range(1, L_s + 1)]


def initial_map(count, student_width, teacher_width):
    """(count, D_s, D_t): identity where the widths agree, else maps that keep lengths and angles.

    Semi-orthogonal, so that the first loss is of the size of the states themselves. Drawn from an
    own generator: every rank, and every resumed process, gets the same maps whatever was drawn
    before.
    """
    if student_width == teacher_width:
        return torch.eye(student_width).repeat(count, 1, 1)
    generator = torch.Generator().manual_seed(0)
    maps = torch.empty(count, student_width, teacher_width)
    for each in maps:
        nn.init.orthogonal_(each, generator=generator)
    return maps


def qkv_of(encoder, batch, layer):
    """Q, K, V of that layer, (B, N, D) each: nothing above it is computed, nothing below kept."""
    output = encoder(batch.ids, batch.mask, stop=(layer, "qkv"), keep="last")
    return output.queries[-1], output.keys[-1], output.values[-1]


def exact(tensor):
    """Losses are summed in float32, in float64 where the input is, whatever autocast is set to."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def without_padding(tensor, mask):
    """(B, N, D) with 0 at padding; where there is known to be none, the tensor itself."""
    return tensor if all_real(mask) else torch.where(mask[..., None], tensor, 0)


def no_autocast(tensor):
    return torch.autocast(tensor.device.type, enabled=False)


def slices(start, stop, size):
    """start:stop in parts of at most `size`."""
    return [slice(i, min(i + size, stop)) for i in range(start, stop, size)]
