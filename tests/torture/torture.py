"""Kill a run again and again, and see that its result is the one of a run that nobody disturbed.

    python tests/torture/torture.py                 20 SIGKILLs, amid a save and at random moments
    python tests/torture/torture.py --gigabytes 2   a text larger than memory: time to the first
                                                    step, and anonymous memory later

tests/test_resume.py and tests/test_distributed.py are the short form; tests/helpers.py is shared.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import WORDS  # noqa: E402
from helpers import (  # noqa: E402
    amid_a_save,
    differences,
    kill,
    make_inputs,
    start,
    steps_of,
    wait_for,
)


def torture(folder: Path, kills: int, seed: int) -> None:
    flags = make_inputs(folder, hidden_size=256, intermediate_size=1024)
    flags += [
        "--method",
        "direct-minilm",
        "--student-layers",
        "2",
        "--student-hidden",
        "192",
        "--student-heads",
        "4",
        "--steps",
        "600",
        "--save-every",
        "3",
        "--eval-every",
        "50",
    ]
    began = time.time()
    unbroken = start(folder, *flags, "--out", "unbroken")
    if unbroken.wait():
        sys.exit(unbroken.stderr.read())
    took = time.time() - began
    print(f"unbroken run: {steps_of(folder / 'unbroken')} steps, {took:.0f} s", flush=True)
    chance, run = random.Random(seed), folder / "killed"
    done, longest = 0, took / kills  # of one life
    while True:
        again = ["--out", "killed", "--resume"] if run.exists() else [*flags, "--out", "killed"]
        process = start(folder, *again)
        if done == kills:
            break
        amid = done % 2 == 0
        if amid:
            skip = steps_of(run) + chance.randint(1, 25)
            wait_for(process, lambda: steps_of(run) >= skip)  # noqa: B023 - used at once
            met = wait_for(process, amid_a_save(run))
            time.sleep(chance.uniform(0, 0.03))
        else:
            time.sleep(chance.uniform(2, 6 + longest))  # loading takes the first seconds
        ended = process.poll() is not None
        kill(process)
        if ended:
            sys.exit(f"the run ended by itself after {done} kills; more steps are needed")
        done += 1
        saves = sorted(path.name for path in run.glob("checkpoint-*"))
        print(
            f"kill {done:>2} {'amid a save' if amid and met else 'at a random moment':<19}"
            f" after {steps_of(run)} steps; there is {', '.join(saves) or 'nothing'}",
            flush=True,
        )
    _, complaint = process.communicate()
    if process.returncode:
        sys.exit(complaint)
    found = differences(run, folder / "unbroken")
    print(
        f"{kills} kills in {time.time() - began - took:.0f} s:",
        "; ".join(found) or "weights, maps and log equal the unbroken run's, bit for bit",
    )
    sys.exit(bool(found))


def rss_anon(pid: int) -> int:
    """Anonymous memory of a process in MB: what it holds itself, without files mapped into it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) // 1024


def large_text(folder: Path, gigabytes: float, minutes: float) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # as it is for a user
    flags = make_inputs(folder)
    chance = random.Random(0)
    page = "\n\n".join(" ".join(chance.choices(WORDS, k=120)) for _ in range(2000))
    with open(folder / "text.txt", "w") as text:
        while text.tell() < gigabytes * 1e9:
            text.write(page + "\n\n")
    process = start(
        folder,
        *flags,
        "--steps",
        "100000000",
        "--save-every",
        "1000",
        "--eval-every",
        "1000",
        "--out",
        "run",
    )
    began, sizes, spoke = time.time(), [], -60.0
    while process.poll() is None and time.time() < began + 60 * minutes:
        time.sleep(1)
        seconds, size = time.time() - began, rss_anon(process.pid)
        if seconds >= 60:
            sizes.append(size)
        if seconds >= spoke + 60:
            spoke = seconds
            print(f"{seconds:>6.0f} s  {steps_of(folder / 'run'):>7} steps  {size} MB", flush=True)
    process.terminate()
    printed, complaint = process.communicate()
    print("\n".join([*printed.splitlines()[:8], "...", *printed.splitlines()[-2:]]), complaint)
    print(
        f"anonymous memory from minute 1 to the end: {min(sizes)} to {max(sizes)} MB,"
        f" {100 * (max(sizes) / min(sizes) - 1):.1f} %"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--gigabytes", type=float, help="measure a run over so much text instead")
    parser.add_argument("--minutes", type=float, default=10, help="that it is watched for")
    given = parser.parse_args()
    here = Path(tempfile.mkdtemp(prefix="torture-"))
    try:
        if given.gigabytes:
            large_text(here, given.gigabytes, given.minutes)
        else:
            torture(here, given.kills, given.seed)
    finally:
        shutil.rmtree(here)
