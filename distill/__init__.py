"""Four ways to teach a smaller encoder from a larger one, and MLM, a baseline without a teacher."""

import inspect

from distill.direct_minilm import DirectMiniLM
from distill.hs import HS
from distill.mha import MHA
from distill.mlm import MLM
from distill.od import OD
from minitransformer.errors import UserError

METHODS = {"mha": MHA, "hs": HS, "od": OD, "direct-minilm": DirectMiniLM, "mlm": MLM}


def build_method(
    name,
    student,
    teacher,
    *,
    mapping="uniform",
    teacher_layer=None,
    relation_heads=None,
    temperature=1.0,
    positions="masked",
):
    """The method of that name for two EncoderConfigs (teacher None for mlm), with what it takes."""
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}: choose from {', '.join(METHODS)}")
    settings = dict(
        mapping=mapping,
        teacher_layer=teacher_layer,
        relation_heads=relation_heads,
        temperature=temperature,
        positions=positions,
    )
    taken = settings.keys() & inspect.signature(METHODS[name].__init__).parameters.keys()
    return METHODS[name](student, teacher, **{key: settings[key] for key in taken})
