"""EncoderConfig: config.json in, config.json out, and one line for every config that is none."""

import dataclasses
import json

import pytest
import transformers
from conftest import MODEL_TYPES, tiny_config

from minitransformer import EncoderConfig, UserError

# config.json of google-bert/bert-base-uncased and FacebookAI/xlm-roberta-base, as the hub has them
BERT_BASE = """{"architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1,
 "gradient_checkpointing": false, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
 "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-12,
 "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12,
 "num_hidden_layers": 12, "pad_token_id": 0, "position_embedding_type": "absolute",
 "transformers_version": "4.6.0.dev0", "type_vocab_size": 2, "use_cache": true,
 "vocab_size": 30522}"""
XLM_R_BASE = """{"architectures": ["XLMRobertaForMaskedLM"], "attention_probs_dropout_prob": 0.1,
 "bos_token_id": 0, "eos_token_id": 2, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
 "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
 "max_position_embeddings": 514, "model_type": "xlm-roberta", "num_attention_heads": 12,
 "num_hidden_layers": 12, "output_past": true, "pad_token_id": 1,
 "position_embedding_type": "absolute", "transformers_version": "4.17.0.dev0",
 "type_vocab_size": 1, "use_cache": true, "vocab_size": 250002}"""


@pytest.mark.parametrize("text", [BERT_BASE, XLM_R_BASE])
def test_a_real_config_comes_back_as_it_was_but_for_its_version(text):
    source = json.loads(text)
    written = EncoderConfig.from_dict(source).to_dict(source["architectures"][0])
    del source["transformers_version"]
    assert written == source


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_transformers_reads_the_same_sizes(model_type):
    config = tiny_config(model_type, extra={"classifier_dropout": 0.25})
    theirs = transformers.AutoConfig.for_model(**config.to_dict("X"))
    assert theirs.classifier_dropout == 0.25
    for field in dataclasses.fields(config):
        if field.name != "extra":
            assert getattr(theirs, field.name) == getattr(config, field.name), field.name


def test_how_many_tokens_fit():
    assert EncoderConfig.from_dict(json.loads(BERT_BASE)).max_tokens == 512
    assert EncoderConfig.from_dict(json.loads(XLM_R_BASE)).max_tokens == 512  # 514 - 1 - 1


def test_what_is_null_or_left_out_has_the_default_of_its_family():
    sizes = tiny_config().to_dict("BertModel")
    for name in ("type_vocab_size", "layer_norm_eps", "pad_token_id", "hidden_dropout_prob"):
        del sizes[name]
    config = EncoderConfig.from_dict({**sizes, "initializer_range": None})
    assert (config.type_vocab_size, config.layer_norm_eps, config.pad_token_id) == (2, 1e-12, 0)
    assert (config.hidden_dropout_prob, config.initializer_range) == (0.1, 0.02)
    assert EncoderConfig.from_dict({**sizes, "model_type": "roberta"}).pad_token_id == 1


def test_keys_that_would_be_untrue_of_the_student_are_not_written():
    untrue = {"_name_or_path": "x", "torch_dtype": "float16", "auto_map": {"AutoModel": "evil.X"}}
    config = EncoderConfig.from_dict(tiny_config().to_dict("BertModel") | untrue)
    assert not untrue.keys() & config.to_dict("BertModel").keys()


# change of a good config: what the one line must say
REFUSED = [
    ({"model_type": "gpt2"}, "'gpt2' is not supported; these are: bert, roberta, xlm-roberta"),
    ({"model_type": None}, "model_type None"),
    ({"model_type": ["bert"]}, r"model_type \['bert'\]"),
    ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new' is not supported; only 'gelu'"),
    ({"hidden_act": {}}, "hidden_act {}"),
    ({"position_embedding_type": "relative_key"}, "'relative_key' is not supported"),
    ({"is_decoder": True}, "is_decoder is set"),
    ({"add_cross_attention": True}, "add_cross_attention is set"),
    ({"vocab_size": None}, "missing vocab_size"),
    ({"hidden_size": "32"}, "hidden_size must be a whole number, not '32'"),
    ({"hidden_size": 32.0}, "hidden_size must be a whole number, not 32.0"),
    ({"num_hidden_layers": True}, "num_hidden_layers must be a whole number, not True"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0; it must lie in 1 to 512"),
    ({"num_hidden_layers": -3}, "num_hidden_layers is -3"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; it must lie in 1 to 512"),
    ({"intermediate_size": 10**300}, "intermediate_size is 1000"),
    ({"layer_norm_eps": "tiny"}, "layer_norm_eps must be a number"),
    ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
    ({"layer_norm_eps": 10**400}, "layer_norm_eps is 1000"),
    ({"initializer_range": float("inf")}, "initializer_range is inf"),
    ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5; it must lie in 0 to 1"),
    ({"pad_token_id": 300}, "pad_token_id is 300; it must lie in 0 to 299"),
    ({"pad_token_id": -1}, "pad_token_id is -1"),
    ({"num_attention_heads": 5}, "5 attention heads do not divide the width 32;.* 1, 2, 4, 8, 16"),
    ({"model_type": "roberta", "pad_token_id": 39}, "max_position_embeddings 40 leaves no room"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_refused_in_one_line(change, message):
    with pytest.raises(UserError, match=message) as raised:
        EncoderConfig.from_dict(tiny_config().to_dict("BertModel") | change)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("value", [None, [], "bert", 3])
def test_json_that_is_no_object_is_refused(value):
    with pytest.raises(UserError, match="expected a JSON object, not"):
        EncoderConfig.from_dict(value)


def test_all_missing_sizes_are_named_together():
    with pytest.raises(UserError, match="missing hidden_size, intermediate_size, max_position_"):
        EncoderConfig.from_dict({"model_type": "bert", "vocab_size": 9})


def test_a_config_made_by_hand_is_checked_too():
    with pytest.raises(UserError, match="7 attention heads do not divide the width 32"):
        dataclasses.replace(tiny_config(), num_attention_heads=7)
