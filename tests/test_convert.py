"""Every layout that a checkpoint comes in, both ways, and all that may be wrong with it."""

import pytest
import torch
import transformers
from checkpoints import refusal
from conftest import same, tiny_config

from minitransformer.convert import from_hugging_face, to_hugging_face

WORDS = "embeddings.word_embeddings.weight"
HEADS = "dropped the next-sentence head, the pooler, which no method here uses"


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


@pytest.mark.parametrize(
    ("rename", "note"),
    [
        (lambda name: name, []),
        (lambda name: name.removeprefix("bert."), []),
        (
            lambda name: "_orig_mod.module." + name.replace("layer.", "layer._orig_mod."),
            ["removed _orig_mod, module from the names of the tensors"],
        ),
    ],
    ids=["as saved", "without prefix", "compiled"],
)
def test_every_layout_gives_the_same_encoder_and_comes_back_bit_equal(rename, note, tensors):
    renamed = {rename(name): tensor for name, tensor in tensors.items()}
    assert len(renamed) == len(tensors)
    encoder, notes = from_hugging_face(renamed, tiny_config())
    assert notes == [*note, HEADS]
    back = to_hugging_face(encoder)
    left_out = ("pooler", "seq_relationship", "decoder", "position_ids")
    wanted = {n: t for n, t in tensors.items() if not any(part in n for part in left_out)}
    assert back.keys() == wanted.keys()
    assert all(torch.equal(back[name], wanted[name]) for name in wanted)


def test_a_bias_that_stands_only_at_the_decoder_is_found(tensors):
    bias = tensors.pop("cls.predictions.bias")
    encoder, _ = from_hugging_face(tensors, tiny_config())
    assert torch.equal(encoder.mlm_head.bias, bias)


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
    assert notes == ["dropped the pooler, which no method here uses"]
    for name in ("classifier.weight", "classifier.bias", "qa_outputs.bias", "score.weight"):
        tensors[name] = torch.zeros(2)
    tensors |= {"fit_dense.bias": torch.zeros(2), "x" * 3000 + "\n": torch.zeros(2)}
    again, notes = from_hugging_face(tensors, tiny_config())
    assert again.mlm_head is None
    assert notes == [
        "dropped 'classifier', 'fit_dense', 'qa_outputs', and 3 more, which no method here uses"
    ]
    assert same(again, encoder)


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_the_head_is_dropped_when_its_decoder_is_not_tied(part, tensors):
    tensors[f"cls.predictions.decoder.{part}"][-1] += 1e-3
    encoder, notes = from_hugging_face(tensors, tiny_config())
    assert encoder.mlm_head is None
    original = {"weight": WORDS, "bias": "cls.predictions.bias"}[part]
    note = f"dropped the MLM head: its decoder is not tied, it differs from {original}"
    assert notes == [HEADS, note]


@pytest.mark.parametrize(
    ("model_type", "rename", "cause"),
    [
        ("roberta", lambda name: name, "the file has bert.*, config.json says roberta"),
        ("bert", lambda name: name.replace("bert.", "roberta."), "the file has roberta.*, config"),
        ("bert", lambda name: f"model_a.{name}", "file has model_a.bert.*, config.json says bert "),
        ("bert", lambda name: "x" * 5000 + f".{name}", "the file has xxxx"),
    ],
)
def test_a25_names_of_another_kind_are_the_cause(model_type, rename, cause, tensors):
    tensors = {rename(name): tensor for name, tensor in tensors.items() if "cls." not in name}
    message = refusal(from_hugging_face, tensors, tiny_config(model_type))
    assert cause in message
    assert message.count("; missing ") <= 3
    assert message.endswith(" more")


def test_b05_a_layer_more_and_a_layer_less(tensors):
    extra = {name.replace("layer.2", "layer.3"): tensor for name, tensor in tensors.items()}
    message = refusal(from_hugging_face, tensors | extra, tiny_config())
    assert "config.json says 3 layers, the file holds 4; unknown 'encoder.layer.3." in message
    assert message.endswith("; and 13 more")
    less = {name: tensor for name, tensor in tensors.items() if "layer.2" not in name}
    message = refusal(from_hugging_face, less, tiny_config())
    assert "config.json says 3 layers, the file holds 2; missing encoder.layer.2." in message
    assert message.endswith("; and 13 more")


NAME = "bert.encoder.layer.0.attention.self.key.weight"
FAULTS = [  # what is changed: what the line must say
    ({NAME: torch.zeros(48, 32)}, f"{NAME[5:]} has shape [48, 32], config.json says [32, 32]"),
    ({NAME: torch.zeros(32, 32).long()}, f"{NAME[5:]} holds torch.int64, not plain floating"),
    ({NAME: torch.zeros(32, 32).to_sparse()}, f"{NAME[5:]} holds"),
    ({NAME[5:]: torch.zeros(32, 32)}, f"'{NAME[5:]}' is there twice"),
    ({"bert.adapter.bias": torch.zeros(3)}, "unknown 'bert.adapter.bias'"),
    ({f"bert.encoder.{'x' * 3000}": torch.zeros(3)}, "unknown 'encoder.xxxx"),
    ({"cls.predictions.transform.dense.bias": None}, "missing cls.predictions.transform.dense.b"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_what_does_not_fit_is_named(change, message, tensors):
    tensors = {name: t for name, t in (tensors | change).items() if t is not None}
    said = refusal(from_hugging_face, tensors, tiny_config())
    assert message in said
    assert ";" not in said  # and nothing else
