"""HS: the layer maps as printed. Its distance is tested in test_losses.py."""

import pytest
from conftest import tiny_config

from distill.hs import HS, STRATEGIES, layer_map
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


def test_layer_map_of_a_deeper_student():
    with pytest.raises(UserError, match="6 student layers, but 4 of the teacher"):
        layer_map("uniform+last", 6, 4)
    assert layer_map("uniform", 4, 2) == [(1, 1), (2, 1), (3, 2), (4, 2)]  # read twice


def test_a_map_may_end_below_the_teachers_last_layer():
    student, teacher = tiny_config(num_hidden_layers=2), tiny_config(num_hidden_layers=6)
    assert HS(student, teacher).pairs == [(1, 3), (2, 6)]
    lower = HS(student, teacher, teacher_layer=5)
    assert (lower.pairs, lower.teacher_layer) == ([(1, 3), (2, 5)], 5)
    with pytest.raises(UserError, match="layer 7: the teacher has layers 1 to 6"):
        HS(student, teacher, teacher_layer=7)
