"""Small models, tokenizers, batches and mistakes that every test file may use.

All but three fixtures are plain functions and classes: `from conftest import tiny_config`.
"""

import functools
import os
import re
import string
import tempfile
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any import of the hub's library
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["MPLBACKEND"] = "module://notebook"  # of a kernel; it is not installed
os.environ.setdefault("OMP_NUM_THREADS", "1")  # on tensors this small, threads only wait

import pytest
import safetensors.torch
import torch
from huggingface_hub import save_torch_state_dict
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Pipeline
from torch.utils._python_dispatch import TorchDispatchMode

from distill.data.corpus import encode
from minitransformer import Encoder, EncoderConfig, load_pretrained, save_pretrained
from minitransformer.tokenizer import load_tokenizer

MODEL_TYPES = ("bert", "roberta", "xlm-roberta")
PADDINGS = ("none", "right", "left")
WORDS = ["the", "a", "of", "and", "to", "in", "is", "text", "token", "model", "layer", "un"]
LETTERS = string.ascii_letters + string.digits + string.punctuation + "éàßñαβдж中文のカ한"
START = ["<s>", "<pad>", "</s>", "<unk>"]
PIECES = [*LETTERS, *(f"▁{word}" for word in WORDS), "▁hello", "▁Hello", "▁wor", "ld", "é" * 3]


def tiny_config(model_type="bert", **changes):
    """Return sizes of 3 layers x 32, 4 heads, 300 words and 40 tokens, unless changed."""
    sizes = {
        "vocab_size": 300,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 40 if model_type == "bert" else 42,
        "type_vocab_size": 2 if model_type == "bert" else 1,
        "layer_norm_eps": 1e-12 if model_type == "bert" else 1e-5,
        "pad_token_id": 0 if model_type == "bert" else 1,
    }
    return EncoderConfig(model_type=model_type, **{**sizes, **changes})


def tiny_encoder(config="bert", mlm_head=True, seed=0):
    """Return an encoder without any tensor of 0 or 1: none is forgotten or swapped unseen."""
    config = tiny_config(config) if isinstance(config, str) else config
    encoder = Encoder(config, mlm_head=mlm_head).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            around = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.normal_(around, 0.2, generator=generator)
    return encoder


def states(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def value_and_gradient(loss, student, *rest):
    """Return the loss, its gradient for the student, and the count."""
    student = student.clone().requires_grad_()
    total, count = loss(student, *rest)
    total.backward()
    return total.item(), student.grad, count.item()


def lengths_mask(lengths, tokens, left=False):
    """Return the (B, N) mask of sequences with these lengths, padded to `tokens`."""
    mask = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    return mask.flip(1) if left else mask


def tokens(config, lengths, side="right", seed=0):
    """Return random ids (B, N) of these lengths, padded on one side, and their mask (B, N)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    ids = torch.randint(5, config.vocab_size, shape, generator=generator)
    mask = lengths_mask(lengths, max(lengths), left=side == "left")
    return ids.where(mask, config.pad_token_id), mask


def padded(config, padding):
    """Return (ids, mask or None) of 40 tokens, padded as the name in PADDINGS says."""
    if padding == "none":
        return tokens(config, (40, 40))[0], None
    return tokens(config, (17, 40, 3), padding)


@functools.cache
def tiny_tokenizer(model_type="bert"):
    """Return a tokenizer of that family; its fewer than 300 entries spell any English text."""
    characters = string.ascii_lowercase + string.digits + string.punctuation
    with tempfile.TemporaryDirectory() as folder:
        if model_type == "bert":
            vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *WORDS]
            vocab += [f"##{c}" for c in string.ascii_lowercase + string.digits]
            Path(folder, "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
        else:
            pipeline = byte_level() if model_type == "roberta" else unigrams()
            pipeline.save(f"{folder}/tokenizer.json")
        return load_tokenizer(Path(folder), tiny_config(model_type))


def byte_level(space=False, **model):
    """RoBERTa's tokenizer.json."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("o", "k")]
    vocab = [*START, *alphabet, *("".join(pair) for pair in merges), "<mask>"]
    pipeline = Pipeline(models.BPE({word: i for i, word in enumerate(vocab)}, merges, **model))
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    pipeline.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, space)
    pipeline.add_special_tokens([*START, AddedToken("<mask>", lstrip=True)])
    return pipeline


def unigrams(start=START, prepend="always", split=True):
    """XLM-R's tokenizer.json."""
    vocab = [*((word, 0.0) for word in start), ("▁", -5.0)]
    vocab += [(piece, -float(i % 20 + 1)) for i, piece in enumerate(PIECES)] + [("<mask>", 0.0)]
    pipeline = Pipeline(models.Unigram(vocab, unk_id=start.index("<unk>")))
    pipeline.normalizer = normalizers.NFKC()
    pipeline.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    if split:
        words = [pre_tokenizers.WhitespaceSplit(), pipeline.pre_tokenizer]
        pipeline.pre_tokenizer = pre_tokenizers.Sequence(words)
    ids = [(name, pipeline.token_to_id(name)) for name in ("<s>", "</s>")]
    pipeline.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ids
    )
    pipeline.add_special_tokens([*START, AddedToken("<mask>", lstrip=True)])
    return pipeline


def corpus_ids(tokenizer, texts):
    """Return the ids that training reads of these texts, without [SEP]."""
    return [ids[:-1] for ids, *_ in encode(tokenizer, texts)]


def save_tiny(folder, model_type="bert", mlm_head=True, seed=0):
    encoder = tiny_encoder(model_type, mlm_head=mlm_head, seed=seed)
    save_pretrained(folder, encoder, tiny_tokenizer(model_type))
    return folder


def same(encoder, other):
    """Return whether two encoders hold the same bits under the same names."""
    ours, theirs = encoder.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def rewrite(folder, form):
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if form == "one .bin":
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    safe = form == "sharded safetensors"
    save_torch_state_dict(tensors, folder, max_shard_size=70_000, safe_serialization=safe)


def largest_tensor(call):
    """Return how many numbers the largest result of any operation has while `call` runs."""
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                sizes.append(result.numel())
            return result

    with Watch():
        call()
    return max(sizes)


class CountingTokenizer:
    """Each word is a number and its own id, so that a row shows which part of the text it is."""

    cls_id, sep_id, pad_id, mask_id, unk_id = 1, 2, 0, 3, 4
    special_ids = (0, 1, 2, 3)
    hash = "counting"

    def __init__(self, vocab_size=60000):
        self.vocab_size, self.pipeline = vocab_size, self

    def encode_batch(self, texts, add_special_tokens):
        encoded = []
        for text in texts:
            words = [word for word in re.finditer(r"\S+", text) if word[0] != "-"]
            row = {"ids": [int(w[0]) for w in words], "offsets": [w.span() for w in words]}
            encoded.append(SimpleNamespace(**row))
        return encoded


def numbers(folder, name, count, first=10):
    """Write a corpus of that many different numbers, 20 a document; return its --data value."""
    lines = (range(n, min(n + 20, first + count)) for n in range(first, first + count, 20))
    (folder / f"{name}.txt").write_text("\n".join(" ".join(map(str, line)) for line in lines))
    return f"{name}={folder}/{name}.txt"


class Attack:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


class Killed(BaseException):
    """A SIGKILL as seen inside the process: nothing catches it, nothing is tidied up."""


def environment(folder):
    """Return this environment with one thread, a cache in `folder`, and the hub offline."""
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "HF_HUB_OFFLINE": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }


def without_figures(patch):
    """Skip the loss figure of a run and the latencies that evaluate.py measures: both are slow."""
    patch.setattr("distill.training.report.plot_loss", lambda *figure: None)
    name = "distill.evaluation.cost.latency"
    patch.setattr(name, lambda model, *shape: float(model.config.vocab_size))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return a folder for all tests of a file to train in: its cache, and runs without figures."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in environment(folder).items():
            patch.setenv(name, value)
        without_figures(patch)
        yield folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a new folder to work in, which holds the cache, too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def minilm():
    """Return (Encoder, Tokenizer) of the default teacher; shared, so do not change them."""
    return load_pretrained("minilm")
