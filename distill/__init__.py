"""Four ways to teach a smaller encoder from a larger one, and MLM, a baseline without a teacher."""

import inspect

from distill.direct_minilm import DirectMiniLM
from distill.hs import HS
from distill.mha import MHA
from distill.mlm import MLM
from distill.od import OD
from minitransformer.files import UserError

METHODS = {"mha": MHA, "hs": HS, "od": OD, "direct-minilm": DirectMiniLM, "mlm": MLM}


def build_method(name, student, teacher, **settings):
    """Return the method of that name for two EncoderConfigs (teacher None for mlm).

    Of the settings (mapping, teacher_layer, relation_heads, temperature, positions, plain) a method
    gets those that its __init__ takes, so that one call fits all methods.
    """
    kind = method_class(name)
    taken = {kind: inspect.signature(METHODS[kind].__init__).parameters for kind in METHODS}
    for key in settings:
        if not any(key in parameters for parameters in taken.values()):
            raise TypeError(f"no method has a setting {key!r}")
    settings = {key: value for key, value in settings.items() if key in taken[name]}
    return kind(student, teacher, **settings)


def method_class(name):
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}: choose from {', '.join(METHODS)}")
    return METHODS[name]
