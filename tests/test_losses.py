"""What holds for the loss of every method: padding, parts, precision, gradients, worked examples.

SEQUENCES take states (B, N, D) of both sides and a mask, WORDS the factors of logits at M
positions. Each is a function of tensors alone, with all else fixed.
"""

import doctest

import pytest
import torch
from conftest import largest_tensor, lengths_mask, states, value_and_gradient

from distill import direct_minilm, hs, mha, mlm, od
from distill.direct_minilm import direct_loss
from distill.hs import hs_loss
from distill.lean import vocabulary
from distill.lean.relations import lean_relation_loss
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
    "lean_relation_loss": lambda x, y, mask: lean_relation_loss(x, y, mask, R),
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


@pytest.mark.parametrize("page", [mha, direct_minilm, hs, od, mlm], ids=lambda page: page.__name__)
def test_worked_example_of_the_page(page):
    result = doctest.testmod(page)
    assert result.attempted >= 2
    assert result.failed == 0


@ALL
def test_gradient_is_the_derivative(loss):
    (student, teacher), mask = sides(), lengths_mask([0, 6, 3], 6)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, mask)[0], student)


def test_gradient_of_the_maps_is_the_derivative():
    (student, teacher), mask = sides(), lengths_mask([6, 4, 1], 6)
    for loss, weight in ((hs_loss, W), (direct_loss, HEAD_MAPS)):
        weight = weight.clone().requires_grad_()

        def of_weight(weight, loss=loss):
            return loss(student, teacher, mask, weight)[0]

        assert torch.autograd.gradcheck(of_weight, weight)


@ALL
def test_padding_is_irrelevant_wherever_it_stands(loss):
    (student, teacher), mask = sides(), lengths_mask([4, 6, 2], 6)
    value, gradient, _ = value_and_gradient(loss, student, teacher, mask)
    noise = 1e3 * states(3, 6, D_S, seed=9)
    noisy = [torch.where(mask[..., None], x, noise[..., : x.shape[-1]]) for x in (student, teacher)]
    noisy_value, noisy_gradient, _ = value_and_gradient(loss, *noisy, mask)
    assert noisy_value == pytest.approx(value, rel=1e-12)
    assert torch.allclose(noisy_gradient, gradient, atol=1e-13)
    assert not gradient[~mask].any()
    # On the left
    left, _ = loss(student.flip(1), teacher.flip(1), lengths_mask([4, 6, 2], 6, left=True))
    assert left.item() == pytest.approx(value, rel=1e-12)


@ALL
def test_bfloat16_states_are_compared_in_float32(loss):
    (student, teacher), mask = sides(torch.bfloat16), lengths_mask([6, 4, 1], 6)
    expected, slope, _ = value_and_gradient(loss, student.float(), teacher.float(), mask)
    with torch.autocast("cpu", torch.bfloat16):
        total, count = loss(student, teacher, mask)
        value, gradient, _ = value_and_gradient(loss, student, teacher, mask)
    assert total.dtype == count.dtype == torch.float32
    assert value == pytest.approx(expected, rel=0.02)  # exact but for the product of hs_loss
    assert gradient.dtype == torch.bfloat16
    assert (gradient - slope).norm() <= 0.02 * slope.norm()


@ALL
def test_only_the_student_learns_and_upstream_scales(loss):
    (student, teacher), mask = sides(), lengths_mask([6, 4, 1], 6)
    _, slope, _ = value_and_gradient(loss, student, teacher, mask)
    student.requires_grad_()
    teacher.requires_grad_()
    (3 * loss(student, teacher, mask)[0]).backward()
    assert torch.allclose(student.grad, 3 * slope)
    assert teacher.grad is None


@pytest.mark.parametrize("name", ["relation_loss", "hs_loss", "direct_loss"])
def test_tensors_of_other_tokens_are_refused(name):
    (x, y), mask, loss = sides(), lengths_mask([6, 4, 1], 6), SEQUENCES[name]
    with pytest.raises(UserError, match=r"\(3, 6\), \(3, 5\) and \(3, 6\)"):
        loss(x, y[:, :5], mask)
    with pytest.raises(UserError, match=r"\(3, 6\) and \(3, 5\)"):
        loss(x, y, mask[:, :5])
    with pytest.raises(UserError, match=r"must be \(B, N, D\): got \(6, 12\)"):
        loss(x[0], y, mask)


@pytest.fixture
def small_chunks(monkeypatch):
    """The lean forms take 7 positions, 3 rows and 4 words at a time."""
    monkeypatch.setattr(vocabulary, "CHUNK", 7 * V)
    monkeypatch.setitem(vocabulary.ROWS, "cpu", 3 * V)
    monkeypatch.setitem(vocabulary.WORDS, "cpu", 4)


@OF_WORDS
def test_gradient_of_words_is_the_derivative(loss, small_chunks):
    student, teacher = at(factors(2, 0), slice(0, 9)), at(factors(3, 5), slice(0, 9))
    inputs = [x.requires_grad_() for x in student]
    assert torch.autograd.gradcheck(lambda *s: loss(s, teacher, slice(0, 9))[0], inputs)


@OF_WORDS
def test_order_shift_and_other_positions(loss, small_chunks):
    student, teacher = factors(4, 0), factors(5, 5)
    total, count = loss(student, teacher, slice(0, M))
    order = torch.arange(M).flip(0)
    swapped, _ = loss(at(student, order), at(teacher, order), order)
    assert swapped.item() == pytest.approx(total.item(), rel=1e-12)
    x, weight, bias = student
    shifted, _ = loss((x, weight, bias + 5), teacher, slice(0, M))
    assert shifted.item() == pytest.approx(total.item(), rel=1e-12)
    differs, _ = loss(student, at(teacher, order), order)
    assert abs(differs - total) > 0.01 * total
    assert count == M


@OF_WORDS
def test_huge_logits_and_no_positions(loss):
    (x, weight, bias), teacher = factors(4, 0, torch.float32), factors(5, 5, torch.float32)
    assert loss((1e4 * x, weight, bias), teacher, slice(0, M))[0].isfinite()
    nothing = x[:0].requires_grad_()
    loss((nothing, weight, bias), at(teacher, slice(0, 0)), slice(0, 0))[0].backward()
    assert nothing.grad.shape == (0, 4)


@pytest.mark.parametrize("plain", ["od_loss", "mlm_loss"])
@pytest.mark.parametrize(("positions", "rows", "words"), [(1, 1, V), (7, 3, 4), (100, 9, 2)])
def test_lean_equals_plain(plain, positions, rows, words, monkeypatch):
    monkeypatch.setattr(vocabulary, "CHUNK", positions * V)
    monkeypatch.setitem(vocabulary.ROWS, "cpu", rows * V)
    monkeypatch.setitem(vocabulary.WORDS, "cpu", words)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        results = []
        for name in (f"lean_{plain}", plain):
            student = [x.requires_grad_() for x in factors(24, 0, dtype)]
            teacher = [x.requires_grad_() for x in factors(40, 5, dtype)]
            total, count = WORDS[name](student, teacher, slice(0, M))
            (3 * total).backward()
            assert all(x.grad is None for x in teacher)
            results.append((total.item(), count.item(), [x.grad for x in student]))
        (value, count, gradients), (expected, expected_count, slopes) = results
        assert value == pytest.approx(expected, rel=tolerance)
        assert count == expected_count == M
        for gradient, slope in zip(gradients, slopes, strict=True):
            assert (gradient - slope).norm() <= tolerance * slope.norm()


def test_lean_form_holds_no_logits_of_all_positions(small_chunks):
    student, teacher = [x.requires_grad_() for x in factors(3, 0)], factors(5, 5)
    largest = largest_tensor(lambda: lean_od_loss(student, teacher)[0].backward())
    assert largest == 2 * 7 * V < M * V  # one buffer for seven positions of both models


def test_tied_weights_get_both_gradients():
    """The features are made of the same matrix that the logits are."""
    (_, _, bias), teacher, gradients = factors(4, 0), factors(5, 5), []
    for name in ("od_loss", "lean_od_loss"):
        tied = states(V, 4).requires_grad_()
        student = tied.repeat(2, 1)[:M].tanh(), tied, bias
        WORDS[name](student, teacher, slice(0, M))[0].backward()
        gradients.append(tied.grad)
    assert torch.allclose(*gradients)


def test_od_is_finite_at_a_small_temperature():
    student, teacher = factors(4, 0, torch.float32), factors(4, 5, torch.float32)
    assert od_loss(logits(student), logits(teacher), 1e-3)[0].isfinite()
    assert lean_od_loss(student, teacher, 1e-3)[0].isfinite()
