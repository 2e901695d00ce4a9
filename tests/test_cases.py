"""Checkpoints that people really bring, rebuilt in little: read right or refused."""

import json

import pytest
import torch
from checkpoints import BERT_WORDS, checkpoint, refusal, vocab_txt, word_pieces
from conftest import same
from safetensors.torch import load_file

from minitransformer import load_pretrained, save_pretrained


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.mark.parametrize("declared", [{}, {"tokenizer_class": "XLMRobertaTokenizer"}])
@pytest.mark.parametrize("name", ["sentencepiece.bpe.model", "spiece.model"])
def test_a01_a02_a_sentencepiece_model_alone(name, declared, source):
    checkpoint(source, files={name: b"any"}, config=declared)
    message = refusal(load_pretrained, source)
    assert f"{name} alone cannot be read" in message
    assert "XLMRobertaTokenizerFast.from_pretrained(FOLDER)" in message


def test_a03_a_stale_tokenizer_json_beside_the_right_vocab_txt(source):
    stale = word_pieces(BERT_WORDS[:60]).to_str()
    checkpoint(source, files={"vocab.txt": vocab_txt(), "tokenizer.json": stale})
    rows = len(BERT_WORDS)
    said = f"tokenizer.json has 60 entries, but vocab.txt has {rows} and the encoder {rows} rows"
    assert said in refusal(load_pretrained, source)
    (source / "tokenizer.json").unlink()
    load_pretrained(source)


@pytest.mark.parametrize("rows", [8, 128])
def test_rows_without_a_token_are_no_reason_to_refuse(rows, source):
    rows = -(-len(BERT_WORDS) // rows) * rows
    files = {"vocab.txt": vocab_txt(), "tokenizer.json": word_pieces().to_str()}
    load_pretrained(checkpoint(source, files=files, vocab_size=rows))


def test_a_vocabulary_of_another_model(source):
    checkpoint(source, vocab_size=2000)
    assert f"{len(BERT_WORDS)} entries, but the encoder has 2000 rows" in refusal(
        load_pretrained, source
    )


def test_a05_a_cased_vocab_txt_alone(source, capsys):
    _, tokenizer = load_pretrained(checkpoint(source))
    assert "text is lower-cased, as in transformers" in capsys.readouterr().out
    expected = map(BERT_WORDS.index, ("hello", "world", "e"))
    assert tokenizer.encode_batch(["Hello world é"]) == [[*expected]]


def test_a09_padding_ids_that_differ_where_positions_depend_on_them(source):
    checkpoint(source, "roberta", config={"tokenizer_class": "BertTokenizer"})
    assert "'[PAD]' has id 0, but pad_token_id is 1" in refusal(load_pretrained, source)


def test_a20_added_tokens_beyond_the_table(source):
    rows = len(BERT_WORDS)
    checkpoint(source)
    (source / "added_tokens.json").write_text(json.dumps({"<ent>": rows, "<rel>": rows + 1}))
    assert f"token '<rel>' has id {rows + 1}, but the encoder has {rows} rows" in refusal(
        load_pretrained, source
    )
    (source / "added_tokens.json").write_text(json.dumps({"the": 3}))
    assert "'the' has id 3 in one file" in refusal(load_pretrained, source)


PIECES = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abc▁", "▁the", "▁of", "▁a"])
MECAB = {"word_tokenizer_type": "mecab"}
BYTES = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a</w>": 4}


@pytest.mark.parametrize(
    ("files", "declared", "reason"),
    [
        ({"vocab.txt": vocab_txt()}, "BertJapaneseTokenizer", "'BertJapaneseTokenizer'"),
        ({"vocab.txt": vocab_txt(), "bpe.codes": ""}, None, "bpe.codes"),
        ({"vocab.txt": vocab_txt(), "tokenizer_config.json": MECAB}, None, "'mecab'"),
        ({"vocab.txt": PIECES}, None, "'▁the', 0 with '##'"),
        ({"vocab.txt": PIECES.replace("▁", "@@")}, "BertTokenizer", "other pieces"),
        ({"vocab.json": BYTES, "merges.txt": ""}, "HerbertTokenizerFast", "'HerbertTokenizerFast'"),
        ({"vocab.json": BYTES, "merges.txt": ""}, None, "no byte-level pieces"),
    ],
)
def test_files_that_are_read_in_another_way_elsewhere(files, declared, reason, source):
    checkpoint(source, files=files, config={"tokenizer_class": declared})
    message = refusal(load_pretrained, source)
    assert reason in message
    assert "a tokenizer.json that gives the model's ids would be read" in message
    (source / "tokenizer.json").write_text(word_pieces().to_str())
    load_pretrained(source)


def old_norms(tensors):
    names = [name.replace("Norm.weight", "Norm.gamma") for name in tensors]
    names = [name.replace("Norm.bias", "Norm.beta") for name in names]
    return dict(zip(names, tensors.values(), strict=True))


TINYBERT = {"model_type": None, "cell": {}, "emb_size": 32, "structure": [], "num_labels": 3}


@pytest.mark.parametrize(
    ("config", "tensors", "said"),
    [
        ({"model_type": None}, old_norms, "read as bert"),  # A07
        (TINYBERT, lambda t: t | {"fit_dense.weight": torch.zeros(48, 32)}, "fit_dense"),  # A22
    ],
)
def test_a07_a22_are_the_modern_copy(config, tensors, said, source, tmp_path, capsys):
    (tmp_path / "modern").mkdir()
    expected, _ = load_pretrained(checkpoint(tmp_path / "modern"))
    encoder, tokenizer = load_pretrained(checkpoint(source, config=config, tensors=tensors))
    assert said in capsys.readouterr().out
    assert same(encoder, expected)
    save_pretrained(tmp_path / "export", encoder, tokenizer)
    written = json.loads((tmp_path / "export" / "config.json").read_bytes())
    assert not written.keys() & (TINYBERT.keys() - {"model_type"})
    assert not any("fit_dense" in name for name in load_file(tmp_path / "export/model.safetensors"))


def test_a_folder_of_old_sentence_transformers(source):
    inside = source / "0_Transformer"
    inside.mkdir()
    expected = load_pretrained(checkpoint(inside))[1].hash
    assert load_pretrained(source)[1].hash == expected
    (source / "config.json").write_text('{"__version__": "0.2.5"}')
    inside.rename(source / "0_BERT")
    assert load_pretrained(source)[1].hash == expected
