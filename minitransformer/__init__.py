"""A Transformer encoder in the open: BERT, RoBERTa and XLM-R weights in, and out again."""

from minitransformer.config import EncoderConfig, UserError
from minitransformer.model import Encoder, EncoderOutput
from minitransformer.pretrained import (
    EMBEDDED_TEACHER,
    load_pretrained,
    save_pretrained,
    weights_hash,
)
from minitransformer.tokenizer import Tokenizer

__all__ = [
    "EMBEDDED_TEACHER",
    "Encoder",
    "EncoderConfig",
    "EncoderOutput",
    "Tokenizer",
    "UserError",
    "load_pretrained",
    "save_pretrained",
    "weights_hash",
]
