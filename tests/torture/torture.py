"""Kill a run again and again, and see that its result is the one of a run that nobody disturbed.

    python tests/torture/torture.py                 20 SIGKILLs, amid a save and at random moments
    python tests/torture/torture.py --gigabytes 2   a text larger than it may hold in memory: time to the
                                            first step, and anonymous memory from then on

The functions are what tests/test_resume.py and tests/test_distributed.py do the same with, in
little.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import WORDS, tiny_config, tiny_encoder, tiny_tokenizer  # noqa: E402

from minitransformer import save_pretrained  # noqa: E402


def make_inputs(folder: Path, **sizes) -> list[str]:
    """A tiny teacher with an MLM head and a text in `folder`, and the flags that name them."""
    (folder / "teacher").mkdir()
    save_pretrained(folder / "teacher", tiny_encoder(tiny_config(**sizes)), tiny_tokenizer())
    chance = random.Random(0)
    paragraphs = (" ".join(chance.choices(WORDS, k=60)) for _ in range(100))
    (folder / "text.txt").write_text("\n\n".join(paragraphs))
    return [
        "--teacher",
        f"{folder}/teacher",
        "--data",
        f"web={folder}/text.txt",
        "--threads",
        "1",
        "--seq-len",
        "16",
        "--batch-size",
        "4",
        "--precision",
        "fp32",
        "--device",
        "cpu",
    ]


def without_figures(patch) -> None:
    """Training in a test's own process without what is slow at its end, and not the question."""
    patch.setattr("distill.training.report.plot_loss", lambda *figure: None)
    patch.setattr("distill.program.cost.latencies", lambda models, *shape: [[1.0] for _ in models])


def environment(folder: Path) -> dict:
    """For programs on one thread each, with a cache of their own, offline."""
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "HF_HUB_OFFLINE": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }


def start(folder: Path, *flags, processes=None, script=ROOT / "train.py") -> subprocess.Popen:
    """train.py as a program of its own, or as `processes` of them under torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    python = [sys.executable, *(torchrun if processes else [])]
    return subprocess.Popen(
        [*python, str(script), *map(str, flags)],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell starts what it puts in the background with Ctrl-C ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(process: subprocess.Popen, come_true) -> bool:
    """Waits until something is the case; False if the process ended before."""
    while process.poll() is None:
        if come_true():
            return True
        time.sleep(0.0005)
    return False


def steps_of(run: Path) -> int:
    """How many lines about steps the log has by now."""
    log = run / "log.jsonl"
    return log.read_bytes().count(b'"event": "step"') if log.exists() else 0


def amid_a_save(run: Path):
    """True once a new checkpoint is being written (of the files that an earlier kill left, not)."""
    before = unfinished(run)
    return lambda: not unfinished(run) <= before


def unfinished(run: Path) -> set[int]:
    """Inodes of the checkpoints not yet renamed; from the folder alone, since they come and go."""
    if not run.is_dir():
        return set()
    names = [e for e in os.scandir(run) if e.name.startswith("checkpoint-")]
    return {e.inode() for e in names if e.name.endswith(".tmp")}


def kill(process: subprocess.Popen) -> int:
    process.kill()
    process.communicate()
    return process.returncode


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def differences(run: Path, other: Path) -> list[str]:
    """In what two finished runs differ: weights, learned maps, the log's steps and evaluations."""
    found = []
    for name in ("model.safetensors", "projections.safetensors", "config.json"):
        files = run / name, other / name
        if files[0].exists() != files[1].exists():
            found.append(f"{name} is in one of them only")
        elif files[0].exists() and files[0].read_bytes() != files[1].read_bytes():
            found.append(f"{name} differs")
    for event in ("step", "eval"):
        logs = [
            [(r["step"], r["loss"], r.get("lr")) for r in records(each) if r["event"] == event]
            for each in (run, other)
        ]
        if logs[0] != logs[1]:
            found.append(f"the log's {event} records differ")
    left = [path.name for path in run.iterdir() if path.name.startswith(("checkpoint", "."))]
    return found + [f"{name} is left" for name in left]


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
