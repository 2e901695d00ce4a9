"""What a step costs: this project, transformers with textbook formulas, bertdistiller, the floor.

docs/speed.md says what is measured, how, and with which flags. Each contender is a process of its
own; the first step of a turn is not counted.
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
from contextlib import ExitStack
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]  # whatever folder it is called from

from contenders import CASES, OTHER, PEER, arithmetic, build, make_batch  # noqa: E402


class Measurement:
    """One contender in this process: built, warmed up by two steps, ready to take turns."""

    def __init__(self, case, contender, precision, options):
        torch.set_num_threads(options.threads)
        torch.manual_seed(0)
        self.case, self.options, device = case, options, options.device
        self.batch = make_batch(case, device)
        self.parameters, self.loss = build(case, contender, self.batch, device)
        self.optimizer = None
        if self.parameters:  # memory is measured above its state, so the state must be there
            self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)
            for p in self.parameters:
                p.grad = torch.zeros_like(p)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.bf16 = precision == "bf16"
        held = memory(device, reset=True)
        self.step()
        self.step()
        self.peak = memory(device) - held
        size = 8192 if device == "cuda" else 512 if self.bf16 and not native_bf16() else 2048
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        self.matrix = torch.randn(size, size).to(device, dtype)

    def step(self):
        with torch.autocast(self.options.device, torch.bfloat16, enabled=self.bf16):
            if not self.optimizer:
                with torch.inference_mode():
                    return self.loss()
            loss, count = self.loss()
        loss.backward()
        if count is not None:  # a raw sum: its gradients are divided afterwards, as in train.py
            torch._foreach_div_([p.grad for p in self.parameters if p.grad is not None], count)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def timed(self, call):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        if self.options.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - wall, time.process_time() - cpu

    def rate(self):
        times = [self.timed(lambda: self.matrix @ self.matrix)[0] for _ in range(4)]
        return 2 * len(self.matrix) ** 3 / min(times)

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
    context, records = multiprocessing.get_context("spawn"), {name: [] for name in contenders}
    with ExitStack() as stack:
        processes = {}
        for name in contenders:  # nobody prepares while another is measured
            processes[name] = stack.enter_context(ProcessPoolExecutor(1, context))
            checkout = options.other if name == OTHER else None
            processes[name].submit(prepare, checkout, case, name, precision, options).result()
        for _ in range(options.runs):
            for name, process in processes.items():
                records[name].append(process.submit(take_turn).result())
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
