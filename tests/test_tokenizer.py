"""The tokenizer against transformers' own, from every form of files, its hash, what is refused."""

import json

import pytest
import tokenizers
import transformers
from checkpoints import byte_files, refusal, vocab_txt, word_pieces, write_files
from conftest import byte_level, corpus_ids, tiny_config
from test_export import LINES as ALL_LINES

from minitransformer.tokenizer import load_tokenizer

LINES, ROWS = ALL_LINES[:200], vocab_txt().count("\n")
OTHERS = LINES[::-1]


def load(folder, files, model_type="bert"):
    write_files(folder, files)
    return load_tokenizer(folder, tiny_config(model_type))


def assert_equal_ids(ours, theirs):
    """Corpora (no special tokens) and tasks (special tokens, pairs, cut) come out the same."""
    assert corpus_ids(ours, LINES) == theirs(LINES, add_special_tokens=False)["input_ids"]
    cut = {"truncation": "longest_first", "max_length": 12, "return_token_type_ids": True}
    rows = theirs(LINES, OTHERS, **cut)
    rows = list(zip(rows["input_ids"], rows["token_type_ids"], strict=True))
    assert ours.encode_pairs(LINES, OTHERS, max_tokens=12) == rows


@pytest.mark.parametrize("name", ["do_lower_case", "strip_accents", "tokenize_chinese_chars"])
def test_a_folder_with_only_vocab_txt_is_berts_tokenizer(name, tmp_path):
    vocab = vocab_txt().replace("\n", "\r\n") if name == "strip_accents" else vocab_txt()
    ours = load(tmp_path, {"vocab.txt": vocab, "tokenizer_config.json": {name: False}})
    assert_equal_ids(ours, transformers.BertTokenizer.from_pretrained(tmp_path))


@pytest.mark.parametrize(
    "token",
    ["hello", {"content": "hello", "__type": "AddedToken", "rstrip": True, "normalized": False}],
)
@pytest.mark.parametrize("file", ["special_tokens_map.json", "tokenizer_config.json"])
def test_additional_special_tokens_are_whole(token, file, tmp_path):
    more = {"additional_special_tokens": [token, "[new]"]}
    files = {"vocab.txt": vocab_txt(), file: more, "added_tokens.json": {"[new]": ROWS}}
    ours = load(tmp_path, files)
    assert {ours.pipeline.token_to_id("hello"), ROWS} <= {*ours.special_ids}
    assert_equal_ids(ours, transformers.BertTokenizer.from_pretrained(tmp_path))
    text, theirs = ["ahello HELLO hello"], transformers.BertTokenizer.from_pretrained(tmp_path)
    assert corpus_ids(ours, text) == theirs(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("space", [True, False])
def test_a_folder_with_only_vocab_json_and_merges_is_robertas_tokenizer(space, tmp_path):
    files = byte_files() | {"tokenizer_config.json": {"add_prefix_space": space}}
    ours = load(tmp_path, files, "roberta")
    # As in roberta-base's own tokenizer.json; transformers 5 forgets it where that file is missing.
    mask = tokenizers.AddedToken("<mask>", lstrip=True, special=True)
    assert_equal_ids(ours, transformers.RobertaTokenizer.from_pretrained(tmp_path, mask_token=mask))


def test_roberta_is_read_from_its_own_files_if_they_are_whole(tmp_path):
    declared = {"tokenizer_config.json": {"tokenizer_class": "RobertaTokenizer"}}
    files = byte_files() | declared
    ours = corpus_ids(load(tmp_path, files, "roberta"), LINES)
    words = "\n".join(sorted(files["vocab.json"], key=files["vocab.json"].get))
    assert corpus_ids(load(tmp_path, {"vocab.txt": words}, "roberta"), LINES) == ours
    (tmp_path / "vocab.txt").unlink()
    files["vocab.json"] |= {f"word{n}": 300 + n for n in range(500)}
    refusal(load, tmp_path, files, "roberta", says="merges.txt has 5 lines for .* is it cut off")


def test_the_hash_is_equal_for_one_that_transformers_saved_again(tmp_path):
    declared = {"tokenizer_class": "RobertaTokenizerFast"}
    files = {"tokenizer.json": byte_level(), "tokenizer_config.json": declared}
    ours = load(tmp_path, files, "roberta")
    transformers.AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again", tiny_config("roberta"))
    parsed = json.loads((tmp_path / "again/tokenizer.json").read_bytes())
    assert parsed != json.loads(ours.pipeline.to_str())
    assert again.hash == ours.hash
    changed = parsed | {"normalizer": {"type": "Lowercase"}}
    assert load(tmp_path, files | {"tokenizer.json": changed}, "roberta").hash != ours.hash


def test_bpe_dropout_is_switched_off_and_said(tmp_path):
    said = {"truncation_side": "left", "extra_special_tokens": ["<ent>"]}
    files = {"tokenizer.json": byte_level(dropout=0.5), "tokenizer_config.json": said}
    ours = load(tmp_path, files, "roberta")
    expected = load(tmp_path, {"tokenizer.json": byte_level()}, "roberta")
    assert corpus_ids(ours, ["the book"] * 20) == corpus_ids(expected, ["the book"] * 20)
    assert ours.notes[0] == "truncation_side 'left' is left out here"
    assert ours.notes[1].startswith("switched off the BPE dropout")
    assert ours.notes[2] == "the token '<ent>' is left out: no file gives its id"


@pytest.mark.parametrize("post_processor", ["$A </s> <s>", "$A"])  # XLNet's; none
def test_a_pipeline_that_does_not_put_a_text_between_two_is_refused(post_processor, tmp_path):
    pipeline = byte_level()
    pipeline.post_processor = tokenizers.processors.TemplateProcessing(
        post_processor, special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    says = "not one special token at each end"
    refusal(load, tmp_path, {"tokenizer.json": pipeline.to_str()}, "roberta", says=says)


def test_a_config_that_contradicts_tokenizer_json_is_noted(tmp_path):
    files = {"tokenizer.json": word_pieces(lowercase=True), "tokenizer_config.json": {}}
    assert load(tmp_path, files).notes == []
    files["tokenizer_config.json"] = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    [note] = load(tmp_path, files).notes
    assert note.startswith("WARNING: do_lower_case is True in tokenizer.json, which is read")
    files = {"tokenizer.json": byte_level(True), "tokenizer_config.json": {}}
    [note] = load(tmp_path, files, "roberta").notes  # its class takes False where nothing is said
    assert note.startswith("WARNING: add_prefix_space is True in tokenizer.json")


def test_bos_is_whole_and_null_does_not_hide_the_class_of_config_json(tmp_path):
    files = {"vocab.txt": vocab_txt() + "[BOS]\n", "tokenizer_config.json": {"bos_token": "[BOS]"}}
    ours = load(tmp_path, files)
    assert corpus_ids(ours, ["[BOS]"]) == [[ours.vocab_size - 1]]
    files = {"vocab.txt": vocab_txt(), "tokenizer_config.json": {"tokenizer_class": None}}
    files["config.json"] = {"tokenizer_class": "BertJapaneseTokenizer"}
    refusal(load, tmp_path, files, says="'BertJapaneseTokenizer' cannot be read")


PANIC = {"type": "Precompiled", "precompiled_charsmap": "/////w=="}
PANIC = json.loads(word_pieces().to_str()) | {"normalizer": PANIC}


def test_a_panic_and_a_vocabulary_without_its_special_tokens_are_one_line(tmp_path, capfd):
    letters = {"vocab.txt": vocab_txt(), "tokenizer_config.json": {"extra_special_tokens": "hello"}}
    refusal(load, tmp_path, letters, says="extra_special_tokens is 'hello', not a list of tokens")
    files = {"vocab.txt": vocab_txt().replace("[PAD]\n", ""), "tokenizer_config.json": {}}
    refusal(load, tmp_path, files, says=r"vocab.txt lacks '\[PAD\]' among its 222")
    refusal(load, tmp_path, {"tokenizer.json": PANIC}, says="cannot read the tokenizer: Prec")
    assert capfd.readouterr().err == ""  # not the library's backtrace
