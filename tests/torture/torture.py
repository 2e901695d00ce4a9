"""Disturb train.py for longer than a test may take, and compare what comes out.

    python tests/torture/torture.py               20 SIGKILLs, during a save and at random moments:
                                                  the result equals that of an unbroken run
    python tests/torture/torture.py --pairs 200   two-rank runs in a row: all of them must end

tests/test_resume.py and tests/test_distributed.py are the short form; tests/helpers.py is shared.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import pytest  # noqa: E402
from conftest import without_figures  # noqa: E402
from helpers import (  # noqa: E402
    amid_a_save,
    differences,
    free_port,
    kill,
    make_inputs,
    start,
    steps_of,
    wait_for,
)

LONGEST_END = 90  # seconds that a two-rank run may take
NARROW = "--method direct-minilm --student-layers 2 --student-hidden 192 --student-heads 4".split()


def torture(folder: Path, kills: int, seed: int) -> bool:
    """Kill a run `kills` times; return whether it ends as the run that nobody disturbed."""
    flags = make_inputs(folder, hidden_size=256, intermediate_size=1024)
    flags += [*NARROW, *"--steps 600 --save-every 3 --eval-every 50".split()]
    began = time.time()
    unbroken = start(folder, *flags, "--out", "unbroken")
    if unbroken.wait():
        sys.exit(unbroken.stderr.read())
    took = time.time() - began
    print(f"unbroken run: {steps_of(folder / 'unbroken')} steps, {took:.0f} s", flush=True)
    chance, run = random.Random(seed), folder / "killed"
    for number in range(1, kills + 1):
        resume = ["--out", "killed", "--resume"] if run.exists() else [*flags, "--out", "killed"]
        process = start(folder, *resume)
        moment = "at a random moment"
        if number % 2:
            wanted = steps_of(run) + chance.randint(1, 25)
            wait_for(process, lambda wanted=wanted: steps_of(run) >= wanted)
            if wait_for(process, amid_a_save(run)):
                moment = "during a save"
            time.sleep(chance.uniform(0, 0.03))
        else:
            time.sleep(chance.uniform(2, 6 + took / kills))  # loading takes the first seconds
        ended = process.poll() is not None
        kill(process)
        if ended:
            sys.exit(f"the run ended by itself before kill {number}; more steps are needed")
        saves = ", ".join(sorted(path.name for path in run.glob("checkpoint-*")))
        print(f"kill {number:>2} {moment:<18} at {steps_of(run)} steps; {saves}", flush=True)
    process = start(folder, "--out", "killed", "--resume")
    _, complaint = process.communicate()
    if process.returncode:
        sys.exit(complaint)
    found = differences(run, folder / "unbroken")
    equal = "weights, maps and log equal the unbroken run's, bit for bit"
    print(f"{kills} kills in {time.time() - began - took:.0f} s:", "; ".join(found) or equal)
    return not found


def pairs(folder: Path, count: int) -> bool:
    """Run `count` two-rank runs; return whether all ended with status 0.

    The ranks are forks of this process, which has imported everything: that makes a run short.
    """
    import train
    from distill.program import cli

    without_figures(pytest.MonkeyPatch())
    flags = make_inputs(folder)
    failed = 0
    for number in range(1, count + 1):
        rank_ids, port = [], str(free_port())
        for rank in range(2):
            rank_ids.append(os.fork())
            if rank_ids[rank] == 0:
                signal.alarm(LONGEST_END)  # ends it, even where it hangs
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.chdir(folder)
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115
                argv = [*flags, "--steps", "3", "--out", f"pair-{number}"]
                cli.run(lambda argv=argv: train.main(argv))
        statuses = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in rank_ids]
        if statuses != [0, 0]:
            failed += 1
            print(f"pair {number}: the ranks ended with {statuses}", flush=True)
    print(f"{count - failed} of {count} two-rank runs ended")
    return failed == 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--pairs", type=int, help="run so many two-rank runs instead")
    given = parser.parse_args()
    here, owner = Path(tempfile.mkdtemp(prefix="torture-")), os.getpid()
    try:
        good = pairs(here, given.pairs) if given.pairs else torture(here, given.kills, given.seed)
    finally:
        if os.getpid() == owner:  # not in a forked rank
            shutil.rmtree(here)
    sys.exit(not good)
