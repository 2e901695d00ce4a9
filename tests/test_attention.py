"""Attention: its three forms against each other, by hand, under masks, in bfloat16."""

import pytest
import torch
from conftest import largest_tensor, states, tiny_encoder, tokens

from minitransformer import attention as forms
from minitransformer import blocked_attention as blocks
from minitransformer.attention import blocked_attention, explicit_attention, fused_attention


def heads(B=2, A=4, N=9, d=8, dtype=torch.float64):
    """Q, K, V (B, A, N, d), all with gradients, and not contiguous, as an encoder has them."""
    parts = [states(B, N, A * d, seed=i).to(dtype).requires_grad_() for i in range(3)]
    return [forms.split_heads(part, A) for part in parts]


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
    monkeypatch.setattr(blocks, "BLOCK", block)  # 1, 3 or all 8 heads at a time
    parts = heads()
    mask = torch.rand(2, 1, 1, 9, generator=torch.Generator().manual_seed(1)) < 0.6
    mask = mask if masked else None
    expected = value_and_gradients(explicit_attention, parts, mask)
    for form in (fused_attention, blocked_attention):
        for ours, theirs in zip(value_and_gradients(form, parts, mask), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


def test_bfloat16_is_as_exact_in_blocks_as_written_out():
    """Against float64, of the same bfloat16 numbers: value and the three gradients."""
    rounded = heads(2, 4, 64, 32, torch.bfloat16)
    exact = [part.detach().double().requires_grad_() for part in rounded]
    truth = value_and_gradients(explicit_attention, exact)
    errors = {}
    for form in (explicit_attention, blocked_attention):
        results = value_and_gradients(form, rounded)
        assert results[0].dtype == torch.bfloat16
        errors[form] = [
            ((ours.double() - true).norm() / true.norm()).item()
            for ours, true in zip(results, truth, strict=True)
        ]
    for ours, plain in zip(errors[blocked_attention], errors[explicit_attention], strict=True):
        assert 0 < ours < min(0.01, 1.1 * plain)


def test_blocked_attention_holds_no_map_of_all_heads(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 2 * 64**2)
    parts = heads(2, 4, 64, 8)
    largest = largest_tensor(lambda: blocked_attention(*parts).sum().backward())
    assert largest == 2 * 64**2  # two heads' maps, of eight


def test_each_place_gets_its_form(monkeypatch):
    used = []
    for form in (fused_attention, blocked_attention):
        monkeypatch.setattr(forms, form.__name__, lambda *_, form=form: used.append(form))
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        forms.attention(*heads(dtype=dtype))
    forms.attention(*(part.to("meta") for part in heads(dtype=torch.bfloat16)))
    assert used == [fused_attention, blocked_attention, fused_attention, fused_attention]


@pytest.mark.parametrize("form", [explicit_attention, fused_attention, blocked_attention])
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
