"""Checkpoints that people really bring, rebuilt in little: read right or refused.

A04 is in test_export.py; A15, A18, B05 and the wrong names of A25 in test_convert.py; A17 in
test_config.py.
"""

import json
import re

import pytest
import torch
from checkpoints import BERT_WORDS, checkpoint, refusal, vocab_txt, word_pieces
from conftest import corpus_ids, same

from minitransformer import load_pretrained, save_pretrained


@pytest.mark.parametrize(
    ("files", "declared"),
    [
        ({"sentencepiece.bpe.model": b"any"}, "XLMRobertaTokenizer"),  # A01
        ({"spiece.model": b"any"}, "BertTokenizer"),  # A02
        ({"vocab.txt": vocab_txt()}, "BertJapaneseTokenizer"),  # MeCab splits words first
        ({"vocab.json": "{}", "merges.txt": ""}, "HerbertTokenizerFast"),
    ],
)
def test_files_that_are_read_in_another_way_elsewhere(files, declared, tmp_path):
    checkpoint(tmp_path, files=files, config={"tokenizer_class": declared})
    message = refusal(load_pretrained, tmp_path, says=f"and {', '.join(files)} of .* {declared!r}")
    assert "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)" in message
    (tmp_path / "tokenizer.json").write_text(word_pieces().to_str())
    load_pretrained(tmp_path)


SHUFFLED = [*BERT_WORDS[:5], *BERT_WORDS[:4:-1]]
ROWS = len(BERT_WORDS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (BERT_WORDS[:60], rf"tokenizer.json \(60 entries\) and vocab.txt \({ROWS}\) differ"),
        (SHUFFLED, rf"\({ROWS} entries\) and vocab.txt \({ROWS}\) differ, 2\d\d words have an"),
    ],
)
def test_a03_a_stale_tokenizer_json_beside_the_right_vocab_txt(words, said, tmp_path):
    checkpoint(tmp_path, files={"vocab.txt": vocab_txt(), "tokenizer.json": word_pieces(words)})
    refusal(load_pretrained, tmp_path, says=said)


def test_rows_without_a_token_are_refused_only_where_most_are(tmp_path):
    load_pretrained(checkpoint(tmp_path, vocab_size=256))
    checkpoint(tmp_path, vocab_size=2000)
    refusal(load_pretrained, tmp_path, says=f"{ROWS} entries, but the encoder has 2000 rows")


def test_a05_a_cased_vocab_txt_alone(tmp_path, capsys):
    tokenizer = load_pretrained(checkpoint(tmp_path))[1]
    [row] = corpus_ids(tokenizer, ["Hello world é"])
    assert [BERT_WORDS[number] for number in row] == ["hello", "world", "e"]
    assert "text is lower-cased" in capsys.readouterr().out


def test_a09_padding_ids_that_differ_where_positions_depend_on_them(tmp_path):
    checkpoint(tmp_path, "roberta", config={"tokenizer_class": "BertTokenizer"})
    refusal(load_pretrained, tmp_path, says=r"'\[PAD\]' has id 0, but pad_token_id is 1")


def test_a20_added_tokens_beyond_the_table(tmp_path):
    added = {"<ent>": ROWS, "<rel>": ROWS + 1}
    checkpoint(tmp_path, files={"vocab.txt": vocab_txt(), "added_tokens.json": added})
    says = f"token '<rel>' has id {ROWS + 1}, but the encoder has {ROWS} rows"
    refusal(load_pretrained, tmp_path, says=says)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"the": 3}))
    refusal(load_pretrained, tmp_path, says="'the' has two ids: 3 and ")


def of_2019(tensors):
    """Name the norms as TensorFlow does; add a head for sentence pairs, positions, a decoder."""
    table = tensors["bert.embeddings.word_embeddings.weight"]
    tensors = {re.sub("Norm.weight", "Norm.gamma", name): t for name, t in tensors.items()}
    tensors = {re.sub("Norm.bias", "Norm.beta", name): t for name, t in tensors.items()}
    tensors["cls.seq_relationship.weight"] = torch.zeros(2, 32)
    tensors["cls.predictions.decoder.weight"] = table.clone()
    return tensors | {"bert.embeddings.position_ids": torch.arange(40)[None]}


TINYBERT = {"model_type": None, "cell": {}, "emb_size": 32, "structure": [], "num_labels": 3}


@pytest.mark.parametrize(
    ("config", "tensors", "said"),
    [
        ({"model_type": None}, of_2019, "read as bert; dropped cls.seq_relationship"),  # A07, A10
        (TINYBERT, lambda t: t | {"fit_dense.weight": torch.zeros(48, 32)}, "fit_dense"),  # A22
        ({}, lambda t: {f"_orig_mod.module.{n}": x for n, x in t.items()}, "_orig_mod"),  # A25
    ],
)
def test_a07_a10_a22_a25_are_the_modern_copy(config, tensors, said, tmp_path, capsys):
    expected, _ = load_pretrained(checkpoint(tmp_path / "modern"))
    encoder, tokenizer = load_pretrained(checkpoint(tmp_path, config=config, tensors=tensors))
    assert said in capsys.readouterr().out
    assert same(encoder, expected)
    save_pretrained(tmp_path / "export", encoder, tokenizer)
    written = json.loads((tmp_path / "export" / "config.json").read_bytes())
    assert not written.keys() & (TINYBERT.keys() - {"model_type"})
