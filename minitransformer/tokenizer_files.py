"""Build a tokenizer from the files that checkpoints come with, checked against its encoder.

Read is, in this order: tokenizer.json; BERT's vocab.txt; RoBERTa's vocab.json with merges.txt. For
each, the pipeline is the one that transformers builds from the same file
(models/*/tokenization_*.py). A file that some other class reads in another way, or that is not read
here, is refused: its ids would be wrong without a sign of it.
"""

import os
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Pipeline

from minitransformer.config import EncoderConfig
from minitransformer.files import UserError, check_regular, first_line, read_json
from minitransformer.tokenizer import KINDS, Tokenizer

FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "*.model", "*.spm")
FILES += ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "bpe.codes")
# What the special tokens are called where no file says so.
BERT_NAMES = dict(zip(KINDS, ("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"), strict=True))
ROBERTA_NAMES = dict(zip(KINDS, ("<s>", "</s>", "<pad>", "<mask>", "<unk>"), strict=True))
# Classes of transformers, without "Tokenizer" and "Fast", that read vocab.txt or vocab.json as it
# is read here. Others split words first (MeCab, jieba), or mean other pieces by the same file name.
READERS = {"", "Auto", "PreTrained", "TokenizersBackend", "Bert", "Roberta", "DistilBert"}
READERS |= {"Electra", "MobileBert", "ConvBert", "SqueezeBert", "LayoutLM", "RetriBert", "GPT2"}
READERS |= {"DPRContextEncoder", "DPRQuestionEncoder", "DPRReader", "Longformer", "Bart", "LED"}
EXTRA = ("extra_special_tokens", "additional_special_tokens")  # transformers 5's name, and 4's
REMEDY = "a tokenizer.json that gives the model's ids would be read"


def load_tokenizer(folder: Path, config: EncoderConfig) -> Tokenizer:
    """Return the tokenizer of a folder; UserError: it is not read here, or fits another encoder."""
    with reading("the tokenizer"):
        tokenizer = read_tokenizer(folder, config)
        check_fit(tokenizer, folder, config)
        return tokenizer


@contextmanager
def reading(name: str):
    """Name in one line what cannot be read; a panic of the library's Rust side prints nothing."""
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    except UserError:
        raise
    except BaseException as error:  # the library raises bare Exceptions, and panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"cannot read {name}: {first_line(error)}") from error
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def read_tokenizer(folder: Path, config: EncoderConfig) -> Tokenizer:
    """Return the tokenizer of a folder."""
    settings = {"tokenizer_class": read_json(folder / "config.json", {}).get("tokenizer_class")}
    settings |= read_json(folder / "tokenizer_config.json", {})
    named = settings | read_json(folder / "special_tokens_map.json", {})
    kinds = [kind for kind in (*KINDS, "bos_token", "eos_token") if named.get(kind)]
    names, notes = {kind: text_of(named[kind]) for kind in kinds}, []
    if (folder / "tokenizer.json").exists():
        pipeline = read_tokenizer_json(folder / "tokenizer.json", names)
    elif (folder / "vocab.txt").exists():
        pipeline = bert_pipeline(folder / "vocab.txt", settings, names, notes)
    elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        pipeline = roberta_pipeline(folder / "vocab.json", settings, names)
    elif pieces := sorted([*folder.glob("*.model"), *folder.glob("*.spm")]):
        raise UserError(
            f"{pieces[0].name} alone cannot be read; {REMEDY}, and with sentencepiece and protobuf"
            " installed, transformers writes it: XLMRobertaTokenizerFast (or the model's own"
            " class).from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    else:
        raise UserError("no tokenizer.json, nor vocab.txt, nor vocab.json with merges.txt")
    pipeline.no_truncation()
    pipeline.no_padding()
    if getattr(pipeline.model, "dropout", None):
        pipeline.model.dropout = None
        notes.append("switched off the BPE dropout of tokenizer.json: it gives other ids each time")
    add_tokens(pipeline, names, named, read_json(folder / "added_tokens.json", {}))
    # The snowman needs an unknown token: fail now.
    row, whole = (pipeline.encode("a \u2603", add_special_tokens=on) for on in (False, True))
    names["cls_token"], names["sep_token"] = whole.tokens[0], whole.tokens[-1]
    first, last = (pipeline.token_to_id(names[kind]) for kind in KINDS[:2])
    if whole.ids != [first, *row.ids, last]:
        raise UserError(
            f"the tokenizer makes {whole.ids} of the text {row.ids}, not one special token of its"
            " vocabulary before it and one after, as BERT's and RoBERTa's post_processor do"
        )
    check_names(pipeline.get_vocab(), names, "the tokenizer")
    reads_types = "token_type_ids" in settings.get("model_input_names", ["token_type_ids"])
    types = pipeline.encode("a", "a").type_ids
    pair_types = reads_types and config.type_vocab_size > 1 and any(types)
    return Tokenizer(pipeline, names, pair_types, notes)


def text_of(token) -> str:
    """Return the text of a token that is plain, or {"content": text, ...}."""
    return str(token["content"] if isinstance(token, dict) else token)


def add_tokens(pipeline: Pipeline, names: dict, settings: dict, others: dict) -> None:
    """Add what transformers adds to a pipeline: tokens of other files, and the special tokens.

    Text that spells such a token is one token then. `others` is added_tokens.json, {text: id}.
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
            says = f"the added token {token.content!r:.40} has id {number} in one file"
            raise UserError(f"{says}, {found} in another")
    extra = next((settings[key] for key in EXTRA if settings.get(key)), [])
    extra = map(text_of, extra.values() if isinstance(extra, dict) else extra)
    pipeline.add_special_tokens([text for text in extra if text not in known])


def check_fit(tokenizer: Tokenizer, folder: Path, config: EncoderConfig) -> None:
    """Refuse a vocabulary that cannot be the one that the encoder was trained with."""
    rows, vocab = config.vocab_size, tokenizer.pipeline.get_vocab()
    last = tokenizer.vocab_size - 1
    if last >= rows:
        token = tokenizer.pipeline.id_to_token(last)
        raise UserError(f"the token {token!r:.40} has id {last}, but the encoder has {rows} rows")
    for name in ("vocab.txt", "vocab.json"):
        both = (folder / "tokenizer.json").exists() and (folder / name).exists()
        other = read_vocab(folder / name) if both else {}
        moved = sum(vocab.get(word, number) != number for word, number in other.items())
        if len(other) <= rows and (moved or len(vocab) < 0.9 * len(other)):
            raise UserError(
                f"tokenizer.json ({len(vocab)} entries) and {name} ({len(other)}) differ, {moved}"
                f" words have another id, and the encoder has {rows} rows; remove the wrong file"
            )
    # Rows without a token are common: padding to a multiple of 64, words kept for later.
    if len(vocab) < 0.5 * rows and rows - len(vocab) > 256:
        says = f"the tokenizer has {len(vocab)} entries, but the encoder has {rows} rows"
        raise UserError(f"{says}: it belongs to another model")
    if config.model_type != "bert" and tokenizer.pad_id != config.pad_token_id:
        raise UserError(
            f"{tokenizer.names['pad_token']!r} has id {tokenizer.pad_id}, but pad_token_id is"
            f" {config.pad_token_id} in config.json; positions depend on it: correct the wrong one"
        )


# ---- one function a kind of file -----------------------------------------------------------------
# Each returns a pipeline, and completes the names {kind: text} of the special tokens.


def read_tokenizer_json(path: Path, names: dict) -> Pipeline:
    model = read_json(path).get("model", {})
    with reading(path.name):
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
    check_reader(path.name, vocab, settings)
    names |= BERT_NAMES | names
    check_names(vocab, names, path.name)
    cased = sum(word[:1].isupper() for word in vocab)  # an uncased one has a few signs like "ℝ"
    if "do_lower_case" not in settings and cased > len(vocab) / 50:
        notes.append(
            f"text is lower-cased, as in transformers, though {cased} words of vocab.txt have upper"
            ' case; if the model is cased, put {"do_lower_case": false} into tokenizer_config.json'
        )
    pipeline = Pipeline(models.WordPiece(vocab, unk_token=names["unk_token"]))
    pipeline.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
    )
    pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(names[kind], vocab[names[kind]]) for kind in ("sep_token", "cls_token")]
    pipeline.post_processor = processors.BertProcessing(*ends)
    pipeline.decoder = decoders.WordPiece(prefix="##")
    return pipeline


def roberta_pipeline(path: Path, settings: dict, names: dict) -> Pipeline:
    """RoBERTa: GPT-2's byte pairs, in which a leading space belongs to the word."""
    vocab, merges = read_vocab(path), path.with_name("merges.txt")
    check_reader(path.name, vocab, settings)
    check_regular(merges)
    names |= ROBERTA_NAMES | names
    check_names(vocab, names, path.name)
    pipeline = Pipeline(models.BPE.from_file(str(path), str(merges)))
    space = settings.get("add_prefix_space", False)
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    ends = [(names[kind], vocab[names[kind]]) for kind in ("sep_token", "cls_token")]
    pipeline.post_processor = processors.RobertaProcessing(*ends, add_prefix_space=space)
    pipeline.decoder = decoders.ByteLevel()
    return pipeline


def read_vocab(path: Path) -> dict[str, int]:
    """Return {token: id} of a vocab.txt or vocab.json."""
    if path.suffix == ".json":
        return read_json(path)
    check_regular(path)
    with reading(path.name):
        text = path.read_bytes().decode()
    return {line.rstrip("\r"): i for i, line in enumerate(text.rstrip("\n").split("\n"))}


def check_names(vocab: dict[str, int], names: dict, file: str) -> None:
    """Refuse a vocabulary without the tokens that an encoder's input is built with."""
    lacking = [names[kind] for kind in KINDS[:3] if names[kind] not in vocab]
    if lacking:
        lacking = ", ".join(map(repr, lacking))
        raise UserError(f"{file} lacks {lacking} among its {len(vocab)} entries; is it damaged?")


def check_reader(name: str, vocab: dict[str, int], settings: dict) -> None:
    """Refuse a vocabulary that another tokenizer reads in another way."""
    declared = str(settings.get("tokenizer_class") or "")
    splitter = settings.get("word_tokenizer_type", "basic")
    # of SentencePiece, of subword-nmt, of fastBPE
    pieces = [word for word in vocab if word.startswith("▁") or word.endswith(("@@", "</w>"))]
    if declared.removesuffix("Fast").removesuffix("Tokenizer") not in READERS:
        reason = f"tokenizer_class {declared!r:.80}"
    elif splitter != "basic":
        reason = f"word_tokenizer_type {splitter!r:.80}"
    elif len(pieces) > len(vocab) // 20:
        reason = f"{len(pieces)} pieces like {pieces[-1]!r:.40}"
    else:
        return
    raise UserError(f"{name} with {reason} cannot be read; {REMEDY}")
