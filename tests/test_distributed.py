"""Several processes: the same result as one, one voice, one end.

An end that hangs now and then shows only in many: `tests/torture/torture.py --pairs 200`.
"""

import json
import os
import signal
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers import ROOT, differences, free_port, make_inputs, records, start, steps_of, wait_for

import train
from distill import METHODS
from distill.training.run import Run

pytestmark = pytest.mark.slow

# from random layers: the key bias of a trained one has no gradient but rounding noise
TEN = "--steps 10 --eval-every 5 --lr 3e-3 --init embeddings".split()
LONG = "--steps 40 --save-every 5 --accumulate 8".split()  # time enough to disturb it
METHOD_FLAGS = {"hs": ["--student-hidden", "16"], "direct-minilm": ["--student-hidden", "16"]}

# Two ranks without torchrun: they share one import, which takes longer than all they train.
FORKED = '''
import gc, json, os, sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import torch.distributed as dist
from helpers import spoil
from pytest import MonkeyPatch
from torch.nn.parallel import DistributedDataParallel
import train
from distill.training import cli

def faulty(rank, fault, *argv):
    with MonkeyPatch.context() as patch:
        spoil(patch, [4] if rank and fault else [], fault)
        return train.main(argv)

def destroy(whole=dist.destroy_process_group):
    """What an exit needs: gloo hangs now and then if the module outlives the group."""
    assert not [o for o in gc.get_objects() if isinstance(o, DistributedDataParallel)]
    left.pop()
    if not left:  # the last run ends as every run does
        whole()

dist.destroy_process_group = destroy
port, *runs = sys.argv[1:]
ranks, left = [], list(runs)
for rank in range(2):
    ranks.append(os.fork())
    if not ranks[rank]:
        os.environ |= dict(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank),
                           LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        dist.init_process_group("gloo")  # once for all the runs
        dist.init_process_group = lambda backend: None
        cli.run(lambda: [faulty(rank, *json.loads(run)) for run in runs][-1])
with open("ranks.json", "w") as file:
    json.dump(ranks, file)
print("ended with", *(os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks))
'''


@pytest.fixture(scope="module")
def flags(home):
    (home / "forked.py").write_text(FORKED.format(root=str(ROOT)))
    return make_inputs(home)


def start_forked(home, *runs):
    """Start two ranks which train with each of these flags in turn, after a fault or ""."""
    argvs = [json.dumps([str(word) for word in run]) for run in runs]
    return start(home, free_port(), *argvs, script=home / "forked.py")


@pytest.fixture(scope="module")
def two_ranks(home, flags):
    """{name: finished run} of every method, and of a longer run, on two processes."""
    runs = {"long": ["", *flags, *LONG]}
    for method in METHODS:
        runs[method] = ["", *flags, *TEN, "--method", method, "--batch-size", "8"]
        runs[method] += METHOD_FLAGS.get(method, [])
    runs["spoiled"] = ["loss", *runs["mha"][1:]]
    runs = {name: [*argv, "--out", str(home / f"two-{name}")] for name, argv in runs.items()}
    process = start_forked(home, *runs.values())
    printed, complaint = process.communicate()
    assert "ended with 0 0" in printed, complaint
    for method in METHODS:  # one voice
        assert printed.count(f"{method}: ") == (3 if method == "mha" else 1)
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
        for event, number in (("step", 10), ("eval", 3)):
            assert len(losses(other, event)) == number
            ours, theirs = losses(two_ranks[method], event), losses(other, event)
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
        for file in ("model.safetensors", "projections.safetensors"):
            assert (two_ranks[method] / file).exists() == (other / file).exists()
            if (other / file).exists():
                ours = safetensors.torch.load_file(two_ranks[method] / file)
                theirs = safetensors.torch.load_file(other / file)
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    moved = losses(two_ranks[method], "eval")
    assert moved[-1] < moved[0] - 1e-3  # so 1e-6 says something


def rank_processes(torchrun) -> dict[int, int]:
    """{rank: process id} of the processes that torchrun started."""
    found = {}
    for child in Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split():
        words = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks = [int(word[5:]) for word in words if word.startswith(b"RANK=")]
        found |= {rank: int(child) for rank in ranks}
    return found


def test_a_killed_rank_ends_the_others_and_the_resume_is_exact(home, flags, two_ranks):
    run = home / "lost"
    process = start(home, *flags, *LONG, "--out", run, processes=2)
    assert wait_for(process, lambda: steps_of(run) >= 8)
    os.kill(rank_processes(process)[1], signal.SIGKILL)
    _, complaint = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "rank 0 lost another process" in complaint
    assert 'train.py", line' not in complaint  # what failed was no line of ours: no traceback
    # nothing was saved after the collective failed, though torchrun told the other rank to end
    saved = [int(path.name.split("-")[1]) for path in Run(run).checkpoints()]
    assert saved
    assert all(step % 5 == 0 for step in saved)
    process = start_forked(home, ["", "--out", run, "--resume"])
    printed, complaint = process.communicate()
    assert "ended with 0 0" in printed, complaint
    assert printed.count("resuming") == 1
    assert differences(run, two_ranks["long"]) == []


def test_when_one_rank_is_told_all_agree_and_another_number_of_ranks_goes_on(
    home, flags, two_ranks, capsys
):
    run = home / "told"
    process = start_forked(home, ["", *flags, *LONG, "--save-every", "1000", "--out", run])
    assert wait_for(process, lambda: steps_of(run) >= 2)
    os.kill(json.loads((home / "ranks.json").read_text())[1], signal.SIGTERM)
    printed, complaint = process.communicate(timeout=120)
    assert "ended with 143 143" in printed, complaint
    steps = steps_of(run)
    (checkpoint,) = Run(run).checkpoints()
    assert checkpoint.name.startswith(f"checkpoint-{steps:09d}-")
    assert (
        f"stopped after step {steps}; to go on: torchrun --nproc-per-node 2 train.py"
        f" --out {run} --resume"
    ) in printed
    assert train.main(["--out", str(run), "--resume", "--accumulate", "16"]) == 0
    assert f"at step {steps} ({steps * 64} sequences read)" in capsys.readouterr().out
    torch.testing.assert_close(losses(run), losses(two_ranks["long"]), rtol=1e-6, atol=1e-7)
    assert records(run)[-1]["text"] == records(two_ranks["long"])[-1]["text"]


def test_a_failing_rank_ends_all_with_its_own_error_shown(home, flags):
    process = start_forked(home, ["error", *flags, *LONG, "--out", "failing"])
    printed, complaint = process.communicate(timeout=120)
    assert "ended with 1 2" in printed, complaint
    assert "forked.py: this machine has lost its text" in complaint
    assert Run(home / "failing").checkpoints() == []


def test_a_step_not_finite_on_one_rank_is_skipped_on_all(two_ranks):
    spoiled = [r["loss"] for r in records(two_ranks["spoiled"]) if r["event"] == "step"]
    assert [i for i, loss in enumerate(spoiled, 1) if loss is None] == [4]
    whole = losses(two_ranks["mha"])
    assert spoiled[:3] == pytest.approx(whole[:3].tolist(), rel=1e-6)
    assert spoiled[4] != pytest.approx(whole[4].item(), rel=1e-6)  # step 4 changed nothing here
    assert records(two_ranks["spoiled"])[-1]["skipped_steps"] == 1
