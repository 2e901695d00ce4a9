"""Every layout that a checkpoint comes in, both ways, and all that may be wrong with it."""

import pytest
import torch
import transformers
from checkpoints import refusal
from conftest import tiny_config

from minitransformer import UserError
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


LAYOUTS = {
    "as saved": lambda name: name,
    "without prefix": lambda name: name.removeprefix("bert."),
    "old decoder": lambda name: name.replace("decoder.weight", "weight"),
    "compiled": lambda name: "_orig_mod.module." + name.replace("layer.", "layer._orig_mod."),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_encoder_and_comes_back_bit_equal(layout, tensors):
    rename = LAYOUTS[layout]
    if layout == "old decoder":
        del tensors["cls.predictions.bias"]  # its bias stands at the decoder alone
    encoder, notes = from_hugging_face({rename(n): t for n, t in tensors.items()}, tiny_config())
    assert notes[0] == HEADS
    assert len(notes) == (2 if layout == "compiled" else 1)
    tensors["cls.predictions.bias"] = tensors["cls.predictions.decoder.bias"]
    back = to_hugging_face(encoder)
    left_out = ("pooler", "seq_relationship", "decoder", "position_ids")
    wanted = {n: t for n, t in tensors.items() if not any(part in n for part in left_out)}
    assert back.keys() == wanted.keys()
    assert all(torch.equal(back[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_the_head_is_dropped_when_its_decoder_is_not_tied(part, tensors):
    tensors[f"cls.predictions.decoder.{part}"][-1] += 1e-3
    encoder, notes = from_hugging_face(tensors, tiny_config())
    assert encoder.mlm_head is None
    original = {"weight": WORDS, "bias": "cls.predictions.bias"}[part]
    assert notes == [HEADS, f"dropped the MLM head: its decoder differs from {original}"]


def test_a18_the_state_is_float32_in_memory_of_its_own(tensors):
    """A pickle may store one tensor under two names, transposed: training must not couple them."""
    query, key = (f"bert.encoder.layer.0.attention.self.{x}.weight" for x in ("query", "key"))
    tensors["bert.embeddings.LayerNorm.bias"] = torch.zeros(32).half()
    tensors[key] = tensors[query].t()
    state = from_hugging_face(tensors, tiny_config())[0].state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    state["blocks.0.query.weight"].zero_()
    assert torch.equal(state["blocks.0.key.weight"], tensors[key])


def test_a15_heads_of_tasks_are_dropped_and_named(tensors):
    tensors = {name: t for name, t in tensors.items() if not name.startswith("cls.")}
    for name in ("classifier.weight", "classifier.bias", "fit_dense.bias", "score.weight"):
        tensors[name] = torch.zeros(2)
    encoder, notes = from_hugging_face(tensors, tiny_config())
    with pytest.raises(UserError, match=r"no MLM head; .*--method mlm"):
        encoder.mlm_logits(torch.zeros(1, 32))
    assert notes == ["dropped classifier, fit_dense, and 2 more, which no method here uses"]


NAME = "bert.encoder.layer.0.attention.self.key.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [  # how all names change, or which tensors do: what the one line says
        (lambda n: n.replace("bert.", "roberta."), "unexpected roberta.embeddings"),
        (lambda n: f"model_a.{n}", f"missing {WORDS}, .*; unexpected model_a.bert.emb"),
        (
            lambda n: n.replace("layer.2.", "layer.1.x."),
            "config.json says 3 layers, the file holds 2; missing encoder.layer.2.*, and 14 more;",
        ),
        ({NAME: torch.zeros(48, 32)}, rf": {NAME[5:]} is \[48, 32\], config.json says \[32, 32\]$"),
        ({NAME: torch.zeros(32, 32).long()}, f"{NAME[5:]} holds torch.int64, not plain floating"),
        ({NAME[5:]: torch.zeros(32, 32)}, f": {NAME[5:]} is there twice$"),
        ({"bert.adapter.bias": torch.zeros(3)}, ": unexpected bert.adapter.bias$"),
    ],
)
def test_a25_b05_what_does_not_fit_is_listed(change, says, tensors):
    renamed = {} if isinstance(change, dict) else {change(n): tensors[n] for n in tensors}
    changed = renamed or tensors | change
    refusal(from_hugging_face, changed, tiny_config(), says=says)
