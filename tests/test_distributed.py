"""Several processes under torchrun: the same result as one, one voice, one end."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torture import differences, environment, make_inputs, records, start, steps_of, wait_for

import train
from distill import METHODS
from distill.run import Run
from minitransformer import load_pretrained
from minitransformer.data import Text

TEN = ["--steps", "10", "--eval-every", "5", "--lr", "3e-3"]
LONG = ["--steps", "40", "--save-every", "5", "--accumulate", "8"]  # time enough to disturb it
METHOD_FLAGS = {"hs": ["--student-hidden", "16"], "direct-minilm": ["--student-hidden", "16"]}

# One launch of torchrun for all methods: starting it costs more than training does here.
DRIVER = """
import json, sys
import torch.distributed as dist
sys.path.insert(0, {root!r})
import train
dist.init_process_group("gloo")
dist_init, dist_end = dist.init_process_group, dist.destroy_process_group
dist.init_process_group = lambda backend: None
dist.destroy_process_group = lambda: None
for argv in json.loads(sys.argv[1]):
    train.main(argv)
dist_end()
"""
# A rank that meets an error of its own in the third step.
FAILING = """
import sys
sys.path.insert(0, {root!r})
import train
from minitransformer import cli
from minitransformer.config import UserError
whole, turn = train.Text.step, []
def step(*args, **settings):
    turn.append(0)
    if train.rank() == 1 and len(turn) == 3:
        raise UserError("this machine has lost its text")
    return whole(*args, **settings)
train.Text.step = step
cli.run(train.main)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    for name, value in environment(folder).items():
        patch.setenv(name, value)
    root = os.path.dirname(train.__file__)
    (folder / "driver.py").write_text(DRIVER.format(root=root))
    (folder / "failing.py").write_text(FAILING.format(root=root))
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def flags(folder):
    return make_inputs(folder)


@pytest.fixture(scope="module")
def two_ranks(folder, flags):
    """{name: finished run} of every method, and of a longer run, on two processes."""
    runs = {method: [*flags, *TEN, "--method", method, *METHOD_FLAGS.get(method, []),
                     "--batch-size", "8"] for method in METHODS}
    runs["long"] = [*flags, *LONG]
    runs = {name: [*argv, "--out", str(folder / f"two-{name}")] for name, argv in runs.items()}
    process = start(folder, json.dumps(list(runs.values())), processes=2, script="driver.py")
    printed, complaint = process.communicate()
    assert process.returncode == 0, complaint
    for method in METHODS:  # one voice
        assert printed.count(f"{method}: ") == 1 + (method == "mha")
    return {name: folder / f"two-{name}" for name in runs}


def losses(run, event="step"):
    return torch.tensor([r["loss"] for r in records(run) if r["event"] == event],
                        dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_are_one_process_with_their_batch_or_with_two_micro_batches(
        method, flags, folder, two_ranks):
    """Losses of every step, held-out losses, weights and learned maps, to 1e-6 in float32."""
    argv = [*flags, *TEN, "--method", method, *METHOD_FLAGS.get(method, [])]
    for name, cut in (("one", ["--batch-size", "16"]),
                      ("accumulated", ["--batch-size", "8", "--accumulate", "2"])):
        other = folder / f"{name}-{method}"
        assert train.main([*argv, *cut, "--out", str(other)]) == 0
        for event in ("step", "eval"):
            assert len(losses(other, event)) == {"step": 10, "eval": 3}[event]
            torch.testing.assert_close(
                losses(two_ranks[method], event), losses(other, event), rtol=1e-6, atol=1e-7)
        for file in ("model.safetensors", "projections.safetensors"):
            assert (two_ranks[method] / file).exists() == (other / file).exists()
            if (other / file).exists():
                ours, theirs = (safetensors.torch.load_file(run / file)
                                for run in (two_ranks[method], other))
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    start_weights = safetensors.torch.load_file(folder / "teacher" / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    moved = safetensors.torch.load_file(other / "model.safetensors")
    (moved,) = (tensor for key, tensor in moved.items() if key.endswith(name))
    (before,) = (tensor for key, tensor in start_weights.items() if key.endswith(name))
    if moved.shape == before.shape:
        assert (moved - before).abs().max() > 1e-3  # so 1e-6 says something


def test_the_ranks_read_every_sequence_once(flags, folder):
    """Whatever the number of ranks and micro-batches, together they are one order of sequences."""
    _, tokenizer = load_pretrained(folder / "teacher")

    def read(batch_size, accumulate, world):
        texts = [Text([flags[3]], tokenizer, 16) for _ in range(world)]
        rows = []
        for _ in range(6):
            ranks = [text.step(batch_size, accumulate, rank, world, masked=True)
                     for rank, text in enumerate(texts)]
            for turn in range(accumulate):  # micro-batch by micro-batch, rank by rank
                rows += [torch.stack((row, masked)) for rank in ranks
                         for row, masked in zip(rank[turn].ids, rank[turn].masked_ids, strict=True)]
        assert {tuple(text.counts) for text in texts} == {(6 * batch_size * accumulate * world,)}
        return torch.stack(rows)

    whole = read(12, 1, 1)
    assert len({tuple(row.flatten().tolist()) for row in whole}) == 72
    for cut in ((6, 1, 2), (3, 2, 2), (4, 3, 1), (3, 1, 4), (1, 4, 3)):
        assert torch.equal(read(*cut), whole)


def rank_processes(torchrun) -> dict[int, int]:
    """{rank: process id} of the processes that torchrun started."""
    found = {}
    for child in Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split():
        words = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks = [int(word[5:]) for word in words if word.startswith(b"RANK=")]
        found |= {rank: int(child) for rank in ranks}
    return found


def test_a_killed_rank_ends_the_others_and_the_resume_is_exact(folder, flags, two_ranks):
    run = folder / "lost"
    process = start(folder, *flags, *LONG, "--out", run, processes=2)
    assert wait_for(process, lambda: steps_of(run) >= 8)
    os.kill(rank_processes(process)[1], signal.SIGKILL)
    began = time.monotonic()
    _, complaint = process.communicate(timeout=60)
    assert process.returncode != 0
    assert time.monotonic() - began < 60
    assert "rank 0 lost another process" in complaint
    assert "train.py\", line" not in complaint  # what failed was not our line: no traceback of ours
    # nothing was saved after the collective failed, though torchrun told the other rank to end
    saved = [int(path.name[11:]) for path in Run(run).checkpoints()]
    assert saved
    assert all(step % 5 == 0 for step in saved)
    process = start(folder, "--out", run, "--resume", processes=2)
    printed, complaint = process.communicate()
    assert process.returncode == 0, complaint
    assert printed.count("going on with") == 1
    assert differences(run, two_ranks["long"]) == []


def test_sigterm_is_agreed_on_and_another_number_of_ranks_goes_on(
        folder, flags, two_ranks, capsys):
    run = folder / "told"
    process = start(folder, *flags, *LONG, "--save-every", "1000", "--out", run, processes=2)
    assert wait_for(process, lambda: steps_of(run) >= 2)
    os.kill(rank_processes(process)[1], signal.SIGTERM)  # only one of them is told
    printed, complaint = process.communicate(timeout=60)
    steps = steps_of(run)
    assert [path.name for path in Run(run).checkpoints()] == [f"checkpoint-{steps:09d}"], complaint
    assert (f"stopped after step {steps}; to go on: torchrun --nproc-per-node 2 train.py"
            f" --out {run} --resume") in printed
    assert "exitcode  : 143" in complaint
    assert train.main(["--out", str(run), "--resume", "--accumulate", "16"]) == 0
    printed = capsys.readouterr().out
    assert f"at step {steps}, sequence {steps * 64}\nprocesses: 1, before 2" in printed
    assert "sequences a step" not in printed
    torch.testing.assert_close(losses(run), losses(two_ranks["long"]), rtol=1e-6, atol=1e-7)
    assert records(run)[-1]["text"] == records(two_ranks["long"])[-1]["text"]


def test_sigterm_to_torchrun_and_a_rank_that_fails(folder, flags):
    """Both at once, since each mostly waits: torchrun passes the signal on; an error on one rank
    ends all, with its own line shown.
    """
    told = start(folder, *flags, *LONG, "--save-every", "1000", "--out", folder / "torchrun-told",
                 processes=2)
    failing = start(folder, *flags, *LONG, "--out", folder / "failing", processes=2,
                    script="failing.py")
    assert wait_for(told, lambda: steps_of(folder / "torchrun-told") >= 2)
    told.terminate()
    printed, _ = told.communicate(timeout=60)
    steps = steps_of(folder / "torchrun-told")
    assert f"stopped after step {steps}" in printed
    assert Run(folder / "torchrun-told").newest()["step"] == steps
    _, complaint = failing.communicate(timeout=60)
    assert failing.returncode != 0
    assert "failing.py: this machine has lost its text" in complaint
    assert "exitcode  : 2 " in complaint
    assert Run(folder / "failing").checkpoints() == []


def test_non_finite_on_one_rank_is_skipped_on_all(monkeypatch):
    """The decision is made from what all ranks have summed, so all make the same."""
    monkeypatch.setattr(train, "all_reduced", lambda *numbers: [float("nan"), 4.0, 0.0])
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=1.0)

    def healthy(teacher, batch):
        return weight.sum(), torch.tensor(2.0)

    before = weight.detach().clone()
    config = type("Config", (), {"clip": 1.0})
    _, finite, _ = train.train_step(
        config, healthy, None, optimizer, [None], lambda: torch.autocast("cpu", enabled=False), 0)
    assert not finite
    assert torch.equal(weight, before)
