"""DirectMiniLM: the distance against the library, its invariances and mistakes."""

import pytest
import torch
from conftest import lengths_mask, states
from torch.nn.functional import mse_loss

from distill.direct_minilm import direct_loss
from minitransformer.files import UserError


@pytest.mark.parametrize("lengths", [[4, 4], [0, 3]])
def test_equals_the_library(lengths):
    """All heads at once are one map with a block for each head."""
    student, teacher, weight = states(2, 4, 6), states(2, 4, 12, seed=1), states(3, 2, 4, seed=2)
    mask = lengths_mask(lengths, 4)
    total, count = direct_loss(student, teacher, mask, weight)
    mapped = student @ torch.block_diag(*weight)
    expected = mse_loss(mapped[mask], teacher[mask], reduction="sum") / 12
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    assert count.item() == sum(lengths)


def test_rotations():
    """W can undo a rotation within a head; a rotation across heads is out of its reach."""
    student, teacher, weight = states(3, 6, 4), states(3, 6, 8, seed=1), states(2, 2, 4, seed=2)
    mask = lengths_mask([6, 2, 3], 6)
    value = direct_loss(student, teacher, mask, weight)[0].item()
    turn = torch.linalg.qr(states(2, 2, seed=3)).Q
    turned = student @ torch.block_diag(turn, turn)
    undone = direct_loss(turned, teacher, mask, turn.T @ weight)[0]
    assert undone.item() == pytest.approx(value, rel=1e-12)
    across = torch.linalg.qr(states(4, 4, seed=4)).Q
    other = direct_loss(student @ across, teacher, mask, weight)[0].item()
    assert abs(other - value) > 0.01 * value


def test_finite_when_huge():
    x, mask = states(2, 3, 4, dtype=torch.float32), lengths_mask([3, 2], 3)
    assert direct_loss(1e15 * x, x, mask, torch.eye(2).repeat(2, 1, 1))[0].isfinite()


def test_mistakes_name_both_numbers():
    x, y, mask = states(2, 3, 6), states(2, 3, 9), lengths_mask([3, 3], 3)
    with pytest.raises(UserError, match=r"4 relation heads .* 6 and 9; these do: 1, 3"):
        direct_loss(x, y, mask, states(4, 2, 2))
    with pytest.raises(UserError, match=r"weight is \(3, 2, 2\), the widths need \(3, 2, 3\)"):
        direct_loss(x, y, mask, states(3, 2, 2))
