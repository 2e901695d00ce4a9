"""MLM: the plain formula by hand and against the library, the lean form against the plain one."""

import math

import pytest
import torch
from conftest import states

from distill.fast import vocabulary
from distill.fast.vocabulary import lean_mlm_loss
from distill.mlm import mlm_loss
from minitransformer.errors import UserError


def test_by_hand():
    # Equal logits over 8 words: log 8 each. Logits (0, ln 3), target 1: -ln(3/4) = 0.287682.
    total, count = mlm_loss(torch.zeros(3, 8), torch.tensor([0, 5, 7]))
    assert total.item() == pytest.approx(3 * math.log(8), rel=1e-6)
    assert count.item() == 3
    total, _ = mlm_loss(torch.tensor([[0.0, math.log(3)]]), torch.tensor([1]))
    assert total.item() == pytest.approx(0.287682, abs=1e-6)


def test_equals_the_library_and_explicit_loops():
    logits, targets = states(4, 6), torch.tensor([5, 0, 2, 2])
    total, _ = mlm_loss(logits, targets)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    by_loops = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        by_loops += math.log(sum(math.exp(z) for z in row)) - row[target]
    assert total.item() == pytest.approx(by_loops, rel=1e-12)


@pytest.mark.parametrize("positions", [1, 7, 100])
def test_lean_equals_plain(positions, monkeypatch):
    M, V, D = 20, 31, 8
    monkeypatch.setattr(vocabulary, "CHUNK", positions * V)
    monkeypatch.setitem(vocabulary.ROWS, "cpu", 3 * V)
    monkeypatch.setitem(vocabulary.WORDS, "cpu", 10)
    targets = torch.randint(V, (M,), generator=torch.Generator().manual_seed(3))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        results = []
        for plain in (False, True):
            x, W, b = (
                states(*shape, seed=i, dtype=dtype).requires_grad_()
                for i, shape in enumerate(((M, D), (V, D), (V,)))
            )
            if plain:
                total, count = mlm_loss(x @ W.T + b, targets)
            else:
                total, count = lean_mlm_loss((x, W, b), targets)
            (3 * total).backward()
            results.append((total.item(), count.item(), [x.grad, W.grad, b.grad]))
        (value, count, gradients), (expected, expected_count, slopes) = results
        assert value == pytest.approx(expected, rel=tolerance)
        assert count == expected_count == M
        for gradient, slope in zip(gradients, slopes, strict=True):
            assert (gradient - slope).norm() <= tolerance * slope.norm()


def test_missing_targets_are_refused():
    with pytest.raises(UserError, match=r"\(19,\) targets for 20 positions"):
        mlm_loss(states(20, 7), torch.zeros(19, dtype=torch.long))
