"""Build a tokenizer from the files that checkpoints come with, checked against its encoder.

Read is, in this order: tokenizer.json; BERT's vocab.txt; RoBERTa's vocab.json with merges.txt. For
each, the pipeline is the one that transformers builds from the same file
(models/*/tokenization_*.py). A file that some other class reads in another way, or that is not read
here, is refused: its ids would be wrong without a sign of it.
"""

import json
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Pipeline

from minitransformer.config import EncoderConfig
from minitransformer.files import UserError, first_line, read_json
from minitransformer.tokenizer import KINDS, Tokenizer

FILES = (
    "config.json",  # may name the class of the tokenizer
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "bpe.codes",
)
# What the special tokens are called where no file says so.
BERT_NAMES = dict(zip(KINDS, ("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"), strict=True))
ROBERTA_NAMES = dict(zip(KINDS, ("<s>", "</s>", "<pad>", "<mask>", "<unk>"), strict=True))
# Classes of transformers, without "Tokenizer" and "Fast", that read a file as it is read here.
# Others split words first (MeCab, jieba), or mean other pieces by the same file name.
ANY = {"", "Auto", "PreTrained", "TokenizersBackend"}
READERS = {
    "vocab.txt": ANY
    | {"Bert", "DistilBert", "Electra", "MobileBert", "ConvBert", "SqueezeBert", "LayoutLM"}
    | {"Roberta", "RetriBert", "DPRContextEncoder", "DPRQuestionEncoder", "DPRReader"},
    "vocab.json": ANY | {"Roberta", "GPT2", "Longformer", "Bart", "LED", "MVP"},
}
EXTRA = ("extra_special_tokens", "additional_special_tokens")  # transformers 5's name, and 4's
REMEDY = "a tokenizer.json that gives the model's ids would be read"


def load_tokenizer(folder: Path, config: EncoderConfig) -> Tokenizer:
    """Return the tokenizer of a folder, checked against the encoder that it is to feed.

    Errors   UserError: no tokenizer; unreadable files, or such as are read in another way; special
             tokens that are missing or not BERT's or RoBERTa's two; a vocabulary that does not fit
             the encoder's
    """
    with reading("the tokenizer"):
        tokenizer = read_tokenizer(folder, config)
        check_fit(tokenizer, folder, config)
        return tokenizer


@contextmanager
def reading(name: str):
    """Name in one line what cannot be read."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the library raises bare Exceptions, and JSON may hold anything
        raise UserError(f"cannot read {name}: {first_line(error)}") from error


def read_tokenizer(folder: Path, config: EncoderConfig) -> Tokenizer:
    """Return the tokenizer of a folder."""
    settings = {"tokenizer_class": read_json(folder / "config.json", {}).get("tokenizer_class")}
    settings |= read_json(folder / "tokenizer_config.json", {})
    mapped = read_json(folder / "special_tokens_map.json", {})
    named, names = settings | mapped, {}
    for kind in (*KINDS, "bos_token", "eos_token"):
        token = named.get(kind)
        if token:
            names[kind] = text_of(token)
    notes = []
    pipeline = read_pipeline(folder, settings, names, config.model_type, notes)
    pipeline.no_truncation()
    pipeline.no_padding()
    others = read_json(folder / "added_tokens.json", {})
    add_tokens(pipeline, names, settings, others, extra_tokens(settings, mapped))
    # The snowman needs an unknown token: fail now.
    row, whole = (pipeline.encode("a \u2603", add_special_tokens=on) for on in (False, True))
    names["cls_token"], names["sep_token"] = whole.tokens[0], whole.tokens[-1]
    first, last = (pipeline.token_to_id(names[kind]) for kind in KINDS[:2])
    if whole.ids != [first, *row.ids, last]:
        raise UserError(
            f"the tokenizer makes {whole.ids} of the text {row.ids}, not one special token of its"
            " vocabulary before it and one after: its tokenizer.json has another post_processor"
            " than BERT's or RoBERTa's"
        )
    if pipeline.token_to_id(names["pad_token"]) is None:
        raise UserError(f"the tokenizer's vocabulary lacks {names['pad_token']!r}")
    reads_types = "token_type_ids" in settings.get("model_input_names", ["token_type_ids"])
    types = pipeline.encode("a", "a").type_ids
    pair_types = reads_types and config.type_vocab_size > 1 and any(types)
    return Tokenizer(pipeline, names, pair_types, notes)


def text_of(token) -> str:
    """Return the text of a token that is plain, or {"content": text, ...}."""
    return str(token["content"] if isinstance(token, dict) else token)


def extra_tokens(*files: dict) -> list[str]:
    """Return the further special tokens that the files name; the first that names any counts."""
    extra = next((file[key] for file in files for key in EXTRA if file.get(key)), [])
    extra = list(extra.values()) if isinstance(extra, dict) else extra
    if not isinstance(extra, list):
        raise UserError(f"{EXTRA[0]} or {EXTRA[1]} is {extra!r:.40}, not a list of tokens")
    return [text_of(token) for token in extra]


def add_tokens(
    pipeline: Pipeline, names: dict, settings: dict, others: dict, extra: list[str]
) -> None:
    """Add what transformers adds to a pipeline: tokens of other files, and the special tokens.

    Text that spells such a token is one token then. `others` is added_tokens.json, {text: id};
    `extra` have the ids that come next, or those of the vocabulary.
    """
    wanted = []  # (id, token)
    for number, token in settings.get("added_tokens_decoder", {}).items():
        wanted.append((int(number), AddedToken(**token)))
    for text, number in others.items():
        special = text in names.values()
        wanted.append((int(number), AddedToken(text, special=special, normalized=not special)))
    for name in names.values():
        if pipeline.token_to_id(name) is not None:
            # The mask takes the space before it along, as in RoBERTa's own files.
            token = AddedToken(name, special=True, normalized=False, lstrip=name == "<mask>")
            wanted.append((pipeline.token_to_id(name), token))

    known = {token.content for token in pipeline.get_added_tokens_decoder().values()}
    for number, token in sorted(wanted, key=itemgetter(0)):
        if token.content not in known:
            pipeline.add_tokens([token])
            known.add(token.content)
        found = pipeline.token_to_id(token.content)
        if found != number:
            raise UserError(
                f"the added token {token.content!r:.40} has id {number} in one file, {found} in"
                " another"
            )
    pipeline.add_special_tokens([text for text in extra if text not in known])


def check_fit(tokenizer: Tokenizer, folder: Path, config: EncoderConfig) -> None:
    """Refuse a vocabulary that cannot be the one that the encoder was trained with."""
    rows, entries = config.vocab_size, tokenizer.pipeline.get_vocab_size()
    if tokenizer.vocab_size > rows:
        last = tokenizer.vocab_size - 1
        raise UserError(
            f"the token {tokenizer.pipeline.id_to_token(last)!r:.40} has id {last}, but the encoder"
            f" has {rows} rows (vocab_size)"
        )
    # Rows without a token are common: padding to a multiple of 64, words kept for later.
    for name in ("vocab.txt", "vocab.json"):
        both = (folder / "tokenizer.json").exists() and (folder / name).exists()
        if both and entries < 0.9 * rows:
            others = len(read_vocab(folder / name))
            if entries < others <= rows:
                raise UserError(
                    f"tokenizer.json has {entries} entries, but {name} has {others} and the"
                    f" encoder {rows} rows; remove tokenizer.json if {name} is right"
                )
    if entries < 0.5 * rows and rows - entries > 256:
        raise UserError(
            f"the tokenizer has {entries} entries, but the encoder has {rows} rows (vocab_size):"
            " it belongs to another model"
        )
    if config.model_type != "bert" and tokenizer.pad_id != config.pad_token_id:
        raise UserError(
            f"the padding token {tokenizer.names['pad_token']!r} has id {tokenizer.pad_id}, but"
            f" pad_token_id is {config.pad_token_id} in config.json, and positions depend on it;"
            " correct the one that is wrong"
        )


# ---- one function a kind of file -----------------------------------------------------------------


def read_pipeline(
    folder: Path, settings: dict, names: dict, model_type: str, notes: list
) -> Pipeline:
    """Return the pipeline of the best file that there is.

    settings   tokenizer_config.json, with tokenizer_class also from config.json
    names      {kind: text} of the special tokens, as far as the files say; completed here
    notes      gets a line for what the files leave open, or say in two ways
    """
    path = {name: folder / name for name in FILES if (folder / name).exists()}
    if "tokenizer.json" in path:
        with reading("tokenizer.json"):
            pipeline = Pipeline.from_file(str(path["tokenizer.json"]))
            model = read_json(path["tokenizer.json"])["model"]
        unknown = model.get("unk_token", model.get("unk_id"))  # Unigram has only an id
        if unknown is not None:
            number = isinstance(unknown, int)
            names["unk_token"] = pipeline.id_to_token(unknown) if number else unknown
        note_contradictions(pipeline.normalizer, settings, notes)
        usual = ROBERTA_NAMES if pipeline.token_to_id("[CLS]") is None else BERT_NAMES
        for kind, name in usual.items():
            if pipeline.token_to_id(names.get(kind, "")) is None:
                names[kind] = name
        return pipeline
    if "vocab.txt" in path:
        vocab = read_vocab(path["vocab.txt"])
        check_pieces("vocab.txt", vocab, settings, folder)
        names |= BERT_NAMES | names
        return bert_pipeline(vocab, settings, names, notes)
    if "vocab.json" in path and "merges.txt" in path:
        with reading("vocab.json with merges.txt"):
            vocab, merges = models.BPE.read_file(str(path["vocab.json"]), str(path["merges.txt"]))
        check_pieces("vocab.json", vocab, settings, folder)
        names |= ROBERTA_NAMES | names
        return roberta_pipeline(vocab, merges, settings, names)
    if "sentencepiece.bpe.model" in path:
        name = "Camembert" if model_type == "camembert" else "XLMRoberta"
        raise UserError(
            f"sentencepiece.bpe.model alone cannot be read; {REMEDY}, and with sentencepiece and"
            " protobuf installed, transformers writes it: "
            f"{name}TokenizerFast.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    if "spiece.model" in path:
        raise UserError(
            f"spiece.model alone cannot be read, its tokenizer is not supported; {REMEDY}"
        )
    raise UserError("no tokenizer.json, nor vocab.txt, nor vocab.json with merges.txt")


def read_vocab(path: Path) -> dict[str, int]:
    """Return {token: id} of a vocab.txt or vocab.json."""
    if path.suffix == ".json":
        return read_json(path)
    with reading(path.name):
        text = path.read_bytes().decode()
    return {line.rstrip("\r"): i for i, line in enumerate(text.rstrip("\n").split("\n"))}


def bert_pipeline(vocab: dict[str, int], settings: dict, names: dict, notes: list) -> Pipeline:
    """BERT: lower case where it was trained so, split at spaces and signs, then word pieces."""
    if "do_lower_case" not in settings and any(word[0].isupper() for word in vocab if word):
        notes.append(
            "text is lower-cased, as in transformers, though vocab.txt has upper case;"
            ' if the model is cased, put {"do_lower_case": false} into tokenizer_config.json'
        )
    pipeline = Pipeline(models.WordPiece(vocab, unk_token=names["unk_token"]))
    pipeline.normalizer = normalizers.BertNormalizer(
        lowercase=flag(settings, "do_lower_case", True),
        handle_chinese_chars=flag(settings, "tokenize_chinese_chars", True),
        strip_accents=flag(settings, "strip_accents", None),
    )
    pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pipeline.post_processor = processors.BertProcessing(*ends(names, vocab, "vocab.txt"))
    pipeline.decoder = decoders.WordPiece(prefix="##")
    return pipeline


def roberta_pipeline(vocab: dict, merges: list, settings: dict, names: dict) -> Pipeline:
    """RoBERTa: GPT-2's byte pairs, in which a leading space belongs to the word."""
    pipeline = Pipeline(models.BPE(vocab, merges))
    space = flag(settings, "add_prefix_space", False)
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    pipeline.post_processor = processors.RobertaProcessing(
        *ends(names, vocab, "vocab.json"), add_prefix_space=space
    )
    pipeline.decoder = decoders.ByteLevel()
    return pipeline


def flag(settings: dict, key: str, default: bool | None) -> bool | None:
    """Return a setting of tokenizer_config.json that is true or false."""
    value = settings.get(key, default)
    if value is not default and not isinstance(value, bool):
        raise UserError(
            f"tokenizer_config.json: {key} is {json.dumps(value):.40}, not true or false"
        )
    return value


def note_contradictions(normalizer, settings: dict, notes: list) -> None:
    """Note where tokenizer_config.json contradicts BERT's normalizer of tokenizer.json."""
    if not isinstance(normalizer, normalizers.BertNormalizer):
        return
    lowers, strips = normalizer.lowercase, normalizer.strip_accents
    read = {"do_lower_case": lowers, "strip_accents": lowers if strips is None else strips}
    for key, value in read.items():
        if settings.get(key) not in (None, value):
            notes.append(
                f"{key} is {json.dumps(value)}, as in tokenizer.json, though tokenizer_config.json"
                f" says {json.dumps(settings[key]):.40}"
            )


def ends(names: dict, vocab: dict[str, int], file: str) -> list[tuple[str, int]]:
    """Return (text, id) of the tokens after and before a text."""
    lacking = [names[kind] for kind in ("cls_token", "sep_token") if names[kind] not in vocab]
    if lacking:
        lacking = ", ".join(map(repr, lacking))
        raise UserError(f"{file} lacks {lacking} among its {len(vocab)} entries; is it damaged?")
    return [(names[kind], vocab[names[kind]]) for kind in ("sep_token", "cls_token")]


def check_pieces(name: str, vocab: dict[str, int], settings: dict, folder: Path) -> None:
    """Refuse a vocabulary of other pieces, or which the declared class reads in another way."""
    declared = str(settings.get("tokenizer_class") or "")
    splitter = settings.get("word_tokenizer_type", "basic")
    # "▁the" is SentencePiece's, "th@@" is subword-nmt's
    others = [word for word in vocab if word.startswith("▁") or word.endswith("@@")]
    word_pieces = sum(word.startswith("##") for word in vocab)
    if declared.removesuffix("Fast").removesuffix("Tokenizer") not in READERS[name]:
        reason = f"cannot be read as tokenizer_class {declared!r:.80} asks for"
    elif splitter != "basic":
        reason = f"cannot be read as word_tokenizer_type {splitter!r:.80} asks for"
    elif (folder / "bpe.codes").exists():
        reason = "cannot be read as bpe.codes beside it asks for"
    elif name == "vocab.json" and not any("Ġ" in piece for piece in vocab):
        reason = "has no byte-level pieces (none holds 'Ġ')"
    elif len(others) > max(word_pieces, len(vocab) // 20):
        longest = max(others, key=len)
        reason = (
            f"holds other pieces than BERT's: {len(others)} like {longest!r:.40},"
            f" {word_pieces} with '##'"
        )
    else:
        return
    raise UserError(f"{name} {reason}; {REMEDY}")
