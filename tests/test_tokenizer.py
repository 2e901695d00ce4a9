"""The tokenizer against transformers' own, from every form of files, its hash, what is refused."""

import json

import pytest
import tokenizers
import transformers
from checkpoints import byte_files, refusal, vocab_txt, word_pieces
from conftest import MODEL_TYPES, byte_level, tiny_config, unigrams
from test_export import LINES as ALL_LINES

from minitransformer.default_teacher import default_teacher_folder
from minitransformer.tokenizer import load_tokenizer

LINES = ALL_LINES[:200]
OTHERS = LINES[::-1]


def load(folder, files, model_type="bert"):
    for name, content in files.items():
        content = json.dumps(content) if isinstance(content, dict) else content
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_tokenizer(folder, tiny_config(model_type))


def assert_equal_ids(ours, theirs):
    """Corpora (no special tokens) and tasks (special tokens, pairs, cut) come out the same."""
    assert ours.encode_batch(LINES) == theirs(LINES, add_special_tokens=False)["input_ids"]
    cut = {"truncation": "longest_first", "max_length": 12, "return_token_type_ids": True}
    rows = theirs(LINES, OTHERS, **cut)
    rows = list(zip(rows["input_ids"], rows["token_type_ids"], strict=True))
    assert ours.encode_pairs(LINES, OTHERS, max_tokens=12) == rows


@pytest.mark.parametrize(
    "settings",
    [
        {"do_lower_case": False},
        {"do_lower_case": True},
        {"strip_accents": False},
        {"tokenize_chinese_chars": False},
    ],
)
def test_a_folder_with_only_vocab_txt_is_berts_tokenizer(settings, tmp_path):
    vocab = vocab_txt().replace("\n", "\r\n") if "strip_accents" in settings else vocab_txt()
    ours = load(tmp_path, {"vocab.txt": vocab, "tokenizer_config.json": settings})
    assert_equal_ids(ours, transformers.BertTokenizer.from_pretrained(tmp_path))


@pytest.mark.parametrize("space", [True, False])
def test_a_folder_with_only_vocab_json_and_merges_is_robertas_tokenizer(space, tmp_path):
    files = byte_files() | {"tokenizer_config.json": {"add_prefix_space": space}}
    ours = load(tmp_path, files, "roberta")
    # As in roberta-base's own tokenizer.json; transformers 5 forgets it where that file is missing.
    mask = tokenizers.AddedToken("<mask>", lstrip=True, special=True)
    assert_equal_ids(ours, transformers.RobertaTokenizer.from_pretrained(tmp_path, mask_token=mask))


def test_the_default_teachers_tokenizer_cuts_and_pads_only_where_it_is_asked_to(minilm):
    _, tokenizer = minilm  # its tokenizer.json cuts to 128
    assert [len(row) for row in tokenizer.encode_batch(["word " * 700, "word"])] == [700, 1]
    theirs = transformers.AutoTokenizer.from_pretrained(default_teacher_folder())
    assert_equal_ids(tokenizer, theirs)
    assert tokenizer.special_ids == [0, 100, 101, 102, 103]


def test_half_a_surrogate_pair_is_replaced(minilm):
    first, second = [["ok \ud83d bad"], ["ok ? bad"]]
    assert minilm[1].encode_batch(first) == minilm[1].encode_batch(second)
    pairs = [minilm[1].encode_pairs(texts, texts, max_tokens=99) for texts in (first, second)]
    assert pairs[0] == pairs[1]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_hash_is_equal_for_one_that_transformers_saved_again(model_type, tmp_path):
    unnormalised = json.loads(unigrams().to_str())
    unnormalised["normalizer"] = None  # XLM-R's class keeps no other than SentencePiece's
    files, name = {
        "bert": ({"vocab.txt": vocab_txt()}, "Bert"),
        "roberta": ({"tokenizer.json": byte_level().to_str()}, "Roberta"),
        "xlm-roberta": ({"tokenizer.json": unnormalised}, "XLMRoberta"),
    }[model_type]
    settings = {"tokenizer_class": f"{name}TokenizerFast", "do_lower_case": False}
    ours = load(tmp_path, files | {"tokenizer_config.json": settings}, model_type)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again", tiny_config(model_type))
    parsed = json.loads((tmp_path / "again/tokenizer.json").read_bytes())
    assert parsed != json.loads(ours.pipeline.to_str())
    assert again.hash == ours.hash


def test_bpe_dropout_is_switched_off_and_said(tmp_path):
    pipeline = byte_level()
    pipeline.model.dropout = 0.5
    ours = load(tmp_path, {"tokenizer.json": pipeline.to_str()}, "roberta")
    expected = load(tmp_path, {"tokenizer.json": byte_level().to_str()}, "roberta")
    assert ours.encode_batch(["the book"] * 20) == expected.encode_batch(["the book"] * 20)
    assert ours.hash == expected.hash
    assert ours.notes[0].startswith("switched off the BPE dropout")
    assert expected.notes == []


@pytest.mark.parametrize(
    "change",
    [
        lambda parsed: parsed["model"]["vocab"].update(new=290),
        lambda parsed: parsed.update(normalizer={"type": "Lowercase"}),
        lambda parsed: parsed["pre_tokenizer"].update(add_prefix_space=True),
        lambda parsed: parsed["post_processor"].update(cls=["</s>", 2]),
        lambda parsed: parsed["model"]["merges"].pop(),
    ],
)
def test_the_hash_sees_vocabulary_and_pipeline(change, tmp_path):
    parsed = json.loads(byte_level().to_str())
    ours = load(tmp_path, {"tokenizer.json": parsed}, "roberta")
    change(parsed)
    assert load(tmp_path, {"tokenizer.json": parsed}, "roberta").hash != ours.hash


@pytest.mark.parametrize("post_processor", ["$A </s> <s>", "$A"])  # XLNet's; none
def test_a_pipeline_that_does_not_put_a_text_between_two_is_refused(post_processor, tmp_path):
    pipeline = byte_level()
    pipeline.post_processor = tokenizers.processors.TemplateProcessing(
        post_processor, special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    says = "not one special token of its vocabulary before it and one after"
    refusal(load, tmp_path, {"tokenizer.json": pipeline.to_str()}, "roberta", says=says)


@pytest.mark.parametrize(
    ("pipeline", "name"), [(word_pieces(added=False), "[UNK]"), (unigrams(), "<unk>")]
)
def test_an_unknown_token_of_any_name_is_found(pipeline, name, tmp_path):
    text = pipeline.to_str().replace(name, "<unknown>")
    ours = load(tmp_path, {"tokenizer.json": text})
    assert ours.encode_batch(["\u2603"])[0][-1] == ours.unk_id == pipeline.token_to_id(name)


PANIC = {"type": "Precompiled", "precompiled_charsmap": "/////w=="}
PANIC = json.loads(word_pieces().to_str()) | {"normalizer": PANIC}


@pytest.mark.parametrize(
    ("files", "says"),
    [  # files beside a good vocab.txt: words of the one line
        ({"tokenizer.json": PANIC}, "cannot read the tokenizer: Precompiled"),
        ({"vocab.txt": vocab_txt().replace("[PAD]\n", "")}, r"vocab.txt lacks '\[PAD\]' among"),
        ({"vocab.txt": vocab_txt().replace("[UNK]\n", "")}, r"\[UNK\]"),  # the library's message
        ({"vocab.txt": b"\xff\xff\xff"}, "cannot read the tokenizer: .*utf-8"),
        ({"tokenizer_config.json": {"do_lower_case": "false"}}, "the tokenizer: .*'str'"),
        ({"added_tokens.json": {"<ent>": "x"}}, "cannot read the tokenizer: "),
    ],
)
def test_a_wrong_file_and_setting_is_one_line(files, says, tmp_path, capfd):
    refusal(load, tmp_path, {"vocab.txt": vocab_txt()} | files, says=says)
    assert capfd.readouterr().err == ""  # not the backtrace of a panic
