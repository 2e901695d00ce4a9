"""DirectMiniLM: the mapped relation heads against loops, by hand, gradients and invariances."""

import pytest
import torch

from distill.direct_minilm import direct_loss
from minitransformer.errors import UserError


def states(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def real(lengths, tokens):
    return torch.arange(tokens) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("lengths", [[4, 4], [1, 3], [0, 4]])
def test_equals_explicit_loops(lengths):
    R, d_s, d_t = 3, 2, 4
    student, teacher = states(2, 4, R * d_s), states(2, 4, R * d_t, seed=1)
    weight = states(R, d_s, d_t, seed=2)
    total, count = direct_loss(student, teacher, real(lengths, 4), weight)
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


def test_by_hand():
    # Two heads of width 1: (1, 2) times weights 3 and -1 is (3, -2); against (1, 1): (4 + 9) / 2.
    total, count = direct_loss(
        torch.tensor([[[1.0, 2.0]]]),
        torch.tensor([[[1.0, 1.0]]]),
        real([1], 1),
        torch.tensor([3.0, -1.0]).view(2, 1, 1),
    )
    assert (total.item(), count.item()) == (6.5, 1)


def test_gradcheck():
    student, teacher, weight = states(2, 3, 4), states(2, 3, 6, seed=1), states(2, 2, 3, seed=2)
    mask = real([3, 2], 3)
    assert torch.autograd.gradcheck(
        lambda x, w: direct_loss(x, teacher, mask, w)[0],
        (student.requires_grad_(), weight.requires_grad_()),
    )


def test_invariances():
    student, teacher, weight = states(3, 6, 4), states(3, 6, 8, seed=1), states(2, 2, 4, seed=2)
    lengths = [6, 2, 3]
    mask = real(lengths, 6)
    value = direct_loss(student, teacher, mask, weight)[0].item()

    def equals(total):
        return total.item() == pytest.approx(value, rel=1e-12)

    noise = 1e3 * ~mask[..., None]
    assert equals(direct_loss(student + noise, teacher - noise, mask, weight)[0])
    assert equals(direct_loss(student.flip(1), teacher.flip(1), mask.flip(1), weight)[0])
    assert equals(direct_loss(student.flip(0), teacher.flip(0), mask.flip(0), weight)[0])
    parts = [
        direct_loss(student[i:j, :n], teacher[i:j, :n], real(lengths[i:j], n), weight)
        for (i, j), n in (((0, 1), 6), ((1, 3), 3))
    ]
    assert equals(sum(total for total, _ in parts))
    assert sum(count.item() for _, count in parts) == 11
    # W can undo a rotation within a head; a rotation across heads is out of its reach.
    turn = torch.linalg.qr(states(2, 2, seed=3)).Q
    turned = student @ torch.block_diag(turn, turn)
    assert equals(direct_loss(turned, teacher, mask, turn.T @ weight)[0])
    across = torch.linalg.qr(states(4, 4, seed=4)).Q
    assert not equals(direct_loss(student @ across, teacher, mask, weight)[0])


def test_swapped_sides_and_heads_differ():
    x, y, weight = states(2, 3, 4), states(2, 3, 4, seed=1), states(2, 2, 2, seed=2)
    mask = real([3, 3], 3)
    value = direct_loss(x, y, mask, weight)[0]
    for other in (direct_loss(y, x, mask, weight), direct_loss(x, y, mask, weight.flip(0))):
        assert abs(other[0] - value) > 0.01 * value


def test_zero_and_nothing_to_count():
    x = states(2, 3, 4, dtype=torch.float32).requires_grad_()
    same = torch.eye(2).repeat(2, 1, 1).requires_grad_()
    assert direct_loss(x, x.detach(), real([3, 2], 3), same)[0] == 0
    total, count = direct_loss(x, states(2, 3, 4, seed=1), real([0, 0], 3), same)
    total.backward()
    assert (total.item(), count.item()) == (0, 0)
    assert not x.grad.any()
    assert not same.grad.any()
    assert direct_loss(1e15 * x, x.detach(), real([3, 3], 3), same)[0].isfinite()


def test_bfloat16_states_and_detached_teacher():
    x, y = states(2, 3, 4).bfloat16(), states(2, 3, 4, seed=1).bfloat16().requires_grad_()
    weight, mask = states(2, 2, 2, dtype=torch.float32).requires_grad_(), real([3, 3], 3)
    with torch.autocast("cpu", torch.bfloat16):
        total, count = direct_loss(x, y, mask, weight)
    total.backward()
    assert total.dtype == count.dtype == torch.float32
    assert total.item() == direct_loss(x.float(), y.float(), mask, weight)[0].item()
    assert weight.grad.dtype == torch.float32
    assert y.grad is None


def test_mistakes_name_both_numbers():
    x, mask = states(2, 3, 6), real([3, 3], 3)
    with pytest.raises(UserError, match=r"4 relation heads .* 6 and 9; these do: 1, 3"):
        direct_loss(x, states(2, 3, 9), mask, states(4, 2, 2))
    with pytest.raises(UserError, match=r"weight is \(3, 2, 2\), the widths need \(3, 2, 3\)"):
        direct_loss(x, states(2, 3, 9), mask, states(3, 2, 2))
    with pytest.raises(UserError, match=r"\(2, 3\), \(1, 3\) and \(2, 3\)"):
        direct_loss(x, x[:1], mask, states(3, 2, 2))
