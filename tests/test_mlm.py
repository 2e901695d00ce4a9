"""MLM: the plain formula by hand and in loops, the fused form against the plain one."""

import math

import pytest
import torch

from distill.fast import vocabulary
from distill.mlm import mlm_loss, mlm_loss_fused
from minitransformer.errors import UserError


def states(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def problem(M=20, V=31, D=8, dtype=torch.float64):
    targets = torch.randint(V, (M,), generator=torch.Generator().manual_seed(3))
    shapes = (M, D), (V, D), (V,)
    return *(states(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)), targets


def through_logits(x, W, b, targets):
    return mlm_loss(x @ W.T + b, targets)


def test_by_hand():
    # Equal logits over 8 words: log 8 each. Logits (0, ln 3), target 1: -ln(3/4) = 0.287682.
    total, count = mlm_loss(torch.zeros(3, 8), torch.tensor([0, 5, 7]))
    assert total.item() == pytest.approx(3 * math.log(8), rel=1e-6)
    assert count.item() == 3
    total, _ = mlm_loss(torch.tensor([[0.0, math.log(3)]]), torch.tensor([1]))
    assert total.item() == pytest.approx(0.287682, abs=1e-6)


def test_equals_explicit_loops():
    logits, targets = states(4, 6), torch.tensor([5, 0, 2, 2])
    expected = sum(
        math.log(sum(math.exp(z) for z in row)) - row[target]
        for row, target in zip(logits.tolist(), targets.tolist(), strict=True)
    )
    assert mlm_loss(logits, targets)[0].item() == pytest.approx(expected, rel=1e-12)


def test_gradcheck(monkeypatch):
    monkeypatch.setattr(vocabulary, "CHUNK", 2 * 7)
    *inputs, targets = problem(M=5, V=7, D=3)
    inputs = [each.requires_grad_() for each in inputs]
    assert torch.autograd.gradcheck(lambda *x: mlm_loss_fused(*x, targets)[0], inputs)
    assert torch.autograd.gradcheck(lambda *x: through_logits(*x, targets)[0], inputs)


@pytest.mark.parametrize("rows", [1, 7, 100], ids="{} positions a chunk".format)
def test_fused_equals_plain(rows, monkeypatch):
    monkeypatch.setattr(vocabulary, "CHUNK", rows * 31)
    monkeypatch.setitem(vocabulary.ROWS, "cpu", 3 * 31)
    monkeypatch.setitem(vocabulary.WORDS, "cpu", 10)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        results = []
        for loss in (mlm_loss_fused, through_logits):
            *inputs, targets = problem(dtype=dtype)
            for each in inputs:
                each.requires_grad_()
            total, count = loss(*inputs, targets)
            (3 * total).backward()
            results.append((total.item(), count.item(), [each.grad for each in inputs]))
        (value, count, gradients), (expected, expected_count, slopes) = results
        assert value == pytest.approx(expected, rel=tolerance)
        assert count == expected_count == 20
        for gradient, slope in zip(gradients, slopes, strict=True):
            assert (gradient - slope).norm() <= tolerance * slope.norm()


def test_split_order_shift_and_empty():
    x, W, b, targets = problem()
    value = mlm_loss_fused(x, W, b, targets)[0].item()
    parts = [mlm_loss_fused(x[i:j], W, b, targets[i:j]) for i, j in ((0, 3), (3, 20), (20, 20))]
    order = torch.randperm(20)
    for total in (
        sum(total for total, _ in parts),
        mlm_loss_fused(x[order], W, b, targets[order])[0],
        mlm_loss_fused(x, W, b + 5, targets)[0],
    ):
        assert total.item() == pytest.approx(value, rel=1e-12)
    assert parts[2][1] == 0
    empty = x[:0].requires_grad_()
    mlm_loss_fused(empty, W, b, targets[:0])[0].backward()
    assert empty.grad.shape == (0, 8)


def test_float32_sums_under_autocast_and_huge_logits():
    *inputs, targets = problem(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        fused, plain = mlm_loss_fused(*inputs, targets)[0], through_logits(*inputs, targets)[0]
    assert fused.dtype == plain.dtype == torch.float32
    assert fused.item() == pytest.approx(plain.item(), rel=0.01)
    assert mlm_loss_fused(1e4 * inputs[0], *inputs[1:], targets)[0].isfinite()


def test_other_targets_differ_and_missing_ones_are_refused():
    *inputs, targets = problem()
    value = mlm_loss_fused(*inputs, targets)[0]
    assert abs(mlm_loss_fused(*inputs, targets.roll(1))[0] - value) > 0.01 * value
    for loss in (mlm_loss_fused, through_logits):
        with pytest.raises(UserError, match=r"\(19,\) targets for 20 positions"):
            loss(*inputs, targets[1:])
