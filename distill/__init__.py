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
    plain=False,
):
    """Return the method of that name for two EncoderConfigs (teacher None for mlm).

    A method gets those settings that its __init__ takes. plain=True: the formula as its page
    shows it, for the methods whose default is a lean form of it.
    """
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}: choose from {', '.join(METHODS)}")
    settings = {
        "mapping": mapping,
        "teacher_layer": teacher_layer,
        "relation_heads": relation_heads,
        "temperature": temperature,
        "positions": positions,
        "plain": plain,
    }
    taken = inspect.signature(METHODS[name].__init__).parameters
    settings = {key: value for key, value in settings.items() if key in taken}
    return METHODS[name](student, teacher, **settings)
