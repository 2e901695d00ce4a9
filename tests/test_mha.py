"""MHA transfer: against loops, invariances; the lean form against the plain one."""

import math

import numpy as np
import pytest
import torch
from conftest import largest_tensor, lengths_mask, states, tiny_config, value_and_gradient

from distill.lean import relations
from distill.lean.relations import lean_relation_loss
from distill.method import choose_heads
from distill.mha import MHA, relation_loss


@pytest.fixture(params=["cpu", "other devices"])
def form(request, monkeypatch):
    """Both forms of the lean loss: by powers, and the one of devices that must not be asked."""
    if request.param != "cpu":
        monkeypatch.setattr(relations, "MAY_BE_ASKED", ())


def by_loops(student, teacher, mask, relation_heads):
    """The definition in numpy. Pytorch-MiniLM exchanges teacher and student in the divergence;
    How-to-distill-your-BERT reshapes without permuting: its heads are no slices of a token.
    """

    def relation_row(vectors, n):
        scores = [np.dot(vectors[n], other) / math.sqrt(len(other)) for other in vectors]
        exponentials = [math.exp(score - max(scores)) for score in scores]
        return [e / sum(exponentials) for e in exponentials]

    total, count = 0.0, 0
    for b in range(len(mask)):
        real = [n for n in range(mask.shape[1]) if mask[b, n]]
        if not real:
            continue
        count += 1
        for a in range(relation_heads):
            heads = []
            for x in (student, teacher):
                d = x.shape[2] // relation_heads
                heads.append([x[b, n, a * d : (a + 1) * d].detach().numpy() for n in real])
            for n in range(len(real)):
                for p_s, p_t in zip(*(relation_row(head, n) for head in heads), strict=True):
                    total += p_t * math.log(p_t / p_s) / (relation_heads * len(real))
    return total, count


@pytest.mark.parametrize(("lengths", "left"), [([1, 5], False), ([0, 3], False), ([3, 4], True)])
def test_equals_explicit_loops(lengths, left):
    student, teacher = states(2, 5, 12), states(2, 5, 6, seed=1)
    mask = lengths_mask(lengths, 5, left)
    total, count = relation_loss(student, teacher, mask, 3)
    expected, expected_count = by_loops(student, teacher, mask, 3)
    assert [total.item(), count.item()] == pytest.approx([expected, expected_count], rel=1e-12)
    turn, mix = (torch.linalg.qr(states(size, size, seed=2)).Q for size in (4, 12))  # rotations
    turned, _ = relation_loss(student @ torch.block_diag(turn, turn.T, turn), teacher, mask, 3)
    assert turned.item() == pytest.approx(expected, rel=1e-12)
    assert abs(relation_loss(student @ mix, teacher, mask, 3)[0] - total) > 0.01 * total


def assert_lean_equals_plain(inputs, tolerance, nothing=0.0, dtype=None):
    """Value and gradient of these inputs; the lean ones of them in another precision, if given."""
    student, teacher, R = inputs
    mask = torch.ones(student.shape[:2], dtype=torch.bool)
    expected, slope, expected_count = value_and_gradient(relation_loss, student, teacher, mask, R)
    inputs = (x.to(dtype or x.dtype) for x in (student, teacher))
    with torch.autocast("cpu", torch.bfloat16):  # which neither form heeds
        value, gradient, count = value_and_gradient(lean_relation_loss, *inputs, R)
    assert value == pytest.approx(expected, rel=tolerance, abs=tolerance / 10)
    assert (gradient - slope).norm() <= tolerance * slope.norm() + nothing
    assert count == expected_count


SIZES = [(4, 33, 48, 32, 16), (2, 48, 48, 192, 24), (3, 2, 6, 12, 2)]  # B, N, D_s, D_t, R


@pytest.mark.parametrize(("B", "N", "D_s", "D_t", "R"), SIZES)
@pytest.mark.parametrize("block", [1, 7000, 2**20])
def test_lean_equals_plain(B, N, D_s, D_t, R, block, form, monkeypatch):
    monkeypatch.setitem(relations.BLOCK, "cpu", block)
    for dtype, tolerance, nothing in (
        (torch.float64, 1e-10, 1e-16),
        (torch.float32, 1e-6, 1e-12),
        (torch.bfloat16, 3e-3, 3e-7),
    ):
        sides = states(B, N, D_s, dtype=dtype), states(B, N, D_t, seed=1, dtype=dtype)
        assert_lean_equals_plain((*sides, R), tolerance, nothing)


def test_the_gradient_scales_and_the_teacher_gets_none(form):
    student, teacher = states(2, 5, 6).requires_grad_(), states(2, 5, 12, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: 3 * lean_relation_loss(x, teacher, 3)[0], student)
    lean_relation_loss(student, teacher, 3)[0].backward()
    assert teacher.grad is None


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("bits", [89, 91, 127.5, 5000, 1e9])
def test_heads_beyond_the_range_do_not_spoil_the_others(side, bits, form, monkeypatch):
    """The largest score of heads 1 and 4 of 6 is near what float32's powers can hold, or far beyond
    it. 2^127.5 exists, but not its products: SAFE has to leave room. Two tables fit at a time.
    """
    monkeypatch.setitem(relations.BLOCK, "cpu", 2 * 20**2)
    sides = states(3, 20, 24), states(3, 20, 24, seed=1)
    for head in (1, 4):
        part = sides[side][..., 4 * head : 4 * head + 4]
        part[0, 2] *= math.sqrt(bits * math.log(2) * math.sqrt(4)) / part[0, 2].norm()
    assert_lean_equals_plain((*sides, 6), 1e-5, dtype=torch.float32)


def test_holds_no_table_of_all_heads(form, monkeypatch):
    B, N, D, R = 4, 64, 32, 8
    monkeypatch.setitem(relations.BLOCK, "cpu", 2 * N * N)
    student, teacher = states(B, N, D).requires_grad_(), states(B, N, D, seed=1)
    largest = largest_tensor(lambda: lean_relation_loss(student, teacher, R)[0].backward())
    assert largest == max(2 * N * N, B * N * D) < B * R * N * N // 8


def test_choice_of_heads():
    assert choose_heads(384, 768) == 48
    assert choose_heads(384, 312) == 24  # common divisors 1, 2, 3, 4, 6, 8, 12, 24
    assert choose_heads(1024, 1024) == 64  # 32 and 64 are equally near; MiniLMv2 took 64 as well
    assert choose_heads(64, 768) == 8  # 16 to 64 heads would be narrower than 8 in the student
    assert choose_heads(6, 12) == 1  # no head can be 8 wide
    assert choose_heads(6, 12, 3) == 3


def test_choice_of_layer():
    """Two below the teacher's last one, but above the student's depth, if there is such a layer."""
    expected = {(1, 1): 1, (1, 2): 2, (2, 4): 3, (3, 6): 4, (4, 6): 5, (6, 6): 6, (8, 6): 6}
    for depths, layer in (expected | {(6, 12): 10}).items():
        student, teacher = (tiny_config(num_hidden_layers=depth) for depth in depths)
        assert MHA(student, teacher).teacher_layer == layer
