"""Every layout that a checkpoint comes in, both ways, and all that may be wrong with it."""

import pytest
import torch
import transformers
from checkpoints import refusal
from conftest import same, tiny_config

from minitransformer.convert import WORDS, from_hugging_face, to_hugging_face

HEADS = "dropped cls.seq_relationship, pooler.dense, which no method here uses"


@pytest.fixture
def tensors():
    """Every tensor that google-bert/bert-base-uncased stores, for tiny sizes; no two alike."""
    torch.manual_seed(0)
    with torch.device("meta"):
        config = transformers.BertConfig(**tiny_config().to_dict("X"))
        shapes = transformers.BertForPreTraining(config).state_dict()
    tensors = {name: torch.randn(tensor.shape) for name, tensor in shapes.items()}
    tensors["cls.predictions.decoder.weight"] = tensors[f"bert.{WORDS}"].clone()
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
    tensors["bert.embeddings.position_ids"] = torch.arange(40)[None]
    return tensors


COMPILED = "removed _orig_mod, module from the names of the tensors"
LAYOUTS = {
    "as saved": (lambda name: name, []),
    "without prefix": (lambda name: name.removeprefix("bert."), []),
    "old norms": (lambda name: name.replace("Norm.weight", "Norm.gamma"), []),
    "old decoder": (lambda name: name.replace("decoder.weight", "weight"), []),
    "compiled": (
        lambda name: "_orig_mod.module." + name.replace("layer.", "layer._orig_mod."),
        [COMPILED],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_encoder_and_comes_back_bit_equal(layout, tensors):
    rename, note = LAYOUTS[layout]
    if layout == "old decoder":
        del tensors["cls.predictions.bias"]  # its bias stands at the decoder alone
    encoder, notes = from_hugging_face({rename(n): t for n, t in tensors.items()}, tiny_config())
    assert notes == [*note, HEADS]
    tensors["cls.predictions.bias"] = tensors["cls.predictions.decoder.bias"]
    back = to_hugging_face(encoder)
    left_out = ("pooler", "seq_relationship", "decoder", "position_ids")
    wanted = {n: t for n, t in tensors.items() if not any(part in n for part in left_out)}
    assert back.keys() == wanted.keys()
    assert all(torch.equal(back[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a18_other_precisions_become_float32_of_the_same_value(dtype, tensors):
    tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
    encoder, _ = from_hugging_face(tensors, tiny_config())
    assert {tensor.dtype for tensor in encoder.parameters()} == {torch.float32}
    expected = tensors["bert.encoder.layer.2.output.dense.weight"].float()
    assert torch.equal(encoder.blocks[2].contract.weight, expected)


def test_the_state_has_memory_of_its_own(tensors):
    """A pickle may store one tensor under two names, transposed: training must not couple them."""
    query, key = (f"bert.encoder.layer.0.attention.self.{x}.weight" for x in ("query", "key"))
    tensors[key] = tensors[query].t()
    state = from_hugging_face(tensors, tiny_config())[0].state_dict()
    state["blocks.0.query.weight"].zero_()
    assert (state["blocks.0.key.weight"] != 0).any()
    assert (tensors[query] != 0).any()
    assert all(tensor.is_contiguous() for tensor in state.values())


def test_heads_of_tasks_are_dropped_and_named(tensors):
    tensors = {name: t for name, t in tensors.items() if not name.startswith("cls.")}
    encoder, notes = from_hugging_face(tensors, tiny_config())
    assert encoder.mlm_head is None
    assert notes == ["dropped pooler.dense, which no method here uses"]
    for name in ("classifier.weight", "classifier.bias", "fit_dense.bias", "score.weight"):
        tensors[name] = torch.zeros(2)
    again, notes = from_hugging_face(tensors, tiny_config())
    assert notes == ["dropped classifier, fit_dense, and 2 more, which no method here uses"]
    assert same(again, encoder)


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_the_head_is_dropped_when_its_decoder_is_not_tied(part, tensors):
    tensors[f"cls.predictions.decoder.{part}"][-1] += 1e-3
    encoder, notes = from_hugging_face(tensors, tiny_config())
    assert encoder.mlm_head is None
    original = {"weight": WORDS, "bias": "cls.predictions.bias"}[part]
    note = f"dropped the MLM head: its decoder is not tied, it differs from {original}"
    assert notes == [HEADS, note]


LAYER = "bert.encoder.layer.2."
MISFITS = [  # the tensors' new names (None: gone), the model type, words of the one line
    (lambda name: name, "roberta", f"missing {WORDS}, .* unexpected bert.emb"),
    (lambda name: name.replace("bert.", "roberta."), "bert", "unexpected roberta.embeddings"),
    (lambda name: f"model_a.{name}", "bert", f"missing {WORDS}, .*; unexpected model_a.bert.emb"),
    (lambda name: "x" * 5000 + f".{name}", "bert", f"missing {WORDS}, .*xxx"),
    (
        lambda name: None if name.startswith(LAYER) else name,
        "bert",
        r"config.json says 3 layers, the file holds 2; missing encoder.layer.2.*, and 14 more$",
    ),
    (
        lambda name: name.replace("layer.2", "layer.3"),
        "bert",
        r"missing encoder.layer.2.*; unexpected encoder.layer.3.*, and 14 more$",
    ),
    (
        lambda name: None if name.endswith("transform.dense.bias") else name,
        "bert",
        r"fit: missing cls.predictions.transform.dense.bias$",
    ),
]


@pytest.mark.parametrize(("rename", "model_type", "message"), MISFITS)
def test_a25_b05_names_that_do_not_fit_are_listed(rename, model_type, message, tensors):
    tensors = {rename(name): tensor for name, tensor in tensors.items() if rename(name)}
    refusal(from_hugging_face, tensors, tiny_config(model_type), says=message)


NAME = "bert.encoder.layer.0.attention.self.key.weight"
FAULTS = [  # what is changed: all that the line says
    ({NAME: torch.zeros(48, 32)}, rf"{NAME[5:]} is \[48, 32\], config.json says \[32, 32\]"),
    ({NAME: torch.zeros(32, 32).long()}, f"{NAME[5:]} holds torch.int64, not plain floating point"),
    ({NAME: torch.zeros(32, 32).to_sparse()}, f"{NAME[5:]} holds .*"),
    ({NAME[5:]: torch.zeros(32, 32)}, f"{NAME[5:]} is there twice"),
    ({"bert.adapter.bias": torch.zeros(3)}, "unexpected bert.adapter.bias"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_what_does_not_fit_is_named(change, message, tensors):
    refusal(from_hugging_face, tensors | change, tiny_config(), says=f"do not fit: {message}$")
