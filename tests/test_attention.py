"""Attention: its forms against each other, by hand, under masks, in bfloat16."""

import pytest
import torch
from conftest import states, tiny_encoder, tokens

from minitransformer import attention as forms
from minitransformer.attention import attention, blocked_attention, explicit_attention


def value_and_gradients(form, parts, mask=None):
    out = form(*parts, mask)
    return out, *torch.autograd.grad(out.float().square().sum(), parts)


def test_by_hand():
    """Two tokens, d = 4, so the scores 0 and 2 ln 3 become 0 and ln 3: shares 1/4 and 3/4."""
    query = torch.tensor([[[[1.0, 0, 0, 0], [0, 0, 0, 0]]]])
    key = torch.tensor([[[[0.0, 1, 0, 0], [2 * torch.log(torch.tensor(3.0)), 0, 0, 0]]]])
    expected = torch.tensor([[[[0.25, 0.75], [0.5, 0.5]]]])
    torch.testing.assert_close(forms.attention_map(query, key), expected)
    only_first = torch.tensor([True, False])
    expected = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    torch.testing.assert_close(forms.attention_map(query, key, only_first), expected)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("block", [1, 3 * 81, 2**21], ids="{} numbers a block".format)
def test_the_forms_are_equal_in_value_and_gradient(masked, block, monkeypatch):
    monkeypatch.setattr(forms, "BLOCK", block)  # 1, 3 or all 8 heads at a time
    parts = [states(2, 9, 32, seed=i).requires_grad_() for i in range(3)]
    parts = [forms.split_heads(part, 4) for part in parts]  # not contiguous, as an encoder has them
    mask = torch.rand(2, 1, 1, 9, generator=torch.Generator().manual_seed(1)) < 0.6
    mask = mask if masked else None
    expected = value_and_gradients(explicit_attention, parts, mask)
    for form in (attention, blocked_attention):  # in float64, attention is the fused kernel
        for ours, theirs in zip(value_and_gradients(form, parts, mask), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("form", [explicit_attention, attention, blocked_attention])
def test_a_sequence_of_nothing_but_padding_is_finite_and_changes_no_other(form):
    encoder = tiny_encoder()
    encoder.attention = form
    ids, mask = tokens(encoder.config, (12, 0, 9))
    out = encoder(ids, mask)
    assert all(tensor.isfinite().all() for part in out for tensor in part)
    out.hidden[-1].sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.grad is not None)
    alone = encoder(ids[[0, 2]], mask[[0, 2]]).hidden[-1]
    torch.testing.assert_close(out.hidden[-1][[0, 2]], alone, rtol=0, atol=1e-6)
