"""The tokenizer against transformers' own, from every form of files, and what is refused."""

import json

import pytest
import tokenizers
import transformers
from conftest import MODEL_TYPES, tiny_config, tiny_tokenizer, write_tokenizer

from minitransformer import UserError
from minitransformer.embedded import embedded_teacher_folder
from minitransformer.tokenizer import load_tokenizer

TEXTS = [
    "The model is a text.",
    "",
    "  Un token,  two tokens; THE <mask> and [MASK] here\n",
    "naïve café 中文 ω " * 9,
    "a" * 150,
]
PAIRS = ["of the layer", "un, un", "", "the", "in " * 30]


def assert_equal_ids(ours, theirs):
    """Corpora (no special tokens) and tasks (special tokens, pairs, cut) come out the same."""
    kept = {"add_special_tokens": False, "padding": False, "truncation": False}
    assert ours.encode_batch(TEXTS) == theirs(TEXTS, **kept)["input_ids"]
    for pairs in (None, PAIRS):
        for room in (12, 40):
            kept = {"truncation": "longest_first", "max_length": room, "padding": False}
            kept["return_token_type_ids"] = True
            expected = theirs(TEXTS, pairs, **kept)
            expected = list(zip(expected["input_ids"], expected["token_type_ids"], strict=True))
            assert ours.encode_pairs(TEXTS, pairs, max_tokens=room) == expected


# ---- the same ids as transformers ----------------------------------------------------------------


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_what_it_saves_is_the_same_tokenizer_to_transformers(model_type, tmp_path):
    tokenizer = tiny_tokenizer(model_type)
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(model_type).to_dict("X")))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert_equal_ids(tokenizer, theirs)
    assert theirs.model_max_length == 40
    ids = (theirs.cls_token_id, theirs.sep_token_id, theirs.pad_token_id, theirs.mask_token_id)
    assert ids == (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.mask_id)
    assert set(theirs.all_special_ids) == set(tokenizer.special_ids)


@pytest.mark.parametrize("lower", [True, False])
def test_a_folder_with_only_vocab_txt_is_berts_tokenizer(lower, tmp_path):
    write_tokenizer(tmp_path, "bert")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
    ours = load_tokenizer(tmp_path, tiny_config())
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path, do_lower_case=lower)
    assert_equal_ids(ours, theirs)
    assert (ours.encode_batch(["The"]) == ours.encode_batch(["the"])) == lower


def test_windows_line_ends_in_vocab_txt(tmp_path):
    write_tokenizer(tmp_path, "bert")
    text = (tmp_path / "vocab.txt").read_bytes()
    (tmp_path / "vocab.txt").write_bytes(text.replace(b"\n", b"\r\n"))
    ours = load_tokenizer(tmp_path, tiny_config())
    assert ours.hash == tiny_tokenizer().hash


def test_a_folder_with_only_vocab_json_and_merges_is_robertas_tokenizer(tmp_path):
    write_tokenizer(tmp_path, "roberta")
    model = json.loads((tmp_path / "tokenizer.json").read_bytes())["model"]
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    ours = load_tokenizer(tmp_path, tiny_config("roberta"))
    # As in roberta-base's own tokenizer.json; transformers 5 forgets it where that file is missing.
    mask = tokenizers.AddedToken("<mask>", lstrip=True, special=True)
    theirs = transformers.RobertaTokenizer.from_pretrained(tmp_path, mask_token=mask)
    assert_equal_ids(ours, theirs)
    assert ours.encode_batch(["the the"]) == [[261, 262]]  # merged: "the", "Ġthe"


def test_the_embedded_teachers_tokenizer_stores_truncation_and_padding_and_uses_neither(
    embedded, tmp_path
):
    _, tokenizer = embedded
    stored = json.loads((embedded_teacher_folder() / "tokenizer.json").read_bytes())
    assert stored["truncation"]["max_length"] == 128
    assert stored["padding"]["strategy"] == {"Fixed": 128}
    assert [len(row) for row in tokenizer.encode_batch(["word " * 700, "word"])] == [700, 1]
    [(ids, types)] = tokenizer.encode_pairs(["word " * 700], max_tokens=200)
    assert (len(ids), len(types)) == (200, 200)
    assert [len(row) for row in tokenizer.encode_batch(["word " * 700])] == [700]  # off again
    theirs = transformers.AutoTokenizer.from_pretrained(embedded_teacher_folder())
    assert_equal_ids(tokenizer, theirs)
    tokenizer.save(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (embedded_teacher_folder() / path.name).read_bytes()
    assert (tmp_path / "tokenizer.json").exists()
    assert tokenizer.special_ids == [0, 100, 101, 102, 103]


# ---- the hash ------------------------------------------------------------------------------------


def changed(tmp_path, change):
    """The hash of the RoBERTa tokenizer after a change of its parsed tokenizer.json."""
    write_tokenizer(tmp_path, "roberta")
    path = tmp_path / "tokenizer.json"
    parsed = json.loads(path.read_bytes())
    change(parsed)
    path.write_text(json.dumps(parsed, indent=7))
    return load_tokenizer(tmp_path, tiny_config("roberta")).hash


def test_the_hash_leaves_out_truncation_padding_and_layout(tmp_path):
    cut = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    assert changed(tmp_path, lambda t: t.update(truncation=cut)) == tiny_tokenizer("roberta").hash


def test_the_hash_sees_vocabulary_and_pipeline(tmp_path):
    same = tiny_tokenizer("roberta").hash
    assert changed(tmp_path, lambda t: t["model"]["vocab"].update(new=290)) != same
    assert changed(tmp_path, lambda t: t.update(normalizer={"type": "Lowercase"})) != same
    assert changed(tmp_path, lambda t: t["pre_tokenizer"].update(add_prefix_space=True)) != same


# ---- what is refused -----------------------------------------------------------------------------


def refusal(folder, config=None):
    """The one line with which a folder's tokenizer is refused."""
    with pytest.raises(UserError) as raised:
        load_tokenizer(folder, config or tiny_config())
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_no_tokenizer_at_all(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")  # without its merges
    assert "no tokenizer.json, nor vocab.txt, nor vocab.json with merges" in refusal(tmp_path)


def test_an_id_beyond_the_vocabulary_names_both_numbers(tmp_path):
    write_tokenizer(tmp_path, "bert")
    message = refusal(tmp_path, tiny_config(vocab_size=100))
    assert "ids up to 120, but the encoder's vocab_size is 100" in message
    load_tokenizer(tmp_path, tiny_config(vocab_size=121))


def test_a_special_token_that_the_vocabulary_lacks(tmp_path):
    write_tokenizer(tmp_path, "bert")
    text = (tmp_path / "vocab.txt").read_text()
    (tmp_path / "vocab.txt").write_text(text.replace("[MASK]\n", "").replace("[SEP]\n", ""))
    assert "vocabulary lacks '[SEP]'" in refusal(tmp_path)


def test_a_vocabulary_without_its_unknown_token(tmp_path):
    tiny_tokenizer("bert").save(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(
        text.replace('"unk_token":"[UNK]"', '"unk_token":"[NONE]"')
    )
    assert "[UNK]" in refusal(tmp_path)  # what the library calls it, whatever its name


def test_special_tokens_may_have_other_names(tmp_path):
    write_tokenizer(tmp_path, "bert")
    text = (tmp_path / "vocab.txt").read_text()
    (tmp_path / "vocab.txt").write_text(text.replace("[CLS]", "<start>"))
    named = {"cls_token": {"content": "<start>", "lstrip": False}}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
    tokenizer = load_tokenizer(tmp_path, tiny_config())
    assert tokenizer.cls_id == 2
    assert tokenizer.encode_pairs(["the"], max_tokens=9)[0][0][0] == 2


def test_a_pipeline_without_special_tokens_is_refused(tmp_path):
    write_tokenizer(tmp_path, "roberta")
    pipeline = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    pipeline.post_processor = tokenizers.processors.ByteLevel()
    pipeline.save(str(tmp_path / "tokenizer.json"))
    assert "adds 0 special tokens to a text, not 2" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{not json"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"\xff\xfe"),
        ("tokenizer.json", b'{"model": {"type": "WordPiece"}}'),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b'{"cls_token": {"x": 1}}'),
        ("tokenizer_config.json", b'{"do_lower_case": "yes"}'),
        ("special_tokens_map.json", b"7"),
        ("special_tokens_map.json", b'{"cls_token": 55}'),
        ("vocab.txt", b"\xff\xff\xff"),
        ("vocab.txt", b""),
    ],
)
def test_damaged_files_are_refused_in_one_line(name, content, tmp_path):
    write_tokenizer(tmp_path, "bert")
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path)
