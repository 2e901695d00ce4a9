"""Mistakes of a user at the command line: each is one line, exit status 2, nothing left behind."""

import errno
import json
import os
import re
import resource
import shlex
import subprocess
import sys

import pytest
from conftest import environment, save_tiny
from helpers import ROOT, make_inputs

import train
from distill.training import cli
from minitransformer.files import atomic

# flags, and words of the message
TRAIN = [
    ("--stepz 5", r"unrecognized arguments: --stepz 5 .*--help"),
    ("--lr nan", "--lr is nan"),
    ("--device meta", "--device meta cannot be used here"),
    ("--device hpu", "--device hpu cannot be used here"),
    ("--seq-len 400", "--seq-len 400, .* 40 tokens"),
    ("--method hs --relation-heads 4", "--relation-heads is a setting of mha .*not of --method hs"),
    ("--method od --teacher {here}/headless", "the teacher has no MLM head; .*--method mlm --init"),
    ("--init=-1,2", "-1,2"),
    ("--init {here}/roberta", "different tokenizers"),
    ("--out {here}/teacher", "teacher exists; .*--resume"),
    ("--out /proc/foo", "/proc/foo"),
    (f"--out {'n' * 300}", "File name too long"),
    ("--out \udcff", "is empty or not UTF-8"),
    ("--out ''", "--out '' is empty"),
    ("--out=", "'--out=' is empty"),
    ("--resume", "--out"),
    ("--resume --out nowhere", "nowhere/log.jsonl is missing"),
    ("--resume --out {here}/old", "begun by another version"),
]


@pytest.fixture(scope="module")
def here(home):
    folder = home / "here"
    folder.mkdir()
    make_inputs(folder)
    save_tiny(folder / "roberta", "roberta")
    save_tiny(folder / "headless", mlm_head=False)
    (folder / "old").mkdir()
    start = {"event": "start", "settings": {}, "teacher": None, "start": {}, "text": []}
    (folder / "old" / "log.jsonl").write_text(json.dumps(start) + "\n")
    return folder


def usual(here):
    words = "--steps 2 --seq-len 16 --threads 1 --batch-size 4".split()
    return [f"--teacher={here}/teacher", f"--data=w={here}/text.txt", *words]


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "message"), TRAIN)
def test_a_mistake_is_one_line(flags, message, here, tmp_path, monkeypatch, capfd):
    argv = shlex.split(flags.format(here=here))
    if "--resume" not in argv:
        argv = [*usual(here), *argv]
    monkeypatch.chdir(tmp_path)
    before = {*here.rglob("*")}
    monkeypatch.setattr("sys.argv", ["train.py", *argv])
    with pytest.raises(SystemExit) as ended:
        cli.run(train.main)
    assert re.fullmatch(rf"train\.py: .*{message}.*\n", capfd.readouterr().err)
    assert ended.value.code == 2
    assert not [path for path in tmp_path.rglob("*") if path.name != "runs"]
    assert {*here.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))}, "large"),
        ({"preexec_fn": lambda: os.close(1)}, ""),
        ({"env": {"RANK": "1", "WORLD_SIZE": ""}}, ""),
        ({"env": {"RANK": "0", "WORLD_SIZE": "2"}}, "use torchrun, or unset RANK"),
        ({"env": {"WORLD_SIZE": "2"}}, ""),
        ({"env": {"PYTHONIOENCODING": "ascii"}}, ""),
    ],
)
def test_what_the_surroundings_do_is_one_line_or_nothing(change, says, here, tmp_path):
    """Small files, no stdout, what other programs left in the environment, a name beyond ASCII."""
    env = environment(here.parent) | {"HOME": str(tmp_path)} | change.pop("env", {})
    command = [sys.executable, f"{ROOT}/train.py", *usual(here), "--out", "~/r±n", "--device=cpu"]
    ended = subprocess.run(
        command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True, **change
    )
    assert ended.returncode == (2 if says else 0), ended.stderr
    assert ended.stderr.count("\n") == bool(says)
    assert says in ended.stderr
    left = [path.name for path in tmp_path.glob("[!.]*")]  # matplotlib makes .config
    assert left == ([] if says else ["r±n"])


FULL_DISK = RuntimeError("unexpected pos")  # as torch.save raises it
FULL_DISK.__context__ = OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_named(tmp_path):
    with pytest.raises(OSError, match=r"device: '.*/facts'"), atomic(tmp_path / "facts"):
        raise FULL_DISK.__context__


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "out of memory"),
        (FULL_DISK, 2, "No space left"),
        (ZeroDivisionError(), 1, "Traceback (most recent call last)"),  # a defect keeps it
        (cli.UserError("a name with \x1b[31m in it"), 2, r"a name with \x1b[31m in it"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_trouble_from_outside_is_one_line_too(error, status, message, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    line = capsys.readouterr().err
    assert ended.value.code == status
    assert line.count("\n") == 1 or status == 1
    assert message in line
