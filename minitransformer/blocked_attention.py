"""Attention some heads at a time, in a buffer that fits the cache."""

import torch
from torch.autograd.function import once_differentiable

softmax_backward = torch.ops.aten._softmax_backward_data.out  # P * (dP - rowsum(P * dP)), one pass
BLOCK = 2**21  # numbers in one buffer of scores: 4 MiB in bfloat16


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
