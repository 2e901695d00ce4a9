"""EncoderConfig: config.json in, config.json out, and one line for every config that is none."""

import dataclasses
import re

import pytest
import transformers
from checkpoints import refusal
from conftest import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from minitransformer import EncoderConfig, UserError
from minitransformer.config import RANGES
from minitransformer.model_types import MODEL_TYPES


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_transformers_reads_the_same_sizes(model_type):
    config = tiny_config(model_type)
    theirs = transformers.AutoConfig.for_model(**config.to_dict("X"))
    for field in dataclasses.fields(config):
        assert getattr(theirs, field.name) == getattr(config, field.name), field.name


def test_what_is_null_or_left_out_has_the_default_of_its_family():
    sizes = tiny_config().to_dict("BertModel")
    for name in ("type_vocab_size", "layer_norm_eps", "pad_token_id", "hidden_dropout_prob"):
        del sizes[name]
    config = EncoderConfig.from_dict({**sizes, "initializer_range": None})
    assert (config.type_vocab_size, config.layer_norm_eps, config.pad_token_id) == (2, 1e-12, 0)
    assert (config.hidden_dropout_prob, config.initializer_range) == (0.1, 0.02)
    assert EncoderConfig.from_dict({**sizes, "model_type": "roberta"}).pad_token_id == 1


def test_no_key_of_the_teachers_task_or_of_another_distiller_is_written():
    task = {"id2label": {"0": "no"}, "num_labels": 3, "finetuning_task": "mnli"}
    others = {"emb_size": 312, "torch_dtype": "float16", "tie_word_embeddings": False}
    others |= {"transformers_version": "4.6.0.dev0", "use_cache": True}
    given = tiny_config().to_dict("BertModel")
    assert EncoderConfig.from_dict(given | task | others).to_dict("BertModel") == given


def test_a_whole_number_for_a_float_is_written_as_a_float_which_transformers_demands():
    given = tiny_config().to_dict("BertModel") | {"layer_norm_eps": 1, "initializer_range": 1}
    written = EncoderConfig.from_dict(given).to_dict("BertModel")
    assert {type(written[name]) for name in ("layer_norm_eps", "initializer_range")} == {float}
    assert transformers.BertConfig(**written).layer_norm_eps == 1.0


# names in the file, changes of a BERT's sizes: the model type
BARE = ["embeddings.word_embeddings.weight"]
ROBERTA = {"pad_token_id": 1, "type_vocab_size": 1, "max_position_embeddings": 42}
INFERRED = [
    (["embeddings.LayerNorm.gamma", "cls.predictions.bias"], ROBERTA, "bert"),
    (["module._orig_mod.bert.embeddings.LayerNorm.bias"], {"architectures": ["XModel"]}, "bert"),
    (["bert.embeddings.LayerNorm.bias"], {"architectures": ["RobertaModel"]}, "bert"),
    (["roberta.embeddings.LayerNorm.bias"], {}, "roberta"),
    (["module.lm_head.bias"], {"architectures": ["XLMRobertaForMaskedLM"]}, "xlm-roberta"),
    (["roberta.pooler.dense.bias"], {"architectures": ["CamembertModel"]}, "camembert"),
    (["roberta.pooler.dense.bias"], {"architectures": ["BertModel"]}, "roberta"),
    (BARE, {"architectures": ["RobertaModel"]}, "roberta"),
    (BARE, {}, "bert"),
    (BARE, ROBERTA, "roberta"),
]


@pytest.mark.parametrize(("names", "changes", "expected"), INFERRED)
def test_a_missing_model_type_is_inferred(names, changes, expected):
    sizes = tiny_config().to_dict("X") | {"architectures": None} | changes
    for absent in (None, ""):
        config = EncoderConfig.from_dict(sizes | {"model_type": absent}, names)
        assert config.model_type == expected


@pytest.mark.parametrize(
    ("names", "changes"),
    [
        (BARE, {"type_vocab_size": 1}),
        (BARE, {"pad_token_id": 1}),
        (BARE, {"architectures": ["ElectraModel"], "type_vocab_size": 1}),
        (["bert.pooler.dense.bias", "lm_head.bias"], {}),
    ],
)
def test_a_model_type_that_nothing_shows_is_asked_for(names, changes):
    sizes = tiny_config().to_dict("X") | {"architectures": None, "model_type": None} | changes
    with pytest.raises(UserError, match='add "model_type": one of bert, roberta, xlm-roberta, cam'):
        EncoderConfig.from_dict(sizes, names)


# change of a good config: what the one line must say
REFUSED = [
    ({"model_type": "gpt2"}, "'gpt2' is not supported; these are: bert, roberta, xlm-roberta, cam"),
    ({"model_type": ["bert"]}, r"model_type \['bert'\]"),
    ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new' is not supported; only 'gelu'"),
    ({"position_embedding_type": "relative_key"}, "'relative_key' is not supported; only 'absol"),
    ({"is_decoder": True}, "is_decoder is set"),
    ({"vocab_size": None, "hidden_size": None}, "missing hidden_size, vocab_size"),
    ({"hidden_size": "32"}, "hidden_size must be a whole number from 1 to 65536, not '32'"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers must be .* from 1 to 512, not 1000000000"),
    ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be .*, not nan"),
    ({"pad_token_id": 300}, "pad_token_id 300 is outside the vocabulary of 300"),
    ({"num_attention_heads": 5}, "5 attention heads do not divide .* 32; .*: 1, 2, 4, 8, 16, 32"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_refused_in_one_line(change, message):
    changed = tiny_config().to_dict("BertModel") | change
    assert re.search(message, refusal(EncoderConfig.from_dict, changed))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
KEYS = st.sampled_from([*RANGES, "model_type", "hidden_act", "architectures"])


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.dictionaries(KEYS, st.integers(-3, 70) | ANYTHING, max_size=3))
def test_whatever_stands_in_a_config_it_is_refused_or_one_that_transformers_takes(changes):
    try:
        config = EncoderConfig.from_dict(tiny_config().to_dict("BertModel") | changes)
    except UserError:
        return
    written = config.to_dict("BertModel")
    assert EncoderConfig.from_dict(written) == config
    transformers.AutoConfig.for_model(**written)
