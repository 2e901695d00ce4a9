"""HS: layer maps as printed; the distance against the library and by hand."""

import pytest
import torch
from conftest import lengths_mask, states
from torch.nn.functional import mse_loss

from distill.hs import STRATEGIES, hs_loss, layer_map
from minitransformer.files import UserError

# Written by hand from the definitions in design and docstring, not by the code under test.
MAPS = {
    (12, 6, "single"): "6,12",
    (12, 6, "uniform"): "1,2 2,4 3,6 4,8 5,10 6,12",
    (12, 6, "last"): "1,7 2,8 3,9 4,10 5,11 6,12",
    (12, 6, "uniform-consecutive"): "1,0 1,1 1,2 2,2 2,3 2,4 3,4 3,5 3,6 4,6 4,7 4,8 5,8 5,9 5,10"
    " 6,10 6,11 6,12",
    (12, 6, "uniform+last"): "1,2 1,7 2,4 2,8 3,6 3,9 4,8 4,10 5,10 5,11 6,12",
    # 4 does not divide 6: i * 6/4 = 1.5, 3, 4.5, 6, halves up: 2, 3, 5, 6.
    (6, 4, "single"): "4,6",
    (6, 4, "uniform"): "1,2 2,3 3,5 4,6",
    (6, 4, "last"): "1,3 2,4 3,5 4,6",
    (6, 4, "uniform-consecutive"): "1,0 1,1 1,2 2,2 2,3 3,3 3,4 3,5 4,5 4,6",
    (6, 4, "uniform+last"): "1,2 1,3 2,3 2,4 3,5 4,6",
}


@pytest.mark.parametrize("key", MAPS, ids=str)
def test_layer_map_equals_the_printed_table(key):
    teacher_layers, student_layers, strategy = key
    pairs = layer_map(strategy, student_layers, teacher_layers)
    assert " ".join(f"{i},{j}" for i, j in pairs) == MAPS[key]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_layer_map_holds_for_every_size(strategy):
    for teacher_layers in range(1, 26):
        for student_layers in range(1, teacher_layers + 1):
            pairs = layer_map(strategy, student_layers, teacher_layers)
            assert len(set(pairs)) == len(pairs)
            assert (student_layers, teacher_layers) in pairs
            assert all(1 <= i <= student_layers and 0 <= j <= teacher_layers for i, j in pairs)
            if strategy == "uniform-consecutive":
                assert {j for _, j in pairs} == set(range(teacher_layers + 1))
            if student_layers == teacher_layers and strategy in ("uniform", "last"):
                assert pairs == [(i, i) for i in range(1, student_layers + 1)]


def test_layer_map_mistakes():
    with pytest.raises(UserError, match="unknown layer map 'first': choose from single, uniform"):
        layer_map("first", 6, 12)
    for strategy in ("last", "uniform+last"):
        with pytest.raises(UserError, match="the student has 6, the teacher 4"):
            layer_map(strategy, 6, 4)
    # A deeper student is fine where no subtraction is needed: some teacher layers are read twice.
    assert layer_map("uniform", 4, 2) == [(1, 1), (2, 1), (3, 2), (4, 2)]


@pytest.mark.parametrize("width", [3, 5])
@pytest.mark.parametrize("lengths", [[4, 4, 4], [0, 3, 4]])
def test_equals_the_library(width, lengths):
    student, teacher = states(3, 4, width), states(3, 4, 5, seed=1)
    W = None if width == 5 else states(width, 5, seed=2)
    mask = lengths_mask(lengths, 4)
    total, count = hs_loss(student, teacher, mask, W)
    mapped = student if W is None else student @ W
    expected = mse_loss(mapped[mask], teacher[mask], reduction="sum") / 5
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    assert count.item() == sum(lengths)


def test_by_hand():
    # With W = [[0, 1, 1], [1, 0, 1]]: (1, 2) -> (2, 1, 3) against (2, 4, 3): 9/3 = 3.
    student, teacher = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[2.0, 4.0, 3.0]]])
    W = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    assert hs_loss(student, teacher, lengths_mask([1], 1), W)[0].item() == 3


def test_rotation_of_the_target_and_the_map():
    x, y, W = states(2, 3, 4), states(2, 3, 4, seed=1), states(4, 4, seed=2)
    mask, turn = lengths_mask([3, 2], 3), torch.linalg.qr(states(4, 4, seed=3)).Q
    turned = hs_loss(x, y @ turn, mask, W @ turn)[0]
    assert turned.item() == pytest.approx(hs_loss(x, y, mask, W)[0].item(), rel=1e-12)


def test_huge_states_and_infinite_padding():
    x, y = states(2, 3, 4, dtype=torch.float32), states(2, 3, 4, seed=1, dtype=torch.float32)
    mask = lengths_mask([3, 2], 3)
    assert hs_loss(1e15 * x, x, mask)[0].isfinite()
    infinite = torch.where(mask[..., None], y, float("inf"))
    assert hs_loss(x, infinite, mask)[0] == hs_loss(x, y, mask)[0]


def test_mistakes_name_both_numbers():
    x, y, mask = states(2, 3, 4), states(2, 3, 5), lengths_mask([3, 3], 3)
    with pytest.raises(UserError, match=r"width 4 and teacher width 5 differ: a \(4, 5\)"):
        hs_loss(x, y, mask)
    with pytest.raises(UserError, match=r"projection is \(5, 4\), the widths need \(4, 5\)"):
        hs_loss(x, y, mask, states(5, 4))
