"""Small operations of the encoder with fewer allocations; a reader may skip them.

Written plainly: add_into is x + y, gelu is F.gelu, cast_once returns x, all_real returns False.
"""

import torch
import torch.nn.functional as F


def add_into(x, y):
    """Return x + y, written into y: a product that nothing else holds, to allocate nothing."""
    return y.to(x.dtype).add_(x)


def gelu(x):
    """Return the exact GELU, x Phi(x); written into x where no gradient needs x again."""
    return F.gelu(x) if x.requires_grad else torch.ops.aten.gelu_(x)


def cast_once(x):
    """Cast x to autocast's type once, instead of once in each of the three Linears that read it."""
    device = x.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return x.to(torch.get_autocast_dtype(device)) if on else x


def all_real(mask):
    """Return whether it is known that the mask is True everywhere; False may mean "not known"."""
    # A GPU would have to finish its work to answer, and a compiled graph cannot branch on a value.
    return mask.device.type == "cpu" and not torch.compiler.is_compiling() and bool(mask.all())
