"""DirectMiniLM: the mapped relation heads against loops, by hand, and what W can undo."""

import pytest
import torch
from conftest import lengths_mask, states

from distill.direct_minilm import direct_loss
from minitransformer.errors import UserError


@pytest.mark.parametrize("lengths", [[4, 4], [1, 3], [0, 4]])
def test_equals_explicit_loops(lengths):
    R, d_s, d_t = 3, 2, 4
    student, teacher = states(2, 4, R * d_s), states(2, 4, R * d_t, seed=1)
    weight = states(R, d_s, d_t, seed=2)
    total, count = direct_loss(student, teacher, lengths_mask(lengths, 4), weight)
    expected = 0.0
    for b in range(2):
        for n in range(lengths[b]):
            for a in range(R):
                for e in range(d_t):
                    head = student[b, n, a * d_s : (a + 1) * d_s]
                    mapped = sum((head[d] * weight[a, d, e]).item() for d in range(d_s))
                    expected += (mapped - teacher[b, n, a * d_t + e].item()) ** 2 / (R * d_t)
    assert total.item() == pytest.approx(expected, rel=1e-12)
    assert count.item() == sum(lengths)


def test_rotations_and_order_of_heads():
    """W can undo a rotation within a head; a rotation across heads is out of its reach."""
    student, teacher, weight = states(3, 6, 4), states(3, 6, 8, seed=1), states(2, 2, 4, seed=2)
    mask = lengths_mask([6, 2, 3], 6)
    value = direct_loss(student, teacher, mask, weight)[0].item()
    turn = torch.linalg.qr(states(2, 2, seed=3)).Q
    turned = student @ torch.block_diag(turn, turn)
    undone = direct_loss(turned, teacher, mask, turn.T @ weight)[0]
    assert undone.item() == pytest.approx(value, rel=1e-12)
    across = torch.linalg.qr(states(4, 4, seed=4)).Q
    for other in (
        direct_loss(student @ across, teacher, mask, weight),
        direct_loss(student, teacher, mask, weight.flip(0)),
    ):
        assert abs(other[0].item() - value) > 0.01 * value


def test_swapped_sides_differ():
    x, y, weight = states(2, 3, 4), states(2, 3, 4, seed=1), states(2, 2, 2, seed=2)
    mask = lengths_mask([3, 2], 3)
    forward, swapped = direct_loss(x, y, mask, weight)[0], direct_loss(y, x, mask, weight)[0]
    assert abs(forward - swapped) > 0.01 * forward


def test_zero_when_equal_and_finite_when_huge():
    x, mask = states(2, 3, 4, dtype=torch.float32), lengths_mask([3, 2], 3)
    same = torch.eye(2).repeat(2, 1, 1)
    assert direct_loss(x, x, mask, same)[0] == 0
    assert direct_loss(1e15 * x, x, mask, same)[0].isfinite()


def test_mistakes_name_both_numbers():
    x, y, mask = states(2, 3, 6), states(2, 3, 9), lengths_mask([3, 3], 3)
    with pytest.raises(UserError, match=r"4 relation heads .* 6 and 9; these do: 1, 3"):
        direct_loss(x, y, mask, states(4, 2, 2))
    with pytest.raises(UserError, match=r"weight is \(3, 2, 2\), the widths need \(3, 2, 3\)"):
        direct_loss(x, y, mask, states(3, 2, 2))
