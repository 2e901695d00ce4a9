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

from minitransformer import (
    UserError,
    load_pretrained,
    model_hash,
    pretrained,
    save_pretrained,
    weights_hash,
)

TEXTS = ["The text of a model.", "Un layer and token, in the token.", "is"]


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
    first, *others = [{path.name: path.read_bytes() for path in f.iterdir()} for f in folders]
    assert others == [first, first]
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(first) == names
    with safetensors.safe_open(folders[0] / names[1], "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert len({path.stat().st_mode for path in folders[0].iterdir()}) == 1


def test_weights_hash_sees_one_bit():
    encoder = tiny_encoder()
    before = weights_hash(encoder)
    with torch.no_grad():
        encoder.blocks[1].key.bias.view(torch.int32)[5] ^= 1
    assert weights_hash(encoder) != before


def test_model_hash_sees_weights_config_and_tokenizer():
    """Equal tensors with another norm's epsilon or number of heads are another model."""
    encoder = tiny_encoder()
    hashes = {model_hash(encoder, tiny_tokenizer())}
    hashes.add(model_hash(tiny_encoder(seed=1), tiny_tokenizer()))
    hashes.add(model_hash(encoder, tiny_tokenizer("roberta")))
    for change in ({"layer_norm_eps": 1e-5}, {"num_attention_heads": 2}):
        other = tiny_encoder(tiny_config(**change))
        assert weights_hash(other) == weights_hash(encoder)
        hashes.add(model_hash(other, tiny_tokenizer()))
    assert len(hashes) == 5
    assert model_hash(tiny_encoder(), tiny_tokenizer()) in hashes


def test_an_export_that_is_cut_short_is_never_taken_for_a_whole_one(tmp_path, monkeypatch):
    """Killed at each step in turn: config.json comes last, so nothing opens; then it works."""
    whole = {path.name for path in save_tiny(tmp_path / "whole").iterdir()}
    for steps in range(len(whole)):
        folder, left = tmp_path / str(steps), [os.rename] * steps

        def killed(source, target, left=left):
            if not left:
                raise KeyboardInterrupt
            left.pop()(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                save_tiny(folder)
        with pytest.raises(UserError, match=r"no config\.json$"):
            load_pretrained(folder)
        save_tiny(folder)
        assert {path.name for path in folder.iterdir()} == whole


def test_a_full_disk_is_one_line_and_leaves_the_export_that_was_there(saved, monkeypatch):
    before = {path: path.read_bytes() for path in saved.iterdir()}

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pretrained, "save_file", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left on device$"):
        save_tiny(saved, seed=1)
    assert {path: path.read_bytes() for path in saved.iterdir()} == before


def test_files_of_another_export_go_and_others_stay(saved):
    export = {path.name for path in saved.iterdir()}
    kept = {"log.jsonl", "checkpoint-5.pt", "README.md", "projections.safetensors"}
    stale = "vocab.txt merges.txt added_tokens.json special_tokens_map.json pytorch_model.bin"
    stale += " model.safetensors.index.json model-00001-of-00002.safetensors"
    for name in [*kept, *stale.split(), "pytorch_model-00001-of-00001.bin"]:
        (saved / name).write_text("{}")
    save_tiny(saved, "roberta")
    assert {path.name for path in saved.iterdir()} == export | kept
    assert same(load_pretrained(saved)[0], tiny_encoder("roberta"))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_weight_file_is_the_same_encoder(saved, form):
    rewrite(saved, form)
    assert same(load_pretrained(saved)[0], tiny_encoder())


def test_weights_that_are_no_numbers_are_refused_by_name(saved):
    encoder, tokenizer = load_pretrained(saved)
    encoder.blocks[1].query.weight.data[0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    save_pretrained(saved, encoder, tokenizer)
    message = refusal(load_pretrained, saved)
    assert "blocks.1.query.weight holds 3 NaN or infinite of 1,024 numbers" in message


def test_a_sub_folder_is_the_model_only_where_the_folder_has_no_weights(saved):
    save_tiny(saved / "0_backup", "roberta")
    assert load_pretrained(saved)[0].config.model_type == "bert"
    (saved / "model.safetensors").unlink()
    assert load_pretrained(saved)[0].config.model_type == "roberta"


@pytest.mark.parametrize("content", [{"x": Attack("ran")}, b"\x80\x04 damaged", [1], {"x": 1}])
def test_a_pickle_of_something_else_is_refused_and_never_run(content, saved, monkeypatch):
    monkeypatch.chdir(saved)
    torch.save(content, saved / "pytorch_model.bin")
    if isinstance(content, bytes):
        (saved / "pytorch_model.bin").write_bytes(content)
    assert same(load_pretrained(saved)[0], tiny_encoder())  # safetensors come first
    (saved / "model.safetensors").unlink()
    message = refusal(load_pretrained, saved)
    assert "pytorch_model.bin" in message
    assert "weights_only" not in message
    assert not (saved / "ran").exists()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "cannot read model.safetensors.index.json: "),
        ("[]", "model.safetensors.index.json: expected a JSON object, not list"),
        ("{}", "model.safetensors.index.json has no weight_map"),
        ('{"weight_map": {"x": "../other.safetensors"}}', "names '../other.safetensors', which is"),
        ('{"weight_map": {"x": "gone.safetensors"}}', "gone.safetensors"),
        ('{"weight_map": {"x": "%s"}}' % ("x" * 5000), "which is not a weight file"),
    ],
)
def test_an_index_that_is_damaged_or_names_a_file_elsewhere_is_refused(index, message, saved):
    shutil.move(saved / "model.safetensors", saved.parent / "other.safetensors")
    (saved / "model.safetensors.index.json").write_text(index)
    assert message in refusal(load_pretrained, saved)


def test_shards_of_any_name_that_the_index_names_are_read(saved):
    (saved / "model.safetensors").rename(saved / "part.safetensors")
    (saved / "model.safetensors.index.json").write_text('{"weight_map": {"x": "part.safetensors"}}')
    assert same(load_pretrained(saved)[0], tiny_encoder())


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
        with pytest.raises(UserError, match=f"^'{name}' is not a local .* not be downloaded: "):
            load_pretrained(name, revision)
