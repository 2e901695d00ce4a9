"""Attention: softmax(Q K^T / sqrt(d)) V, as a formula and as PyTorch's kernel.

Size letters as in model.py. query, key, value and result are (B, A, N, d); `mask` broadcasts to
(B, A, N, N), True = may be read. Source: Transformer (arXiv 1706.03762, section 3.2.1).
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

BLOCK = 2**21  # numbers in the maps that blocked_attention holds at a time: 4 MiB in bfloat16


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
    """The formula as it is read; it holds the maps of all heads."""
    return attention_map(query, key, mask) @ value


def attention(query, key, value, mask=None):
    """The same by PyTorch's fused kernel, or in blocks where that is slow (docs/speed.md)."""
    bfloat16_on_cpu = query.dtype == torch.bfloat16 and query.device.type == "cpu"
    if bfloat16_on_cpu and not torch.compiler.is_compiling():
        return blocked_attention(query, key, value, mask)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


# ---- in blocks, for bfloat16 on a CPU; may be skipped --------------------------------------------


def blocked_attention(query, key, value, mask=None):
    """The formula, a few heads at a time: their maps fit the processor's cache."""
    B, A, N, _ = query.shape
    if mask is not None:
        mask = mask.expand(B, A, -1, N).flatten(0, 1)
    parts = [x.flatten(0, 1) for x in (query, key, value)]  # (B * A, N, d) each
    return BlockedAttention.apply(*parts, mask).unflatten(0, (B, A))


class BlockedAttention(torch.autograd.Function):
    """O = P V; backward computes the maps P again, dS = P * (dP - rowsum(P * dP)), dP = dO V^T."""

    @staticmethod
    def forward(ctx, Q, K, V, mask):
        ctx.save_for_backward(Q, K, V, mask)
        out = torch.empty_like(Q)
        for part, P in maps_in_blocks(Q, K, mask):
            torch.bmm(P, V[part], out=out[part])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dO):
        Q, K, V, mask = ctx.saved_tensors
        dQ, dK, dV = (torch.empty_like(x) for x in (Q, K, V))
        for part, P in maps_in_blocks(Q, K, mask):
            torch.bmm(P.mT, dO[part], out=dV[part])
            dP = dO[part] @ V[part].mT
            dS = torch.ops.aten._softmax_backward_data.out(dP, P, -1, P.dtype, grad_input=dP)
            # beta=0 ignores the first argument: alpha * (dS @ K) in one pass
            torch.baddbmm(Q[part], dS, K[part], beta=0, alpha=Q.shape[-1] ** -0.5, out=dQ[part])
            torch.baddbmm(K[part], dS.mT, Q[part], beta=0, alpha=Q.shape[-1] ** -0.5, out=dK[part])
        return dQ, dK, dV, None


def maps_in_blocks(Q, K, mask):
    """Yield (part, P): the maps P (k, N, N) of the heads in slice `part`, all in one buffer."""
    heads, N, d = Q.shape
    buffer = Q.new_empty(max(1, min(heads, BLOCK // N**2)), N, N)
    for start in range(0, heads, len(buffer)):
        part = slice(start, start + len(buffer))
        P = buffer[: heads - start]
        torch.baddbmm(P, Q[part], K[part].mT, beta=0, alpha=d**-0.5, out=P)
        if mask is not None:
            P.masked_fill_(~mask[part], float("-inf"))
        yield part, torch.softmax(P, -1, out=P)
