"""Text to token ids, through the `tokenizers` library, from the files that checkpoints come with.

Read from `tokenizer.json`, else BERT's `vocab.txt`, else RoBERTa's `vocab.json` + `merges.txt`. The
files are kept as bytes and written back unchanged, so that whatever transformers does with them (stored
truncation and padding included) it also does with the student; here both are off.
"""

import hashlib
import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer as Backend, decoders, models
from tokenizers import normalizers, pre_tokenizers, processors

from minitransformer.config import UserError

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
)
# what the five tokens are called where no file says so: BERT's names, then RoBERTa's and XLM-R's
NAMES = {
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "pad_token": ("[PAD]", "<pad>"),
    "mask_token": ("[MASK]", "<mask>"),
    "unk_token": ("[UNK]", "<unk>"),
}


class Tokenizer:
    """A vocabulary and its pipeline. Ids are below vocab_size; special_ids are never ordinary text."""

    def __init__(self, backend, names, files):
        self.backend = backend  # tokenizers.Tokenizer without truncation or padding
        self.files = files  # {file name: bytes}, all that transformers needs to open the same tokenizer
        ids = {kind: backend.token_to_id(name) for kind, name in names.items()}
        self.cls_id, self.sep_id = ids["cls_token"], ids["sep_token"]
        self.pad_id, self.mask_id = ids["pad_token"], ids["mask_token"]
        added = backend.get_added_tokens_decoder().items()
        self.special_ids = sorted({i for i, token in added if token.special} | set(ids.values()))
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self._hash = None

    @property
    def hash(self):
        """sha256 of vocabulary and pipeline; truncation and padding, which are settings, left out."""
        if self._hash is None:
            pipeline = json.loads(self.backend.to_str())
            text = json.dumps(pipeline, sort_keys=True, ensure_ascii=False)
            self._hash = hashlib.sha256(text.encode()).hexdigest()
        return self._hash

    def encode_batch(self, texts):
        """Texts of a corpus -> lists of ids: no special tokens, no truncation, no padding."""
        return [e.ids for e in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_pairs(self, texts, text_pairs=None, *, max_tokens):
        """Texts of a task -> [(ids, token type ids)], with special tokens, the longest cut first."""
        inputs = texts if text_pairs is None else list(zip(texts, text_pairs, strict=True))
        self.backend.enable_truncation(max_tokens, strategy="longest_first")
        try:
            return [(e.ids, e.type_ids) for e in self.backend.encode_batch_fast(inputs)]
        finally:
            self.backend.no_truncation()

    def save(self, folder):
        """Write the tokenizer's files, the source's own bytes wherever it had them."""
        for name, content in self.files.items():
            (Path(folder) / name).write_bytes(content)


def load_tokenizer(folder, config):
    """The tokenizer in a folder, checked against the encoder that it is to feed.

    Errors   UserError: no known file, unreadable files, a special token that is not in the
             vocabulary, an id beyond config.vocab_size.
    """
    folder = Path(folder)
    try:
        files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
        settings = json.loads(files.get("tokenizer_config.json", b"{}"))
        special = json.loads(files.get("special_tokens_map.json", b"{}"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot read the tokenizer's files: {error}") from error
    if not isinstance(settings, dict) or not isinstance(special, dict):
        raise UserError(f"{folder}: tokenizer_config.json or special_tokens_map.json is no JSON object")
    names = {kind: special.get(kind) or settings.get(kind) for kind in NAMES}
    names = {k: v.get("content") if isinstance(v, dict) else v for k, v in names.items()}
    try:
        backend = read_backend(folder, files, settings)
    except UserError:
        raise
    except Exception as error:  # tokenizers raises plain Exception for every malformed file
        raise UserError(f"{folder}: cannot read the tokenizer: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    for kind, usual in NAMES.items():
        found = [name for name in usual if backend.token_to_id(name) is not None]
        names[kind] = names[kind] or (found[0] if found else usual[0])
        if not isinstance(names[kind], str) or backend.token_to_id(names[kind]) is None:
            raise UserError(f"{folder}: the {kind} {names[kind]!r} is not in the vocabulary")
    files.setdefault("tokenizer.json", backend.to_str().encode())
    made = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.max_tokens}
    files.setdefault("tokenizer_config.json", json.dumps(made | names, indent=2).encode())
    files.setdefault("special_tokens_map.json", json.dumps(names, indent=2).encode())
    tokenizer = Tokenizer(backend, names, files)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, but the encoder's"
            f" vocab_size is {config.vocab_size}"
        )
    return tokenizer


def read_backend(folder, files, settings):
    """The `tokenizers` pipeline that the files describe."""
    if "tokenizer.json" in files:
        return Backend.from_str(files["tokenizer.json"].decode("utf-8"))
    if "vocab.txt" in files:
        return bert_pipeline(files["vocab.txt"].decode("utf-8"), settings)
    if "vocab.json" in files and "merges.txt" in files:
        return roberta_pipeline(files["vocab.json"], files["merges.txt"].decode("utf-8"), settings)
    raise UserError(f"{folder}: no tokenizer.json, vocab.txt, or vocab.json with merges.txt")


def bert_pipeline(vocab_txt, settings):
    """BERT: split at spaces and punctuation, lower case where trained so, then word pieces."""
    vocab = {line.rstrip("\r"): i for i, line in enumerate(vocab_txt.rstrip("\n").split("\n"))}
    backend = Backend(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return backend


def roberta_pipeline(vocab_json, merges_txt, settings):
    """RoBERTa: GPT-2's byte-level pairs; a leading space belongs to the word."""
    vocab = json.loads(vocab_json)
    lines = [line for line in merges_txt.split("\n") if line and not line.startswith("#version")]
    backend = Backend(models.BPE(vocab, [tuple(line.split(" ")) for line in lines]))
    space = bool(settings.get("add_prefix_space", False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", vocab["</s>"]), ("<s>", vocab["<s>"]), add_prefix_space=space
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    return backend
