"""Attention a few heads at a time, in one buffer that fits the processor's cache.

Forward    P = softmax(Q K^T / sqrt(d))    O = P V
Backward   computes P again instead of keeping it; given dO,
           dV = P^T dO    dP = dO V^T    dS = P * (dP - rowsum(P * dP))
           dQ = dS K / sqrt(d)    dK = dS^T Q / sqrt(d)
"""

import torch
from torch.autograd.function import once_differentiable

BLOCK = 2**21  # numbers in the buffer: 4 MiB in bfloat16

# P * (dP - rowsum(P * dP)) in one pass over memory
softmax_backward = torch.ops.aten._softmax_backward_data.out


def blocked_attention(query, key, value, mask=None):
    """softmax(Q K^T / sqrt(d)) V; query, key, value and result are (B, A, N, d)."""
    return BlockedAttention.apply(query, key, value, mask)


class BlockedAttention(torch.autograd.Function):
    """The two passes. Batch and heads are one dimension here: B * A heads, each (N, d)."""

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
        return out.view(B, A, N, d)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        Q, K, V, mask = ctx.saved_tensors
        scale = Q.shape[-1] ** -0.5
        d_out = upstream.reshape(Q.shape)
        d_query, d_key, d_value = (torch.empty_like(x) for x in (Q, K, V))
        buffer = None
        for part, P in maps_in_blocks(Q, K, mask):  # P (k, N, N)
            torch.bmm(P.mT, d_out[part], out=d_value[part])
            if buffer is None:  # the first block is the largest
                buffer = torch.empty_like(P)
            dP = torch.bmm(d_out[part], V[part].mT, out=buffer[: len(P)])
            dS = softmax_backward(dP, P, -1, P.dtype, grad_input=dP)  # in the same memory
            # baddbmm with beta=0 ignores its first argument: alpha * (dS @ K) without another pass
            torch.baddbmm(Q[part], dS, K[part], beta=0, alpha=scale, out=d_query[part])
            torch.baddbmm(K[part], dS.mT, Q[part], beta=0, alpha=scale, out=d_key[part])
        shape = upstream.shape
        return d_query.view(shape), d_key.view(shape), d_value.view(shape), None


def maps_in_blocks(Q, K, mask):
    """Yield (part, P): the maps P (k, N, N) of the heads in slice `part`, all in one buffer."""
    heads, N, d = Q.shape
    size = max(1, min(heads, BLOCK // N**2))
    buffer = Q.new_empty(size, N, N)
    for start in range(0, heads, size):
        part = slice(start, min(start + size, heads))
        P = buffer[: part.stop - part.start]
        torch.baddbmm(P, Q[part], K[part].mT, beta=0, alpha=d**-0.5, out=P)
        if mask is not None:
            P.masked_fill_(~mask[part], float("-inf"))
        yield part, torch.softmax(P, -1, out=P)
