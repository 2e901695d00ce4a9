"""Text to token ids, through the `tokenizers` library.

What training reads is what the export gives: the pipeline that training uses is written back as
tokenizer.json, beside a tokenizer_config.json in which nothing overrules it. (transformers rebuilds
a pipeline from do_lower_case, add_prefix_space or the class that a tokenizer_config.json names,
whatever tokenizer.json says.)
"""

import functools
import hashlib
import json
from operator import itemgetter
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as Pipeline

from minitransformer.config import EncoderConfig
from minitransformer.errors import UserError, first_line
from minitransformer.tokenizer_files import FILES, KINDS, read_pipeline, read_vocab

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
    notes                   what load_pretrained prints: what the files left open
    """

    def __init__(self, pipeline: Pipeline, names: dict[str, str], pair_types: bool, notes=()):
        pipeline.no_truncation()
        pipeline.no_padding()
        self.pipeline = pipeline
        self.names = {}
        for kind, name in sorted(names.items()):
            if pipeline.token_to_id(name) is not None:
                self.names[kind] = name
        ids = {kind: pipeline.token_to_id(name) for kind, name in self.names.items()}
        self.cls_id, self.sep_id, self.pad_id = (ids[kind] for kind in KINDS[:3])
        self.mask_id, self.unk_id = (ids.get(kind) for kind in KINDS[3:])
        added = pipeline.get_added_tokens_decoder().items()
        self.special_ids = sorted({i for i, token in added if token.special} | set(ids.values()))
        self.vocab_size = 1 + max(pipeline.get_vocab(with_added_tokens=True).values())
        self.pair_types = pair_types  # whether a pair's second text has token type 1
        self.notes = list(notes)

    @functools.cached_property
    def hash(self) -> str:
        """sha256 of what the tokenizer does: its vocabulary, and the ids of PROBES.

        Files of the same tokenizer differ between versions of the libraries (another form of
        post-processor, default values written out, stored padding); their hash does not.
        """
        model = json.loads(self.pipeline.to_str())["model"]
        vocab = model["vocab"]
        if model["type"] == "Unigram":  # scores lose their last digit when they are written
            vocab = [(piece, round(score, 6)) for piece, score in vocab]
        # Words of the vocabulary itself show what becomes of upper case and of accents.
        words = sorted(word for word in self.pipeline.get_vocab() if word.strip("#▁Ġ").isalnum())
        words = " ".join(words[:: len(words) // 2000 + 1])
        probes = [*PROBES, words, words.upper(), words.title(), tuple(PROBES[:2])]
        rows = [(row.ids, row.type_ids) for row in self.pipeline.encode_batch(probes)]
        named = self.cls_id, self.sep_id, self.pad_id, self.mask_id, self.unk_id
        text = json.dumps([model["type"], vocab, model.get("merges"), named, rows], sort_keys=True)
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
        text = self.pipeline.to_str()
        tokenizer_json.write_bytes(text.encode())
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
        if not self.pair_types or config.type_vocab_size < 2:
            inputs.remove("token_type_ids")
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",  # reads tokenizer.json and nothing else
            "model_max_length": config.max_tokens,
            "model_input_names": inputs,
            **self.names,
        }
        # transformers 4 sets a byte-level pre-tokenizer to this, or to False where it is missing.
        split = json.loads(text)["pre_tokenizer"] or {}
        if "add_prefix_space" in split:
            settings["add_prefix_space"] = split["add_prefix_space"]
        text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
        tokenizer_config.write_bytes(text.encode())


def without_surrogates(texts: list[str]) -> list[str]:
    """Replace half of a surrogate pair, as broken JSON holds it, by "?": the library refuses it."""
    return [text.encode("utf-8", "replace").decode() for text in texts]


# ---- reading -------------------------------------------------------------------------------------


def load_tokenizer(folder: Path, config: EncoderConfig) -> Tokenizer:
    """Return the tokenizer of a folder, checked against the encoder that it is to feed.

    Errors   UserError: no tokenizer; unreadable files, or such as are read in another way; special
             tokens that are missing or not BERT's or RoBERTa's two; a vocabulary that does not fit
             the encoder's
    """
    files = {n: Path(folder, n).read_bytes() for n in FILES if Path(folder, n).is_file()}
    try:
        tokenizer = read_tokenizer(files, config)
        check_fit(tokenizer, files, config)
        return tokenizer
    except UserError:
        raise
    except Exception as error:  # the library raises bare Exceptions, and JSON may hold anything
        raise UserError(f"cannot read the tokenizer: {first_line(error)}") from error


def read_tokenizer(files: dict[str, bytes], config: EncoderConfig) -> Tokenizer:
    """Return the tokenizer of these files."""
    settings = json_object(files, "tokenizer_config.json")
    named = settings | json_object(files, "special_tokens_map.json")
    declared = json_object(files, "config.json").get("tokenizer_class")
    settings = {"tokenizer_class": declared} | settings
    names = {}
    for kind in (*KINDS, "bos_token", "eos_token"):
        token = named.get(kind)  # plain, or {"content": text, ...}
        if token:
            names[kind] = str(token["content"] if isinstance(token, dict) else token)
    notes = []
    pipeline = read_pipeline(files, settings, names, notes)
    add_tokens(pipeline, names, files, named)
    pipeline.encode("\u2603", add_special_tokens=False)  # needs an unknown token: fail now
    added = pipeline.num_special_tokens_to_add(False)
    if added != 2:
        raise UserError(
            f"the tokenizer adds {added} special tokens to a text, not 2: its tokenizer.json has"
            " another post_processor than BERT's or RoBERTa's"
        )
    names["cls_token"], names["sep_token"] = pipeline.encode("").tokens[:2]
    if pipeline.token_to_id(names["pad_token"]) is None:
        raise UserError(f"the tokenizer's vocabulary lacks {names['pad_token']!r}")
    reads_types = "token_type_ids" in settings.get("model_input_names", ["token_type_ids"])
    types = pipeline.encode("a", "a").type_ids
    pair_types = reads_types and config.type_vocab_size > 1 and any(types)
    return Tokenizer(pipeline, names, pair_types, notes)


def json_object(files: dict[str, bytes], name: str) -> dict:
    """Return the parsed JSON object of a file, {} where there is no such file."""
    values = json.loads(files.get(name, b"{}"))
    if not isinstance(values, dict):
        raise UserError(f"{name}: expected a JSON object, not {type(values).__name__}")
    return values


def add_tokens(pipeline: Pipeline, names: dict[str, str], files: dict, named: dict) -> None:
    """Add what transformers adds to a pipeline: tokens of other files, and the special tokens.

    Text that spells such a token is one token then.
    """
    wanted = []  # (id, token)
    for number, token in named.get("added_tokens_decoder", {}).items():
        wanted.append((int(number), AddedToken(**token)))
    for text, number in json_object(files, "added_tokens.json").items():
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


def check_fit(tokenizer: Tokenizer, files: dict[str, bytes], config: EncoderConfig) -> None:
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
        if "tokenizer.json" in files and name in files and entries < 0.9 * rows:
            others = len(read_vocab(name, files))
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
