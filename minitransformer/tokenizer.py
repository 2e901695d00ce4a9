"""Text to token ids, through the `tokenizers` library.

An export holds the pipeline of the training in tokenizer.json. Its tokenizer_config.json agrees
with it, because transformers prefers that file's do_lower_case, add_prefix_space and class.

This module reads tokenizer.json, else BERT's vocab.txt, else RoBERTa's vocab.json with merges.txt.
It refuses files of classes that split text differently: the ids would be wrong without an error.
"""

import functools
import json
import os
from pathlib import Path

from tokenizers import AddedToken, decoders, models, processors
from tokenizers import Tokenizer as Pipeline
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel

from minitransformer.config import MODEL_TYPES, EncoderConfig
from minitransformer.files import UserError, check_regular, first_line, read_json, sha256

KINDS = ("cls_token", "sep_token", "pad_token", "mask_token", "unk_token")
VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "*.model", "*.spm", "bpe.codes")
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
FILES += VOCABULARIES
# What the special tokens are called where no file says so.
BERT_NAMES = dict(zip(KINDS, ("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"), strict=True))
ROBERTA_NAMES = dict(zip(KINDS, ("<s>", "</s>", "<pad>", "<mask>", "<unk>"), strict=True))
# Classes of transformers, without "Tokenizer" and "Fast", that read vocab.txt or vocab.json as it
# is read here. Others split words first (MeCab, jieba), or mean other pieces by the same file name.
LIKE_BERT = {"Bert", "DistilBert", "Electra", "MobileBert", "LayoutLM"}
LIKE_ROBERTA = {"Roberta", "Longformer", "Bart"}
READ_HERE = {"", "Auto", "PreTrained", "TokenizersBackend", "ConvBert", *LIKE_BERT, *LIKE_ROBERTA}
# what those classes assume where tokenizer_config.json is silent
DEFAULTS = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
DEFAULTS["add_prefix_space"] = False


class Tokenizer:
    """A vocabulary and its pipeline.

    cls_id sep_id pad_id mask_id unk_id    the last two are None where there is no such token
    special_ids    sorted; these and all others that are never ordinary text
    vocab_size     all ids are below it
    pooling        "mean" or "cls": how the model's sentence vectors are made
    normalize      whether they have length 1
    notes          what load_pretrained prints
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
        self.pooling, self.normalize = "mean", False

    @functools.cached_property
    def hash(self) -> str:
        """sha256 of all that decides ids; the same after another version has written the file."""
        parsed = json.loads(self.pipeline.to_str())
        model = {key: value for key, value in parsed["model"].items() if value not in (None, "")}
        if model["type"] == "Unigram":  # scores lose their last digit when they are written
            model["vocab"] = [(piece, round(score, 6)) for piece, score in model["vocab"]]
        parts = [parsed[key] for key in ("added_tokens", "normalizer", "pre_tokenizer")]
        named = self.cls_id, self.sep_id, self.pad_id, self.mask_id, self.unk_id
        pair = self.pipeline.encode("a", "a")
        return sha256(json.dumps([model, parts, named, pair.ids, pair.type_ids], sort_keys=True))

    def encode_pairs(self, texts, text_pairs=None, *, max_tokens: int):
        """Return [(ids, token type ids)] with special tokens, cut longest first."""
        rows = without_surrogates(texts)
        if text_pairs is not None:
            rows = list(zip(rows, without_surrogates(text_pairs), strict=True))
        self.pipeline.enable_truncation(max_tokens, strategy="longest_first")
        rows = self.pipeline.encode_batch_fast(rows)
        self.pipeline.no_truncation()
        return [(row.ids, row.type_ids if self.pair_types else [0] * len(row)) for row in rows]

    def save(self, tokenizer_json: Path, tokenizer_config: Path, config: EncoderConfig) -> None:
        """Write the two files of an export with an encoder of these sizes."""
        self.pipeline.save(str(tokenizer_json), pretty=False)
        types = ["token_type_ids"] if self.pair_types and config.type_vocab_size > 1 else []
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",  # reads tokenizer.json and nothing else
            "model_max_length": config.max_tokens,
            "model_input_names": ["input_ids", *types, "attention_mask"],
            **self.names,
        }
        settings |= options(self.pipeline)
        tokenizer_config.write_text(json.dumps(settings, indent=2) + "\n")


def options(pipeline: Pipeline) -> dict[str, bool | None]:
    """Return what transformers reads from tokenizer_config.json, not from tokenizer.json."""
    normalizer, splitter, found = pipeline.normalizer, pipeline.pre_tokenizer, {}
    if isinstance(normalizer, BertNormalizer):
        found["do_lower_case"] = normalizer.lowercase
        found["strip_accents"] = normalizer.strip_accents
        found["tokenize_chinese_chars"] = normalizer.handle_chinese_chars
    if isinstance(splitter, ByteLevel):
        found["add_prefix_space"] = splitter.add_prefix_space
    return found


def without_surrogates(texts: list[str]) -> list[str]:
    """Replace half of a surrogate pair, as broken JSON holds it, by "?": the library refuses it."""
    return [text.encode("utf-8", "replace").decode() for text in texts]


# ---- from the files that checkpoints come with ---------------------------------------------------


def load_tokenizer(folder: Path, config: EncoderConfig) -> Tokenizer:
    """Return the tokenizer of a folder, if it is read here and fits the encoder."""
    stderr = os.dup(2)  # where the library's Rust side would print its backtrace
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        tokenizer = read_tokenizer(folder, config)
        check_fit(tokenizer, folder, config)
        return tokenizer
    except UserError:
        raise
    except BaseException as error:  # the library raises bare Exceptions, and panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"cannot read the tokenizer: {first_line(error)}") from error
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def read_tokenizer(folder: Path, config: EncoderConfig) -> Tokenizer:
    settings = {"tokenizer_class": read_json(folder / "config.json", {}).get("tokenizer_class")}
    said = read_json(folder / "tokenizer_config.json", {})
    settings |= {key: value for key, value in said.items() if value is not None}
    old = read_json(folder / "special_tokens_map.json", {})
    named = settings if "added_tokens_decoder" in settings else settings | old
    names, notes = {}, []
    for kind in KINDS:
        if token := named.get(kind):  # its text, or {"content": its text, ...}
            names[kind] = token["content"] if isinstance(token, dict) else token
    declared = str(settings.get("tokenizer_class") or "")
    class_name = declared.removesuffix("Fast").removesuffix("Tokenizer")
    readable = class_name in READ_HERE
    if (folder / "tokenizer.json").exists():
        pipeline = read_tokenizer_json(folder / "tokenizer.json", names)
        followers = LIKE_ROBERTA if "add_prefix_space" in options(pipeline) else LIKE_BERT
        for key, value in options(pipeline).items():
            other = settings.get(key, DEFAULTS[key])
            if other != value and (class_name or MODEL_TYPES[config.model_type]) in followers:
                says = f"{value} in tokenizer.json, which is read here"
                notes.append(f"WARNING: {key} is {says}; transformers takes {other}")
    elif readable and class_name not in LIKE_ROBERTA and (folder / "vocab.txt").exists():
        pipeline = bert_pipeline(folder / "vocab.txt", settings, names, notes)
    elif readable and (folder / "vocab.json").exists():
        pipeline = roberta_pipeline(folder / "vocab.json", settings, names)
    else:
        there = [path.name for pattern in VOCABULARIES for path in folder.glob(pattern)]
        says = f"{', '.join(there) or 'no vocabulary'} of tokenizer_class {declared!r:.80}"
        remedy = "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes it"
        raise UserError(f"no tokenizer.json, and {says} cannot be read; transformers' {remedy}")
    for key, usual in (("truncation_side", "right"), ("split_special_tokens", False)):
        if settings.get(key, usual) != usual:
            notes.append(f"{key} {settings[key]!r:.20} is left out here")
    pipeline.no_truncation()
    pipeline.no_padding()
    if getattr(pipeline.model, "dropout", None):
        pipeline.model.dropout = None
        notes.append("switched off the BPE dropout of tokenizer.json: it gives other ids each time")
    add_tokens(pipeline, names, named, read_json(folder / "added_tokens.json", {}), notes)
    # Few vocabularies have a snowman: without an unknown token this fails here, not in training.
    row, whole = (pipeline.encode("a \u2603", add_special_tokens=on) for on in (False, True))
    names["cls_token"], names["sep_token"] = whole.tokens[0], whole.tokens[-1]
    (_, last), (_, first) = sep_and_cls(pipeline.get_vocab(), names, "the tokenizer")
    if whole.ids != [first, *row.ids, last]:
        raise UserError(f"it makes {whole.ids} of {row.ids}: not one special token at each end")
    reads_types = "token_type_ids" in settings.get("model_input_names", ["token_type_ids"])
    has_types = any(pipeline.encode("a", "a").type_ids) and config.type_vocab_size > 1
    return Tokenizer(pipeline, names, reads_types and has_types, notes)


def add_tokens(pipeline: Pipeline, names: dict, settings: dict, others: dict, notes: list) -> None:
    """Add what transformers adds: special tokens, and `others`, added_tokens.json {text: id}."""
    known = {token.content for token in pipeline.get_added_tokens_decoder().values()}
    decoder = settings.get("added_tokens_decoder", {})
    wanted = [(int(number), AddedToken(**token)) for number, token in decoder.items()]

    def want(content: str, **flags) -> None:
        if (number := others.get(content, pipeline.token_to_id(content))) is not None:
            wanted.append((int(number), AddedToken(content, **flags)))
        elif content not in names.values():
            notes.append(f"the token {content!r:.40} is left out: no file gives its id")

    more = [token for kind in ("bos_token", "eos_token") if (token := settings.get(kind))]
    for kind in ("additional_special_tokens", "extra_special_tokens"):
        tokens = settings.get(kind) or []
        if not isinstance(tokens, list | dict):  # letters of a string would be tokens
            raise UserError(f"{kind} is {tokens!r:.40}, not a list of tokens")
        more += tokens.values() if isinstance(tokens, dict) else tokens
    for token in more:
        flags = {"content": token, "normalized": False} if isinstance(token, str) else token
        want(**{k: flag for k, flag in flags.items() if k != "__type"} | {"special": True})
    for name in names.values():
        # The mask token includes the space before it, as in RoBERTa's own files.
        want(name, special=True, normalized=False, lstrip=name == "<mask>")
    for text in others:
        want(text, normalized=True)
    for number, token in sorted(wanted, key=lambda pair: pair[0]):
        if token.content not in known:
            pipeline.add_tokens([token])
            known.add(token.content)
        found = pipeline.token_to_id(token.content)
        if found != number:
            raise UserError(f"added token {token.content!r:.40} has two ids: {number} and {found}")


def check_fit(tokenizer: Tokenizer, folder: Path, config: EncoderConfig) -> None:
    """Refuse a vocabulary that cannot be the one that the encoder was trained with."""
    rows, vocab = config.vocab_size, tokenizer.pipeline.get_vocab()
    if (last := tokenizer.vocab_size - 1) >= rows:
        token = tokenizer.pipeline.id_to_token(last)
        raise UserError(f"the token {token!r:.40} has id {last}, but the encoder has {rows} rows")
    for name in ("vocab.txt", "vocab.json"):
        both = (folder / "tokenizer.json").exists() and (folder / name).exists()
        other = read_vocab(folder / name) if both else {}
        moved = sum(vocab.get(word, number) != number for word, number in other.items())
        if len(other) <= rows and (moved or len(vocab) < 0.9 * len(other)):
            says = f"tokenizer.json ({len(vocab)} entries) and {name} ({len(other)}) differ"
            raise UserError(f"{says}, {moved} words have another id; remove the wrong file")
    # Rows without a token are common: padding to a multiple of 64, words kept for later.
    if len(vocab) < 0.5 * rows and rows - len(vocab) > 256:
        raise UserError(f"the tokenizer has {len(vocab)} entries, but the encoder has {rows} rows")
    if config.model_type != "bert" and tokenizer.pad_id != config.pad_token_id:
        says = f"{tokenizer.names['pad_token']!r} has id {tokenizer.pad_id}, but pad_token_id is"
        raise UserError(f"{says} {config.pad_token_id} in config.json; positions depend on it")


def read_tokenizer_json(path: Path, names: dict) -> Pipeline:
    """Read tokenizer.json; add to `names` its special tokens, as the next two functions do."""
    model = read_json(path).get("model", {})
    pipeline = Pipeline.from_file(str(path))
    if model.get("unk_token") is not None:
        names["unk_token"] = model["unk_token"]
    if model.get("unk_id") is not None:  # Unigram has only an id
        names["unk_token"] = pipeline.id_to_token(model["unk_id"])
    usual = ROBERTA_NAMES if pipeline.token_to_id("[CLS]") is None else BERT_NAMES
    for kind, name in usual.items():
        if pipeline.token_to_id(names.get(kind, "")) is None:
            names[kind] = name
    return pipeline


def bert_pipeline(path: Path, settings: dict, names: dict, notes: list) -> Pipeline:
    """BERT: lower case where it was trained so, split at spaces and signs, then word pieces."""
    vocab = read_vocab(path)
    names |= BERT_NAMES | names
    sep, cls = sep_and_cls(vocab, names, path.name)
    cased = sum(word[:1].isupper() for word in vocab)  # an uncased one has a few signs like "ℝ"
    if "do_lower_case" not in settings and cased > len(vocab) / 50:
        says = f"text is lower-cased, though {cased} words of vocab.txt are not; if that is wrong"
        notes.append(f'{says}, put {{"do_lower_case": false}} into tokenizer_config.json')
    pipeline = Pipeline(models.WordPiece(vocab, unk_token=names["unk_token"]))
    pipeline.normalizer = BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
    )
    pipeline.pre_tokenizer = BertPreTokenizer()
    pipeline.post_processor = processors.BertProcessing(sep, cls)
    pipeline.decoder = decoders.WordPiece(prefix="##")
    return pipeline


def roberta_pipeline(path: Path, settings: dict, names: dict) -> Pipeline:
    """RoBERTa: GPT-2's byte pairs, in which a leading space belongs to the word."""
    vocab, merges = read_vocab(path), path.with_name("merges.txt")
    check_regular(merges)
    pairs = merges.read_bytes().count(b"\n")  # the other entries are bytes and special tokens
    if pairs < 0.9 * (len(vocab) - 300):
        raise UserError(f"merges.txt has {pairs} lines for {len(vocab)} entries; is it cut off?")
    names |= ROBERTA_NAMES | names
    sep, cls = sep_and_cls(vocab, names, path.name)
    pipeline = Pipeline(models.BPE.from_file(str(path), str(merges)))
    space = settings.get("add_prefix_space", False)
    pipeline.pre_tokenizer = ByteLevel(add_prefix_space=space)
    pipeline.post_processor = processors.RobertaProcessing(sep, cls, add_prefix_space=space)
    pipeline.decoder = decoders.ByteLevel()
    return pipeline


def read_vocab(path: Path) -> dict[str, int]:
    """Return {token: id} of a vocab.txt or vocab.json."""
    if path.suffix == ".json":
        return read_json(path)
    check_regular(path)
    lines = path.read_bytes().decode().rstrip("\n").split("\n")
    return {line.rstrip("\r"): i for i, line in enumerate(lines)}


def sep_and_cls(vocab: dict[str, int], names: dict, file: str) -> list[tuple[str, int]]:
    """Return (token, id) of [SEP] and [CLS]; refuse a vocabulary without them or [PAD]."""
    lacking = ", ".join(repr(names[kind]) for kind in KINDS[:3] if names[kind] not in vocab)
    if lacking:
        raise UserError(f"{file} lacks {lacking} among its {len(vocab)} entries; is it damaged?")
    return [(names[kind], vocab[names[kind]]) for kind in ("sep_token", "cls_token")]
