"""Several processes: the same result as one, one voice, one end."""

import json
import os
import shutil
import signal

import pytest
import safetensors.torch
import torch
from helpers import ROOT, differences, make_inputs, records, start, steps_of, wait_for

import train
from distill import METHODS
from distill.training.run import Run

pytestmark = pytest.mark.slow

# from random layers: the key bias of a trained one has no gradient but rounding noise
TEN = "--steps 10 --eval-every 5 --lr 3e-3 --init embeddings".split()
LONG = "--steps 40 --save-every 5 --accumulate 8".split()  # time enough to disturb it
METHOD_FLAGS = {"hs": ["--student-hidden", "16"], "direct-minilm": ["--student-hidden", "16"]}

# Two ranks without torchrun: all runs share one import, which takes longer than they train.
FORKED = """
import json, os, socket, sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import torch._dynamo  # or the first optimizer imports it, in every rank
from conftest import without_figures
from helpers import spoil
from pytest import MonkeyPatch
import train
from distill.training import cli

without_figures(MonkeyPatch())
for run in map(json.loads, sys.argv[1:]):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port, ranks = str(free.getsockname()[1]), []
    for rank in range(2):
        ranks.append(os.fork())
        if not ranks[rank]:
            os.environ |= dict(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank),
                               LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
            spoil(MonkeyPatch(), [4] if rank and run["fault"] else [], run["fault"])
            os.chdir(run["folder"] if rank else ".")
            cli.run(lambda: train.main([*run["argv"], *(run["other"] if rank else [])]))
    with open("ranks.json", "w") as file:
        json.dump(ranks, file)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]
    print("ended with", *statuses, flush=True)
"""


@pytest.fixture(scope="module")
def flags(home):
    (home / "forked.py").write_text(FORKED.format(root=str(ROOT)))
    return make_inputs(home)


def ranks(*argv, fault="", other=(), folder="."):
    """Describe a run of two ranks: the second may have a fault, other flags, another folder."""
    words, other = [*map(str, argv)], [*map(str, other)]
    return json.dumps({"argv": words, "fault": fault, "other": other, "folder": str(folder)})


def start_forked(home, *runs):
    return start(home, *runs, script=home / "forked.py")


@pytest.fixture(scope="module")
def two_ranks(home, flags):
    """{name: finished run} of every method, and of a longer run, on two processes."""
    runs = {"long": [*flags, *LONG]}
    for method in METHODS:
        runs[method] = [*flags, *TEN, "--method", method, "--batch-size", "8"]
        runs[method] += METHOD_FLAGS.get(method, [])
    process = start_forked(home, *(ranks(*runs[n], "--out", home / f"two-{n}") for n in runs))
    printed, complaint = process.communicate()
    assert printed.count("ended with 0 0") == len(runs), complaint
    for method in METHODS:  # one voice
        assert printed.count(f"{method}: ") == (2 if method == "mha" else 1)
    return {name: home / f"two-{name}" for name in runs}


def losses(run, event="step"):
    found = [r["loss"] for r in records(run) if r["event"] == event]
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_are_one_process_with_their_batch_or_with_two_micro_batches(
    method, flags, home, two_ranks
):
    """Losses of every step, held-out losses, weights and learned maps, to 1e-6 in float32."""
    argv = [*flags, *TEN, "--method", method, *METHOD_FLAGS.get(method, [])]
    for name, cut in (("one", "--batch-size 16"), ("micro", "--batch-size 8 --accumulate 2")):
        other = home / f"{name}-{method}"
        assert train.main([*argv, *cut.split(), "--out", str(other)]) == 0
        for event in ("step", "eval"):
            ours, theirs = losses(two_ranks[method], event), losses(other, event)
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
        for file in other.glob("*.safetensors"):  # weights, and learned maps if there are any
            ours = safetensors.torch.load_file(two_ranks[method] / file.name)
            theirs = safetensors.torch.load_file(file)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    moved = losses(two_ranks[method], "eval")
    assert moved[-1] < moved[0] - 1e-3  # so 1e-6 says something


def test_a_killed_rank_ends_the_others_and_the_resume_is_exact(home, flags, two_ranks):
    run = home / "lost"
    process = start_forked(home, ranks(*flags, *LONG, "--out", run))
    assert wait_for(process, lambda: steps_of(run) >= 8)
    os.kill(json.loads((home / "ranks.json").read_text())[1], signal.SIGKILL)
    printed, complaint = process.communicate(timeout=120)
    assert f"ended with 1 {-signal.SIGKILL}" in printed
    assert "rank 0 lost another process" in complaint
    assert complaint.count("\n") == 1  # what failed was no line of ours: no traceback
    # nothing was saved after the collective failed
    saved = [int(path.name.split("-")[1]) for path in Run(run).checkpoints()]
    assert saved
    assert all(step % 5 == 0 for step in saved)
    shutil.copytree(run, home / "stale" / "lost")  # on another machine, an earlier copy
    Run(home / "stale" / "lost").checkpoints()[-1].unlink()
    stale = ranks("--out", "lost", "--resume", folder=home / "stale")
    printed, complaint = start_forked(home, stale, ranks("--out", run, "--resume")).communicate()
    assert complaint.count("the processes differ in the step of the checkpoint: ") == 2
    assert "ended with 0 0" in printed, complaint
    assert printed.count("resuming") == 2
    assert differences(run, two_ranks["long"]) == []


@pytest.mark.parametrize("lost", ["told", "orphaned"])
def test_when_a_rank_is_told_or_its_launcher_is_gone_all_agree_and_one_process_resumes(
    lost, home, flags, two_ranks, capsys
):
    run = home / lost
    argv = [*flags, *LONG, "--save-every", "1000", "--out", run]
    told = lost == "told"
    process = start_forked(home, ranks(*argv)) if told else start(home, *argv, processes=2)
    assert wait_for(process, lambda: steps_of(run) >= 2)
    if told:
        os.kill(json.loads((home / "ranks.json").read_text())[1], signal.SIGTERM)
    else:
        process.send_signal(signal.SIGUSR1)  # ends torchrun, which does not tell its ranks
    printed, complaint = process.communicate(timeout=120)  # until the ranks have closed stdout
    assert ("ended with 143 143" in printed) == told, complaint
    steps = steps_of(run)
    assert steps < 40
    (checkpoint,) = Run(run).checkpoints()
    assert checkpoint.name.startswith(f"checkpoint-{steps:09d}-")
    command = f"torchrun --nproc-per-node 2 train.py --out {run} --resume"
    assert f"stopped after step {steps}; to resume: {command}\n" in printed
    assert train.main(["--out", str(run), "--resume", "--steps", "40", "--accumulate", "16"]) == 0
    assert "WARNING" not in capsys.readouterr().out
    torch.testing.assert_close(losses(run), losses(two_ranks["long"]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("fault", "statuses"), [("error", "1 2"), ("loss", "2 2")])
def test_a_fault_of_one_rank_ends_all_and_says_why(fault, statuses, home, flags):
    run = ranks(*flags, *LONG, "--out", home / f"fault-{fault}", fault=fault)
    printed, complaint = start_forked(home, run).communicate(timeout=120)
    assert f"ended with {statuses}" in printed, complaint
    assert ("lost its text" if fault == "error" else "loss of step 1 is not finite") in complaint
    assert Run(home / f"fault-{fault}").checkpoints() == []


def test_ranks_that_were_started_unlike_are_refused_at_once(home, flags):
    elsewhere = home / "elsewhere"  # a machine on which the same name leads to another text
    elsewhere.mkdir()
    (elsewhere / "text.txt").write_text((home / "text.txt").read_text() + "the end")
    here = [word.replace(f"{home}/text.txt", "text.txt") for word in flags]
    unlike = {
        "the text web": {"folder": elsewhere},
        "steps: 10 on rank 0, 11 on rank 1": {"other": ["--steps", 11]},
    }
    argv = [*here, *TEN, "--out", home / "unlike"]
    process = start_forked(home, *(ranks(*argv, **how) for how in unlike.values()))
    printed, complaint = process.communicate(timeout=120)
    assert printed.count("ended with 2 2") == len(unlike), complaint
    for message in unlike:
        assert complaint.count(f"the processes differ in {message}") == 2
    assert not (home / "unlike").exists()
