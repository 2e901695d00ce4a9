"""The five methods on two small encoders: settings, stops, gradients, micro-batches, training."""

import re
from dataclasses import replace

import pytest
import torch
from conftest import lengths_mask, same, tiny_config, tiny_encoder
from helpers import ROOT, make_inputs

import train as train_py
from distill import METHODS, build_method
from distill.hs import hs_loss
from distill.method import Batch, check_method
from distill.mha import relation_loss
from distill.mlm import mlm_loss
from distill.od import OD, od_loss
from distill.training.setup import freeze_unreached
from minitransformer.files import UserError

ALL = pytest.mark.parametrize("name", ["mha", "hs", "od", "direct-minilm", "mlm"])
FORMS = pytest.mark.parametrize("plain", [False, True])


def config(layers, width, vocab=60):
    return tiny_config(vocab_size=vocab, hidden_size=width, num_hidden_layers=layers)


def encoder(layers=4, width=24, seed=0, mlm_head=True):
    return tiny_encoder(config(layers, width), mlm_head, seed)


def make_batch(lengths=(12, 7, 3, 12), tokens=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 60, (len(lengths), tokens), generator=generator)
    mask = lengths_mask(lengths, tokens)
    chosen = (torch.rand(ids.shape, generator=generator) < 0.3) & mask
    ids = ids * mask
    positions = chosen.flatten().nonzero().flatten()
    return Batch(ids, mask, ids.masked_fill(chosen, 4), positions)


def build(name, student, teacher, **settings):
    return build_method({"method": name, **settings}, student.config, teacher.config)


def gradients(*modules):
    return [p.grad for module in modules for p in module.parameters() if p.grad is not None]


@ALL
@pytest.mark.parametrize("width", [24, 16])
def test_contract_and_which_parameters_learn(name, width):
    student, teacher = encoder(2, width, seed=1), encoder()
    method, batch = build(name, student, teacher), make_batch()
    assert method.teacher_layer == {"mha": 3, "direct-minilm": 3, "mlm": None}.get(name, 4)
    if name in ("mha", "direct-minilm"):  # nothing above Q, K and V of the layer runs
        teacher.blocks[2].output = teacher.blocks[3].query = None
    _, count = method(student, teacher, batch)
    assert count == {"mha": 4, "hs": 34, "direct-minilm": 34}.get(name, len(batch.positions))
    maps = list(method.parameters())  # identity where the widths agree, else they keep lengths
    assert bool(maps) == (name == "direct-minilm" or (name == "hs" and width == 16))
    for W in maps:
        assert torch.allclose(W @ W.mT, torch.eye(W.shape[1]).expand(len(W), -1, -1), atol=1e-5)
    frozen = freeze_unreached(student, method, teacher, batch)
    assert frozen == [key for key, p in student.named_parameters() if not p.requires_grad]
    assert gradients(student, method, teacher) == []
    idle = {key.rpartition(".")[0] for key in frozen}
    head = {key for key in idle if key.startswith("mlm_head")}
    assert bool(head) == (name not in ("od", "mlm"))
    after_qkv = ("output", "attention_norm", "expand", "contract", "ffn_norm")
    after_qkv = {f"blocks.1.{part}" for part in after_qkv if name in ("mha", "direct-minilm")}
    assert idle - head == after_qkv


@pytest.mark.parametrize(("lengths", "full"), [((12, 12), True), ((12, 11), False)])
@ALL
def test_a_full_batch_takes_no_mask_to_attention(name, lengths, full):
    """Whatever the batch says of itself, the loss is the same."""
    student, teacher, batch = encoder(2, 16, seed=1), encoder(), make_batch(lengths)
    seen, original = set(), student.attention
    student.attention = lambda q, k, v, mask: seen.add(mask is None) or original(q, k, v, mask)
    method = build(name, student, teacher, positions="all")
    total, count = method(student, teacher, batch)
    assert (batch.full, seen) == (full, {full})
    other, other_count = method(student, teacher, replace(batch, full=False))
    assert (other.item(), other_count) == (pytest.approx(total.item(), rel=1e-5), count)


@FORMS
@ALL
def test_one_batch_is_its_micro_batches(name, plain):
    """Unequal padding and counts: sums and gradients add up, means of means would not."""
    student, teacher = encoder(2, 16, seed=1), encoder()
    check_micro_batches(build(name, student, teacher, plain=plain), student, teacher)


def sequences(batch, start, stop):
    """Return the batch of sequences start, ..., stop - 1 alone."""
    row = batch.positions // batch.ids.shape[1]
    positions = batch.positions[(start <= row) & (row < stop)] - start * batch.ids.shape[1]
    ids, mask, masked = (x[start:stop] for x in (batch.ids, batch.mask, batch.masked_ids))
    return Batch(ids, mask, masked, positions)


def check_micro_batches(*models):
    method, student, teacher = (model.double() for model in models)
    whole, found = make_batch(), []
    parts = [sequences(whole, *rows) for rows in ((0, 2), (2, 3), (3, 4))]
    for batches in ([whole], parts):
        student.zero_grad()
        method.zero_grad()
        sums = [method(student, teacher, batch) for batch in batches]
        total, count = map(sum, zip(*sums, strict=True))
        total.backward()
        found.append((total.item(), count.item(), gradients(student, method)))
    (total, count, slopes), (expected, expected_count, others) = found
    assert (total, count) == (pytest.approx(expected, rel=1e-10), expected_count)
    torch.testing.assert_close(slopes, others, rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("lengths", [(12, 7, 3, 12), (12, 12)])
def test_forward_is_the_published_formula(lengths, monkeypatch):
    """Both forms against the losses on whole outputs of both models; the lean runs no such loss."""
    models, batch = (encoder(2, 16, seed=1), encoder()), make_batch(lengths)
    (_, *qkv_s), (_, *qkv_t) = outs = [model(batch.ids, batch.mask) for model in models]
    pairs = [(x_s[1], x_t[1]) for x_s, x_t in zip(qkv_s, qkv_t, strict=True)]  # layer 2 of both
    hs = build("hs", *models)  # layers (1, 2) and (2, 4), each with its own map
    hidden = [(outs[0].hidden[i], outs[1].hidden[j]) for i, j in ((1, 2), (2, 4))]
    z_s, z_t = (
        model.mlm_logits(model(batch.masked_ids, batch.mask).hidden[-1]).flatten(0, 1)
        for model in models
    )
    masked, real = batch.positions, batch.mask.flatten()
    od = {"positions": "all", "temperature": 2.0}
    for method, parts in (
        (build("mha", *models, teacher_layer=2), [relation_loss(*x, batch.mask, 2) for x in pairs]),
        (hs, [hs_loss(*x, batch.mask, W) for x, W in zip(hidden, hs.maps, strict=True)]),
        (build("od", *models), [od_loss(z_s[masked], z_t[masked])]),
        (build("od", *models, **od), [od_loss(z_s[real], z_t[real], 2.0)]),
        (build("mlm", *models), [mlm_loss(z_s[masked], batch.ids.flatten()[masked])]),
    ):
        expected = pytest.approx(sum(part.item() for part, _ in parts), rel=1e-5)
        method.plain = True
        assert method(*models, batch)[0].item() == expected
        method.plain = False
        with monkeypatch.context() as patch:
            for loss in ["od.od_loss", "mlm.mlm_loss"] + ["mha.relation_loss"] * batch.full:
                patch.setattr(f"distill.{loss}", None)
            assert method(*models, batch)[0].item() == expected


def train(method, student, teacher):
    """Return the losses of 30 steps on one batch."""
    parameters = [*student.parameters(), *method.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, eps=1e-6)
    losses = []
    for _ in range(30):
        total, count = method(student, teacher, make_batch())
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((total / count).item())
    return losses


@ALL
def test_overfits_one_batch_and_leaves_the_teacher_alone(name):
    student, teacher = encoder(2, 16, seed=1), encoder()
    losses = train(build(name, student, teacher), student, teacher)
    assert losses[-1] < 0.3 * losses[0]
    assert same(teacher, encoder())


@pytest.mark.parametrize("lengths", [(12, 7), (12, 12)])
@FORMS
@ALL
def test_no_question_to_a_device_and_nothing_left_on_the_cpu(name, plain, lengths):
    """Whatever asks for a value fails on the device `meta`, and so do operands on two devices."""
    student, teacher = encoder(2, 16, seed=1), encoder()
    batch = make_batch(lengths).to("meta")
    positions = "all" if batch.full else "masked"
    method = build(name, student, teacher, plain=plain, positions=positions).to("meta")
    student, teacher = student.to("meta"), teacher.to("meta")
    total, _ = method(student, teacher, batch)
    (3 * total).backward()
    assert gradients(student)
    assert all(slope.is_meta for slope in gradients(student, method))


def test_the_method_of_the_docs(monkeypatch, folder):
    """docs/add_a_method.md: registered as it stands there, the class trains by its name."""
    page = (ROOT / "docs" / "add_a_method.md").read_text("utf-8")
    method_file, registration = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[:2]
    module = {}
    exec(method_file, module)
    name, kind = re.findall(r'"([\w-]+)": (\w+)', registration)[-1]
    monkeypatch.setitem(METHODS, name, module[kind])
    student, teacher = encoder(2, seed=1), encoder()
    method = build(name, student, teacher)
    losses = train(method, student, teacher)
    assert losses[-1] < 0.5 * losses[0]
    check_micro_batches(method, student, teacher)
    make_inputs(folder)
    usual = {"teacher": "teacher", "data": ["web=text.txt"], "seq_len": 16, "steps": 2}
    config = train_py.TrainConfig(method=name, out="run", **usual)
    monkeypatch.setattr(train_py, "parse_config", lambda argv: config)  # it knows no cosine here
    assert train_py.main() == 0


def test_settings_reach_the_method():
    student, teacher = config(2, 16), config(4, 24)
    settings = {"mapping": "single", "teacher_layer": 2, "relation_heads": 4}
    settings |= {"temperature": 2.0, "positions": "all"}
    layers, widths = "student layer 2, teacher layer 2", "of width 4 (student) and 6 (teacher)"
    pairs = "(student, teacher) layers: (2,2), each with a learned (16, 24)"
    for name, said in {
        "mha": f"Q, K, V relations: {layers}, 4 relation heads {widths}",
        "direct-minilm": f"Q, K, V directly: {layers}, 4 relation heads {widths}",
        "hs": f"hidden states, map single, {pairs}",
        "od": "output distribution: all positions, temperature 2",
    }.items():
        assert build_method(settings | {"method": name}, student, teacher).describe() == said
    assert {key for kind in METHODS.values() for key in kind.settings} == settings.keys()
    with pytest.raises(UserError, match="60 in the student, 70 in the teacher"):
        OD(student, config(4, 24, vocab=70))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda total, count: total / count, r"returned \['torch.float32 \(\)'\], not two"),
        (lambda total, count: (total, 12), r"returned \['torch.float32 \(\)', 'int'\]"),
        (lambda total, count: (total[None], count.long()), r"float32 \(1,\)', 'torch.int64 \(\)"),
        (lambda total, count: (total.detach(), count), "nothing of the student"),
        (lambda *good: good, "depend on its parameters idle$"),
    ],
)
def test_a_broken_method_is_named_in_one_line(change, says):
    student, teacher = encoder(2, seed=1), encoder()
    method = build("hs", student, teacher)
    method.idle, good = torch.nn.Parameter(torch.zeros(2)), method.forward
    method.forward = lambda *models: change(*good(*models))
    with pytest.raises(UserError, match=f"^HS: .*{says}"):
        check_method(method, student, teacher, make_batch())
