"""The sizes of an encoder: Hugging Face's `config.json`, read, checked and written.

Four model types share the architecture: `bert`, `roberta`, `xlm-roberta` and `camembert` (the last
three are one model with other vocabularies). What this project does not compute is refused by name:
another activation, relative positions, a decoder.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from minitransformer.files import UserError
from minitransformer.model_types import check_model_type, infer_model_type

# Lowest and highest value. The highest are far above any real encoder's, so that a damaged
# config.json is refused at once instead of allocating memory for an hour.
SIZES = {  # these have no default
    "vocab_size": (1, 2**24),
    "hidden_size": (1, 2**16),
    "num_hidden_layers": (1, 512),
    "num_attention_heads": (1, 2**12),
    "intermediate_size": (1, 2**20),
    "max_position_embeddings": (1, 2**20),
}
RANGES = {
    **SIZES,
    "type_vocab_size": (1, 2**16),
    "pad_token_id": (0, 2**24),
    "layer_norm_eps": (1e-20, 1.0),
    "initializer_range": (0.0, 100.0),
    "hidden_dropout_prob": (0.0, 1.0),
    "attention_probs_dropout_prob": (0.0, 1.0),
}


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder, named as in Hugging Face's config.json.

    Letters  V vocab_size, D hidden_size, L num_hidden_layers, A num_attention_heads (model.py)
    Errors   UserError: sizes that no encoder can have; the line gives expected and actual values.
    """

    model_type: str = "bert"
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    initializer_range: float = 0.02
    # This encoder has no dropout; both are kept for whoever fine-tunes it in transformers.
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1

    def __post_init__(self):
        check_model_type(self.model_type)
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            kind, types = "a number", (int, float)
            if isinstance(low, int):
                kind, types = "a whole number", (int,)
            # type() and not isinstance(): True is an int. NaN fails both comparisons.
            if type(value) not in types or not low <= value <= high:
                raise UserError(
                    f"config: {name} must be {kind} from {low} to {high}, not {value!r:.80}"
                )
        width, heads = self.hidden_size, self.num_attention_heads
        if width % heads:
            raise UserError(
                f"{heads} attention heads do not divide the width {width};"
                f" these do: {', '.join(map(str, divisors(width)))}"
            )
        if self.pad_token_id >= self.vocab_size:
            raise UserError(
                f"config: pad_token_id {self.pad_token_id} is outside the vocabulary of"
                f" {self.vocab_size}"
            )

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
                      here; a size that is missing or out of range.
        """
        if not values.get("model_type"):
            values = {**values, "model_type": infer_model_type(values, tensor_names)}
        check_model_type(values["model_type"])
        for name, only in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
            if values.get(name) not in (None, only):
                raise UserError(f"{name} {values[name]!r:.80} is not supported; only {only!r} is")
        for name in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
            if values.get(name):
                raise UserError(f"{name} is set: a decoder; only encoders are supported")

        given = {}
        for name in ["model_type", *RANGES]:
            if values.get(name) is not None:
                given[name] = values[name]
        missing = sorted(SIZES.keys() - given.keys())
        if missing:
            raise UserError(f"config: missing {', '.join(missing)}")
        if given["model_type"] != "bert":
            given.setdefault("pad_token_id", 1)
        return cls(**given)

    def to_dict(self, architecture: str) -> dict:
        """Return the config.json of this encoder; `architecture` names its transformers class.

        Other keys of the source, such as the labels of its task, are not passed on.
        """
        own = {"model_type": self.model_type}
        for name, (low, _) in RANGES.items():
            # transformers 5 refuses a layer_norm_eps of 1 where it expects 1.0
            own[name] = type(low)(getattr(self, name))
        fixed = {"hidden_act": "gelu", "position_embedding_type": "absolute"}
        return {**own, **fixed, "architectures": [architecture]}


def divisors(*widths: int) -> list[int]:
    """Return, in ascending order, the whole numbers that divide all these widths."""
    largest = math.gcd(*widths)
    return [number for number in range(1, largest + 1) if largest % number == 0]
