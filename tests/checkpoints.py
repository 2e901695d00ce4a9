"""Builders of tiny checkpoints, as people bring them: every file form of a tokenizer."""

import json

import pytest
import tokenizers
from conftest import LETTERS, byte_level, tiny_config, tiny_encoder
from safetensors.torch import save_file
from tokenizers import models, normalizers, pre_tokenizers, processors

from minitransformer import UserError
from minitransformer.convert import to_hugging_face

BERT_WORDS = [*"[PAD] [UNK] [CLS] [SEP] [MASK]".split(), *LETTERS, *"Hello hello world the".split()]
BERT_WORDS += [f"##{letter}" for letter in LETTERS]
CAMEMBERT_START = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"]


def word_pieces(words=BERT_WORDS, **settings):
    """BERT's tokenizer.json."""
    vocab = {word: number for number, word in enumerate(words)}
    pipeline = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    pipeline.normalizer = normalizers.BertNormalizer(**{"lowercase": False} | settings)
    pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pipeline.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocab[name]) for name in ("[CLS]", "[SEP]")],
    )
    pipeline.add_special_tokens(words[:5])
    return pipeline


def vocab_txt(words=BERT_WORDS):
    return "\n".join(words) + "\n"


def byte_files():
    model = json.loads(byte_level().to_str())["model"]
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    return {"vocab.json": model["vocab"], "merges.txt": f"#version: 0.2\n{merges}\n"}


def write_files(folder, files):
    for name, content in files.items():
        content = content.to_str() if isinstance(content, tokenizers.Tokenizer) else content
        content = json.dumps(content) if isinstance(content, dict) else content
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def checkpoint(folder, model_type="bert", files=(), config=(), tensors=None, **sizes):
    """Write config.json and weights, both changed as asked, and the files; return the folder."""
    folder.mkdir(exist_ok=True)
    sizes = {"num_hidden_layers": 2, "vocab_size": len(BERT_WORDS)} | sizes
    encoder = tiny_encoder(tiny_config(model_type, **sizes))
    values = encoder.config.to_dict("BertForMaskedLM") | dict(config)
    contents = {"vocab.txt": vocab_txt()} if files == () else dict(files)
    write_files(folder, contents | {"config.json": values})
    state = to_hugging_face(encoder)
    save_file(tensors(state) if tensors else state, folder / "model.safetensors")
    return folder


def refusal(call, *arguments, says=""):
    """Return the one line in which a call is refused; `says` is a pattern that it must match."""
    with pytest.raises(UserError, match=says) as raised:
        call(*arguments)
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 400
    return message
