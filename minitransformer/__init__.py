"""A readable Transformer encoder: weights of BERT and RoBERTa's family in, and out again."""

from minitransformer.config import EncoderConfig
from minitransformer.files import UserError
from minitransformer.model import Encoder, EncoderOutput
from minitransformer.pretrained import load_pretrained, model_hash, save_pretrained
from minitransformer.tokenizer import Tokenizer
