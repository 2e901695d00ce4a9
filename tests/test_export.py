"""What training read is what the export gives, whatever the source's files say of each other.

Each kind of folder below is read, exported, and the export opened by transformers, by
sentence-transformers and as a bare tokenizer.json: all give the ids of training on 500 lines.
"""

import random
import unicodedata
from itertools import compress

import pytest
import tokenizers
import transformers
from checkpoints import BERT_WORDS, CAMEMBERT_START, byte_files, checkpoint, vocab_txt, word_pieces
from conftest import byte_level, corpus_ids, unigrams
from test_pretrained import EXPORT

from minitransformer import load_pretrained, save_pretrained

SCRIPTS = "az AZ 09 !/ Àÿ Āſ Αω Ая את ءي अह กฮ ぁん ァン 一亀 가겫 Ḁẁ ０ｚ".split()  # first, last
SCRIPTS += ["\U0001f600\U0001f640", "\u0300\u0315", "\x01\x1f", "\u2000\u206f"]
WORDS = "Hello hello world été Straße naïve the don't 3.14 e-mail@x.org".split()
SPECIAL = "[SEP] [CLS] [MASK] [PAD] [UNK] <s> </s> <mask> <ent> [sep] ▁the ##ing Ġ".split()
SPACES = [" ", "  ", "\t", "\n", "\u00a0", "\u3000", ""]


def make_lines() -> list[str]:
    """500 lines that mix scripts, words, special tokens' texts and spaces, composed or not."""
    chance = random.Random(0)
    lines = ["", " ", "   ", "\n", "a" * 150, "word " * 100, "é" * 120]
    lines += ["[SEP]", "<mask>", " <mask>"]
    while len(lines) < 500:
        line = ""
        for _ in range(chance.randint(1, 8)):
            first, last = map(ord, chance.choice(SCRIPTS))
            word = "".join(chr(chance.randint(first, last)) for _ in range(chance.randint(1, 5)))
            words = [word, word, chance.choice(WORDS), chance.choice(SPECIAL)]
            line += chance.choice(words) + chance.choice(SPACES)
        lines.append(unicodedata.normalize(chance.choice(["NFC", "NFD"]), line))
    return lines


LINES = make_lines()
OTHERS = LINES[1:] + LINES[:1]


def bert(source, name="Bert", **settings):
    """What `checkpoint` takes: a tokenizer.json or files; `name` is the class that is declared."""
    files = source if isinstance(source, dict) else {"tokenizer.json": source}
    if name:
        settings["tokenizer_class"] = f"{name}Tokenizer"
    return {"files": files | {"tokenizer_config.json": settings}}


def roberta(source, name="Roberta", **settings):
    return {"model_type": "roberta"} | bert(source, name, **settings)


def stored(pipeline):
    pipeline.enable_truncation(12)
    pipeline.enable_padding(direction="left", length=12)
    return pipeline


VOCAB = {"vocab.txt": vocab_txt()}
RENAMED = {"vocab.txt": vocab_txt().replace("[CLS]", "<start>")}
ENTITY = {str(len(BERT_WORDS)): {"content": "<ent>", "lstrip": True, "normalized": False}}
NO_TYPES = ["input_ids", "attention_mask"]
WORDS_IN_ROBERTA = roberta(word_pieces(), bos_token="[CLS]", eos_token="[SEP]")
KINDS = {
    "vocab.txt cased": bert(VOCAB, do_lower_case=False),
    "vocab.txt alone": {},
    "vocab.txt keeps accents": bert(VOCAB, strip_accents=False),
    "vocab.txt, Chinese signs together": bert(VOCAB, tokenize_chinese_chars=False),
    "vocab.txt and added_tokens.json": bert(
        VOCAB | {"added_tokens.json": {"<ent>": len(BERT_WORDS)}}
    ),
    "vocab.txt other names": bert(RENAMED, cls_token="<start>"),
    "vocab.txt without a mask": bert({"vocab.txt": vocab_txt().replace("[MASK]\n", "")}),
    "json and added tokens": bert(word_pieces(), added_tokens_decoder=ENTITY),
    "json cased, config lower case": bert(word_pieces(), do_lower_case=True),
    "json lower case, config cased": bert(word_pieces(lowercase=True), do_lower_case=False),
    "json that cuts and pads": bert(stored(word_pieces())),
    "json without pair types": bert(word_pieces(), model_input_names=NO_TYPES),
    "word pieces in RoBERTa": WORDS_IN_ROBERTA | {"config": {"pad_token_id": 0}, "pad_token_id": 0},
    "byte level with space, config not": roberta(byte_level(True), add_prefix_space=False),
    "byte level, config with space": roberta(byte_level(), add_prefix_space=True),
    "byte level with dropout": roberta(byte_level(dropout=0.5)),
    "vocab.json and merges.txt": roberta(byte_files(), ""),
    "unigrams": bert(unigrams(), "XLMRoberta") | {"model_type": "xlm-roberta"},
    "unigrams in BERT": bert(unigrams(), do_lower_case=True),
    "CamemBERT": bert(unigrams(CAMEMBERT_START), "Camembert") | {"model_type": "camembert"},
}
# One of each family in every run, the others among the slow tests.
FAST = ["vocab.txt alone", "word pieces in RoBERTa", "unigrams in BERT"]


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[] if k in FAST else pytest.mark.slow) for k in KINDS]
)
def test_every_reader_of_the_export_gives_the_ids_of_training(kind, tmp_path):
    encoder, tokenizer = load_pretrained(checkpoint(tmp_path / "a", vocab_size=300, **KINDS[kind]))
    folder = tmp_path / "export"
    save_pretrained(folder, encoder, tokenizer)
    size = encoder.config.max_tokens
    corpus = corpus_ids(tokenizer, LINES)
    alone = tokenizer.encode_pairs(LINES, max_tokens=size)
    pairs = tokenizer.encode_pairs(LINES, OTHERS, max_tokens=size)
    assert max(len(ids) for ids, _ in pairs) == max(len(ids) for ids, _ in alone) == size

    auto = transformers.AutoTokenizer.from_pretrained(folder)
    assert auto.model_max_length == size
    assert auto(LINES, add_special_tokens=False)["input_ids"] == corpus
    assert auto(LINES, truncation=True)["input_ids"] == [ids for ids, _ in alone]
    rows = auto(LINES, OTHERS, truncation=True)
    no_types = [[0] * len(ids) for ids in rows["input_ids"]]
    types = rows.get("token_type_ids", no_types)
    assert list(zip(rows["input_ids"], types, strict=True)) == pairs
    assert (auto.pad_token_id, auto.mask_token_id) == (tokenizer.pad_id, tokenizer.mask_id)

    if "BertNormalizer" in repr(tokenizer.pipeline.normalizer) and tokenizer.mask_id is not None:
        berts = transformers.BertTokenizer.from_pretrained(folder)
        assert berts(LINES, add_special_tokens=False)["input_ids"] == corpus

    raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert [row.ids for row in raw.encode_batch(LINES, add_special_tokens=False)] == corpus

    again = load_pretrained(folder)[1]
    assert again.hash == tokenizer.hash
    assert again.encode_pairs(LINES, OTHERS, max_tokens=size) == pairs
    save_pretrained(tmp_path / "again", encoder, again)  # equal weights are equal files
    for name in EXPORT:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


@pytest.mark.slow  # so is the import
@pytest.mark.parametrize("kind", KINDS)
def test_sentence_transformers_gives_the_ids_of_training(kind, tmp_path):
    from sentence_transformers import SentenceTransformer

    encoder, tokenizer = load_pretrained(checkpoint(tmp_path / "a", vocab_size=300, **KINDS[kind]))
    save_pretrained(tmp_path / "export", encoder, tokenizer)
    alone = tokenizer.encode_pairs(LINES, max_tokens=encoder.config.max_tokens)
    sentences = SentenceTransformer(str(tmp_path / "export"), device="cpu")
    batch = sentences.tokenize(LINES)
    rows = zip(batch["input_ids"].tolist(), batch["attention_mask"].bool().tolist(), strict=True)
    assert [list(compress(*row)) for row in rows] == [ids for ids, _ in alone]
    sentences.encode(["word " * 100])  # the longest input has positions
