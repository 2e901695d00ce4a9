"""EncoderConfig: config.json in, config.json out, and one line for every config that is none."""

import pytest
from checkpoints import refusal
from conftest import tiny_config

from minitransformer import EncoderConfig


def test_what_is_null_or_left_out_has_the_default_of_its_family():
    sizes = tiny_config().to_dict("BertModel")
    for name in ("type_vocab_size", "layer_norm_eps", "pad_token_id", "model_type"):
        del sizes[name]
    config = EncoderConfig.from_dict({**sizes, "initializer_range": None})
    assert (config.type_vocab_size, config.layer_norm_eps, config.pad_token_id) == (2, 1e-12, 0)
    assert (config.model_type, config.initializer_range) == ("bert", 0.02)
    assert EncoderConfig.from_dict({**sizes, "model_type": "roberta"}).pad_token_id == 1


REFUSED = [  # change of a good config: what the one line must say
    ({"model_type": "gpt2"}, "'gpt2' is not supported; use bert, roberta, xlm-roberta, cam"),
    ({"model_type": None, "pad_token_id": 1}, "missing model_type"),
    ({"model_type": None, "architectures": ["RobertaForMaskedLM"]}, "missing model_type"),
    ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new' is not supported; only 'gelu'"),
    ({"position_embedding_type": "relative_key"}, "'relative_key' is not supported; only 'absol"),
    ({"is_decoder": True}, "is_decoder is set"),
    ({"vocab_size": None, "hidden_size": None}, "missing vocab_size, hidden_size"),
    ({"hidden_size": "32"}, "hidden_size must be int of at least 1, not '32'"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be .* at least 1, not 0"),
    ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be float of at least 0, not nan"),
    ({"pad_token_id": 300}, "pad_token_id 300 is outside 0..299"),
    ({"num_attention_heads": 5}, "5 attention heads do not divide .* 32; .*: 1, 2, 4, 8, 16, 32"),
    ({"type_vocab_size": True}, "type_vocab_size must be int of at least 1, not True"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_refused_in_one_line(change, message):
    changed = tiny_config().to_dict("BertModel") | {"architectures": None} | change
    refusal(EncoderConfig.from_dict, changed, says=message)
