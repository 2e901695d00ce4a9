"""Text to token ids, through the `tokenizers` library, from the files that checkpoints come with.

Read from `tokenizer.json`, else BERT's `vocab.txt`, else RoBERTa's `vocab.json` and `merges.txt`.
The files are kept as bytes and written back unchanged, so that what transformers does with them
(stored truncation and padding included) it also does with the student's; here both are off.
"""

import functools
import hashlib
import json
from operator import itemgetter
from pathlib import Path

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Pipeline

from minitransformer.errors import UserError

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
# What the special tokens are called where no file says so.
KINDS = ("cls_token", "sep_token", "pad_token", "mask_token", "unk_token")
BERT_NAMES = dict(zip(KINDS, ("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"), strict=True))
ROBERTA_NAMES = dict(zip(KINDS, ("<s>", "</s>", "<pad>", "<mask>", "<unk>"), strict=True))


# Lines on which tokenizers of the same vocabulary differ.
PROBES = (
    "The quick brown Fox, and  two  spaces;\ttab\nline\r\nend  ",
    "  it's 3.14 (1,000) e-mail@site.org #x_y $5 50% “quoted” – dash… don't WON'T",
    "naïve café Ångström Straße ǅ İstanbul ﬁne ½ ² Ⅷ e\u0301 ñ Å",
    "Привет мир Ёлка Ελληνικά ΣΊΣΥΦΟΣ العربية مُحَمَّد עברית שָׁלוֹם हिन्दी में ไทยภาษา",
    "中文字符 日本語のテキスト カタカナ ｶﾅ 한국어 한국 全角ＡＢＣ１２３　空白 😀👩\u200d👧🇫🇷",
    "a\x00b\x07c\u00a0d\u200be\u2028f\ufeffg\u00adh\ufffdi",
    "x [CLS] y [SEP] z [MASK] w[PAD] [UNK]; <s> a </s> b <mask> c<pad> <unk> [mask] <MASK> ▁Ġ ##in",
    "a" * 99 + " " + "b" * 101 + " " + "ab" * 200,
    "",
    " ",
)


class Tokenizer:
    """A vocabulary and its pipeline.

    cls_id sep_id pad_id    the tokens that an encoder's input is built with
    mask_id unk_id          None where the vocabulary has no such token
    special_ids             sorted; these and all others that are never ordinary text
    vocab_size              all ids are below it
    """

    def __init__(self, pipeline, names, files):
        self.pipeline = pipeline  # a tokenizers.Tokenizer that neither cuts nor pads
        self.files = files  # {name: bytes}, all that transformers needs to open the same tokenizer
        ids = {kind: pipeline.token_to_id(name) for kind, name in names.items()}
        self.cls_id, self.sep_id = ids["cls_token"], ids["sep_token"]
        self.pad_id, self.mask_id, self.unk_id = (
            ids["pad_token"],
            ids["mask_token"],
            ids["unk_token"],
        )
        added = pipeline.get_added_tokens_decoder().items()
        special = {i for i, token in added if token.special} | set(ids.values())
        self.special_ids = sorted(special - {None})
        self.vocab_size = 1 + max(pipeline.get_vocab(with_added_tokens=True).values())

    @functools.cached_property
    def hash(self):
        """sha256 of what the tokenizer does: its vocabulary, and the ids of PROBES.

        Files of the same tokenizer differ between versions of the libraries (another form of
        post-processor, default values written out, stored padding); their hash does not.
        """
        model = json.loads(self.pipeline.to_str())["model"]
        kept = {name: model.get(name) for name in ("type", "vocab", "merges")}
        # Words of the vocabulary itself show what becomes of upper case and of accents.
        words = [word for word, _ in sorted(self.pipeline.get_vocab().items(), key=itemgetter(1))]
        words = " ".join(words[:: len(words) // 2000 + 1])
        probes = [*PROBES, words, words.upper(), words.title()]
        rows = self.pipeline.encode_batch(probes) + self.pipeline.encode_batch([tuple(PROBES[:2])])
        text = json.dumps([kept, self.special_ids, [(row.ids, row.type_ids) for row in rows]])
        return hashlib.sha256(text.encode()).hexdigest()

    def encode_batch(self, texts):
        """Texts of a corpus -> lists of ids: no special tokens, nothing cut, nothing padded."""
        rows = self.pipeline.encode_batch_fast(whole(texts), add_special_tokens=False)
        return [row.ids for row in rows]

    def encode_pairs(self, texts, text_pairs=None, *, max_tokens):
        """Texts of a task -> [(ids, token type ids)], with special tokens, cut longest first."""
        rows = whole(texts)
        if text_pairs is not None:
            rows = list(zip(rows, whole(text_pairs), strict=True))
        self.pipeline.enable_truncation(max_tokens, strategy="longest_first")
        try:
            return [(e.ids, e.type_ids) for e in self.pipeline.encode_batch_fast(rows)]
        finally:
            self.pipeline.no_truncation()

    def save(self, folder):
        """Write the tokenizer's files, with the source's own bytes wherever it had them."""
        for name, content in self.files.items():
            Path(folder, name).write_bytes(content)


def load_tokenizer(folder, config):
    """The tokenizer of a folder, checked against the encoder that it is to feed.

    Errors   UserError: no tokenizer; unreadable files; a special token that the vocabulary lacks;
             one that adds no special tokens; an id that the encoder's vocab_size does not reach
    """
    try:
        files = {n: Path(folder, n).read_bytes() for n in FILES if Path(folder, n).is_file()}
        settings = json.loads(files.get("tokenizer_config.json", b"{}"))
        named = settings | json.loads(files.get("special_tokens_map.json", b"{}"))
        named = {kind: name_of(named[kind]) for kind in BERT_NAMES if named.get(kind)}
        pipeline, names = read_pipeline(files, settings, named)
        pipeline.encode("\u2603", add_special_tokens=False)  # needs an unknown token: fail now
    except UserError:
        raise
    except Exception as error:  # the library raises bare Exceptions, and JSON may hold anything
        reason = str(error) or type(error).__name__
        raise UserError(f"cannot read the tokenizer: {reason}") from error
    pipeline.no_truncation()
    pipeline.no_padding()
    needed = [names[kind] for kind in ("cls_token", "sep_token", "pad_token")]
    lacking = [name for name in needed if pipeline.token_to_id(name) is None]
    if lacking:
        raise UserError(f"the tokenizer's vocabulary lacks {', '.join(map(repr, lacking))}")
    if pipeline.num_special_tokens_to_add(False) != 2:
        raise UserError(
            f"the tokenizer adds {pipeline.num_special_tokens_to_add(False)} special tokens to a"
            " text, not 2: its tokenizer.json has another post_processor than BERT's or RoBERTa's"
        )
    # What transformers needs besides, where the source was older than these files.
    made = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.max_tokens}
    files.setdefault("tokenizer.json", pipeline.to_str().encode())
    files.setdefault("tokenizer_config.json", json.dumps(made | names, indent=2).encode())
    files.setdefault("special_tokens_map.json", json.dumps(names, indent=2).encode())
    tokenizer = Tokenizer(pipeline, names, files)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer has ids up to {tokenizer.vocab_size - 1}, but the encoder's vocab_size"
            f" is {config.vocab_size}"
        )
    return tokenizer


def whole(texts):
    """Texts that the library takes: half a surrogate pair, as broken JSON holds it, becomes "?"."""
    return [text.encode("utf-8", "replace").decode() for text in texts]


def name_of(token):
    """A special token's text; the files store it plain or as {"content": text, ...}."""
    return str(token["content"] if isinstance(token, dict) else token)


def read_pipeline(files, settings, named):
    """(pipeline, {kind of special token: its text}); `named` is what the files say of these."""
    if "tokenizer.json" in files:
        pipeline = Pipeline.from_str(files["tokenizer.json"].decode())
        is_bert = pipeline.token_to_id("[CLS]") is not None
        return pipeline, (BERT_NAMES if is_bert else ROBERTA_NAMES) | named
    if "vocab.txt" in files:
        names = BERT_NAMES | named
        return bert_pipeline(files["vocab.txt"].decode(), settings, names), names
    if "vocab.json" in files and "merges.txt" in files:
        names = ROBERTA_NAMES | named
        vocab, merges = json.loads(files["vocab.json"]), files["merges.txt"].decode()
        return roberta_pipeline(vocab, merges, settings, names), names
    raise UserError("no tokenizer.json, nor vocab.txt, nor vocab.json with merges.txt")


def bert_pipeline(vocab_txt, settings, names):
    """BERT: lower case where it was trained so, split at spaces and signs, then word pieces."""
    lines = vocab_txt.rstrip("\n").split("\n")
    vocab = {line.rstrip("\r"): i for i, line in enumerate(lines)}
    pipeline = Pipeline(models.WordPiece(vocab, unk_token=names["unk_token"]))
    pipeline.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
    )
    pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(names[kind], vocab.get(names[kind], 0)) for kind in ("sep_token", "cls_token")]
    pipeline.post_processor = processors.BertProcessing(*ends)
    pipeline.decoder = decoders.WordPiece(prefix="##")
    pipeline.add_special_tokens([name for name in names.values() if name in vocab])
    return pipeline


def roberta_pipeline(vocab, merges_txt, settings, names):
    """RoBERTa: GPT-2's byte pairs, in which a leading space belongs to the word."""
    lines = [line for line in merges_txt.split("\n") if line and not line.startswith("#version")]
    pipeline = Pipeline(models.BPE(vocab, [tuple(line.split()) for line in lines]))
    space = settings.get("add_prefix_space", False)
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    ends = [(names[kind], vocab.get(names[kind], 0)) for kind in ("sep_token", "cls_token")]
    pipeline.post_processor = processors.RobertaProcessing(*ends, add_prefix_space=space)
    pipeline.decoder = decoders.ByteLevel()
    # The mask takes the space before it along: "a <mask>" is one word and a mask.
    pipeline.add_special_tokens(
        [AddedToken(n, lstrip=k == "mask_token") for k, n in names.items() if n in vocab]
    )
    return pipeline
