"""What an encoder is made of: the sizes in Hugging Face's `config.json`, checked once, here.

`EncoderConfig` reads and writes the `config.json` of the three model types that share this
architecture: `bert`, `roberta` and `xlm-roberta`. What the project does not compute it refuses by
name, instead of computing something else in silence: another activation, relative positions, a
decoder.
"""

import math
from dataclasses import dataclass, field, fields

from minitransformer.errors import UserError

MODEL_TYPES = ("bert", "roberta", "xlm-roberta")

# Keys of a source's config.json that would be untrue of what we write, or that to_dict writes
# itself. So is every key that begins with "_".
NOT_WRITTEN_THROUGH = {
    *("architectures", "name_or_path", "transformers_version", "torch_dtype", "dtype", "auto_map"),
    *("quantization_config", "pruned_heads", "torchscript", "tie_word_embeddings"),
    *("hidden_act", "position_embedding_type"),
    *("is_decoder", "add_cross_attention", "is_encoder_decoder"),
}

# Far above any real encoder: a damaged config.json ends in one line, not in an hour of allocating.
LARGEST = {
    "vocab_size": 2**24,
    "hidden_size": 2**16,
    "num_hidden_layers": 512,
    "num_attention_heads": 2**12,
    "intermediate_size": 2**20,
    "max_position_embeddings": 2**20,
    "type_vocab_size": 2**16,
}


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder, named as in Hugging Face's config.json.

    Letters  V vocab_size, D hidden_size, L num_hidden_layers, A num_attention_heads (model.py)
    Errors   UserError for sizes that no encoder can have; the line names both numbers.
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
    # The source's other keys (bos_token_id, classifier_dropout, ...), written back as they came.
    extra: dict = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self):
        check_model_type(self.model_type)
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type is int and type(value) is not int:  # a bool is an int to isinstance
                raise UserError(f"config: {f.name} must be a whole number, not {value!r:.80}")
            if f.type is float and type(value) not in (int, float):
                raise UserError(f"config: {f.name} must be a number, not {value!r:.80}")
        ranges = {name: (1, largest) for name, largest in LARGEST.items()}
        ranges |= {"layer_norm_eps": (1e-20, 1), "initializer_range": (0, 100)}
        ranges |= {"hidden_dropout_prob": (0, 1), "attention_probs_dropout_prob": (0, 1)}
        ranges |= {"pad_token_id": (0, self.vocab_size - 1)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:  # so written, it refuses NaN too
                raise UserError(f"config: {name} is {value!r:.80}; it must lie in {low} to {high}")
        width, heads = self.hidden_size, self.num_attention_heads
        if width % heads:
            raise UserError(
                f"{heads} attention heads do not divide the width {width};"
                f" these do: {', '.join(map(str, divisors(width)))}"
            )
        if self.max_tokens < 1:
            raise UserError(
                f"config: max_position_embeddings {self.max_position_embeddings} leaves no room for"
                f" a token after pad_token_id {self.pad_token_id}"
            )

    @property
    def max_tokens(self):
        """How many tokens fit. RoBERTa's positions start at pad_token_id + 1: 514 - 1 - 1 = 512."""
        if self.model_type == "bert":
            return self.max_position_embeddings
        return self.max_position_embeddings - self.pad_token_id - 1

    @classmethod
    def from_dict(cls, values):
        """The config that a parsed config.json describes.

        Errors   UserError: no JSON object; a model type, activation, position or decoder that is
                 not computed here; a size that is missing or no size.
        """
        if not isinstance(values, dict):
            raise UserError(f"config: expected a JSON object, not {type(values).__name__}")
        check_model_type(values.get("model_type"))
        for name, only in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
            if values.get(name) not in (None, only):
                raise UserError(f"{name} {values[name]!r:.80} is not supported; only {only!r} is")
        for name in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
            if values.get(name):
                raise UserError(f"{name} is set: a decoder; only encoders are supported")
        own = {f.name for f in fields(cls)} - {"extra"}
        given = {name: values[name] for name in own if values.get(name) is not None}
        missing = LARGEST.keys() - given.keys() - {"type_vocab_size"}
        if missing:
            raise UserError(f"config: missing {', '.join(sorted(missing))}")
        if given["model_type"] != "bert":
            given.setdefault("pad_token_id", 1)
        left_out = own | NOT_WRITTEN_THROUGH
        extra = {k: v for k, v in values.items() if k not in left_out and not k.startswith("_")}
        return cls(**given, extra=extra)

    def to_dict(self, architecture):
        """The config.json of this encoder; `architecture` is the class of transformers for it."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        fixed = {"hidden_act": "gelu", "position_embedding_type": "absolute"}
        return {**self.extra, **own, **fixed, "architectures": [architecture]}


def divisors(*widths: int) -> list[int]:
    """Return, in ascending order, the whole numbers that divide all these widths."""
    largest = math.gcd(*widths)
    return [number for number in range(1, largest + 1) if largest % number == 0]


def check_model_type(model_type):
    """Refuse a model type that is another architecture."""
    if model_type not in MODEL_TYPES:
        raise UserError(
            f"model_type {model_type!r:.80} is not supported; these are: {', '.join(MODEL_TYPES)}"
        )
