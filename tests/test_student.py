"""The student's sizes and starts: each way to start is checked against what it says it copies."""

import pytest
import torch
from conftest import same, save_tiny, tiny_config, tiny_encoder, tokens

from distill import METHODS
from distill.student import build_start, sizes
from distill.training.setup import load_models
from minitransformer import UserError
from train import TrainConfig


def config(layers=6, hidden=24, heads=4, **more):
    sizes = {"vocab_size": 60, "intermediate_size": 4 * hidden, "max_position_embeddings": 16}
    sizes |= {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    return tiny_config(**sizes | more)


@pytest.fixture(scope="module")
def teacher():
    return tiny_encoder(config())


def start(teacher, **settings):
    return build_start(vars(TrainConfig()) | {"seq_len": 16} | settings, teacher)


@pytest.mark.parametrize(
    ("init", "method", "expected"),
    [
        ("uniform", "hs", [1, 4, 6]),  # 1 3.5 6, halves up
        ("uniform", "hs", [1, 3, 4, 6]),  # 1 2.67 4.33 6
        ("uniform", "mha", [1, 3, 5]),
        ("uniform", "mha", [1, 2, 3, 4, 5, 6]),  # deeper than the method reads
        ("first", "mha", [1, 2, 3]),
        ("last", "direct-minilm", [3, 4, 5]),
        ("last", "od", [4, 5, 6]),
        ("1,6", "mha", [1, 6]),
        ("embeddings", "mha", [None, None]),
        ("random", "mlm", [None, None]),
    ],
)
def test_layers_that_each_start_copies(teacher, init, method, expected):
    settings = {"init": init, "method": method, "teacher_layer": None if method == "hs" else 5}
    made = start(teacher, student_layers=len(expected), **settings)
    layers = list(enumerate(teacher.blocks, 1))  # which one each block of the student equals
    found = [next((i for i, t in layers if same(s, t)), None) for s in made.student.blocks]
    assert found == expected
    assert made.layers == ([] if None in expected else expected)
    word = made.student.embeddings.word.weight
    assert torch.equal(word, teacher.embeddings.word.weight) == (init != "random")
    assert (made.student.mlm_head is None) == (method not in ("od", "mlm"))
    if method == "od":
        assert same(made.student.mlm_head, teacher.mlm_head)
    other = start(teacher, student_layers=len(expected), seed=1, **settings).student
    assert same(made.student, other) == (init not in ("random", "embeddings"))


@pytest.mark.parametrize(
    ("method", "init", "layers", "warned"),
    [
        ("mha", None, 5, True),
        ("mha", "first", 6, True),
        ("mha", "1,2,3,4,6", 5, False),
        ("hs", None, 6, True),
        ("mlm", None, 6, False),
    ],
)
def test_a_start_that_is_its_own_target_is_warned_of(teacher, method, init, layers, warned):
    m = {"mha": 5, "hs": 6}.get(method)
    made = start(teacher, method=method, init=init, student_layers=layers, teacher_layer=m)
    copied = f"the student copies teacher layers 1 to {m}, so it already matches them"
    assert [line.split(";")[0] for line in made.warnings] == [copied] * warned
    several = {"method": "hs", "mapping": "uniform-consecutive", "init": "first"}
    assert not start(teacher, **several, student_layers=6).warnings  # a layer has several targets
    above = {"method": "hs", "teacher_layer": 3, "init": "first"}
    assert not start(teacher, **above, student_layers=4).warnings  # (3,2), (4,3)


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_a_random_start_has_no_positions_that_training_never_reads(model_type):
    made = start(tiny_encoder(model_type), init="random")  # the teacher has 40
    assert made.student.config.max_tokens == 16
    made.student(*tokens(made.student.config, (16, 16)))


REBUILT = [("mha", "embeddings"), ("mha", "2"), ("mha", "FOLDER")]
REBUILT += [(method, "headless") for method in ("od", "mlm")]  # the MLM head is added


@pytest.mark.parametrize(("method", "init"), [*((method, None) for method in METHODS), *REBUILT])
def test_a_start_can_be_rebuilt_bit_for_bit_from_the_log(tmp_path, method, init):
    save_tiny(tmp_path / "teacher")
    if init in ("FOLDER", "headless"):
        save_tiny(tmp_path / init, mlm_head=init == "FOLDER", seed=3)
        init = str(tmp_path / init)
    settings = {"teacher": str(tmp_path / "teacher"), "method": method, "init": init, "seq_len": 16}
    teacher, made, resolved, record = load_models(TrainConfig(**settings))
    rebuilt = build_start(vars(resolved), teacher).student
    assert (rebuilt.mlm_head is not None) == (method in ("od", "mlm"))  # FOLDER has one
    assert same(rebuilt, made.student)
    assert record["start"]["layers"] == made.layers


def test_a_narrow_start_does_not_depend_on_the_number_of_threads():
    wide, made = tiny_encoder(config(hidden=384)), []
    for number in (2, 1):
        torch.set_num_threads(number)
        made.append(start(wide, student_hidden=192).student)
        assert torch.get_num_threads() == number
    assert same(*made)


@torch.no_grad()
def test_narrow_embeddings_keep_the_principal_directions(teacher):
    """No other 12 directions keep more of the word table; the singular values say how much."""
    student = start(teacher, init="embeddings", method="od", student_hidden=12).student
    assert not student.mlm_head.bias.any()  # not the teacher's
    word = teacher.embeddings.word.weight.double()
    kept = student.embeddings.word.weight.double().square().sum()
    best = torch.linalg.svdvals(word)[:12].square().sum()
    assert kept.item() == pytest.approx(best.item(), rel=1e-6)
    # one map for all tables: products of their rows agree with one orthonormal U
    U = torch.linalg.svd(word, full_matrices=False).Vh[:12].T
    expected = word @ U @ U.T @ teacher.embeddings.position.weight.double().T
    ours = student.embeddings.word.weight @ student.embeddings.position.weight.T
    torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "expected", "init"),
    [
        ({}, [3, 24, 4, 90], "uniform"),  # the teacher's FFN, not 4 x the width
        ({"student_hidden": 18}, [3, 18, 3, 72], "embeddings"),  # 4 does not divide 18
        ({"student_layers": 7}, [7, 24, 4, 90], "embeddings"),
        ({"student_ffn": 40}, [3, 24, 4, 40], "embeddings"),
    ],
)
def test_default_sizes(given, expected, init):
    made = start(tiny_encoder(config(intermediate_size=90)), **given)
    assert [*sizes(made.student.config).values()] == expected
    assert made.init == init


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"init": "uniform", "student_hidden": 12},
            r"\(width, heads, FFN\): student \(12, 4, 48\)",
        ),
        ({"init": "last", "student_layers": 7}, "7 student layers, but the teacher has only 6"),
        ({"init": "1,2"}, "--init 1,2: list 3 layers, one per student layer, from 1 to 6"),
        ({"init": "-1, 2, 9"}, "list 3 layers"),
        ({"init": "2,"}, "^'?2,"),  # a folder's name
        ({"init": "embeddings", "student_hidden": 48}, "width 48 exceeds the teacher's 24"),
        ({"teacher_layer": 0}, "teacher layer 0: the teacher has"),  # 0 is not "not given"
        ({"method": "mha", "relation_heads": 0}, "^0 relation heads"),
    ],
)
def test_starts_that_cannot_be(teacher, settings, says):
    with pytest.raises(UserError, match=says):
        start(teacher, **settings)
