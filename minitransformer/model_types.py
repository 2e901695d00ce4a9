"""The four model types of this architecture, and how to tell them by the names of their tensors.

A config.json may lack its model_type: TinyBERT's does, and that of the first BERT.
"""

import re
from collections.abc import Iterable

from minitransformer.files import UserError

# model type: how the names of its classes in transformers begin
MODEL_TYPES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
}
# Parts of tensor names that only one family has: the encoder's prefix and the MLM head's.
FAMILY_NAMES = {"bert": ("bert.", "cls.predictions."), "roberta": ("roberta.", "lm_head.")}


def check_model_type(model_type: object) -> None:
    """Refuse a model type that is another architecture."""
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        raise UserError(
            f"model_type {model_type!r:.80} is not supported; these are: {', '.join(MODEL_TYPES)}"
        )


def infer_model_type(values: dict, tensor_names: Iterable[str]) -> str:
    """Return the model type that tensor names, class name or sizes show; refuse if they do not."""
    architecture = str(values.get("architectures")).strip("[]'")
    named = [t for t, stem in MODEL_TYPES.items() if re.match(f"{stem}(Model|For)", architecture)]
    names = "\n.".join(["", *tensor_names])  # "." before each, as before each part of one
    found = []
    for family, parts in FAMILY_NAMES.items():
        if any(f".{part}" in names for part in parts):
            found.append(family)
    if found == ["roberta"] and named != ["bert"]:
        found = named or found
    if not found:  # a bare encoder: its names have no prefix
        found = named
    if not found:
        pad, types = values.get("pad_token_id"), values.get("type_vocab_size")
        if pad in (0, None) and types in (2, None):
            found = ["bert"]
        elif pad == types == 1:
            found = ["roberta"]
    if len(found) == 1:
        return found[0]
    raise UserError(
        "config.json has no model_type, and the names of the tensors do not show which it is;"
        f' add "model_type": one of {", ".join(MODEL_TYPES)}'
    )
