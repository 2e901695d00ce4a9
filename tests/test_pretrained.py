"""Folders in and out: what transformers opens, what is written, every weight file, the hub."""

import errno
import json
import os
import shutil

import pytest
import safetensors.torch
import sentence_transformers
import torch
import transformers
from checkpoints import refusal
from conftest import (
    FORMS,
    Attack,
    rewrite,
    same,
    save_tiny,
    tiny_config,
    tiny_encoder,
    tiny_tokenizer,
)

from minitransformer import load_pretrained, model_hash, pretrained, save_pretrained, weights_hash
from minitransformer.convert import to_hugging_face

TEXTS = ["The text of a model.", "Un layer and token, in the token.", "is"]


EXPORT = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
EXPORT += ["modules.json", "1_Pooling/config.json"]
CLS = {"pooling_mode": "cls"}
OLD_CLS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}


def contents(folder):
    """Return {path: bytes} of all files below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def saved(tmp_path):
    return save_tiny(tmp_path / "saved")


@pytest.mark.parametrize(
    ("model_type", "mlm_head", "architecture"),
    [
        ("bert", True, "BertForMaskedLM"),
        ("roberta", True, "RobertaForMaskedLM"),
        ("xlm-roberta", False, "XLMRobertaModel"),
    ],
)
def test_others_give_the_same_vectors(model_type, mlm_head, architecture, tmp_path):
    folder = save_tiny(tmp_path / "out", model_type, mlm_head)
    encoder, _ = load_pretrained(folder)
    assert same(encoder, tiny_encoder(model_type, mlm_head))
    batch = transformers.AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding=True, return_tensors="pt"
    )
    mask = batch["attention_mask"].bool()
    with torch.no_grad():
        ours = encoder(batch["input_ids"], mask).hidden[-1]

    model, report = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert all(name.startswith("pooler.") for name in report["missing_keys"])
    with torch.no_grad():
        theirs = model.eval()(**batch).last_hidden_state
    torch.testing.assert_close(theirs[mask], ours[mask], rtol=0, atol=1e-5)

    sentences = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    means = torch.stack([row[m].mean(0) for row, m in zip(ours, mask, strict=True)])
    torch.testing.assert_close(torch.tensor(sentences), means, rtol=0, atol=1e-5)

    assert json.loads((folder / "config.json").read_bytes())["architectures"] == [architecture]
    if mlm_head:
        model, report = transformers.AutoModelForMaskedLM.from_pretrained(
            folder, output_loading_info=True
        )
        assert not any(report.values())
        with torch.no_grad():
            logits = model.eval()(**batch).logits
            torch.testing.assert_close(logits[mask], encoder.mlm_logits(ours)[mask])


def test_equal_weights_are_equal_files(tmp_path):
    folders = [save_tiny(tmp_path / "1"), save_tiny(tmp_path / "2"), tmp_path / "3"]
    save_pretrained(folders[2], *load_pretrained(folders[0]))
    first, *others = [contents(folder) for folder in folders]
    assert others == [first, first]
    assert sorted(first) == sorted(EXPORT)
    with safetensors.safe_open(folders[0] / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert len({(folders[0] / name).stat().st_mode for name in EXPORT}) == 1


def test_model_hash_sees_weights_config_and_tokenizer():
    """Equal tensors with another norm's epsilon or number of heads are another model."""
    encoder = tiny_encoder()
    hashes = {model_hash(encoder, tiny_tokenizer())}
    with torch.no_grad():
        encoder.blocks[1].key.bias.view(torch.int32)[5] ^= 1  # one bit
    hashes.add(model_hash(encoder, tiny_tokenizer()))
    encoder = tiny_encoder()
    hashes.add(model_hash(encoder, tiny_tokenizer("roberta")))
    for change in ({"layer_norm_eps": 1e-5}, {"num_attention_heads": 2}):
        other = tiny_encoder(tiny_config(**change))
        assert weights_hash(other) == weights_hash(encoder)
        hashes.add(model_hash(other, tiny_tokenizer()))
    assert len(hashes) == 5
    assert model_hash(tiny_encoder(), tiny_tokenizer()) in hashes


def test_an_export_that_is_cut_short_is_never_taken_for_a_whole_one(tmp_path, monkeypatch):
    """Killed at each step in turn: config.json comes last, so nothing opens; then it works."""
    for steps in range(len(EXPORT)):
        folder, left = tmp_path / str(steps), [os.rename] * steps

        def killed(source, target, left=left):
            if not left:
                raise KeyboardInterrupt
            left.pop()(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a kill leaves all as it is
            with pytest.raises(KeyboardInterrupt):
                save_tiny(folder)
        refusal(load_pretrained, folder, says=r"no config\.json$")
        save_tiny(folder)
        assert sorted(contents(folder)) == sorted(EXPORT)


def test_a_full_disk_is_one_line_and_leaves_the_export_that_was_there(saved, monkeypatch):
    before = contents(saved)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("save_file", "flush"):
        with monkeypatch.context() as patch:
            patch.setattr(pretrained, name, full)
            refusal(save_tiny, saved, says=r"cannot write .*No space left on device$")
        assert contents(saved) == before


def test_files_of_another_export_go_and_others_stay(saved):
    kept = {"log.jsonl", "checkpoint-5.pt", "README.md", "projections.safetensors"}
    stale = "vocab.txt merges.txt added_tokens.json special_tokens_map.json pytorch_model.bin"
    stale += " model.safetensors.index.json model-00001-of-00002.safetensors spiece.model"
    stale += " sentence_bert_config.json config_sentence_transformers.json bert_config.json"
    for name in [*kept, *stale.split(), "pytorch_model-00001-of-00001.bin"]:
        (saved / name).write_text("{}")
    (saved / "modules.json").write_text("[]")
    (saved / "1_Pooling" / "config.json").write_text(json.dumps(CLS))
    save_tiny(saved, "roberta")
    assert {*contents(saved)} == {*EXPORT, *kept}
    encoder, tokenizer = load_pretrained(saved)
    assert same(encoder, tiny_encoder("roberta"))
    assert tokenizer.pooling == "mean"
    assert len(json.loads((saved / "modules.json").read_bytes())) == 2


@pytest.mark.parametrize(
    ("pooling", "kind", "said"),
    [
        (None, "mean", ""),
        (CLS, "cls", ""),
        (OLD_CLS, "cls", ""),
        ({"pooling_mode": ["mean"]}, "mean", ""),
        ({"pooling_mode": "max"}, "mean", "are pooled by ['max'], a student's by the mean"),
        (OLD_CLS | {"pooling_mode_max_tokens": True}, "mean", "pooled by ['pooling_mode_cls"),
    ],
)
def test_the_students_vectors_are_pooled_as_the_teachers(pooling, kind, said, saved, capsys):
    shutil.rmtree(saved / "1_Pooling")
    if pooling:
        (saved / "1_Pooling").mkdir()
        (saved / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    encoder, tokenizer = load_pretrained(saved)
    assert said in capsys.readouterr().out
    save_pretrained(saved, encoder, tokenizer)
    assert load_pretrained(saved)[1].pooling == tokenizer.pooling == kind
    sentences = sentence_transformers.SentenceTransformer(str(saved), device="cpu")
    [(ids, _)] = tokenizer.encode_pairs(TEXTS[:1], max_tokens=40)
    with torch.no_grad():
        hidden = encoder(torch.tensor([ids])).hidden[-1][0]
    ours = hidden[0] if kind == "cls" else hidden.mean(0)
    vector = torch.tensor(sentences.encode(TEXTS[:1])[0])
    torch.testing.assert_close(vector, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_weight_file_is_the_same_encoder(saved, form):
    rewrite(saved, form)
    assert same(load_pretrained(saved)[0], tiny_encoder())


def test_weights_that_are_no_numbers_are_refused_by_name(saved):
    encoder, tokenizer = load_pretrained(saved)
    encoder.blocks[1].query.weight.data[0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    save_pretrained(saved, encoder, tokenizer)
    says = "blocks.1.query.weight holds 3 NaN or infinite of 1,024 numbers"
    refusal(load_pretrained, saved, says=says)


def test_a_sub_folder_is_the_model_only_where_the_folder_has_no_weights(saved):
    save_tiny(saved / "0_backup", "roberta")
    assert load_pretrained(saved)[0].config.model_type == "bert"
    (saved / "model.safetensors").unlink()
    assert load_pretrained(saved)[0].config.model_type == "roberta"


@pytest.mark.parametrize("content", [{"x": Attack("ran")}, b"\x80\x04 damaged", [1], {"x": 1}])
def test_a_pickle_of_something_else_is_refused_and_never_run(content, saved, monkeypatch, recwarn):
    monkeypatch.chdir(saved)
    torch.save(content, saved / "pytorch_model.bin")
    if isinstance(content, bytes):
        (saved / "pytorch_model.bin").write_bytes(content)
    assert same(load_pretrained(saved)[0], tiny_encoder())  # safetensors come first
    (saved / "model.safetensors").unlink()
    message = refusal(load_pretrained, saved, says="pytorch_model.bin: it is damaged, or holds")
    assert "weights_only" not in message
    assert not recwarn.list
    assert not (saved / "ran").exists()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 231508\n"
INDEX = "model.safetensors.index.json"
FILES = [  # file, its content (None: a pipe), words of the one line
    (INDEX, b"{", "cannot read model.safetensors.index.json: "),
    (INDEX, b"[]", "model.safetensors.index.json: expected a JSON object, not list"),
    (INDEX, b"{}", "model.safetensors.index.json has no weight_map"),
    (INDEX, b'{"weight_map": {"x": "gone.safetensors"}}', "gone.safetensors"),
    (INDEX, b'{"weight_map": {"x": "%s"}}' % (b"x" * 5000), "cannot read xxx"),
    ("config.json", b"{", "cannot read config.json: "),
    ("config.json", LFS, "config.json is a Git LFS pointer: run git lfs pull"),
    ("config.json", None, "config.json is not a regular file"),
    ("model.safetensors", b"x" * 99, "cannot read model.safetensors: "),
    ("model.safetensors", LFS, "model.safetensors is a Git LFS pointer: run git lfs pull"),
    ("model.safetensors", None, "model.safetensors is not a regular file"),
    ("pytorch_model.bin", LFS, "pytorch_model.bin is a Git LFS pointer: run git lfs pull"),
    ("pytorch_model.bin", None, "pytorch_model.bin is not a regular file"),
    ("tokenizer.json", b"{not json", "cannot read tokenizer.json: "),
    ("tokenizer.json", LFS, "tokenizer.json is a Git LFS pointer: run git lfs pull"),
    ("tokenizer.json", None, "tokenizer.json is not a regular file"),
    ("tokenizer_config.json", None, "tokenizer_config.json is not a regular file"),
    ("vocab.txt", None, "vocab.txt is not a regular file"),
    ("1_Pooling/config.json", None, "config.json is not a regular file"),
]


@pytest.mark.parametrize(("name", "content", "says"), FILES)
def test_a_damaged_file_a_pointer_and_a_pipe_are_one_line(name, content, says, saved):
    if name.startswith(("pytorch", INDEX)):
        (saved / "model.safetensors").unlink()
    (saved / name).unlink(missing_ok=True)
    os.mkfifo(saved / name) if content is None else (saved / name).write_bytes(content)
    refusal(load_pretrained, saved, says=says)


def test_terminal_escapes_in_names_and_notes_are_shown_and_not_sent(saved, capsys):
    escape = "\x1b[31m"
    refusal(load_pretrained, escape, says=r"\\x1b\[31m")
    folder = saved.rename(saved.with_name(f"a{escape}"))
    (folder / "model.safetensors").unlink()
    (folder / "config.json").rename(folder / "bert_config.json")  # the first BERT's name
    tensors = to_hugging_face(tiny_encoder())
    tensors[f"classifier{escape}.weight"] = torch.zeros(2)
    torch.save(tensors, folder / "pytorch_model.bin")
    assert same(load_pretrained(folder)[0], tiny_encoder())
    out = capsys.readouterr().out
    assert r"a\x1b[31m: dropped classifier\x1b[31m" in out
    assert "\x1b" not in out


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-of-this-name/x", "~/" + "y" * 300, "\0"])
def test_a_name_that_no_folder_can_have_is_one_line(name):
    refusal(load_pretrained, name)


def test_a_hub_id_is_read_from_the_hubs_own_cache(tmp_path, monkeypatch):
    """Two revisions and a repository of pickles in the layout of the hub's cache, read offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("bert", "pickles"):
        base = tmp_path / f"models--tiny--{name}"
        for seed, revision in enumerate(("main", "v2")):
            commit = str(seed) * 40
            folder = save_tiny(base / "snapshots" / commit, seed=seed)
            if name == "pickles":
                rewrite(folder, "sharded .bin")
            for part in ("refs", "blobs"):
                (base / part).mkdir(exist_ok=True)
            (base / "refs" / revision).write_text(commit)
            for number, path in enumerate([*folder.iterdir()]):
                path.symlink_to(path.rename(base / "blobs" / f"{seed}{number}"))
            for asked in (revision, commit, None if seed == 0 else commit):
                encoder, _ = load_pretrained(f"tiny/{name}", asked)
                assert same(encoder, tiny_encoder(seed=seed))
    for name, revision in (("tiny/unknown", None), ("tiny/bert", "v3"), ("not a name!", None)):
        says = f"^'{name}' is not a local .* not be downloaded: "
        refusal(load_pretrained, name, revision, says=says)
