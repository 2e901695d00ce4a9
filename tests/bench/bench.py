"""What a step costs: this project, transformers with textbook formulas, bertdistiller, the floor.

    python tests/bench/bench.py                                     every case, 3 rounds
    python tests/bench/bench.py --cases mha-8x512 od-250k --runs 9 --threads 2 --precision fp32
    python tests/bench/bench.py --cases mha-8x512 --other PATH      against another checkout
    pip install --no-deps bertdistiller==0.1.2                      to see it beside the others

A step is: forward of teacher and student, loss, backward, AdamW (the same fused one for all).
"plain" is train.py --plain. "textbook" is transformers as it comes (fused attention, whole models)
and the formula written plainly; "bertdistiller" is its own compute_loss; either with dropout in
the student, as they come, and without. infer-* is a forward pass, attention-* a step with either
fast form of attention. Each contender is a process of its own and they take turns, so that a busy
minute hits all of them; the first step of a turn is not counted. Memory is the peak above weights
and optimizer state. The floor is the arithmetic of the step (contenders.py) at the rate of a large
matrix product, measured in each turn.
"""

import argparse
import importlib.util
import itertools
import multiprocessing
import os
import platform
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]  # whatever folder it is called from

from contenders import CASES, OTHER, PEER, arithmetic, build, make_batch  # noqa: E402


def build_step(case, contender, precision, device):
    """Return a function that does one whole step, and the batch it works on."""
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

    return whole_step, batch


class Measurement:
    """One contender in this process: built, warmed up by two steps, ready to take turns."""

    def __init__(self, case, contender, precision, options):
        torch.set_num_threads(options.threads)
        self.case, self.options = case, options
        self.step, self.batch = build_step(case, contender, precision, options.device)
        held = memory(options.device, reset=True)
        self.step()
        self.step()
        self.peak = memory(options.device) - held
        fast = precision == "fp32" or native_bf16()
        self.size = 8192 if options.device == "cuda" else 2048 if fast else 512
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.matrix = torch.randn(self.size, self.size).to(options.device, dtype)

    def timed(self, call):
        """Return seconds by the clock and of all cores."""
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        if self.options.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - wall, time.process_time() - cpu

    def rate(self):
        """Return FLOP/s of a large matrix product."""
        times = [self.timed(lambda: self.matrix @ self.matrix)[0] for _ in range(4)]
        return 2 * self.size**3 / min(times)

    def turn(self):
        before = self.rate()
        self.step()
        times, start = [], time.perf_counter()
        while len(times) < self.options.steps or time.perf_counter() - start < self.options.seconds:
            times.append(self.timed(self.step))
        floor = arithmetic(self.case, len(self.batch.positions)) / max(before, self.rate())
        walls, cpus = zip(*times, strict=True)
        return {"walls": walls, "cpus": cpus, "peak": self.peak, "floor": floor}


def memory(device, reset=False):
    """Return bytes held now (and reset the peak to that), or at most since then; Linux or a GPU."""
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
    """Whether bfloat16 products run in hardware; elsewhere they are far slower than float32."""
    able = torch.cpu.get_capabilities()
    return torch.cuda.is_available() or bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def prepare(checkout, *measurement):
    """In a process of its own: build the contender, with this project as it is in `checkout`."""
    global measured
    if checkout:
        sys.path.insert(0, checkout)
    measured = Measurement(*measurement)


def take_turn():
    return measured.turn()


def take_turns(case, precision, contenders, options):
    """Return {contender: the records of its turns}; each contender has a process of its own."""
    context = multiprocessing.get_context("spawn")
    processes = {name: ProcessPoolExecutor(1, context) for name in contenders}
    try:
        for name, process in processes.items():  # nobody prepares while another is measured
            checkout = options.other if name == OTHER else None
            process.submit(prepare, checkout, case, name, precision, options).result()
        records = {name: [] for name in contenders}
        for _ in range(options.runs):
            for name, process in processes.items():
                records[name].append(process.submit(take_turn).result())
    finally:
        for process in processes.values():
            process.shutdown()
    return records


def table(case, precision, results):
    """Yield one line a contender; time and memory also as multiples of the first one's."""
    _, _, _, batch, length, _, _ = CASES[case]
    first = None
    for contender, turns in results.items():
        walls = [wall for turn in turns for wall in turn["walls"]]
        cpu = statistics.median(cpu for turn in turns for cpu in turn["cpus"])
        floor = statistics.median(wall / turn["floor"] for turn in turns for wall in turn["walls"])
        seconds, peak = statistics.median(walls), turns[0]["peak"]
        first = first or (seconds, max(peak, 1))
        yield (
            f"| {case} | {precision} | {contender} | {seconds:.3f} ({min(walls):.3f}-"
            f"{max(walls):.3f}) | {cpu:.2f} | {batch * length / seconds:,.0f} |"
            f" {peak / 2**20:,.0f} | {seconds / first[0]:.2f}x | {peak / first[1]:.2f}x |"
            f" {floor:.2f}x |"
        )


def contenders_of(case, options):
    names = list(CASES[case][-1])
    if importlib.util.find_spec("bertdistiller") is None:
        names = [name for name in names if not name.startswith(PEER)]
    if options.other:
        names.insert(1, OTHER)
    return names


def parse_options(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    both = ["fp32", "bf16"]
    add("--cases", nargs="+", choices=CASES, default=list(CASES))
    add("--runs", type=int, default=3, help="rounds, each contender once a round")
    add("--steps", type=int, default=2, help="timed steps of a turn, at least")
    add("--seconds", type=float, default=6, help="length of a turn, at least")
    add("--threads", type=int, default=os.cpu_count())
    add("--precision", nargs="+", choices=both, default=both if native_bf16() else ["fp32"])
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--other", metavar="PATH", help="another checkout of this project, as one more contender")
    return parser.parse_args(argv)


def main(argv=None):
    options = parse_options(argv)
    print(
        f"{platform.machine()}, {options.threads} threads, {options.device}, torch"
        f" {torch.__version__}, {options.runs} rounds of {options.steps} steps or more\n"
    )
    columns = ["case", "precision", "who", "seconds, median (min-max)", "CPU s", "tokens/s"]
    columns += ["peak MB", "time", "memory", "over the floor"]
    print(f"| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|", flush=True)
    for case, precision in itertools.product(options.cases, options.precision):
        results = take_turns(case, precision, contenders_of(case, options), options)
        for line in table(case, precision, results):
            print(line, flush=True)


if __name__ == "__main__":
    main()
