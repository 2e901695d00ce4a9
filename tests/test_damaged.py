"""Names and folders that hold no model, and weights that are damaged or hostile: one line each."""

import json
import pickle
import shutil

import pytest
import torch
from conftest import FORMS, rewrite, save_tiny

from minitransformer import UserError, load_pretrained


@pytest.fixture
def saved(tmp_path):
    """A folder with a tiny BERT and its MLM head, as save_pretrained writes it."""
    return save_tiny(tmp_path / "saved")


def refusal(name, revision=None):
    """The one line that a name or folder is refused with."""
    with pytest.raises(UserError) as raised:
        load_pretrained(name, revision)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_revision_of_a_folder_is_refused(saved):
    assert "is a folder; only a hub id has a revision ('main')" in refusal(saved, "main")


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "a/b/c", "~/no-such-folder-here"])
def test_a_path_that_is_not_there_is_no_hub_id(name):
    assert refusal(name) == f"{name}: no such folder"


@pytest.mark.parametrize("elsewhere", ["../other.safetensors", "/etc/passwd", "a/b.bin", "", 3])
def test_an_index_that_names_a_file_elsewhere_is_refused(saved, elsewhere):
    shutil.copy(saved / "model.safetensors", saved.parent / "other.safetensors")
    rewrite(saved, "sharded safetensors")
    index = {"weight_map": {"bert.embeddings.LayerNorm.weight": elsewhere}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"names '{elsewhere}', which is no weight file of its folder" in refusal(saved)


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
        (saved / "pytorch_model.bin").write_bytes(pickle.dumps(tensors, protocol=2))
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


@pytest.mark.parametrize("index", [b"{", b"[]", b'{"weight_map": []}', b'{"weight_map": {}}'])
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
