"""Checkpoints that people really bring, rebuilt in little: read right or refused.

A17 is in test_config.py; A18, B05 and the wrong names of A25 are in test_convert.py.
"""

import json

import pytest
import torch
import transformers
from checkpoints import BERT_WORDS, checkpoint, refusal, vocab_txt, word_pieces
from conftest import same
from safetensors.torch import load_file

from minitransformer import UserError, load_pretrained, save_pretrained

TEXT = "Hello world é"


def ids_of(folder, text=TEXT):
    """The ids that training reads, after a check that transformers reads the same in the export."""
    encoder, tokenizer = load_pretrained(folder)
    export = folder.with_name("export")
    save_pretrained(export, encoder, tokenizer)
    [(ids, _)] = tokenizer.encode_pairs([text], max_tokens=40)
    theirs = transformers.AutoTokenizer.from_pretrained(export)
    assert theirs(text)["input_ids"] == ids
    return ids


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def words(*names):
    return [BERT_WORDS.index(name) for name in names]


# ---- tokenizers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sentencepiece.bpe.model", "spiece.model", "tokenizer.model"])
def test_a01_a02_a_sentencepiece_model_alone(name, source):
    checkpoint(source, files={name: b"any"}, config={"tokenizer_class": "XLMRobertaTokenizer"})
    message = refusal(
        load_pretrained, source, says=f"{name} alone cannot be read; a tokenizer.json"
    )
    assert "XLMRobertaTokenizerFast (or the model's own class).from_pretrained(FOLDER)" in message


SHUFFLED = [*BERT_WORDS[:5], *BERT_WORDS[:4:-1]]
ROWS = len(BERT_WORDS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            BERT_WORDS[:60],
            rf"tokenizer.json \(60 entries\) and vocab.txt \({ROWS}\) .* {ROWS} rows",
        ),
        (SHUFFLED, rf"\({ROWS} entries\) and vocab.txt \({ROWS}\) differ, 2\d\d words have an"),
    ],
)
def test_a03_a_stale_tokenizer_json_beside_the_right_vocab_txt(words, said, source):
    stale = word_pieces(words).to_str()
    checkpoint(source, files={"vocab.txt": vocab_txt(), "tokenizer.json": stale})
    refusal(load_pretrained, source, says=said)
    (source / "tokenizer.json").unlink()
    load_pretrained(source)


@pytest.mark.parametrize("rows", [8, 128])
def test_rows_without_a_token_are_no_reason_to_refuse(rows, source):
    rows = -(-len(BERT_WORDS) // rows) * rows
    files = {"vocab.txt": vocab_txt(), "tokenizer.json": word_pieces().to_str()}
    load_pretrained(checkpoint(source, files=files, vocab_size=rows))


def test_a_vocabulary_of_another_model(source):
    checkpoint(source, vocab_size=2000)
    refusal(load_pretrained, source, says=f"{ROWS} entries, but the encoder has 2000 rows")


def test_a04_word_pieces_under_robertas_body_and_class(source):
    declared = {"tokenizer_class": "RobertaTokenizer", "bos_token": "[CLS]", "eos_token": "[SEP]"}
    files = {"tokenizer.json": word_pieces().to_str(), "tokenizer_config.json": declared}
    checkpoint(source, "roberta", files, pad_token_id=0)
    assert ids_of(source) == words("[CLS]", "Hello", "world", "é", "[SEP]")
    pairs = load_pretrained(source)[1].encode_pairs(["a"], ["b"], max_tokens=9)
    assert pairs[0][1] == [0] * 5  # this body has no second token type


def test_a05_a_cased_vocab_txt_alone(source, capsys):
    checkpoint(source, files={"vocab.txt": vocab_txt()})
    assert ids_of(source) == words("[CLS]", "hello", "world", "e", "[SEP]")
    assert "text is lower-cased, as in transformers" in capsys.readouterr().out
    theirs = transformers.AutoTokenizer.from_pretrained(source.with_name("export"))
    assert theirs("a", "b")["token_type_ids"] == [0, 0, 0, 1, 1]


def test_an_uncased_vocab_txt_with_a_sign_in_upper_case_is_not_suspected(source, capsys):
    lower = sorted({word.lower() for word in BERT_WORDS if not word.startswith("[")})
    text = vocab_txt([*BERT_WORDS[:5], *lower, "ℝ"])
    load_pretrained(checkpoint(source, files={"vocab.txt": text}, vocab_size=300))
    assert "lower-cased" not in capsys.readouterr().out


def test_a09_padding_ids_that_differ_where_positions_depend_on_them(source):
    checkpoint(source, "roberta", config={"tokenizer_class": "BertTokenizer"})
    refusal(load_pretrained, source, says=r"'\[PAD\]' has id 0, but pad_token_id is 1")


def test_a20_added_tokens_beyond_the_table(source):
    added = {"<ent>": ROWS, "<rel>": ROWS + 1}
    checkpoint(source, files={"vocab.txt": vocab_txt(), "added_tokens.json": added})
    says = f"token '<rel>' has id {ROWS + 1}, but the encoder has {ROWS} rows"
    refusal(load_pretrained, source, says=says)
    (source / "added_tokens.json").write_text(json.dumps({"the": 3}))
    refusal(load_pretrained, source, says="'the' has id 3 in one file")


PIECES = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abc▁", "▁the", "▁of", "▁a"])
MECAB = {"word_tokenizer_type": "mecab"}
BYTES = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a</w>": 4}


@pytest.mark.parametrize(
    ("files", "declared", "reason"),
    [
        ({"vocab.txt": vocab_txt()}, "BertJapaneseTokenizer", "'BertJapaneseTokenizer'"),
        ({"vocab.txt": vocab_txt()}, "KoBertTokenizer", "'KoBertTokenizer'"),
        ({"vocab.txt": vocab_txt(), "tokenizer_config.json": MECAB}, None, "'mecab'"),
        ({"vocab.txt": PIECES}, None, "pieces like '▁a'"),
        ({"vocab.txt": PIECES.replace("▁a", "a@@")}, "BertTokenizer", "pieces like 'a@@'"),
        ({"vocab.json": BYTES, "merges.txt": ""}, "HerbertTokenizerFast", "'HerbertTokenizerFast'"),
        ({"vocab.json": BYTES, "merges.txt": ""}, None, "pieces like 'a</w>'"),
    ],
)
def test_files_that_are_read_in_another_way_elsewhere(files, declared, reason, source):
    checkpoint(source, files=files, config={"tokenizer_class": declared})
    refusal(load_pretrained, source, says=f"{reason} cannot be read; a tokenizer.json that gives")
    for name in files:
        (source / name).unlink()
    (source / "tokenizer.json").write_text(word_pieces().to_str())
    load_pretrained(source)


# ---- weights and config.json ---------------------------------------------------------------------


def old_norms(tensors):
    """Name the norms' tensors as TensorFlow does."""
    names = [name.replace("Norm.weight", "Norm.gamma") for name in tensors]
    names = [name.replace("Norm.bias", "Norm.beta") for name in names]
    return dict(zip(names, tensors.values(), strict=True))


def of_2019(tensors):
    """Add a head for sentence pairs, positions, and a decoder without a bias."""
    tensors = old_norms(tensors)
    tensors["cls.seq_relationship.weight"] = torch.zeros(2, 32)
    table = tensors["bert.embeddings.word_embeddings.weight"]
    tensors["cls.predictions.decoder.weight"] = table.clone()
    tensors["bert.embeddings.position_ids"] = torch.arange(40)[None]
    return tensors


TINYBERT = {"model_type": None, "cell": {}, "emb_size": 32, "structure": [], "num_labels": 3}


@pytest.mark.parametrize(
    ("config", "tensors", "said"),
    [
        ({"model_type": None}, old_norms, "read as bert"),  # A07
        ({}, of_2019, "dropped cls.seq_relationship"),  # A10
        (TINYBERT, lambda t: t | {"fit_dense.weight": torch.zeros(48, 32)}, "fit_dense"),  # A22
        ({}, lambda t: {f"_orig_mod.module.{n}": x for n, x in t.items()}, "_orig_mod"),  # A25
    ],
)
def test_a07_a10_a22_a25_are_the_modern_copy(config, tensors, said, source, tmp_path, capsys):
    (tmp_path / "modern").mkdir()
    expected, _ = load_pretrained(checkpoint(tmp_path / "modern"))
    encoder, tokenizer = load_pretrained(checkpoint(source, config=config, tensors=tensors))
    assert said in capsys.readouterr().out
    assert same(encoder, expected)
    save_pretrained(tmp_path / "export", encoder, tokenizer)
    written = json.loads((tmp_path / "export" / "config.json").read_bytes())
    assert not written.keys() & (TINYBERT.keys() - {"model_type"})
    assert not any("fit_dense" in name for name in load_file(tmp_path / "export/model.safetensors"))


def test_a15_a_teacher_without_a_head(source):
    headless = lambda t: {n.removeprefix("bert."): x for n, x in t.items() if "cls." not in n}  # noqa: E731
    encoder = load_pretrained(checkpoint(source, tensors=headless))[0]
    assert encoder.mlm_head is None
    with pytest.raises(UserError, match=r"no MLM head .*--method mlm"):
        encoder.mlm_logits(torch.zeros(1, 32))


def test_a_folder_of_old_sentence_transformers(source):
    inside = source / "0_Transformer"
    inside.mkdir()
    expected = load_pretrained(checkpoint(inside))[1].hash
    assert load_pretrained(source)[1].hash == expected
    (source / "config.json").write_text('{"__version__": "0.2.5"}')
    inside.rename(source / "0_BERT")
    assert load_pretrained(source)[1].hash == expected
