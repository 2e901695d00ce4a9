"""EncoderConfig: config.json in, config.json out, and one line for every config that is none."""

import dataclasses
import re

import pytest
import transformers
from checkpoints import refusal
from conftest import tiny_config

from minitransformer import EncoderConfig
from minitransformer.config import MODEL_TYPES


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
    given = tiny_config().to_dict("BertModel")
    assert EncoderConfig.from_dict(given | task | others).to_dict("BertModel") == given


def test_a_whole_number_for_a_float_is_written_as_a_float_which_transformers_demands():
    given = tiny_config().to_dict("BertModel") | {"layer_norm_eps": 1, "initializer_range": 1}
    written = EncoderConfig.from_dict(given).to_dict("BertModel")
    assert {type(written[name]) for name in ("layer_norm_eps", "initializer_range")} == {float}
    assert transformers.BertConfig(**written).layer_norm_eps == 1.0


BARE = ["embeddings.LayerNorm.weight", "encoder.layer.0.output.dense.bias"]
INFERRED = [  # names in the file, the class that config.json names: the model type
    (["embeddings.LayerNorm.gamma", "cls.predictions.bias"], None, "bert"),
    (["module._orig_mod.bert.embeddings.LayerNorm.bias"], "XModel", "bert"),
    (["roberta.embeddings.LayerNorm.bias"], "BertModel", "roberta"),
    (["module.lm_head.bias"], "XLMRobertaForMaskedLM", "xlm-roberta"),
    (["roberta.pooler.dense.bias"], "CamembertModel", "camembert"),
    (BARE, "RobertaModel", "roberta"),
    (BARE, None, "bert"),
]


@pytest.mark.parametrize(("names", "architecture", "expected"), INFERRED)
def test_a_missing_model_type_is_inferred(names, architecture, expected):
    sizes = tiny_config().to_dict("X") | {"architectures": architecture and [architecture]}
    for absent in (None, ""):
        config = EncoderConfig.from_dict(sizes | {"model_type": absent}, names)
        assert config.model_type == expected


REFUSED = [  # change of a good config: what the one line must say
    ({"model_type": "gpt2"}, "'gpt2' is not supported; use bert, roberta, xlm-roberta, cam"),
    ({"model_type": ["bert"]}, r"model_type \['bert'\]"),
    ({"model_type": None, "pad_token_id": 1}, 'add "model_type": one of bert, roberta, xlm-rob'),
    ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new' is not supported; only 'gelu'"),
    ({"position_embedding_type": "relative_key"}, "'relative_key' is not supported; only 'absol"),
    ({"is_decoder": True}, "is_decoder is set"),
    ({"vocab_size": None, "hidden_size": None}, "missing vocab_size, hidden_size"),
    ({"hidden_size": "32"}, "hidden_size must be a whole number of at least 1, not '32'"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be .* at least 1, not 0"),
    ({"type_vocab_size": True}, "type_vocab_size must be a whole number .* not True"),
    ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be a number from 0 to 1, not nan"),
    ({"layer_norm_eps": "1e-12"}, "layer_norm_eps must be a number from 0 to 1, not '1e-12'"),
    ({"pad_token_id": 300}, "pad_token_id 300 is outside the vocabulary of 300"),
    ({"pad_token_id": -1}, "pad_token_id must be a whole number of at least 0, not -1"),
    ({"num_attention_heads": 5}, "5 attention heads do not divide .* 32; .*: 1, 2, 4, 8, 16, 32"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_refused_in_one_line(change, message):
    changed = tiny_config().to_dict("BertModel") | {"architectures": None} | change
    assert re.search(message, refusal(EncoderConfig.from_dict, changed))
