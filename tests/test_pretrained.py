"""Folders in and out: what transformers opens, what is written, every weight file, the hub."""

import json
import os
import shutil

import pytest
import torch
import transformers
from checkpoints import refusal
from conftest import (
    Attack,
    corpus_ids,
    rewrite,
    same,
    save_tiny,
    tiny_config,
    tiny_encoder,
    tiny_tokenizer,
)

from minitransformer import UserError, load_pretrained, model_hash, save_pretrained

TEXTS = ["The text of a model."]
EXPORT = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
EXPORT += ["modules.json", "1_Pooling/config.json"]
CLS = {"pooling_mode": "cls"}


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def saved(tmp_path):
    return save_tiny(tmp_path / "saved")


@pytest.mark.parametrize(("model_type", "mlm_head"), [("bert", True), ("xlm-roberta", False)])
@torch.no_grad()
def test_transformers_gives_the_same_states_and_logits(model_type, mlm_head, tmp_path):
    folder = save_tiny(tmp_path / "out", model_type, mlm_head)
    encoder, tokenizer = load_pretrained(folder)
    assert same(encoder, tiny_encoder(model_type, mlm_head))
    architectures = json.loads((folder / "config.json").read_bytes())["architectures"]
    assert architectures == ["BertForMaskedLM" if mlm_head else "XLMRobertaModel"]
    ids = torch.tensor(corpus_ids(tokenizer, TEXTS))
    ours = encoder(ids).hidden[-1]
    model, report = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert all(name.startswith("pooler.") for name in report["missing_keys"])
    torch.testing.assert_close(model.eval()(ids).last_hidden_state, ours, rtol=0, atol=1e-5)
    if mlm_head:
        auto = transformers.AutoModelForMaskedLM
        model, report = auto.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values())
        torch.testing.assert_close(model.eval()(ids).logits, encoder.mlm_logits(ours))


def test_model_hash_sees_weights_config_and_tokenizer():
    flipped = tiny_encoder()
    with torch.no_grad():
        flipped.blocks[1].key.bias.view(torch.int32)[5] ^= 1  # one bit
    configs = tiny_config(layer_norm_eps=1e-5), tiny_config(num_attention_heads=2)
    models = [tiny_encoder(), flipped, *map(tiny_encoder, configs)]
    hashes = {model_hash(model, tiny_tokenizer()) for model in models}
    hashes.add(model_hash(tiny_encoder(), tiny_tokenizer("roberta")))
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
        refusal(load_pretrained, folder, says=r"cannot read config\.json")
        save_tiny(folder)
        assert sorted(contents(folder)) == sorted(EXPORT)


def test_files_of_another_export_go_and_others_stay(saved):
    kept = {"log.jsonl", "checkpoint-5.pt", "README.md", "projections.safetensors"}
    stale = "vocab.txt merges.txt added_tokens.json special_tokens_map.json pytorch_model.bin"
    stale += " model.safetensors.index.json model-00001-of-00002.safetensors spiece.model"
    stale += " sentence_bert_config.json config_sentence_transformers.json"
    for name in [*kept, *stale.split()]:
        (saved / name).write_text("{}")
    (saved / "modules.json").write_text("[]")
    (saved / "1_Pooling" / "config.json").write_text(json.dumps(CLS))
    save_tiny(saved, "roberta")
    assert {*contents(saved)} == {*EXPORT, *kept}
    encoder, tokenizer = load_pretrained(saved)
    assert same(encoder, tiny_encoder("roberta"))
    assert tokenizer.pooling == "mean"


def test_the_pooling_of_an_encoder_in_a_folder_of_its_own(saved):
    shutil.copytree(saved, saved / "0_Transformer")
    (saved / "0_Transformer" / "modules.json").unlink()
    (saved / "1_Pooling" / "config.json").write_text(json.dumps(CLS))
    assert load_pretrained(saved / "0_Transformer")[1].pooling == "cls"


@pytest.mark.slow  # imports sentence-transformers
@pytest.mark.parametrize(
    ("pooling", "kind", "said"),
    [
        (None, "mean", ""),
        (CLS, "cls", ""),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls", ""),
        ({"pooling_mode": "max"}, "mean", "are pooled by max, a student's by the mean"),
    ],
)
def test_the_students_vectors_are_pooled_as_the_teachers(pooling, kind, said, saved, capsys):
    from sentence_transformers import SentenceTransformer

    (saved / "1_Pooling" / "config.json").unlink()
    if pooling:
        (saved / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    encoder, tokenizer = load_pretrained(saved)
    assert said in capsys.readouterr().out
    save_pretrained(saved, encoder, tokenizer)
    assert load_pretrained(saved)[1].pooling == kind
    sentences = SentenceTransformer(str(saved), device="cpu")
    [(ids, _)] = tokenizer.encode_pairs(TEXTS, max_tokens=40)
    with torch.no_grad():
        hidden = encoder(torch.tensor([ids])).hidden[-1][0]
    ours = hidden[0] if kind == "cls" else hidden.mean(0)
    vector = torch.tensor(sentences.encode(TEXTS)[0])
    torch.testing.assert_close(vector, ours, rtol=0, atol=1e-5)


def test_another_module_is_named_and_a_revision_refused(saved, capsys, monkeypatch):
    modules = [{"type": f"sentence_transformers.models.{name}"} for name in ("Pooling", "Dense")]
    (saved / "modules.json").write_text(json.dumps(modules))
    load_pretrained(saved)
    assert "go through a module Dense, which is left out here" in capsys.readouterr().out
    kinds = {"": "Transformer", "p": "Pooling", "n": "Normalize"}
    modules = [{"path": path, "type": f"x.{kind}"} for path, kind in kinds.items()]
    (saved / "modules.json").write_text(json.dumps(modules))
    (saved / "p").mkdir()
    (saved / "p" / "config.json").write_text(json.dumps(CLS))
    (saved / "config_sentence_transformers.json").write_text(
        '{"prompts": {"q": "query: "}, "similarity_fn_name": "dot"}'
    )
    asks = {"do_lower_case": True, "max_seq_length": 9}
    (saved / "sentence_roberta_config.json").write_text(json.dumps(asks))
    said = json.loads((saved / "tokenizer_config.json").read_text()) | {"model_max_length": 8}
    (saved / "tokenizer_config.json").write_text(json.dumps(said))  # sentence-transformers 6
    save_pretrained(saved, *load_pretrained(saved))
    printed = capsys.readouterr().out
    for said in (
        "its prompts are left out",
        "vectors by 'dot'",
        "tokenizer_config.json cuts texts at 8",
    ):
        assert said in printed
    for said in ("asks for lower-case text", "cuts texts at 9 tokens, a student reads 40"):
        assert f"sentence_roberta_config.json {said}" in printed
    again = load_pretrained(saved)[1]
    assert (again.pooling, again.normalize) == ("cls", True)
    (saved / "modules.json").write_text('["Dense"]')  # odd, but no traceback
    load_pretrained(saved)
    assert "a module Dense, which" in capsys.readouterr().out
    (saved / "minilm").mkdir()
    monkeypatch.chdir(saved)
    refusal(load_pretrained, "minilm", says="the default teacher and a folder; for that say ./min")
    for name in (saved, "minilm"):
        with pytest.raises(UserError, match="is not from the hub and has no revision v2"):
            load_pretrained(name, "v2")
    (saved / "modules.json").write_text("{}")
    with pytest.raises(UserError, match="expected a JSON array, not dict"):
        load_pretrained(saved)


@pytest.mark.parametrize("form", ["one .bin", "sharded safetensors", "sharded .bin"])
def test_every_form_of_weight_file_is_the_same_encoder(saved, form):
    rewrite(saved, form)
    assert same(load_pretrained(saved)[0], tiny_encoder())


def test_weights_that_are_no_numbers_are_refused_by_name(saved):
    encoder, tokenizer = load_pretrained(saved)
    encoder.blocks[1].query.weight.data[0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    save_pretrained(saved, encoder, tokenizer)
    refusal(load_pretrained, saved, says="blocks.1.query.weight holds NaN or infinite numbers")


@pytest.mark.parametrize("content", [{"x": Attack("ran")}, b"\x80\x04 damaged", [1], {"x": 1}])
def test_a_pickle_of_something_else_is_refused_and_never_run(content, saved, monkeypatch, recwarn):
    monkeypatch.chdir(saved)
    torch.save(content, saved / "pytorch_model.bin")
    if isinstance(content, bytes):
        (saved / "pytorch_model.bin").write_bytes(content)
    assert same(load_pretrained(saved)[0], tiny_encoder())  # safetensors come first
    (saved / "model.safetensors").unlink()
    refusal(load_pretrained, saved, says="pytorch_model.bin: damaged, or holds .* tensors$")
    assert not recwarn.list
    assert not (saved / "ran").exists()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 231508\n"
FILES = ["config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "vocab.txt"]


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_a_git_lfs_pointer_and_a_pipe_are_one_line(name, saved):
    if name.startswith("pytorch"):
        (saved / "model.safetensors").unlink()
    (saved / name).write_bytes(b"{\xff")
    refusal(load_pretrained, saved, says=f"cannot read ({name}|the tokenizer): ")
    (saved / name).write_bytes(LFS)
    refusal(load_pretrained, saved, says=f"{name} is a Git LFS pointer: run git lfs pull")
    (saved / name).unlink()
    os.mkfifo(saved / name)
    refusal(load_pretrained, saved, says=f"{name} is not a regular file")


def test_a_hub_id_is_read_from_the_hubs_own_cache(tmp_path, monkeypatch):
    """Two revisions, one of pickles, in the layout of the hub's cache, read offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    base = tmp_path / "models--tiny--bert"
    (base / "refs").mkdir(parents=True)
    for seed, revision in enumerate(("main", "v2")):
        commit = str(seed) * 40
        folder = save_tiny(base / "snapshots" / commit, seed=seed)
        if revision == "v2":
            rewrite(folder, "sharded .bin")
        (base / "refs" / revision).write_text(commit)
        for asked in (revision, commit, None if seed == 0 else commit):
            assert same(load_pretrained("tiny/bert", asked)[0], tiny_encoder(seed=seed))
    for name, revision in (("tiny/unknown", None), ("tiny/bert", "v3"), ("not a name!", None)):
        refusal(load_pretrained, name, revision, says="no folder, download failed: ")
