"""Mistakes of a user at the command line: each is one line, exit status 2, nothing left behind.

Both programs run in this process, through the cli.run that their __main__ calls. Each row is a
check of the programs themselves; what a part of them refuses stands in the test of that part.
"""

import errno
import json
import os
import re
import shlex

import pytest
import torch
from conftest import Attack, save_tiny
from helpers import make_inputs

import evaluate
import train
from distill.training import cli

# Flags, and words of the message; {here} is the folder with a teacher, texts and broken files.
TRAIN = [
    ("--stepz 5", r"unrecognized arguments: --stepz 5 .*--help"),
    ("--lr nan", "--lr is nan"),
    ("--warmup 2", "--warmup is 2.*0 to 1"),
    ("--device tpu", "--device tpu cannot be used here"),
    ("--seq-len 400", "--seq-len 400, .* 40 tokens"),
    ("--init 9", "layer 9 is not one of .* 1 to 3"),
    ("--init {here}/roberta", "the tokenizers differ"),
    ("--teacher ./nowhere", "./nowhere: no such folder"),
    ("--teacher {here}/pickle", "pickle.*cannot read pytorch_model.bin"),
    ("--teacher {here}/cut", "cut.*cannot read model.safetensors"),
    ("--out {here}/teacher", "teacher exists; .*--resume"),
    ("--out ''", "--out is empty"),
    ("--resume", "--out"),
    ("--resume --out nowhere", "nowhere: no such run folder"),
    ("--resume --out {here}/teacher", "has no start record"),
    ("--resume --out {here}/old", "begun by another version"),
    ("--data web", "unknown; give docs, NAME=path"),
    ("--data web=hub:no-such/dataset-here", "cannot open column 'text' of the hub dataset no-such"),
]
EVALUATE = [
    ("", "arguments are required: RUN"),
    ("./nowhere", "./nowhere: no such folder"),
    ("{here}/unfinished", "unfinished: python train.py --out .* --resume"),
    ("{here}/teacher --tasks poetry", "--tasks poetry: neither a folder nor one"),
    ("{here}/teacher --tasks rte --data-dir nowhere", "nowhere/rte: no train with one of"),
    ("{here}/teacher --seeds 0", "--seeds is 0"),
    ("{here}/teacher --lrs 0", "--lrs is 0.0; it must be at least 1e-12"),
    ("{here}/unfinished --data-dir ''", "--data-dir is empty"),
]


@pytest.fixture(scope="module")
def here(home):
    folder = home / "here"
    folder.mkdir()
    make_inputs(folder)
    save_tiny(folder / "roberta", "roberta")
    weights = save_tiny(folder / "cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    (save_tiny(folder / "pickle") / "model.safetensors").unlink()
    torch.save({"w": Attack("it-ran")}, folder / "pickle" / "pytorch_model.bin")
    for name, settings in {"old": {"method": "mha"}, "unfinished": {}}.items():
        (folder / name).mkdir()
        start = {"event": "start", "settings": settings, "teacher": None, "start": {}, "text": []}
        (folder / name / "log.jsonl").write_text(json.dumps(start) + "\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "flags", "message"),
    [(train, *row) for row in TRAIN] + [(evaluate, *row) for row in EVALUATE],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_mistake_is_one_line(program, flags, message, here, tmp_path, monkeypatch, capfd):
    argv = shlex.split(flags.format(here=here))
    if program is train and "--resume" not in argv:
        argv = [f"--teacher={here}/teacher", *"--steps 2 --seq-len 16 --threads 1".split(), *argv]
    if argv and not {"--data", "--resume"} & {*argv}:
        argv += ["--data", f"w={here}/text.txt"]
    if program is evaluate and argv and "--tasks" not in argv:
        argv += ["--tasks", "none"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [f"{program.__name__}.py", *argv])
    before = {*here.rglob("*")}
    with pytest.raises(SystemExit) as ended:
        cli.run(program.main)
    line = capfd.readouterr().err
    assert ended.value.code == 2, line
    assert re.fullmatch(rf"{program.__name__}\.py: .*{message}.*\n", line)
    assert len(line.replace(str(here), "")) < 400
    assert list(tmp_path.iterdir()) == []  # no run folder, and no file of the pickle's code
    assert {*here.rglob("*")} == before
    assert not list(here.parent.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "out of memory"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "loss.png"), 2, "loss.png: No space"),
        (BrokenPipeError(), 1, "pipe"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_trouble_from_outside_is_one_line_too(error, status, message, monkeypatch, capsys):
    def main():
        raise error

    monkeypatch.setattr("sys.stdout", None)  # replaced where nobody reads it; put back afterwards
    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    line = capsys.readouterr().err
    assert (ended.value.code, line.count("\n")) == (status, 1)
    assert message in line


@pytest.mark.parametrize("error", [ZeroDivisionError, FileNotFoundError])
def test_a_defect_keeps_its_traceback(error, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert ended.value.code == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err
