"""The name table: every layout that a checkpoint comes in, both ways, and all that may be wrong."""

import pytest
import torch
import transformers
from conftest import MODEL_TYPES, tiny_config, tiny_encoder

from minitransformer import Encoder, EncoderConfig, UserError
from minitransformer.convert import family, from_hugging_face, name_table, to_hugging_face

WORDS = "embeddings.word_embeddings.weight"


def pretraining_checkpoint(seed=0):
    """Every tensor that google-bert/bert-base-uncased stores, for tiny sizes; no two alike."""
    config = tiny_config()
    torch.manual_seed(seed)
    model = transformers.BertForPreTraining(transformers.BertConfig(**config.to_dict("X")))
    tensors = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    tensors["cls.predictions.decoder.weight"] = tensors[f"bert.{WORDS}"].clone()
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
    tensors["bert.embeddings.position_ids"] = torch.arange(40)[None]
    assert {"bert.pooler.dense.weight", "cls.seq_relationship.bias"} < tensors.keys()
    return tensors, config


def refusal(tensors, config=None):
    """The message that these tensors are refused with."""
    with pytest.raises(UserError) as raised:
        from_hugging_face(tensors, config or tiny_config())
    assert "\n" not in str(raised.value)
    return str(raised.value)


# ---- the table -----------------------------------------------------------------------------------


def test_the_table_in_full_for_one_layer():
    encoder = tiny_encoder(tiny_config("roberta", num_hidden_layers=1))
    weights = {k: v for k, v in name_table(encoder).items() if k.endswith("weight")}
    assert weights == {
        "embeddings.word.weight": "embeddings.word_embeddings.weight",
        "embeddings.position.weight": "embeddings.position_embeddings.weight",
        "embeddings.token_type.weight": "embeddings.token_type_embeddings.weight",
        "embeddings.norm.weight": "embeddings.LayerNorm.weight",
        "blocks.0.query.weight": "encoder.layer.0.attention.self.query.weight",
        "blocks.0.key.weight": "encoder.layer.0.attention.self.key.weight",
        "blocks.0.value.weight": "encoder.layer.0.attention.self.value.weight",
        "blocks.0.output.weight": "encoder.layer.0.attention.output.dense.weight",
        "blocks.0.attention_norm.weight": "encoder.layer.0.attention.output.LayerNorm.weight",
        "blocks.0.expand.weight": "encoder.layer.0.intermediate.dense.weight",
        "blocks.0.contract.weight": "encoder.layer.0.output.dense.weight",
        "blocks.0.ffn_norm.weight": "encoder.layer.0.output.LayerNorm.weight",
        "mlm_head.dense.weight": "lm_head.dense.weight",
        "mlm_head.norm.weight": "lm_head.layer_norm.weight",
    }


@pytest.mark.parametrize("mlm_head", [True, False])
@pytest.mark.parametrize(
    ("model_type", "layers", "width", "vocab", "positions"),
    [
        ("bert", 12, 768, 30522, 512),  # bert-base-uncased
        ("bert", 24, 1024, 28996, 512),  # bert-large-cased
        ("roberta", 12, 768, 50265, 514),  # roberta-base
        ("xlm-roberta", 12, 768, 250002, 514),  # xlm-roberta-base
        ("xlm-roberta", 24, 1024, 250002, 514),  # xlm-roberta-large
    ],
)
def test_real_sizes_have_the_names_and_shapes_of_transformers(
    model_type, layers, width, vocab, positions, mlm_head
):
    config = EncoderConfig(
        model_type=model_type,
        vocab_size=vocab,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        max_position_embeddings=positions,
        type_vocab_size=2 if model_type == "bert" else 1,
        pad_token_id=0 if model_type == "bert" else 1,
    )
    architecture = family(config)[2][mlm_head]
    with torch.device("meta"):
        encoder = Encoder(config, mlm_head=mlm_head)
        theirs_config = transformers.AutoConfig.for_model(**config.to_dict(architecture))
        theirs = getattr(transformers, architecture)(theirs_config)
    ours = {name_table(encoder)[n]: tuple(t.shape) for n, t in encoder.state_dict().items()}
    prefix = family(config)[0]
    expected = {n.removeprefix(prefix): tuple(t.shape) for n, t in theirs.state_dict().items()}
    expected = {n: s for n, s in expected.items() if ".decoder." not in n and "pooler" not in n}
    assert ours == expected


# ---- import --------------------------------------------------------------------------------------

LAYOUTS = {
    "as saved": lambda name: name,
    "without prefix": lambda name: name.removeprefix("bert."),
    "gamma and beta": lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_encoder_and_comes_back_bit_equal(layout):
    tensors, config = pretraining_checkpoint()
    renamed = {LAYOUTS[layout](name): tensor for name, tensor in tensors.items()}
    assert len(renamed) == len(tensors)
    state, has_head, dropped = from_hugging_face(renamed, config)
    assert has_head
    assert dropped == ["the next-sentence head", "the pooler"]
    encoder = Encoder(config)
    encoder.load_state_dict(state)
    back = to_hugging_face(encoder)
    left_out = ("pooler", "seq_relationship", "decoder", "position_ids")
    wanted = {n: t for n, t in tensors.items() if not any(part in n for part in left_out)}
    assert back.keys() == wanted.keys()
    assert all(torch.equal(back[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("mlm_head", [True, False])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_export_then_import_is_the_same_encoder(model_type, mlm_head):
    encoder = tiny_encoder(model_type, mlm_head=mlm_head)
    exported = to_hugging_face(encoder)
    prefix = family(encoder.config)[0]
    assert all(name.startswith((prefix, "cls.", "lm_head.")) for name in exported) == mlm_head
    state, has_head, dropped = from_hugging_face(exported, encoder.config)
    assert (has_head, dropped) == (mlm_head, [])
    assert state.keys() == encoder.state_dict().keys()
    assert all(torch.equal(state[name], t) for name, t in encoder.state_dict().items())


def test_a_checkpoint_without_a_head_is_an_encoder_without_one():
    tensors, config = pretraining_checkpoint()
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("cls.")}
    _, has_head, dropped = from_hugging_face(tensors, config)
    assert not has_head
    assert dropped == ["the pooler"]


def test_a_bias_that_stands_only_at_the_decoder_is_found():
    tensors, config = pretraining_checkpoint()
    bias = tensors.pop("cls.predictions.bias")
    state, _, _ = from_hugging_face(tensors, config)
    assert torch.equal(state["mlm_head.bias"], bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32_of_the_same_value(dtype):
    tensors, config = pretraining_checkpoint()
    tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
    state, _, _ = from_hugging_face(tensors, config)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    expected = tensors["bert.encoder.layer.2.output.dense.weight"].float()
    assert torch.equal(state["blocks.2.contract.weight"], expected)


def test_the_state_has_memory_of_its_own():
    """A pickle may store one tensor under two names, transposed: training must not couple them."""
    tensors, config = pretraining_checkpoint()
    query, key = (f"bert.encoder.layer.0.attention.self.{x}.weight" for x in ("query", "key"))
    tensors[key] = tensors[query].t()
    state, _, _ = from_hugging_face(tensors, config)
    state["blocks.0.query.weight"].zero_()
    assert (state["blocks.0.key.weight"] != 0).any()
    assert (tensors[query] != 0).any()
    assert all(tensor.is_contiguous() for tensor in state.values())


# ---- what is refused -----------------------------------------------------------------------------


def test_all_that_does_not_fit_is_told_together_with_both_shapes():
    tensors, config = pretraining_checkpoint()
    del tensors["bert.encoder.layer.1.output.dense.bias"]
    del tensors["cls.predictions.transform.dense.weight"]
    tensors["classifier.weight"] = torch.zeros(2, 32)
    tensors["bert.embeddings.position_embeddings.weight"] = torch.zeros(50, 32)
    tensors["bert.encoder.layer.0.attention.self.key.weight"] = torch.zeros(32, 32).long()
    tensors["encoder.layer.2.intermediate.dense.bias"] = torch.zeros(64)
    tensors["cls.predictions.decoder.weight"] = torch.zeros(300, 32)
    message = refusal(tensors, config)
    for part in (
        "missing encoder.layer.1.output.dense.bias",
        "missing cls.predictions.transform.dense.weight",
        "unknown 'classifier.weight'",
        "embeddings.position_embeddings.weight has shape [50, 32], the config says [40, 32]",
        "encoder.layer.0.attention.self.key.weight holds torch.int64",
        "encoder.layer.2.intermediate.dense.bias is there twice",
        "the MLM decoder is not tied: it differs from embeddings.word_embeddings.weight",
    ):
        assert part in message
    assert message.count(";") == 6  # and nothing else


def test_a_layer_more_and_a_layer_less():
    tensors, config = pretraining_checkpoint()
    extra = {name.replace("layer.2", "layer.3"): tensor for name, tensor in tensors.items()}
    assert refusal(tensors | extra, config).count("unknown 'encoder.layer.3.") == 16
    less = {name: tensor for name, tensor in tensors.items() if "layer.2" not in name}
    assert refusal(less, config).count("missing encoder.layer.2.") == 16


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_an_untied_decoder_is_refused(part):
    tensors, config = pretraining_checkpoint()
    tensors[f"cls.predictions.decoder.{part}"][-1] += 1e-3
    assert "the MLM decoder is not tied" in refusal(tensors, config)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(32, 32, dtype=torch.complex64),
        torch.zeros(32, 32).to_sparse(),
        torch.zeros(32, 32, device="meta"),
    ],
    ids=["complex", "sparse", "meta"],
)
def test_what_is_no_plain_tensor_is_refused(tensor):
    tensors, config = pretraining_checkpoint()
    tensors["bert.encoder.layer.0.attention.self.key.weight"] = tensor
    assert "attention.self.key.weight holds" in refusal(tensors, config)


def test_a_tensor_that_is_huge_without_memory_is_refused_by_its_shape():
    tensors, config = pretraining_checkpoint()
    tensors[f"bert.{WORDS}"] = torch.zeros(1).expand(10**9, 10**6)
    assert "has shape [1000000000, 1000000], the config says [300, 32]" in refusal(tensors, config)


def test_nothing_at_all_is_refused():
    assert refusal({}).count("missing") == 4 + 1 + 3 * 16
