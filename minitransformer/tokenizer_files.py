"""Build a tokenizer's pipeline from the files that checkpoints come with.

Read is, in this order: tokenizer.json; BERT's vocab.txt; RoBERTa's vocab.json with merges.txt. For
each, the pipeline is the one that transformers builds from the same file
(models/*/tokenization_*.py). A file that some other class reads in another way, or that is not read
here, is refused: its ids would be wrong without a sign of it.
"""

import json

from tokenizers import Tokenizer as Pipeline
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from minitransformer.errors import UserError

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
KINDS = ("cls_token", "sep_token", "pad_token", "mask_token", "unk_token")
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
REMEDY = "a tokenizer.json that gives the model's ids would be read"


def read_pipeline(files: dict[str, bytes], settings: dict, names: dict, notes: list) -> Pipeline:
    """Return the pipeline of the best file that there is.

    settings   tokenizer_config.json, with tokenizer_class also from config.json
    names      {kind: text} of the special tokens, as far as the files say; completed here
    notes      gets a line for what the files leave open
    """
    if "tokenizer.json" in files:
        pipeline = Pipeline.from_str(files["tokenizer.json"].decode())
        usual = ROBERTA_NAMES if pipeline.token_to_id("[CLS]") is None else BERT_NAMES
        for kind, name in usual.items():
            if pipeline.token_to_id(names.get(kind, "")) is None:
                names[kind] = name
        return pipeline
    if "vocab.txt" in files:
        vocab = read_vocab("vocab.txt", files)
        check_reader("vocab.txt", settings, files)
        check_word_pieces(vocab)
        names |= BERT_NAMES | names
        return bert_pipeline(vocab, settings, names, notes)
    if "vocab.json" in files and "merges.txt" in files:
        vocab = read_vocab("vocab.json", files)
        check_reader("vocab.json", settings, files)
        if vocab and not any("Ġ" in piece for piece in vocab):
            raise UserError(f"vocab.json has no byte-level pieces (none holds 'Ġ'); {REMEDY}")
        names |= ROBERTA_NAMES | names
        return roberta_pipeline(vocab, files["merges.txt"].decode(), settings, names)
    for name in ("sentencepiece.bpe.model", "spiece.model"):
        if name in files:
            raise UserError(
                f"{name} alone cannot be read; {REMEDY}, and with sentencepiece and protobuf"
                " installed, transformers writes it: "
                "XLMRobertaTokenizerFast.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            )
    raise UserError("no tokenizer.json, nor vocab.txt, nor vocab.json with merges.txt")


def read_vocab(name: str, files: dict[str, bytes]) -> dict[str, int]:
    """Return {token: id} of a vocab.txt or vocab.json."""
    if name == "vocab.json":
        return json.loads(files[name])
    lines = files[name].decode().rstrip("\n").split("\n")
    return {line.rstrip("\r"): i for i, line in enumerate(lines)}


# ---- what is read in another way elsewhere -------------------------------------------------------


def check_reader(name: str, settings: dict, files: dict[str, bytes]) -> None:
    """Refuse a file that the declared class, or a setting, reads in another way."""
    declared = str(settings.get("tokenizer_class") or "")
    reason = None
    if declared.removesuffix("Fast").removesuffix("Tokenizer") not in READERS[name]:
        reason = f"tokenizer_class {declared!r:.80}"
    elif settings.get("word_tokenizer_type", "basic") != "basic":
        reason = f"word_tokenizer_type {settings['word_tokenizer_type']!r:.80}"
    elif "bpe.codes" in files:
        reason = "bpe.codes beside it"
    if reason:
        raise UserError(f"{name} cannot be read as {reason} asks for; {REMEDY}")


def check_word_pieces(vocab: dict[str, int]) -> None:
    """Refuse a vocab.txt of other pieces: "▁the" is SentencePiece's, "th@@" is subword-nmt's."""
    others = [word for word in vocab if word.startswith("▁") or word.endswith("@@")]
    word_pieces = sum(word.startswith("##") for word in vocab)
    if len(others) > max(word_pieces, len(vocab) // 20):
        longest = max(others, key=len)
        raise UserError(
            f"vocab.txt holds other pieces than BERT's: {len(others)} like {longest!r:.40},"
            f" {word_pieces} with '##'; {REMEDY}"
        )


# ---- one function a family -----------------------------------------------------------------------


def bert_pipeline(vocab: dict[str, int], settings: dict, names: dict, notes: list) -> Pipeline:
    """BERT: lower case where it was trained so, split at spaces and signs, then word pieces."""
    if "do_lower_case" not in settings and any(word[0].isupper() for word in vocab if word):
        notes.append(
            "text is lower-cased, as in transformers, though vocab.txt has upper case;"
            ' if the model is cased, put {"do_lower_case": false} into tokenizer_config.json'
        )
    pipeline = Pipeline(models.WordPiece(vocab, unk_token=names["unk_token"]))
    pipeline.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
    )
    pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pipeline.post_processor = processors.BertProcessing(*ends(names, vocab))
    pipeline.decoder = decoders.WordPiece(prefix="##")
    return pipeline


def roberta_pipeline(vocab: dict, merges_txt: str, settings: dict, names: dict) -> Pipeline:
    """RoBERTa: GPT-2's byte pairs, in which a leading space belongs to the word."""
    lines = [line for line in merges_txt.split("\n") if line and not line.startswith("#version")]
    pipeline = Pipeline(models.BPE(vocab, [tuple(line.split()) for line in lines]))
    space = settings.get("add_prefix_space", False)
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    pipeline.post_processor = processors.RobertaProcessing(
        *ends(names, vocab), add_prefix_space=space
    )
    pipeline.decoder = decoders.ByteLevel()
    return pipeline


def ends(names: dict, vocab: dict[str, int]) -> list[tuple[str, int]]:
    """Return (text, id) of the tokens after and before a text."""
    lacking = [names[kind] for kind in ("cls_token", "sep_token") if names[kind] not in vocab]
    if lacking:
        raise UserError(f"the tokenizer's vocabulary lacks {', '.join(map(repr, lacking))}")
    return [(names[kind], vocab[names[kind]]) for kind in ("sep_token", "cls_token")]
