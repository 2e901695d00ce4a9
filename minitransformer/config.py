"""The sizes of an encoder: Hugging Face's `config.json`, read, checked and written.

Four model types share the architecture: `bert`, `roberta`, `xlm-roberta` and `camembert` (the last
three are one model with other vocabularies). Any other feature is refused by name.
"""

import math
from dataclasses import dataclass, fields

from minitransformer.files import UserError

# model type: how the names of its classes in transformers begin
MODEL_TYPES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
}
# what a config.json must say; the defaults below are for code
NEEDED = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size".split()


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder, named as in Hugging Face's config.json; UserError: impossible sizes.

    Letters  V vocab_size, D hidden_size, L num_hidden_layers, A num_attention_heads (model.py)
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
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
        numbers = [field for field in fields(self) if field.type is not str]
        for field in numbers:
            value = getattr(self, field.name)
            least = 0 if field.type is float or field.name == "pad_token_id" else 1
            number = isinstance(value, (int, field.type)) and not isinstance(value, bool)
            if not (number and value >= least):  # NaN fails, too
                kind = f"{field.type.__name__} of at least {least}"
                raise UserError(f"config: {field.name} must be {kind}, not {value!r:.80}")
        width, heads = self.hidden_size, self.num_attention_heads
        if width % heads:
            says = f"{heads} attention heads do not divide the width {width}; these do: "
            raise UserError(says + ", ".join(map(str, divisors(width))))
        if self.pad_token_id >= self.vocab_size:
            raise UserError(f"pad_token_id {self.pad_token_id} is outside 0..{self.vocab_size - 1}")

    @property
    def max_tokens(self) -> int:
        """How many tokens fit. RoBERTa's positions start at pad_token_id + 1: 514 - 1 - 1 = 512."""
        if self.model_type == "bert":
            return self.max_position_embeddings
        return self.max_position_embeddings - self.pad_token_id - 1

    @classmethod
    def from_dict(cls, values: dict) -> "EncoderConfig":
        """Return the config that a parsed config.json describes; refuse what is not computed."""
        for name, only in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
            if values.get(name) not in (None, only):
                raise UserError(f"{name} {values[name]!r:.80} is not supported; only {only!r} is")
        if values.get("is_decoder"):
            raise UserError("is_decoder is set; only encoders are supported")
        names = [field.name for field in fields(cls) if values.get(field.name) not in (None, "")]
        given = {name: values[name] for name in names}
        # The first BERTs' and RoBERTas' files name no type; only RoBERTa's have a pad id above 0.
        if not given.get("pad_token_id") and "oberta" not in str(values.get("architectures")):
            given.setdefault("model_type", "bert")
        missing = [name for name in ("model_type", *NEEDED) if name not in given]
        if missing:
            raise UserError(f"config: missing {', '.join(missing)}")
        if given["model_type"] != "bert":
            given.setdefault("pad_token_id", 1)
        return cls(**given)

    def to_dict(self, architecture: str) -> dict:
        """Return the config.json of this encoder; `architecture` names its transformers class."""
        # transformers 5 refuses a layer_norm_eps of 1 where it expects 1.0
        own = {field.name: field.type(getattr(self, field.name)) for field in fields(self)}
        fixed = {"hidden_act": "gelu", "position_embedding_type": "absolute"}
        return {**own, **fixed, "architectures": [architecture]}


def divisors(*widths: int) -> list[int]:
    """Return, in ascending order, the whole numbers that divide all these widths."""
    largest = math.gcd(*widths)
    return [number for number in range(1, largest + 1) if largest % number == 0]
