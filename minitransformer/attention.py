"""Attention: softmax(Q K^T / sqrt(d)) V, as a formula and as PyTorch's kernel, and the choice.

    explicit_attention   the formula as it is read; it holds the maps of all heads, (B, A, N, N)
    fused_attention      PyTorch's kernel; it holds none of them
    blocked_attention    the formula, a few heads at a time (blocked_attention.py)
    attention            the one that is fastest where the tensors are

Size letters as in model.py. `mask` broadcasts to (B, A, N, N), True = may be read.
Source: Transformer (arXiv 1706.03762, section 3.2.1).
"""

import torch
import torch.nn.functional as F

from minitransformer.blocked_attention import blocked_attention


def split_heads(x, heads):
    """(B, N, D) -> (B, A, N, d), without a copy."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x):
    """(B, A, N, d) -> (B, N, D)."""
    return x.transpose(1, 2).flatten(2)


def attention_map(query, key, mask=None):
    """softmax(Q K^T / sqrt(d)): the share that each token (row) reads of each token (column)."""
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5  # (B, A, N, N)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1)  # (B, A, N, N), every row sums to 1


def explicit_attention(query, key, value, mask=None):
    """softmax(Q K^T / sqrt(d)) V; query, key, value and result are (B, A, N, d)."""
    return attention_map(query, key, mask) @ value


def fused_attention(query, key, value, mask=None):
    """The same by PyTorch's fused kernel, which never holds an (N, N) tensor."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def attention(query, key, value, mask=None):
    """The same by the faster form: on a CPU, the kernel is slow in bfloat16 (docs/speed.md)."""
    bfloat16_on_cpu = query.dtype == torch.bfloat16 and query.device.type == "cpu"
    if bfloat16_on_cpu and not torch.compiler.is_compiling():
        return blocked_attention(query, key, value, mask)
    return fused_attention(query, key, value, mask)
