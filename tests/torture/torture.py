"""Disturb train.py for longer than a test may take.

python tests/torture/torture.py               20 SIGKILLs: the result equals that of a run
                                              which nobody disturbed (tests/test_resume.py)
python tests/torture/torture.py --pairs 200   two-rank runs in a row: all of them must end
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import pytest  # noqa: E402
from conftest import without_figures  # noqa: E402
from helpers import free_port, make_inputs  # noqa: E402

LONGEST_END = 90  # seconds that a two-rank run may take


def pairs(folder: Path, count: int) -> bool:
    """Run `count` two-rank runs; return whether all ended with status 0.

    The ranks are forks of this process, which has imported everything: that makes a run short.
    """
    import train
    from distill.training import cli

    without_figures(pytest.MonkeyPatch())
    flags = make_inputs(folder)
    failed = 0
    for number in range(1, count + 1):
        rank_ids, port = [], str(free_port())
        for rank in range(2):
            rank_ids.append(os.fork())
            if rank_ids[rank] == 0:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.chdir(folder)
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115
                argv = [*flags, "--steps", "3", "--out", f"pair-{number}"]
                cli.run(lambda argv=argv: train.main(argv))
        deadline, statuses = time.time() + LONGEST_END, {}
        while len(statuses) < 2 and time.time() < deadline:
            for process_id in set(rank_ids) - set(statuses):
                done, status = os.waitpid(process_id, os.WNOHANG)
                if done:
                    statuses[process_id] = os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        for process_id in set(rank_ids) - set(statuses):
            os.kill(process_id, 9)
            os.waitpid(process_id, 0)
        if list(statuses.values()) != [0, 0]:
            failed += 1
            print(f"pair {number}: {len(statuses)} of 2 ranks ended, {statuses}", flush=True)
    print(f"{count - failed} of {count} two-rank runs ended")
    return failed == 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pairs", type=int, help="run so many two-rank runs instead")
    given = parser.parse_args()
    if given.pairs is None:
        os.environ["KILLS"] = str(given.kills)
        test = f"{ROOT}/tests/test_resume.py::test_real_kills_in_real_processes"
        sys.exit(pytest.main([test, "--timeout", "0"]))
    here, owner = Path(tempfile.mkdtemp(prefix="torture-")), os.getpid()
    try:
        good = pairs(here, given.pairs)
    finally:
        if os.getpid() == owner:  # not in a forked rank
            shutil.rmtree(here)
    sys.exit(not good)
