"""Start train.py on tiny inputs, disturb it, and compare the runs that come out."""

import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from conftest import WORDS, environment, tiny_config, tiny_encoder, tiny_tokenizer

from distill import METHODS
from minitransformer import UserError, save_pretrained

ROOT = Path(__file__).resolve().parents[1]
SMALL = "--method mha --threads 1 --seq-len 16 --batch-size 4 --precision fp32 --device cpu".split()


def make_inputs(folder: Path, **sizes) -> list[str]:
    """Write a tiny teacher with an MLM head and a text to `folder`; return the flags for them."""
    (folder / "teacher").mkdir()
    save_pretrained(folder / "teacher", tiny_encoder(tiny_config(**sizes)), tiny_tokenizer())
    chance = random.Random(0)
    paragraphs = [" ".join(chance.choices(WORDS, k=60)) for _ in range(100)]
    (folder / "text.txt").write_text("\n\n".join(paragraphs))
    return ["--teacher", f"{folder}/teacher", "--data", f"web={folder}/text.txt", *SMALL]


def start(folder: Path, *flags, processes=None, script=ROOT / "train.py") -> subprocess.Popen:
    """Start train.py in `folder`: one process, or `processes` of them under torchrun."""
    command = [sys.executable]
    if processes:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [*command, str(script), *map(str, flags)],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen, condition: Callable[[], bool]) -> bool:
    """Wait until the condition holds or the process ends; return whether it runs."""
    while process.poll() is None and not condition():
        time.sleep(0.0005)
    return process.poll() is None


def steps_of(run: Path) -> int:
    log = run / "log.jsonl"
    return log.read_bytes().count(b'"event": "step"') if log.exists() else 0


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def results(run: Path) -> dict:
    """Return what a finished run leaves: weights, learned maps, logged steps and evaluations."""
    names = ("model.safetensors", "projections.safetensors", "config.json", "checkpoint", ".")
    found = {path.name: path.read_bytes() for path in run.iterdir() if path.name.startswith(names)}
    for event in ("step", "eval"):
        rows = [row for row in records(run) if row["event"] == event]
        found[event] = [(row["step"], row["loss"], row.get("lr")) for row in rows]
    return found


def differences(run: Path, other: Path) -> list[str]:
    ours, theirs = results(run), results(other)
    return [name for name in ours | theirs if ours.get(name) != theirs.get(name)]


def spoil(patch, spoiled, how: str) -> None:
    """Spoil loss or gradient of these batches, counted from 1, or raise an error in them."""
    whole, turn = METHODS["mha"].forward, itertools.count()

    def forward(self, student, teacher, batch):
        total, count = whole(self, student, teacher, batch)
        if torch.is_grad_enabled() and next(turn) in spoiled:
            if how == "error":
                raise UserError("this machine has lost its text")
            if how == "gradient":
                total.register_hook(lambda gradient: gradient * float("inf"))
            else:
                total = total * float("nan")
        return total, count

    patch.setattr(METHODS["mha"], "forward", forward)
