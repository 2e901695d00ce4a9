"""The encoder against itself written plainly: attention, stops, start, precisions, compilers."""

import copy
import itertools

import pytest
import torch
from conftest import PADDINGS, padded, tiny_config, tiny_encoder

from minitransformer import Encoder, UserError
from minitransformer.attention import attention
from minitransformer.config import MODEL_TYPES


class Untouchable(torch.nn.Module):
    def forward(self, *_):
        raise AssertionError("computed above the stop")


@pytest.mark.parametrize("padding", PADDINGS)
def test_stop_gives_the_full_pass_bit_for_bit_and_computes_nothing_above(padding):
    """What is not to be kept is None; with keep="all", nothing is."""
    encoder = tiny_encoder()
    ids, mask = padded(encoder.config, padding)
    whole = encoder(ids, mask)
    stops = [(0, "hidden"), *itertools.product((1, 2, 3), ("hidden", "qkv"))]
    for (last, what), keep in itertools.product(stops, ("all", "hidden", "last")):
        cut = copy.deepcopy(encoder)
        for i in range(last, 3):
            cut.blocks[i] = Untouchable()
        if what == "qkv":
            for part in ("output", "attention_norm", "expand", "contract", "ffn_norm"):
                setattr(cut.blocks[last - 1], part, Untouchable())
        out = cut(ids, mask, stop=(last, what), keep=keep)
        counts = [last + 1 if what == "hidden" else last, last, last, last]
        assert [len(part) for part in out] == counts
        for name, part in out._asdict().items():
            kept = keep == "all" or (keep == "hidden" and name == "hidden")
            for i, tensor in enumerate(part):
                if kept or i == len(part) - 1:
                    assert torch.equal(tensor, getattr(whole, name)[i])
                else:
                    assert tensor is None


def test_random_start_is_berts():
    encoder = Encoder(tiny_config(hidden_size=128, intermediate_size=256))
    encoder.reset_parameters(torch.Generator().manual_seed(3))
    for name, tensor in encoder.named_parameters():
        if name.endswith("norm.weight"):
            assert (tensor == 1).all()
        elif name.endswith("bias"):
            assert (tensor == 0).all()
        elif tensor.numel() > 5000:
            assert 0.019 < tensor.std() < 0.021, name
    assert (encoder.embeddings.word.weight[0] == 0).all()  # the padding row


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_no_question_is_asked_of_a_device(model_type):
    """On the meta device whatever asks for a number fails, as does a tensor left on the CPU."""
    encoder = tiny_encoder(model_type).to("meta")
    ids, mask = (part.to("meta") for part in padded(encoder.config, "left"))
    logits = encoder.mlm_logits(encoder(ids, mask, ids % 1).hidden[-1])
    logits.sum().backward()
    assert all(parameter.grad.is_meta for parameter in encoder.parameters())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_more_tokens_than_positions_and_layers_that_are_not_there_are_refused(model_type):
    encoder = tiny_encoder(model_type)
    encoder(torch.full((1, 40), 7))  # 40 fit, in every family
    with pytest.raises(UserError, match=r"^41 tokens in a sequence, but .* 40 positions$"):
        encoder(torch.full((1, 41), 7))
    with pytest.raises(UserError, match=r"the attention mask is torch.float32; give bool or"):
        encoder(torch.full((1, 4), 7), torch.zeros(1, 4))
    with pytest.raises(UserError, match=r"layer 4 does not exist: .* to 3"):
        encoder(torch.full((1, 4), 7), stop=(4, "hidden"))


def test_without_a_mask_attention_gets_none():
    encoder = tiny_encoder()
    ids, _ = padded(encoder.config, "none")
    masks = []
    encoder.attention = lambda *parts: masks.append(parts[-1]) or attention(*parts)
    with torch.autocast("cpu", torch.bfloat16):
        out = encoder(ids)
    assert masks == [None] * 3
    assert out.queries[0].dtype == torch.bfloat16
    assert out.hidden[-1].dtype == torch.float32  # residuals and norms stay in full precision
