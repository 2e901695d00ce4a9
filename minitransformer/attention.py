"""Attention: softmax(Q K^T / sqrt(d)) V, written out, and the two forms that are faster.

    explicit_attention   the formula, for reading and for attention maps; holds (B, A, N, N)
    fused_attention      PyTorch's kernel, which holds none
    blocked_attention    the formula again, some heads at a time, in a buffer that fits the cache
    attention            whichever of the last two is faster where the tensors are

Size letters as in model.py. `mask` broadcasts to (B, A, N, N), True = may be read.
"""

import torch
import torch.nn.functional as F

from minitransformer.blocked_attention import _BlockedAttention


def split_heads(x, heads):
    """(B, N, D) -> (B, A, N, d), without a copy."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x):
    """(B, A, N, d) -> (B, N, D)."""
    return x.transpose(1, 2).flatten(2)


def attention_map(query, key, mask=None):
    """softmax(Q K^T / sqrt(d)): how much each token (row) reads of each other token (column).

    Shapes   query, key (B, A, N, d); returns (B, A, N, N).
    """
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5  # (B, A, N, N)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1)


def explicit_attention(query, key, value, mask=None):
    """softmax(Q K^T / sqrt(d)) V as it is read: what the other two compute; (B, A, N, d)."""
    return attention_map(query, key, mask) @ value


def fused_attention(query, key, value, mask=None):
    """The same through PyTorch's fused kernel, which never holds an (N, N) tensor."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def blocked_attention(query, key, value, mask=None):
    """The same, some heads at a time; no (N, N) tensor outlives its block, none is kept."""
    return _BlockedAttention.apply(query, key, value, mask)


def attention(query, key, value, mask=None):
    """The fastest form here: PyTorch's kernel for CPUs multiplies bfloat16 no faster than float32.

    `python tests/bench/bench.py --cases attention-32x128 attention-8x512` compares the two in a whole
    training step, in either precision; its figures stand in the README.
    """
    blocked = (
        query.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and not torch.compiler.is_compiling()
    )
    return (blocked_attention if blocked else fused_attention)(query, key, value, mask)
