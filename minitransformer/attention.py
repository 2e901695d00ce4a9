"""Attention: softmax(Q K^T / sqrt(d)) V, written out, and the two forms that are faster.

    explicit_attention   the formula, for reading and for attention maps; holds (B, A, N, N)
    fused_attention      PyTorch's kernel, which holds none
    blocked_attention    the formula again, some heads at a time, in a buffer that fits the cache
    attention            whichever of the last two is faster where the tensors are

Size letters as in model.py. `mask` broadcasts to (B, A, N, N), True = may be read.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

softmax_backward = torch.ops.aten._softmax_backward_data.out  # P * (dP - rowsum(P * dP)), one pass
BLOCK = 2**21  # numbers in one buffer of scores: 4 MiB in bfloat16


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

    `python tests/bench.py --cases attention-32x128 attention-8x512` compares the two in a whole
    training step, in either precision; its figures stand in the README.
    """
    blocked = (query.dtype == torch.bfloat16 and query.device.type == "cpu"
               and not torch.compiler.is_compiling())
    return (blocked_attention if blocked else fused_attention)(query, key, value, mask)


class _BlockedAttention(torch.autograd.Function):
    """P = softmax(Q K^T / sqrt(d)), O = P V. Backward works P out once more; given dO,

    dV = P^T dO     dP = dO V^T     dS = P * (dP - rowsum(P * dP))
    dQ = dS K / sqrt(d)     dK = dS^T Q / sqrt(d)
    """

    @staticmethod
    def forward(ctx, query, key, value, mask):
        B, A, N, d = query.shape
        Q, K, V = (x.reshape(B * A, N, d) for x in (query, key, value))
        if mask is not None:
            mask = mask.expand(B, A, -1, N).reshape(B * A, -1, N)
        out = torch.empty_like(Q)
        for part, P in maps_in_blocks(Q, K, mask):
            torch.bmm(P, V[part], out=out[part])
        ctx.save_for_backward(Q, K, V, mask)
        return out.view(query.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        Q, K, V, mask = ctx.saved_tensors
        d_out = upstream.reshape(Q.shape)
        d_query, d_key, d_value = (torch.empty_like(x) for x in (Q, K, V))
        slopes, scale = None, dict(beta=0, alpha=Q.shape[-1] ** -0.5)
        for part, P in maps_in_blocks(Q, K, mask):
            torch.bmm(P.mT, d_out[part], out=d_value[part])
            slopes = torch.empty_like(P) if slopes is None else slopes[: len(P)]
            dP = torch.bmm(d_out[part], V[part].mT, out=slopes)
            dS = softmax_backward(dP, P, -1, P.dtype, grad_input=dP)
            torch.baddbmm(Q[part], dS, K[part], **scale, out=d_query[part])
            torch.baddbmm(K[part], dS.mT, Q[part], **scale, out=d_key[part])
        return *(x.view(upstream.shape) for x in (d_query, d_key, d_value)), None


def maps_in_blocks(Q, K, mask):
    """Yields (part, P): the attention maps (k, N, N) of heads `part`, all in the same buffer."""
    heads, N, d = Q.shape
    size = max(1, min(heads, BLOCK // N**2))
    buffer = Q.new_empty(size, N, N)
    for start in range(0, heads, size):
        part = slice(start, min(start + size, heads))
        P = buffer[: part.stop - start]
        torch.baddbmm(P, Q[part], K[part].mT, beta=0, alpha=d**-0.5, out=P)
        if mask is not None:
            P.masked_fill_(~mask[part], float("-inf"))
        yield part, torch.softmax(P, -1, out=P)
