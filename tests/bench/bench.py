"""What an optimizer step costs, in time and memory: this project beside transformers.

How to call it, and how it measures: docs/speed.md. Seconds are CPU time with --threads 1, else
wall-clock time. The last two columns are multiples of the first contender's, step by step.
"""

import argparse
import itertools
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]
OURS, PLAIN, TEXTBOOK, OTHER = "this project", "--plain", "transformers", "other checkout"
WIDTH, R = 384, 48  # R relation heads
# name: method, student layers, teacher layers, batch, length, vocabulary
CASES = {
    "mha-8x512": ("mha", 6, 6, 8, 512, 30522),
    "mha-32x128": ("mha", 3, 6, 32, 128, 30522),
    "hs-32x128": ("hs", 3, 6, 32, 128, 30522),
    "od-250k": ("od", 2, 2, 32, 128, 250002),  # as many words as XLM-R
}


def build(case, contender, device="cpu"):
    """Return (parameters, a function that computes the loss); of the checkout on PYTHONPATH."""
    from distill import build_method
    from distill.method import Batch
    from minitransformer import Encoder, EncoderConfig

    name, L_s, L_t, B, N, V = case
    sizes = {"hidden_size": WIDTH, "num_attention_heads": 12, "intermediate_size": 4 * WIDTH}
    configs = [EncoderConfig(vocab_size=V, num_hidden_layers=L, **sizes) for L in (L_s, L_t)]
    torch.manual_seed(0)
    models = [Encoder(config, mlm_head=name == "od").to(device) for config in configs]
    ids, positions = torch.randint(5, V, (B, N)), torch.randperm(B * N)[: B * N * 3 // 20]
    batch = Batch(ids, ids > 0, ids, positions).to(device)
    if contender == TEXTBOOK:
        return textbook(case, models, batch)
    student, teacher = models
    teacher.requires_grad_(False)
    settings = {"method": name, "plain": contender == PLAIN}
    if name == "mha":  # named, since another checkout may have other defaults
        settings |= {"teacher_layer": L_t - 1, "relation_heads": R}
    method = build_method(settings, *configs).to(device)

    def loss():
        total, count = method(student, teacher, batch)
        return total / count

    return [*student.parameters(), *method.parameters()], loss


def textbook(case, encoders, batch):
    """Models of transformers, whole and without dropout, and the formula written plainly."""
    from transformers import BertConfig, BertForMaskedLM

    from minitransformer.convert import to_hugging_face

    models, seen, (name, L_s, L_t, B, N, _) = [], [], case
    for encoder, layer in zip(encoders, (L_s, L_t - 1), strict=True):
        dry = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        model = BertForMaskedLM(BertConfig(**encoder.config.to_dict("") | dry))
        part = model if name == "od" else model.bert
        part.load_state_dict(to_hugging_face(encoder), strict=False)  # some are tied
        models.append(model.to(batch.ids.device).requires_grad_(not models))
        seen.append({})
        attention = model.bert.encoder.layer[layer - 1].attention.self
        for part in ("query", "key", "value"):
            attention.get_submodule(part).register_forward_hook(
                lambda _, inputs, output, own=seen[-1], part=part: own.update({part: output})
            )

    def loss():
        more = {"attention_mask": batch.mask, "output_hidden_states": True}
        student, teacher = (model.bert(batch.ids, **more)[1] for model in models)
        if name == "od":
            features = (x[-1].flatten(0, 1)[batch.positions] for x in (student, teacher))
            logs = [m.cls(x).float().log_softmax(-1) for m, x in zip(models, features, strict=True)]
            return F.kl_div(*logs, reduction="batchmean", log_target=True)
        if name == "hs":
            pairs = [(i, i * L_t // L_s) for i in range(1, L_s + 1)]
            return sum(F.mse_loss(student[i], teacher[j]) for i, j in pairs)
        total = 0
        for part in seen[0]:
            heads = (own[part].unflatten(-1, (R, -1)).transpose(1, 2) for own in seen)
            logs = [(x @ x.mT / x.shape[-1] ** 0.5).float().log_softmax(-1) for x in heads]
            total += F.kl_div(*logs, reduction="sum", log_target=True)
        return total / (B * N * R)

    return [*models[0].parameters()], loss


def memory(device, reset=False):
    """Return MB held now (and reset the peak to that), or at most since then; Linux or a GPU."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats() if reset else None
        return torch.cuda.max_memory_allocated() / 2**20
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text().split("VmRSS:" if reset else "VmHWM:")[1]
    return int(status.split()[0]) / 2**10


def work(case, precision, contender, device):
    """Print the memory of two steps; then, for each line that comes in, the seconds of one more."""
    parameters, loss = build(CASES[case], contender, device)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    for p in parameters:
        p.grad = torch.zeros_like(p)
    optimizer.step()  # makes its state
    optimizer.zero_grad()
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def step():
        began = clock()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device != "cpu":
            torch.cuda.synchronize()
        return clock() - began

    held = memory(device, reset=True)
    step()
    step()
    print(memory(device) - held, flush=True)
    for _ in sys.stdin:
        print(step(), flush=True)


def compare(case, precision, contenders, options):
    """Print one line a contender."""
    processes, peaks, turns = {}, {}, {}
    for name in contenders:  # nobody prepares while another is measured
        checkout = options.against if name == OTHER else ROOT
        command = [sys.executable, __file__, "--worker", case, precision, name, options.device]
        environment = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(options.threads)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes[name] = subprocess.Popen(command, env=os.environ | environment, **pipes)
        peaks[name], turns[name] = float(processes[name].stdout.readline()), []
    for _ in range(options.rounds):
        for name, process in processes.items():
            print(file=process.stdin, flush=True)
            turns[name].append(float(process.stdout.readline()))
    for name, process in processes.items():
        process.communicate()
        times = [mine / first for mine, first in zip(turns[name], turns[OURS], strict=True)]
        seconds, ratio = statistics.median(turns[name]), statistics.median(times)
        rest = f"{peaks[name]:,.0f} | {ratio:.3f} | {peaks[name] / max(peaks[OURS], 1):.2f}"
        print(f"| {case} | {precision} | {name} | {seconds:.3f} | {rest} |", flush=True)


def main():
    if sys.argv[1:2] == ["--worker"]:
        return work(*sys.argv[2:])
    parser = argparse.ArgumentParser()
    add, both = parser.add_argument, ["fp32", "bf16"]
    add("--cases", nargs="+", choices=CASES, default=list(CASES))
    add("--precision", nargs="+", choices=both, default=both)
    add("--against", metavar="FOLDER", help="another checkout of this project")
    add("--rounds", type=int, default=9, help="a step of each contender in a round")
    add("--threads", type=int, default=os.cpu_count())
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    print(f"{platform.machine()}, {options.device}, {options.threads} threads, {torch.__version__}")
    print("| case | precision | who | seconds | MB | time | memory |", "|---" * 7 + "|", sep="\n")
    others = [OTHER] if options.against else [PLAIN, TEXTBOOK]
    for case, precision in itertools.product(options.cases, options.precision):
        compare(case, precision, [OURS, *others], options)


if __name__ == "__main__":
    main()
