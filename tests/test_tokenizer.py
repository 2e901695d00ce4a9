"""The tokenizer against transformers' own, from every form of files, its hash, what is refused."""

import json

import pytest
import tokenizers
import transformers
from checkpoints import byte_files, refusal, vocab_txt, word_pieces
from conftest import MODEL_TYPES, byte_level, tiny_config, unigrams
from test_export import LINES as ALL_LINES

from minitransformer.default_teacher import default_teacher_folder
from minitransformer.tokenizer_files import load_tokenizer

LINES = ALL_LINES[:200]
OTHERS = LINES[::-1]
ZERO = ["<unk>", "<pad>", "<s>", "</s>"]  # its unknown token has id 0


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
        {"extra_special_tokens": ["<ent>", "the"]},  # <ent> is not in the vocabulary
        {"additional_special_tokens": ["the", "<ent>"]},
    ],
)
def test_a_folder_with_only_vocab_txt_is_berts_tokenizer(settings, tmp_path):
    vocab = vocab_txt().replace("\n", "\r\n") if "strip_accents" in settings else vocab_txt()
    additional = "additional_special_tokens" in settings
    name = "special_tokens_map.json" if additional else "tokenizer_config.json"
    ours = load(tmp_path, {"vocab.txt": vocab, name: settings})
    assert_equal_ids(ours, transformers.BertTokenizer.from_pretrained(tmp_path))


@pytest.mark.parametrize("space", [True, False])
def test_a_folder_with_only_vocab_json_and_merges_is_robertas_tokenizer(space, tmp_path):
    files = byte_files() | {"tokenizer_config.json": {"add_prefix_space": space}}
    ours = load(tmp_path, files, "roberta")
    # As in roberta-base's own tokenizer.json; transformers 5 forgets it where that file is missing.
    mask = tokenizers.AddedToken("<mask>", lstrip=True, special=True)
    assert_equal_ids(ours, transformers.RobertaTokenizer.from_pretrained(tmp_path, mask_token=mask))


def test_the_default_teachers_tokenizer_cuts_and_pads_only_where_it_is_asked_to(minilm):
    _, tokenizer = minilm
    folder = default_teacher_folder()
    assert json.loads((folder / "tokenizer.json").read_bytes())["truncation"]["max_length"] == 128
    [(ids, types)] = tokenizer.encode_pairs(["word " * 700], max_tokens=200)
    assert (len(ids), len(types)) == (200, 200)
    assert [len(row) for row in tokenizer.encode_batch(["word " * 700, "word"])] == [700, 1]
    assert_equal_ids(tokenizer, transformers.AutoTokenizer.from_pretrained(folder))
    assert tokenizer.special_ids == [0, 100, 101, 102, 103]
    assert (tokenizer.unk_id, tokenizer.mask_id) == (100, 103)


def test_half_a_surrogate_pair_is_replaced(minilm):
    _, tokenizer = minilm
    expected = tokenizer.encode_batch(["ok ? bad"])
    assert tokenizer.encode_batch(["ok \ud83d bad"]) == expected
    pairs = [(text, text) for text in ("ok \ud83d bad", "ok ? bad")]
    first, second = [tokenizer.encode_pairs([a], [b], max_tokens=99) for a, b in pairs]
    assert first == second


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


def test_the_hash_leaves_out_the_last_digits_of_scores(tmp_path):
    parsed = json.loads(unigrams().to_str())
    ours = load(tmp_path, {"tokenizer.json": parsed}, "xlm-roberta")
    parsed["model"]["vocab"][9][1] += 1e-12
    assert load(tmp_path, {"tokenizer.json": parsed}, "xlm-roberta").hash == ours.hash
    parsed["model"]["vocab"][9][1] += 0.01
    assert load(tmp_path, {"tokenizer.json": parsed}, "xlm-roberta").hash != ours.hash


ENTITY = {"id": 265, "content": "<ent>"}
RARE = {"type": "Replace", "pattern": {"String": "ʘ"}, "content": "o"}


@pytest.mark.parametrize(
    "change",
    [
        lambda parsed: parsed["model"]["vocab"].update(new=290),
        lambda parsed: parsed.update(normalizer={"type": "Lowercase"}),
        lambda parsed: parsed["pre_tokenizer"].update(add_prefix_space=True),
        lambda parsed: parsed["post_processor"].update(cls=["</s>", 2]),
        lambda parsed: parsed["model"]["merges"].pop(),
        lambda parsed: parsed["model"].update(ignore_merges=True),
        lambda parsed: parsed["added_tokens"].append(parsed["added_tokens"][0] | ENTITY),
        lambda parsed: parsed.update(normalizer=RARE),
    ],
)
def test_the_hash_sees_vocabulary_and_pipeline(change, tmp_path):
    parsed = json.loads(byte_level().to_str())
    ours = load(tmp_path, {"tokenizer.json": parsed}, "roberta")
    change(parsed)
    assert load(tmp_path, {"tokenizer.json": parsed}, "roberta").hash != ours.hash


TEMPLATE = tokenizers.processors.TemplateProcessing
ENDS = [("<s>", 0), ("</s>", 2)]


@pytest.mark.parametrize(
    "post_processor",
    [
        tokenizers.processors.ByteLevel(),  # adds none
        TEMPLATE("$A </s> <s>", special_tokens=ENDS),  # XLNet's
        TEMPLATE("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 9)]),
    ],
)
def test_a_pipeline_that_does_not_put_a_text_between_two_is_refused(post_processor, tmp_path):
    pipeline = byte_level()
    pipeline.post_processor = post_processor
    message = refusal(load, tmp_path, {"tokenizer.json": pipeline.to_str()}, "roberta")
    assert "not one special token of its vocabulary before it and one after" in message


@pytest.mark.parametrize(
    ("pipeline", "name"),
    [(word_pieces(added=False), "[UNK]"), (unigrams(), "<unk>"), (unigrams(ZERO), "<unk>")],
)
def test_an_unknown_token_of_any_name_is_found(pipeline, name, tmp_path):
    text = pipeline.to_str().replace(name, "<unknown>")
    ours = load(tmp_path, {"tokenizer.json": text})
    assert ours.unk_id == pipeline.token_to_id(name)
    assert ours.encode_batch(["\u2603"])[0][-1] == ours.unk_id


def test_bpe_dropout_is_switched_off_and_said(tmp_path):
    pipeline = byte_level()
    pipeline.model.dropout = 0.5
    ours = load(tmp_path, {"tokenizer.json": pipeline.to_str()}, "roberta")
    expected = load(tmp_path, {"tokenizer.json": byte_level().to_str()}, "roberta")
    assert ours.encode_batch(["the book"] * 20) == expected.encode_batch(["the book"] * 20)
    assert ours.hash == expected.hash
    assert ours.notes[0].startswith("switched off the BPE dropout")
    assert expected.notes == []


PANIC = {"type": "Precompiled", "precompiled_charsmap": "/////w=="}
PANIC = json.loads(word_pieces().to_str()) | {"normalizer": PANIC}
LACKING = [vocab_txt().replace(f"{name}\n", "") for name in ("[SEP]", "[PAD]", "[UNK]")]
WRONG = [  # files beside a good vocab.txt: words of the one line
    ({"tokenizer.json": PANIC}, "cannot read tokenizer.json: Precompiled"),
    ({"vocab.txt": LACKING[0]}, r"vocab.txt lacks '\[SEP\]' among its 222 entries"),
    ({"vocab.txt": LACKING[1]}, r"vocab.txt lacks '\[PAD\]' among its 222 entries"),
    ({"vocab.txt": LACKING[2]}, r"\[UNK\]"),  # the library's message, whatever it is
    ({"tokenizer_config.json": {"do_lower_case": "false"}}, "cannot read the tokenizer: .*'str'"),
    ({"tokenizer_config.json": {"do_lower_case": None}}, "cannot read the tokenizer: .*None"),
    ({"tokenizer_config.json": {"strip_accents": 0}}, "cannot read the tokenizer: .*'int'"),
    ({"tokenizer_config.json": b"[]"}, "tokenizer_config.json: expected a JSON object, not list"),
    ({"tokenizer_config.json": {"cls_token": {"x": 1}}}, "cannot read the tokenizer: "),
    ({"added_tokens.json": {"<ent>": "x"}}, "cannot read the tokenizer: "),
    ({"tokenizer.json": {"model": {"type": "WordPiece"}}}, "cannot read tokenizer.json: "),
    ({"vocab.txt": b"\xff\xff\xff"}, "cannot read vocab.txt: "),
    ({"vocab.txt": b""}, r"vocab.txt lacks '\[CLS\]', '\[SEP\]', '\[PAD\]' among its 1 entries"),
]


@pytest.mark.parametrize(("files", "says"), WRONG)
def test_a_wrong_file_and_setting_is_one_line(files, says, tmp_path, capfd):
    refusal(load, tmp_path, {"vocab.txt": vocab_txt()} | files, says=says)
    assert capfd.readouterr().err == ""  # not the backtrace of a panic


def test_no_tokenizer_at_all(tmp_path):
    says = "^no tokenizer.json, nor vocab.txt, nor vocab.json with merges.txt$"
    refusal(load, tmp_path, {"vocab.json": {}}, says=says)  # without its merges
