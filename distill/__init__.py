"""Four ways to teach a smaller encoder from a larger one, and MLM, a baseline without a teacher."""

from distill.direct_minilm import DirectMiniLM
from distill.hs import HS
from distill.mha import MHA
from distill.mlm import MLM
from distill.od import OD

METHODS = {"mha": MHA, "hs": HS, "od": OD, "direct-minilm": DirectMiniLM, "mlm": MLM}


def build_method(name, student, teacher, *, plain=False, **settings):
    """Return the method of that name for two EncoderConfigs (teacher None for mlm).

    Settings that only other methods list are ignored, so that one call fits all methods. plain=True
    computes the formulas of the pages instead of their lean forms.
    """
    kind = METHODS[name]
    for key in settings:
        if not any(key in other.settings for other in METHODS.values()):
            raise TypeError(f"no method has a setting {key!r}")
    method = kind(student, teacher, **{k: v for k, v in settings.items() if k in kind.settings})
    method.plain = plain
    return method
