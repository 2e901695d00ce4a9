"""What an encoder is made of: the sizes in Hugging Face's `config.json`, checked once, here.

`EncoderConfig` reads and writes the `config.json` of three model types that share one architecture:
`bert`, `roberta` and `xlm-roberta`. What this project does not compute it refuses by name, instead of
computing something else in silence: another activation, relative positions, decoders.
"""

import math
from dataclasses import dataclass, field, fields

MODEL_TYPES = ("bert", "roberta", "xlm-roberta")

# Keys that describe a file or a program and not the model: stale as soon as the weights change hands.
NOT_WRITTEN_THROUGH = frozenset(
    ("architectures", "_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype")
    + ("auto_map", "quantization_config", "hidden_act", "position_embedding_type")
    + ("is_decoder", "add_cross_attention", "is_encoder_decoder", "tie_word_embeddings")
)

# Far above any real encoder; a damaged or hostile config.json ends in one line and not in an hour
# of allocating.
LARGEST = {
    "vocab_size": 2**24,
    "hidden_size": 2**16,
    "num_hidden_layers": 512,
    "num_attention_heads": 2**12,
    "intermediate_size": 2**20,
    "max_position_embeddings": 2**20,
    "type_vocab_size": 2**16,
}


class UserError(ValueError):
    """A mistake of the user's, told in one line: what is wrong, both numbers, and what to do."""


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder, named as in Hugging Face's config.json.

    Shapes   see the legend in model.py: V vocab_size, D hidden_size, L num_hidden_layers, A num_attention_heads.
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
    # This encoder has no dropout; the two values are kept for whoever fine-tunes it in transformers.
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    # Every other key of the source's config.json (bos_token_id, id2label, ...), written back as it came.
    extra: dict = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self):
        if self.model_type not in MODEL_TYPES:
            raise UserError(
                f"model_type {self.model_type!r} is not supported; supported: {', '.join(MODEL_TYPES)}"
            )
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type is int and type(value) is not int:
                raise UserError(f"config: {f.name} must be a whole number, not {value!r:.80}")
            if f.type is float and (type(value) not in (int, float) or not math.isfinite(value)):
                raise UserError(f"config: {f.name} must be a number, not {value!r:.80}")
        for name, largest in LARGEST.items():
            if not 1 <= getattr(self, name) <= largest:
                value = getattr(self, name)
                raise UserError(f"config: {name} is {value}; it must lie between 1 and {largest}")
        if self.hidden_size % self.num_attention_heads:
            divisors = [n for n in range(1, self.hidden_size + 1) if self.hidden_size % n == 0]
            raise UserError(
                f"{self.num_attention_heads} attention heads do not divide the width {self.hidden_size};"
                f" these do: {', '.join(map(str, divisors))}"
            )
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise UserError(
                f"config: pad_token_id {self.pad_token_id} is outside the vocabulary of {self.vocab_size}"
            )
        if self.max_tokens < 1:
            raise UserError(
                f"config: max_position_embeddings {self.max_position_embeddings} leaves room for no token"
                f" after pad_token_id {self.pad_token_id}"
            )
        if not 0 < self.layer_norm_eps < 1 or not 0 <= self.initializer_range < 100:
            raise UserError(
                f"config: layer_norm_eps {self.layer_norm_eps} or initializer_range"
                f" {self.initializer_range} is out of range"
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"config: {name} is {getattr(self, name)}; it must lie in 0 to 1")

    @property
    def head_size(self):
        """d, the width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def max_tokens(self):
        """How many tokens fit. (XLM-)RoBERTa's positions start at pad_token_id + 1: 514 - 1 - 1 = 512."""
        if self.model_type == "bert":
            return self.max_position_embeddings
        return self.max_position_embeddings - self.pad_token_id - 1

    @classmethod
    def from_dict(cls, values):
        """The config that a parsed config.json describes. Sizes must be in it; the rest has defaults."""
        if not isinstance(values, dict):
            raise UserError(f"config: expected a JSON object, not {type(values).__name__}")
        model_type = values.get("model_type")
        if model_type not in MODEL_TYPES:
            raise UserError(
                f"model_type {model_type!r:.80} is not supported; supported: {', '.join(MODEL_TYPES)}"
            )
        if values.get("hidden_act", "gelu") != "gelu":
            raise UserError(
                f"hidden_act {values['hidden_act']!r:.80} is not supported; only 'gelu' is"
            )
        if values.get("position_embedding_type") not in (None, "absolute"):
            raise UserError(
                f"position_embedding_type {values['position_embedding_type']!r:.80} is not supported;"
                " only 'absolute' is"
            )
        for name in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
            if values.get(name):
                raise UserError(f"{name} is set: this is a decoder; only encoders are supported")
        own = {f.name for f in fields(cls)} - {"extra"}
        # Transformers writes null where it falls back to a default; the two mean the same here.
        given = {name: values[name] for name in own if values.get(name) is not None}
        missing = [name for name in LARGEST if name not in given and name != "type_vocab_size"]
        if missing:
            raise UserError(f"config: missing {', '.join(missing)}")
        if model_type != "bert":
            given.setdefault("pad_token_id", 1)
        extra = {k: v for k, v in values.items() if k not in own and k not in NOT_WRITTEN_THROUGH}
        return cls(**given, extra=extra)

    def to_dict(self, architectures):
        """The config.json of this encoder; `architectures` names the class of transformers that fits."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        fixed = {"hidden_act": "gelu", "position_embedding_type": "absolute"}
        return {**self.extra, **own, **fixed, "architectures": list(architectures)}
