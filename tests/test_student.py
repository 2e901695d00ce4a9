"""The student's sizes and starts: each way to start is checked against what it says it copies."""

import pytest
import torch

from distill import build_method
from distill.method import Batch
from distill.student import default_init, freeze_unreached, is_folder, start_student, student_config
from minitransformer import Encoder, EncoderConfig, UserError


def config(layers=6, hidden=24, heads=4, **more):
    sizes = dict(vocab_size=60, intermediate_size=4 * hidden, max_position_embeddings=16)
    return EncoderConfig(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, **sizes | more
    )


@pytest.fixture(scope="module")
def teacher():
    encoder = Encoder(config(), mlm_head=True)
    generator = torch.Generator().manual_seed(1)
    for parameter in encoder.parameters():  # biases and norms too, so that a copy can be told
        parameter.data.normal_(generator=generator)
    return encoder


def copied_layers(student, teacher):
    """For each student block the number of the teacher layer it equals, or None."""

    def same(a, b):
        pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
        return all(torch.equal(x, y) for x, y in pairs)

    found = []
    for block in student.blocks:
        found.append(next((i for i, t in enumerate(teacher.blocks, 1) if same(block, t)), None))
    return found


@pytest.mark.parametrize(
    ("init", "layers", "expected"),
    [
        ("uniform", 3, [2, 4, 6]),
        ("uniform", 4, [2, 3, 5, 6]),  # 1.5 3 4.5 6, rounded half up
        ("first", 3, [1, 2, 3]),
        ("last", 3, [4, 5, 6]),
        ("1,6", 2, [1, 6]),
        ("embeddings", 2, [None, None]),
        ("random", 2, [None, None]),
    ],
)
def test_layers_that_each_start_copies(teacher, init, layers, expected):
    student = start_student(init, config(layers), teacher, 0, mlm_head=False)
    assert copied_layers(student, teacher) == expected
    same = torch.equal(student.embeddings.word.weight, teacher.embeddings.word.weight)
    assert same == (init != "random")
    assert student.mlm_head is None


def test_a_start_is_a_function_of_the_seed(teacher):
    starts = [start_student("random", config(2), teacher, s, mlm_head=True) for s in (3, 3, 4)]
    words = [s.embeddings.word.weight for s in starts]
    assert torch.equal(words[0], words[1])
    assert not torch.equal(words[0], words[2])


def test_mlm_head_is_the_teachers_where_the_widths_agree(teacher):
    same = start_student("embeddings", config(2), teacher, 0, mlm_head=True)
    narrow = start_student("embeddings", config(2, 12), teacher, 0, mlm_head=True)
    assert torch.equal(same.mlm_head.bias, teacher.mlm_head.bias)
    assert not narrow.mlm_head.bias.any()


@torch.no_grad()
def test_narrow_embeddings_keep_the_principal_directions(teacher):
    """No other 12 directions keep more of the word table; the singular values say how much."""
    student = start_student("embeddings", config(2, 12), teacher, 0, mlm_head=False)
    word = teacher.embeddings.word.weight.double()
    kept = student.embeddings.word.weight.double().square().sum()
    best = torch.linalg.svdvals(word)[:12].square().sum()
    assert kept.item() == pytest.approx(best.item(), rel=1e-6)
    # one map for all three tables: the Gram matrix of their rows agrees with one orthonormal U
    rows = torch.cat([word[:5], teacher.embeddings.position.weight.double()[:5]])
    _, _, directions = torch.linalg.svd(word, full_matrices=False)
    expected = rows @ directions[:12].T
    ours = torch.cat(
        [student.embeddings.word.weight[:5], student.embeddings.position.weight[:5]]
    ).double()
    torch.testing.assert_close(ours @ ours.T, expected @ expected.T, rtol=1e-5, atol=1e-5)


def test_default_sizes(teacher):
    half = student_config(teacher.config)
    assert (half.num_hidden_layers, half.hidden_size, half.intermediate_size) == (3, 24, 96)
    assert default_init(half, teacher.config) == "uniform"
    narrow = student_config(teacher.config, hidden=18)
    assert (narrow.num_attention_heads, narrow.intermediate_size) == (3, 72)  # 4 does not divide 18
    assert default_init(narrow, teacher.config) == "embeddings"


@pytest.mark.parametrize(
    ("init", "student", "says"),
    [
        ("uniform", config(2, 12), "(width, heads, FFN) are (12, 4, 48)"),
        ("last", config(7), "7 student layers, but the teacher has 6"),
        ("1,2", config(3), "lists 2 layers, but the student has 3"),
        ("1,9", config(2), "layer 9 is not one of the teacher's 1 to 6"),
        ("embeddings", config(2, 48), "width 48 exceeds the teacher's 24"),
    ],
)
def test_starts_that_cannot_be(teacher, init, student, says):
    with pytest.raises(UserError, match=says.replace("(", r"\(").replace(")", r"\)")):
        start_student(init, student, teacher, 0, mlm_head=False)


def test_what_names_a_folder():
    assert [is_folder(i) for i in ("random", "2,4,6", "3", "runs/hs", "embedded")] == [
        False,
        False,
        False,
        True,
        True,
    ]


def test_freeze_finds_what_the_method_never_reaches(teacher):
    student = start_student("uniform", config(3), teacher, 0, mlm_head=True)
    ids = torch.randint(5, 60, (2, 8))
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool))
    line = freeze_unreached(
        student, build_method("mha", student.config, teacher.config), teacher.eval(), batch
    )
    frozen = {n.rpartition(".")[0] for n, p in student.named_parameters() if not p.requires_grad}
    last = {f"blocks.2.{n}" for n in ("output", "attention_norm", "expand", "contract", "ffn_norm")}
    assert frozen == last | {"mlm_head", "mlm_head.dense", "mlm_head.norm"}
    assert "blocks.2.contract" in line
    assert all(p.grad is None for p in student.parameters())
