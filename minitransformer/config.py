"""The sizes of an encoder: Hugging Face's `config.json`, read, checked and written.

Four model types share the architecture: `bert`, `roberta`, `xlm-roberta` and `camembert` (the last
three are one model with other vocabularies). What this project does not compute is refused by name:
another activation, relative positions, a decoder.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields

from minitransformer.files import UserError

# model type: how the names of its classes in transformers begin
MODEL_TYPES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
}


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder, named as in Hugging Face's config.json.

    Letters  V vocab_size, D hidden_size, L num_hidden_layers, A num_attention_heads (model.py)
    Errors   UserError: sizes that no encoder can have; the line gives expected and actual values.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int = 512
    model_type: str = "bert"
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    initializer_range: float = 0.02
    # This encoder has no dropout; both are kept for whoever fine-tunes it in transformers.
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1

    def __post_init__(self):
        if self.model_type not in [*MODEL_TYPES]:
            supported = ", ".join(MODEL_TYPES)
            raise UserError(f"model_type {self.model_type!r:.80} is not supported; use {supported}")
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "pad_token_id" else 1
            # type() and not isinstance(): True is an int. NaN fails the comparisons.
            if field.type is int and (type(value) is not int or value < least):
                wanted = f"a whole number of at least {least}"
            elif field.type is float and (type(value) not in (int, float) or not 0 <= value <= 1):
                wanted = "a number from 0 to 1"
            else:
                continue
            raise UserError(f"config: {field.name} must be {wanted}, not {value!r:.80}")
        width, heads = self.hidden_size, self.num_attention_heads
        if width % heads:
            raise UserError(
                f"{heads} attention heads do not divide the width {width};"
                f" these do: {', '.join(map(str, divisors(width)))}"
            )
        pad, words = self.pad_token_id, self.vocab_size
        if pad >= words:
            raise UserError(f"config: pad_token_id {pad} is outside the vocabulary of {words}")

    @property
    def max_tokens(self) -> int:
        """How many tokens fit. RoBERTa's positions start at pad_token_id + 1: 514 - 1 - 1 = 512."""
        if self.model_type == "bert":
            return self.max_position_embeddings
        return self.max_position_embeddings - self.pad_token_id - 1

    @classmethod
    def from_dict(cls, values: dict, tensor_names: Iterable[str] = ()) -> "EncoderConfig":
        """Return the config that a parsed config.json describes.

        tensor_names  names in the weight file: they decide where config.json has no model_type
        Errors        UserError: a model type, activation, position or decoder that is not computed
                      here; a size that is missing or impossible.
        """
        for name, only in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
            if values.get(name) not in (None, only):
                raise UserError(f"{name} {values[name]!r:.80} is not supported; only {only!r} is")
        for name in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
            if values.get(name):
                raise UserError(f"{name} is set: a decoder; only encoders are supported")
        names = [field.name for field in fields(cls) if values.get(field.name) not in (None, "")]
        given = {name: values[name] for name in names}
        if "model_type" not in given:
            given["model_type"] = infer_model_type(values, tensor_names)
        needed = [field.name for field in fields(cls) if field.default is MISSING]
        missing = [name for name in needed if name not in given]
        if missing:
            raise UserError(f"config: missing {', '.join(missing)}")
        if given["model_type"] != "bert":
            given.setdefault("pad_token_id", 1)
        return cls(**given)

    def to_dict(self, architecture: str) -> dict:
        """Return the config.json of this encoder; `architecture` names its transformers class.

        Other keys of the source, such as the labels of its task, are not passed on.
        """
        # transformers 5 refuses a layer_norm_eps of 1 where it expects 1.0
        own = {field.name: field.type(getattr(self, field.name)) for field in fields(self)}
        fixed = {"hidden_act": "gelu", "position_embedding_type": "absolute"}
        return {**own, **fixed, "architectures": [architecture]}


def infer_model_type(values: dict, tensor_names: Iterable[str]) -> str:
    """Return the model type that tensor names or the class name show, as TinyBERT's file needs."""
    architecture = str(values.get("architectures")).strip("[]'")
    named = [t for t, stem in MODEL_TYPES.items() if re.match(f"{stem}(Model|For)", architecture)]
    parts = {part for name in tensor_names for part in name.split(".")}
    if {"roberta", "lm_head"} & parts:
        return named[0] if named and named != ["bert"] else "roberta"
    if {"bert", "cls"} & parts:
        return "bert"
    if named:
        return named[0]
    if values.get("type_vocab_size") in (2, None) and not values.get("pad_token_id"):
        return "bert"
    raise UserError(
        "config.json has no model_type, and the names of the tensors do not show which it is;"
        f' add "model_type": one of {", ".join(MODEL_TYPES)}'
    )


def divisors(*widths: int) -> list[int]:
    """Return, in ascending order, the whole numbers that divide all these widths."""
    largest = math.gcd(*widths)
    return [number for number in range(1, largest + 1) if largest % number == 0]
