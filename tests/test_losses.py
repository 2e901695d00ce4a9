"""The loss of every method: the library, numbers by hand, padding, precision, gradients, mistakes.

SEQUENCES take states (B, N, D) of both sides and a mask, WORDS the factors of logits at M
positions. Each is a function of tensors alone, with all else fixed. More of MHA: test_mha.py.
"""

import doctest

import pytest
import torch
from conftest import largest_tensor, lengths_mask, states, value_and_gradient
from torch.nn import functional as F

from distill import direct_minilm, hs, mha, mlm, od
from distill.direct_minilm import direct_loss
from distill.hs import hs_loss
from distill.lean import vocabulary
from distill.lean.vocabulary import lean_mlm_loss, lean_od_loss
from distill.mha import relation_loss
from distill.mlm import mlm_loss
from distill.od import od_loss
from minitransformer.files import UserError

D_S, D_T, R, V, M = 12, 6, 3, 11, 20
W, HEAD_MAPS = states(D_S, D_T, seed=7), states(R, D_S // R, D_T // R, seed=8)
TARGETS = torch.randint(V, (M,), generator=torch.Generator().manual_seed(3))

SEQUENCES = {
    "relation_loss": lambda x, y, mask: relation_loss(x, y, mask, R),
    "hs_loss": lambda x, y, mask: hs_loss(x, y, mask, W.to(y.dtype)),
    "direct_loss": lambda x, y, mask: direct_loss(x, y, mask, HEAD_MAPS.to(y.dtype)),
}
ALL = pytest.mark.parametrize("loss", SEQUENCES.values(), ids=SEQUENCES)


def logits(factors):
    x, weight, bias = factors
    return x @ weight.T + bias


# f(student factors, teacher factors, positions): the factors of those positions are used
WORDS = {
    "od_loss": lambda s, t, _: od_loss(logits(s), logits(t), 2.0),
    "lean_od_loss": lambda s, t, _: lean_od_loss(s, t, 2.0),
    "mlm_loss": lambda s, _, positions: mlm_loss(logits(s), TARGETS[positions]),
    "lean_mlm_loss": lambda s, _, positions: lean_mlm_loss(s, TARGETS[positions]),
}
OF_WORDS = pytest.mark.parametrize("loss", WORDS.values(), ids=WORDS)


def sides(dtype=torch.float64):
    return states(3, 6, D_S).to(dtype), states(3, 6, D_T, seed=1).to(dtype)


def factors(D, seed, dtype=torch.float64):
    shapes = (M, D), (V, D), (V,)
    return tuple(states(*shape, seed=seed + i).to(dtype) for i, shape in enumerate(shapes))


def at(factors, positions):
    return factors[0][positions], *factors[1:]


X, Y, MASK = *sides(), lengths_mask([6, 4, 1], 6)


@pytest.mark.parametrize("page", [mha, direct_minilm, hs, od, mlm], ids=lambda page: page.__name__)
def test_worked_example_of_the_page(page):
    result = doctest.testmod(page)
    assert result.attempted >= 2
    assert result.failed == 0


@pytest.mark.parametrize("lengths", [[6, 6, 6], [0, 5, 6]])
def test_equals_the_library(lengths):
    (x, y), mask, log_t = sides(), lengths_mask(lengths, 6), states(M, V, seed=1).log_softmax(-1)
    z, n = states(M, V), sum(lengths)
    kl = {"reduction": "sum", "log_target": True}
    for found, expected, count in (
        (hs_loss(x, x + y[:, :, :1], mask), (y[mask][:, 0] ** 2).sum(), n),
        (hs_loss(x, y, mask, W), F.mse_loss((x @ W)[mask], y[mask], reduction="sum") / D_T, n),
        (  # all heads at once are one map with a block for each head
            direct_loss(x, y, mask, HEAD_MAPS),
            F.mse_loss((x @ torch.block_diag(*HEAD_MAPS))[mask], y[mask], reduction="sum") / D_T,
            n,
        ),
        (od_loss(z, 2 * log_t, 2.0), 4 * F.kl_div((z / 2).log_softmax(-1), log_t, **kl), M),
        (mlm_loss(z, TARGETS), F.cross_entropy(z, TARGETS, reduction="sum"), M),
    ):
        assert found[0].item() == pytest.approx(expected.item(), rel=1e-12)
        assert found[1].item() == count


@ALL
def test_gradient_is_the_derivative_and_the_teacher_gets_none(loss):
    (student, teacher), mask = sides(), lengths_mask([0, 6, 3], 6)
    student.requires_grad_(), teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: 3 * loss(x, teacher, mask)[0], student)
    loss(student, teacher, mask)[0].backward()
    assert teacher.grad is None


@pytest.mark.parametrize(("loss", "weight"), [(hs_loss, W), (direct_loss, HEAD_MAPS)])
def test_gradient_of_the_maps_is_the_derivative(loss, weight):
    weight = weight.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda w: loss(X, Y, MASK, w)[0], weight)


@ALL
def test_padding_is_irrelevant_wherever_it_stands(loss):
    value, gradient, _ = value_and_gradient(loss, X, Y, MASK)
    noise = 1e3 * states(3, 6, D_S, seed=9)
    noisy = [torch.where(MASK[..., None], x, noise[..., : x.shape[-1]]) for x in (X, Y)]
    noisy_value, noisy_gradient, _ = value_and_gradient(loss, *noisy, MASK)
    assert noisy_value == pytest.approx(value, rel=1e-12)
    assert torch.allclose(noisy_gradient, gradient, atol=1e-13)
    assert not gradient[~MASK].any()
    left, _ = loss(*(x.flip(1) for x in (X, Y, MASK)))
    assert left.item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("loss", [SEQUENCES["hs_loss"], SEQUENCES["direct_loss"]])
def test_huge_states_and_infinite_padding(loss):
    assert loss(1e15 * X.float(), Y.float(), MASK)[0].isfinite()
    assert loss(X, Y.where(MASK[..., None], torch.inf), MASK)[0] == loss(X, Y, MASK)[0]


@ALL
def test_bfloat16_states_are_compared_in_float32(loss):
    student, teacher = sides(torch.bfloat16)
    expected, slope, _ = value_and_gradient(loss, student.float(), teacher.float(), MASK)
    with torch.autocast("cpu", torch.bfloat16):
        total, count = loss(student, teacher, MASK)
        value, gradient, _ = value_and_gradient(loss, student, teacher, MASK)
    assert total.dtype == count.dtype == torch.float32
    assert value == pytest.approx(expected, rel=0.02)  # exact but for the product of hs_loss
    assert gradient.dtype == torch.bfloat16
    assert (gradient - slope).norm() <= 0.02 * slope.norm()


TOKENS = [
    ((X, Y[:, :5], MASK), r"student \(3, 6, 12\), teacher \(3, 5, 6\), mask \(3, 6\): not"),
    ((X, Y, MASK[:, :5]), r"teacher \(3, 6, 6\), mask \(3, 5\)"),
    ((X[0], Y, MASK), r"student \(6, 12\)"),
    ((X, Y, MASK.long()), r"the mask is torch.int64, not torch.bool"),
]
MISTAKES = [
    *((loss, *case) for loss in SEQUENCES.values() for case in TOKENS),
    (relation_loss, (X, Y, MASK, 4), r"4 relation heads .* 12 and 6; these do: 1, 2, 3, 6"),
    (hs_loss, (X, Y, MASK), r"projection is None, the widths need \(12, 6\)"),
    (hs_loss, (X, Y, MASK, W[:, :1]), r"projection is \(12, 1\)"),  # it would be broadcast
    (direct_loss, (X, Y, MASK, states(4, 3, 1)), r"is \(4, 3, 1\), .* \(4, 3.0, 1.5\)"),
    (od_loss, (states(3, 7), states(3, 6)), r"\(3, 7\) in the student and \(3, 6\) in"),
    (od_loss, (states(2, 3, 7), states(2, 3, 7)), r"\(positions, vocabulary\) is \(2, 3, 7\) in"),
    (od_loss, (states(3, 7), states(3, 7), 0), "the temperature is 0; it must be above 0"),
    (mlm_loss, (states(20, 7), TARGETS[:19]), r"\(19,\) targets, 20 positions"),
]


@pytest.mark.parametrize(("loss", "inputs", "says"), MISTAKES)
def test_mistakes_name_both_numbers(loss, inputs, says):
    with pytest.raises(UserError, match=says):
        loss(*inputs)


@pytest.fixture(params=[(1, 1, V), (7, 3, 4), (100, 9, 2)], ids=str)
def chunks(request, monkeypatch):
    """Let the lean forms take that many positions, rows and words at a time."""
    positions, rows, words = request.param
    monkeypatch.setattr(vocabulary, "CHUNK", positions * V)
    monkeypatch.setitem(vocabulary.ROWS, "cpu", rows * V)
    monkeypatch.setitem(vocabulary.WORDS, "cpu", words)


@OF_WORDS
def test_gradient_of_words_is_the_derivative(loss, chunks):
    student, teacher = at(factors(2, 0), slice(0, 9)), at(factors(3, 5), slice(0, 9))
    inputs = [x.requires_grad_() for x in student]
    assert torch.autograd.gradcheck(lambda *s: loss(s, teacher, slice(0, 9))[0], inputs)


@OF_WORDS
def test_huge_logits_and_no_positions(loss):
    (x, weight, bias), teacher = factors(4, 0, torch.float32), factors(5, 5, torch.float32)
    assert loss((1e7 * x, weight, bias), teacher, slice(0, M))[0].isfinite()
    nothing = x[:0].requires_grad_()
    loss((nothing, weight, bias), at(teacher, slice(0, 0)), slice(0, 0))[0].backward()
    assert nothing.grad.shape == (0, 4)


@pytest.mark.parametrize("plain", ["od_loss", "mlm_loss"])
def test_lean_equals_plain(plain, chunks):
    """Value, count and gradients, in both precisions and under autocast."""
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6), (None, 2e-2)):
        results = []
        for name in (f"lean_{plain}", plain):
            student = [x.requires_grad_() for x in factors(24, 0, dtype or torch.float32)]
            teacher = [x.requires_grad_() for x in factors(40, 5, dtype or torch.float32)]
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype is None):
                total, count = WORDS[name](student, teacher, slice(0, M))
            (3 * total).backward()
            assert all(x.grad is None for x in teacher)
            gradient = torch.cat([x.grad.flatten() for x in student])
            results.append((total.item(), count.item(), gradient))
        (value, count, gradient), (expected, expected_count, slope) = results
        assert value == pytest.approx(expected, rel=tolerance)
        assert count == expected_count == M
        assert (gradient - slope).norm() <= tolerance * slope.norm()


def test_lean_form_holds_no_logits_of_all_positions(monkeypatch):
    monkeypatch.setattr(vocabulary, "CHUNK", 7 * V)
    student, teacher = [x.requires_grad_() for x in factors(3, 0)], factors(5, 5)
    largest = largest_tensor(lambda: lean_od_loss(student, teacher)[0].backward())
    assert largest == 2 * 7 * V < M * V  # one buffer for seven positions of both models
