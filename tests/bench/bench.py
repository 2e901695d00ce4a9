"""What a step costs: this project, transformers with textbook formulas, bertdistiller, the floor.

    python tests/bench/bench.py                                     every case, 3 rounds
    python tests/bench/bench.py --cases mha-8x512 od-250k --runs 9 --threads 2 --precision fp32
    python tests/bench/bench.py --cases mha-8x512 --profile         where our own step's time goes
    pip install --no-deps bertdistiller==0.1.2                to see it beside the others

A step is: forward of teacher and student, loss, backward, AdamW (the same fused one for all).
"textbook" is transformers as it comes (fused attention, dropout in the student, whole models) and
the formula written plainly; "bertdistiller" is its own compute_loss. infer-* is a forward pass;
pipeline-* is this project's step on one batch and on the batches of the docs text, compile-* as it
is and with torch.compile, attention-* with either fast form of attention. Each contender is a
process of its own and they take turns, so that a busy minute hits all of them; the first step of a
turn is not counted. Memory is the peak above weights and optimizer state. The floor is the
arithmetic of the step (contenders.py) at the rate of a large matrix product, measured in each
turn.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]  # whatever folder it is called from

from contenders import (  # noqa: E402
    ALL,
    CASES,
    COMPILED,
    OURS,
    PEER,
    arithmetic,
    build,
    make_batch,
)

from distill.program.machine import can_compile  # noqa: E402


def build_step(case, contender, precision, device):
    """(what is computed on, a function that does one whole step)"""
    torch.manual_seed(0)
    batch = make_batch(case, device)
    parameters, step = build(case, contender, batch, device)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True) if parameters else None
    if optimizer:  # memory is measured above its state, so the state must be there
        for p in parameters:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        optimizer.zero_grad()

    def whole_step():
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            if not optimizer:
                with torch.inference_mode():
                    return step()
            loss, count = step()
        loss.backward()
        if count is not None:  # a raw sum: its gradients are divided afterwards, as in train.py
            torch._foreach_div_([p.grad for p in parameters if p.grad is not None], count)
        optimizer.step()
        optimizer.zero_grad()

    return batch, whole_step


def profile(case, precision, device):
    """One line for each operation that takes 1 % or more of this project's step."""
    _, whole_step = build_step(case, OURS, precision, device)
    for _ in range(3):
        whole_step()
    with torch.profiler.profile() as seen:
        whole_step()
    time_of = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
    spent = {each.key: getattr(each, time_of) for each in seen.key_averages()}
    for name in sorted(spent, key=spent.get, reverse=True):
        share = spent[name] / sum(spent.values())
        if share >= 0.01:
            yield f"| {case} | {precision} | {name} | {spent[name] / 1e3:.0f} | {share:.0%} |"


def prepare(case, contender, precision, threads, steps, seconds, device):
    """Build, two steps to warm up and to measure memory -> a function: the record of one turn."""
    torch.set_num_threads(threads)
    batch, whole_step = build_step(case, contender, precision, device)

    def timed(call):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - wall, time.process_time() - cpu

    held = memory(device, reset=True)
    whole_step()
    whole_step()
    peak = memory(device) - held
    size = 8192 if device == "cuda" else 2048 if precision == "fp32" or native_bf16() else 512
    matrix = torch.randn(size, size, device=device)
    matrix = matrix.bfloat16() if precision == "bf16" else matrix

    def product():
        return min(timed(lambda: matrix @ matrix)[0] for _ in range(4))

    def turn():
        before = product()
        whole_step()
        times, start = [], time.perf_counter()
        while len(times) < steps or time.perf_counter() - start < seconds:
            times.append(timed(whole_step))
        walls, cpus = zip(*times, strict=True)
        rate = 2 * size**3 / min(before, product())
        floor = arithmetic(case, int(batch.chosen.sum())) / rate
        return {"walls": walls, "cpus": cpus, "peak": peak, "rate": rate, "floor": floor}

    return turn


def memory(device, reset=False):
    """Bytes held now (and the peak reset to that), or at most since then; Linux or a GPU."""
    if device == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if not sys.platform.startswith("linux"):
        return float("nan")
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text().split("VmRSS:" if reset else "VmHWM:")[1]
    return int(status.split()[0]) * 1024


def native_bf16():
    """Where bfloat16 products run in hardware; elsewhere they are far slower than float32."""
    able = torch.cpu.get_capabilities()
    return torch.cuda.is_available() or bool(able.get("avx512_bf16") or able.get("amx_bf16"))


@contextlib.contextmanager
def worker(case, contender, flags):
    """A process that measures one turn each time it is asked; it is ready when the block begins."""
    command = [sys.executable, __file__, *flags, "--worker", case, contender]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:

        def answer():
            while line := run.stdout.readline():
                if line.startswith("{"):
                    return json.loads(line)
            sys.exit(f"{case}, {contender}: exit {run.wait()}")

        def turn():
            run.stdin.write("\n")
            run.stdin.flush()
            return answer()

        answer()  # nobody prepares while another is measured
        yield turn
        run.kill()


def available(contender, device):
    if contender == PEER:
        return importlib.util.find_spec("bertdistiller") is not None
    return contender != COMPILED or can_compile(torch.device(device))


def take_turns(case, contenders, runs, flags):
    """{contender: the records of its turns}"""
    with contextlib.ExitStack() as stack:
        turns = {c: stack.enter_context(worker(case, c, flags)) for c in contenders}
        rounds = [{c: turn() for c, turn in turns.items()} for _ in range(runs)]
    return {c: [each[c] for each in rounds] for c in contenders}


def table(case, precision, results):
    """One line a contender; time and memory also as multiples of the first one's."""
    _, _, _, batch, length, _, _ = CASES[case]
    ours = None
    for contender, turns in results.items():
        walls = [wall for each in turns for wall in each["walls"]]
        cpu = statistics.median(cpu for each in turns for cpu in each["cpus"])
        floor = statistics.median(wall / each["floor"] for each in turns for wall in each["walls"])
        seconds, peak = statistics.median(walls), turns[0]["peak"]
        ours = ours or (seconds, max(peak, 1))
        yield (
            f"| {case} | {precision} | {contender} | {seconds:.3f} ({min(walls):.3f}-"
            f"{max(walls):.3f}) | {cpu:.2f} | {batch * length / seconds:,.0f} |"
            f" {peak / 2**20:,.0f} | {seconds / ours[0]:.2f}x | {peak / ours[1]:.2f}x |"
            f" {floor:.2f}x |"
        )


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--runs", type=int, default=3, help="rounds, each contender once a round")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a turn, at least")
    parser.add_argument("--seconds", type=float, default=6, help="length of a turn, at least")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--precision",
        choices=["fp32", "bf16", "both"],
        default="both" if native_bf16() else "fp32",
        help="default: both where the machine multiplies bf16, else fp32",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="instead: which operations this project's step consists of",
    )
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    options = parse_options()
    shared = {
        name: getattr(options, name)
        for name in ("precision", "threads", "steps", "seconds", "device")
    }
    if options.worker:
        turn = prepare(*options.worker, **shared)
        print("{}", flush=True)
        for _ in sys.stdin:
            print(json.dumps(turn()), flush=True)
        return
    print(
        f"{platform.machine()}, {options.threads} threads, {options.device},"
        f" torch {torch.__version__}",
        end="\n\n" if options.profile else ", ",
    )
    precisions = ["fp32", "bf16"] if options.precision == "both" else [options.precision]
    if options.profile:
        torch.set_num_threads(options.threads)
        print("| case | precision | operation | ms | share |\n" + "|---" * 5 + "|", flush=True)
        for case, precision in itertools.product(options.cases, precisions):
            print(*profile(case, precision, options.device), sep="\n", flush=True)
        return
    print(f"{options.runs} rounds of {options.steps} steps or more\n")
    print(
        "| case | precision | who | seconds, median (min-max) | CPU s | tokens/s | peak MB"
        " | time | memory | over the floor |\n" + "|---" * 10 + "|",
        flush=True,
    )
    for case, precision in itertools.product(options.cases, precisions):
        contenders = [c for c in CASES[case][-1] if available(c, options.device)]
        flags = [f"--{name}={value}" for name, value in {**shared, "precision": precision}.items()]
        # the one that needs 20 GB comes when the others are gone
        together, alone = ([c for c in contenders if (c == ALL) == last] for last in (False, True))
        results = take_turns(case, together, options.runs, flags)
        results |= take_turns(case, alone, options.runs, flags)
        for line in table(case, precision, results):
            print(line, flush=True)


if __name__ == "__main__":
    main()
