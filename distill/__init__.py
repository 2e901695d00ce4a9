"""Four ways to teach a smaller encoder from a larger one, and MLM, a baseline without a teacher."""

from distill.direct_minilm import DirectMiniLM
from distill.hs import HS
from distill.mha import MHA
from distill.mlm import MLM
from distill.od import OD

METHODS = {"mha": MHA, "hs": HS, "od": OD, "direct-minilm": DirectMiniLM, "mlm": MLM}


def build_method(settings, student, teacher):
    """Return the method that a run's settings describe, for two EncoderConfigs (mlm: None)."""
    kind = METHODS[settings["method"]]
    given = {name: settings[name] for name in kind.settings if settings.get(name) is not None}
    method = kind(student, teacher, **given)
    method.plain = settings.get("plain", False)
    return method
