"""OD transfer: the plain formula against loops and by hand, the fused form against the plain."""

import math

import pytest
import torch
from conftest import largest_tensor

from distill.fast import vocabulary
from distill.od import od_loss, od_loss_fused
from minitransformer.errors import UserError


def states(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def heads(M, V, D_s, D_t, dtype=torch.float64):
    """Features, vocabulary and bias of both models."""
    shapes = (M, D_s), (V, D_s), (V,), (M, D_t), (V, D_t), (V,)
    return [states(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]


def through_logits(x, W, b, y, U, c, temperature=1.0):
    return od_loss(x @ W.T + b, y @ U.T + c, temperature)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_equals_explicit_loops(temperature):
    student, teacher = states(3, 7), states(3, 7, seed=1)
    total, count = od_loss(student, teacher, temperature)

    def softmax(logits):
        powers = [math.exp(z / temperature) for z in logits]
        return [p / sum(powers) for p in powers]

    expected = sum(
        p_t * math.log(p_t / p_s) * temperature**2
        for z_s, z_t in zip(student.tolist(), teacher.tolist(), strict=True)
        for p_s, p_t in zip(softmax(z_s), softmax(z_t), strict=True)
    )
    assert total.item() == pytest.approx(expected, rel=1e-12)
    assert count.item() == 3


def test_by_hand():
    # Student (0, 0): (1/2, 1/2). Teacher (0, ln 3): (1/4, 3/4).
    # KL(t || s) = 1/4 ln(1/2) + 3/4 ln(3/2) = 0.130812; the other way round it is 0.143841.
    student, teacher = torch.zeros(1, 2), torch.tensor([[0.0, math.log(3)]])
    assert od_loss(student, teacher)[0].item() == pytest.approx(0.130812, abs=1e-6)
    assert od_loss(teacher, student)[0].item() == pytest.approx(0.143841, abs=1e-6)
    # tau = 2: teacher logits (0, ln sqrt 3), p = (0.366025, 0.633975); KL = 0.036343; times 4.
    assert od_loss(student, teacher, 2.0)[0].item() == pytest.approx(0.145373, abs=1e-5)


def test_gradcheck(monkeypatch):
    student, teacher = states(3, 5).requires_grad_(), states(3, 5, seed=1)
    assert torch.autograd.gradcheck(lambda z: od_loss(z, teacher, 2.0)[0], student)
    monkeypatch.setattr(vocabulary, "CHUNK", 2 * 5)
    x, W, b, *teacher = heads(3, 5, 2, 4)
    inputs = [each.requires_grad_() for each in (x, W, b)]
    assert torch.autograd.gradcheck(lambda *s: od_loss_fused(*s, *teacher, 2.0)[0], inputs)


@pytest.mark.parametrize(("positions", "rows", "words"), [(1, 1, 301), (7, 3, 100), (100, 9, 7)])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_fused_equals_plain(positions, rows, words, temperature, monkeypatch):
    M, V = 50, 301
    monkeypatch.setattr(vocabulary, "CHUNK", positions * V)
    monkeypatch.setitem(vocabulary.ROWS, "cpu", rows * V)
    monkeypatch.setitem(vocabulary.WORDS, "cpu", words)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        results = []
        for loss in (od_loss_fused, through_logits):
            inputs = heads(M, V, 24, 40, dtype)
            for each in inputs:
                each.requires_grad_()
            total, count = loss(*inputs, temperature)
            (3 * total).backward()
            assert all(each.grad is None for each in inputs[3:])  # the teacher
            results.append((total.item(), count.item(), [each.grad for each in inputs[:3]]))
        (value, count, gradients), (expected, expected_count, slopes) = results
        assert value == pytest.approx(expected, rel=tolerance)
        assert count == expected_count == M
        for gradient, slope in zip(gradients, slopes, strict=True):
            assert (gradient - slope).norm() <= tolerance * slope.norm()


def test_fused_form_holds_no_logits_of_all_positions(monkeypatch):
    M, V = 64, 500
    monkeypatch.setattr(vocabulary, "CHUNK", 4 * V)
    monkeypatch.setitem(vocabulary.WORDS, "cpu", 50)
    inputs = [each.requires_grad_() for each in heads(M, V, 3, 5, torch.float32)]
    largest = largest_tensor(lambda: od_loss_fused(*inputs)[0].backward())
    assert largest == 2 * 4 * V  # one buffer for four positions of both models


def test_fused_form_with_frozen_weights_and_tied_ones():
    x, W, b, *teacher = heads(6, 11, 4, 5)
    x.requires_grad_()
    od_loss_fused(x, W, b, *teacher)[0].backward()  # nothing but the features learns
    slope = x.grad.clone()
    x.grad = None
    through_logits(x, W, b, *teacher)[0].backward()
    assert torch.allclose(x.grad, slope)
    # Tied: the features are made of the same matrix that the logits are.
    grads = []
    for loss in (od_loss_fused, through_logits):
        tied = states(11, 4).requires_grad_()
        loss(tied[:6].tanh(), tied, b, *teacher)[0].backward()
        grads.append(tied.grad)
    assert torch.allclose(*grads)


def test_fused_form_under_autocast():
    """Products in bfloat16 as everything else under autocast, distributions and sums in float32."""
    inputs = heads(20, 50, 16, 24, torch.float32)
    results = []
    for loss in (od_loss_fused, through_logits):
        fresh = [each.clone().requires_grad_() for each in inputs]
        with torch.autocast("cpu", torch.bfloat16):
            total, count = loss(*fresh)
        total.backward()
        assert total.dtype == count.dtype == torch.float32
        results.append((total.item(), [each.grad for each in fresh[:3]]))
    (value, gradients), (expected, slopes) = results
    assert value == pytest.approx(expected, rel=0.01)
    for gradient, slope in zip(gradients, slopes, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - slope).norm() <= 0.02 * slope.norm()


def test_invariances():
    student, teacher = states(6, 9), states(6, 9, seed=1)
    value, count = od_loss(student, teacher)
    shift = states(6, 1, seed=2)
    order = torch.randperm(6)
    parts = [od_loss(student[i:j], teacher[i:j]) for i, j in ((0, 1), (1, 6), (6, 6))]
    for total in (
        od_loss(student + shift, teacher - shift)[0],
        od_loss(student[order], teacher[order])[0],
        sum(total for total, _ in parts),
    ):
        assert total.item() == pytest.approx(value.item(), rel=1e-12)
    assert sum(c.item() for _, c in parts) == count.item() == 6


@pytest.mark.parametrize("M", [0, 4])
def test_zero_when_equal_or_empty(M):
    x, W, b, *_ = heads(M, 11, 4, 4, torch.float32)
    x.requires_grad_()
    for total, count in (od_loss_fused(x, W, b, x, W, b), through_logits(x, W, b, x, W, b)):
        x.grad = None
        total.backward()
        assert total.item() == pytest.approx(0, abs=1e-6)
        assert count.item() == M
        assert x.grad.norm() < 1e-5


def test_huge_logits():
    x, W, b, *teacher = heads(5, 11, 4, 4, torch.float32)
    for total, _ in (
        od_loss(1e4 * states(5, 9), states(5, 9, seed=1)),
        od_loss_fused(1e4 * x, W, b, *teacher),
        od_loss_fused(x, W, b, *teacher, 1e-3),
    ):
        assert total.isfinite()


def test_mistakes_name_both_numbers():
    x, W, b, y, U, c = heads(3, 7, 2, 4)
    with pytest.raises(UserError, match=r"\(3, 7\) and \(3, 6\)"):
        od_loss(states(3, 7), states(3, 6))
    with pytest.raises(UserError, match=r"vocabularies .* differ: \(7,\) and \(6,\)"):
        od_loss_fused(x, W, b, y, U[:6], c[:6])
    with pytest.raises(UserError, match=r"positions .* differ: \(3,\) and \(2,\)"):
        od_loss_fused(x, W, b, y[:2], U, c)
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="must be above 0"):
            od_loss(states(3, 7), states(3, 7), temperature)
