"""Text to token ids, through the `tokenizers` library.

What training reads is what the export gives: the pipeline that training uses is written back as
tokenizer.json, beside a tokenizer_config.json in which nothing overrules it. (transformers rebuilds
a pipeline from do_lower_case, add_prefix_space or the class that a tokenizer_config.json names,
whatever tokenizer.json says.)
"""

import functools
import hashlib
import json
from pathlib import Path

from tokenizers import Tokenizer as Pipeline
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import ByteLevel

from minitransformer.config import EncoderConfig

KINDS = ("cls_token", "sep_token", "pad_token", "mask_token", "unk_token")


class Tokenizer:
    """A vocabulary and its pipeline.

    cls_id sep_id pad_id    the tokens that an encoder's input is built with
    mask_id unk_id          None where the vocabulary has no such token
    special_ids             sorted; these and all others that are never ordinary text
    vocab_size              all ids are below it
    pooling                 "mean" or "cls": how the model's sentence vectors are made
    notes                   what load_pretrained prints: what the files left open
    """

    def __init__(self, pipeline: Pipeline, names: dict[str, str], pair_types: bool, notes=()):
        self.pipeline = pipeline
        vocab = pipeline.get_vocab()
        self.names = {kind: name for kind, name in sorted(names.items()) if name in vocab}
        ids = {kind: vocab[name] for kind, name in self.names.items()}
        self.cls_id, self.sep_id, self.pad_id = (ids[kind] for kind in KINDS[:3])
        self.mask_id, self.unk_id = (ids.get(kind) for kind in KINDS[3:])
        added = pipeline.get_added_tokens_decoder().items()
        self.special_ids = sorted({i for i, token in added if token.special} | set(ids.values()))
        self.vocab_size = 1 + max(vocab.values())
        self.pair_types = pair_types  # whether a pair's second text has token type 1
        self.notes = list(notes)
        self.pooling = "mean"

    @functools.cached_property
    def hash(self) -> str:
        """sha256 of all that decides ids: the pipeline's parts, its special tokens, how pairs join.

        Files of the same tokenizer differ between versions of the libraries (another form of
        post-processor, default values written out, stored padding); their hash does not.
        """
        parsed = json.loads(self.pipeline.to_str())
        # What is null in one version is "" in another.
        model = {key: value for key, value in parsed["model"].items() if value not in (None, "")}
        if model["type"] == "Unigram":  # scores lose their last digit when they are written
            model["vocab"] = [(piece, round(score, 6)) for piece, score in model["vocab"]]
        parts = [parsed[key] for key in ("added_tokens", "normalizer", "pre_tokenizer")]
        named = self.cls_id, self.sep_id, self.pad_id, self.mask_id, self.unk_id
        pair = self.pipeline.encode("a", "a")
        text = json.dumps([model, parts, named, pair.ids, pair.type_ids], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of a corpus's texts: no special tokens, nothing cut, nothing padded."""
        rows = self.pipeline.encode_batch_fast(without_surrogates(texts), add_special_tokens=False)
        return [row.ids for row in rows]

    def encode_pairs(self, texts, text_pairs=None, *, max_tokens: int):
        """Return [(ids, token type ids)] of a task's texts, with special tokens, cut longest first.

        The token types are 0 where the encoder or its tokenizer knows no others.
        """
        rows = without_surrogates(texts)
        if text_pairs is not None:
            rows = list(zip(rows, without_surrogates(text_pairs), strict=True))
        self.pipeline.enable_truncation(max_tokens, strategy="longest_first")
        rows = self.pipeline.encode_batch_fast(rows)
        self.pipeline.no_truncation()
        if self.pair_types:
            return [(row.ids, row.type_ids) for row in rows]
        return [(row.ids, [0] * len(row.ids)) for row in rows]

    def save(self, tokenizer_json: Path, tokenizer_config: Path, config: EncoderConfig) -> None:
        """Write the two files of an export with an encoder of these sizes."""
        self.pipeline.save(str(tokenizer_json), pretty=False)
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
        if not self.pair_types or config.type_vocab_size < 2:
            inputs.remove("token_type_ids")
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",  # reads tokenizer.json and nothing else
            "model_max_length": config.max_tokens,
            "model_input_names": inputs,
            **self.names,
        }
        normalizer = self.pipeline.normalizer
        if isinstance(normalizer, BertNormalizer):  # BertTokenizer goes by these and not by it
            settings["do_lower_case"] = normalizer.lowercase
            settings["strip_accents"] = normalizer.strip_accents
            settings["tokenize_chinese_chars"] = normalizer.handle_chinese_chars
        # transformers 4 sets a byte-level pre-tokenizer to this, or to False where it is missing.
        if isinstance(self.pipeline.pre_tokenizer, ByteLevel):
            settings["add_prefix_space"] = self.pipeline.pre_tokenizer.add_prefix_space
        text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
        tokenizer_config.write_bytes(text.encode())


def without_surrogates(texts: list[str]) -> list[str]:
    """Replace half of a surrogate pair, as broken JSON holds it, by "?": the library refuses it."""
    return [text.encode("utf-8", "replace").decode() for text in texts]
