"""Mistakes of a user at the command line: each is one line, exit status 2, nothing left behind.

Both programs run in this process, through the cli.run that their __main__ calls. Each row is a
check of the programs themselves; what a part of them refuses stands in the test of that part.
"""

import errno
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import Attack, environment, save_tiny
from helpers import ROOT, make_inputs

import evaluate
import train
from distill.training import cli
from distill.training.run import Run

# Flags, and words of the message; {here} is the folder with a teacher, texts and broken files.
TRAIN = [
    ("--stepz 5", r"unrecognized arguments: --stepz 5 .*--help"),
    ("--lr nan", "--lr is nan"),
    ("--warmup 2", "--warmup is 2.*0 to 1"),
    ("--device tpu", "--device tpu cannot be used here"),
    ("--device meta", "--device meta cannot be used here"),
    ("--seq-len 400", "--seq-len 400, .* 40 tokens"),
    ("--method hs --relation-heads 4", "--relation-heads is a setting of mha .*not of --method hs"),
    ("--mapping uniform", "--mapping is a setting of hs, not of --method mha"),
    ("--init 9", "--init 9: list 1 layers, .* from 1 to 3"),
    ("--init=-1,2", "-1,2"),
    ("--init {here}/roberta", "the tokenizers differ"),
    ("--teacher ./nowhere", "./nowhere: no such folder"),
    ("--teacher {here}/pickle", "pickle.*cannot read pytorch_model.bin"),
    ("--teacher {here}/cut", "cut.*cannot read model.safetensors"),
    ("--out {here}/teacher", "teacher exists; .*--resume"),
    ("--out {here}/text.txt", "text.txt"),
    ("--out /proc/foo", "/proc/foo"),
    (f"--out {'n' * 300}", "File name too long"),
    ("--out \udcff", "is not UTF-8"),
    ("--out ''", "--out is empty"),
    ("--resume", "--out"),
    ("--resume --out nowhere", "nowhere/log.jsonl is missing"),
    ("--resume --out {here}/teacher", "has no start record"),
    ("--resume --out {here}/old", "begun by another version"),
    ("--data web", "unknown; give docs, NAME=path"),
    ("--data web=hub:no-such/dataset-here", "no-such"),
]
EVALUATE = [
    ("", "arguments are required: RUN"),
    ("./nowhere", "./nowhere: no such folder"),
    ("{here}/unfinished", "unfinished: python train.py --out .* --resume"),
    ("{here}/teacher --tasks poetry", "--tasks poetry: "),
    ("{here}/teacher --seeds 0", "--seeds is 0"),
    ("{here}/teacher --lr 0", "--lr is 0.0; it must be at least 1e-12"),
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


def usual(here):
    words = "--steps 2 --seq-len 16 --threads 1 --batch-size 4".split()
    return [f"--teacher={here}/teacher", *words]


def end(program, argv, monkeypatch, capfd):
    """Run the program; return its exit status and the lines on stderr."""
    monkeypatch.setattr("sys.argv", [f"{program.__name__}.py", *argv])
    with pytest.raises(SystemExit) as ended:
        cli.run(program.main)
    return ended.value.code, capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "flags", "message"),
    [(train, *row) for row in TRAIN] + [(evaluate, *row) for row in EVALUATE],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_mistake_is_one_line(program, flags, message, here, tmp_path, monkeypatch, capfd):
    argv = shlex.split(flags.format(here=here))
    if program is train and "--resume" not in argv:
        argv = [*usual(here), *argv]
    if argv and not {"--data", "--resume"} & {*argv}:
        argv += ["--data", f"w={here}/text.txt"]
    if program is evaluate and argv and "--tasks" not in argv:
        argv += ["--tasks", "none"]
    monkeypatch.chdir(tmp_path)
    before = {*here.rglob("*")}
    status, line = end(program, argv, monkeypatch, capfd)
    assert status == 2, line
    assert re.fullmatch(rf"{program.__name__}\.py: .*{message}.*\n", line)
    assert len(line.replace(str(here), "")) < 400
    # no run folder, and no file of the pickle's code
    assert not [path for path in tmp_path.rglob("*") if path.name != "runs"]
    assert {*here.rglob("*")} == before
    assert not list(here.parent.rglob("*.tmp"))


@pytest.mark.parametrize("move", [shutil.rmtree, lambda run: run.rename(f"{run}-moved")])
def test_a_run_folder_that_is_gone_is_one_line(move, here, tmp_path, monkeypatch, capfd):
    whole = Run.log

    def log(run, event, **fields):
        if event == "step":
            move(run.folder)
        whole(run, event, **fields)

    monkeypatch.setattr(Run, "log", log)
    run = tmp_path / "below" / "run"
    argv = [*usual(here), "--data", f"w={here}/text.txt", "--out", str(run)]
    status, line = end(train, argv, monkeypatch, capfd)
    assert (status, line.count("\n")) == (2, 1)
    assert "No such file or directory" in line
    assert not run.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "status", "says", "left"),
    [
        ({"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))}, 2, "", []),
        ({"preexec_fn": lambda: os.close(1)}, 0, "", ["run"]),
        ({"env": {"RANK": "1", "WORLD_SIZE": ""}}, 0, "", ["run"]),
        ({"env": {"WORLD_SIZE": "2"}}, 0, "", ["run"]),
        ({"env": {"RANK": "0", "WORLD_SIZE": "2"}}, 2, "use torchrun, or unset RANK", []),
        ({"env": {"PYTHONIOENCODING": "latin2"}}, 0, "", ["run"]),
    ],
)
def test_what_the_surroundings_do_is_one_line_or_nothing(
    change, status, says, left, here, tmp_path
):
    """Files of 500 bytes at most; no stdout; what other programs left in the environment."""
    change = {"env": {}, **change}
    change["env"] = environment(here.parent) | change["env"]
    argv = [*usual(here), "--data", f"w={here}/text.txt", "--out", "~/run", "--device", "cpu"]
    change["env"]["HOME"] = str(tmp_path)
    command = [sys.executable, f"{ROOT}/train.py", *argv]
    ended = subprocess.run(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, **change)
    assert ended.returncode == status, ended.stderr
    assert ended.stderr.count("\n") == (status > 0)
    assert says in ended.stderr
    assert [path.name for path in tmp_path.glob("[!.]*")] == left  # matplotlib makes .config


def full_disk():
    error = RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos")
    error.__context__ = OSError(errno.ENOSPC, "No space left on device")
    return error  # as torch.save raises it


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "out of memory"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "loss.png"), 2, "No space left"),
        (full_disk(), 2, "No space left"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 2, "pipe"),
        (cli.UserError("a name with \x1b[31m in it"), 2, r"a name with \x1b[31m in it"),
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


def test_a_defect_keeps_its_traceback(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: 1 / 0)
    assert ended.value.code == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err
