"""Distil a Transformer encoder into a smaller one, for any later task.

    python train.py                                         a whole run: MHA, embedded teacher
    python train.py --method hs --mapping uniform+last         another method
    python train.py --teacher google-bert/bert-base-uncased --data web='corpus/*.parquet' \\
        --steps 100000 --batch-size 256 --out runs/bert        a real teacher, your own text
    python train.py --out runs/bert --resume                   goes on where it stopped
    torchrun --nproc-per-node 8 train.py ...                   the same on eight GPUs (or processes)

Read it top to bottom: settings, processes, one step, the run. What it builds on: distill/student.py
(teacher and student), distill/data/batches.py (text), distill/*.py (the methods), distill/training/run.py
(log and checkpoints), distill/training/report.py (the closing table).
"""

import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, get_args, get_origin

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from distill.data.batches import Text, parse_sources
from distill.method import Batch
from distill.program import cli
from distill.program.machine import can_compile, choose_device, machine, native_bfloat16, provenance
from distill.student import freeze_unreached, load_models
from distill.training.processes import all_reduced, launcher, leave_together, rank, world
from distill.training.report import describe_encoder, finish
from distill.training.run import Run, write_tensors
from distill.training.signals import Signals
from minitransformer.errors import UserError
from minitransformer.model import Encoder
from minitransformer.pretrained import weights_hash

BAD_STEPS = 10  # non-finite steps in a row after which the run stops

# --------------------------------------------------------------------------------------------------
# Settings: each declared once; the command line is made from this class
# --------------------------------------------------------------------------------------------------


def setting(default, help: str):
    make = {"default_factory": default} if callable(default) else {"default": default}
    return field(**make, metadata={"help": help})


@dataclass(frozen=True)
class TrainConfig:
    """None: the default depends on other settings; the log's start record has its value."""

    teacher: str = setting("embedded", "embedded, a folder, or a hub id")
    method: Literal["mha", "hs", "od", "direct-minilm", "mlm"] = setting("mha", "what to transfer")
    mapping: Literal["single", "uniform", "last", "uniform-consecutive", "uniform+last"] = setting(
        "uniform", "hs: which student layer learns from which teacher layer"
    )
    teacher_layer: int | None = setting(
        None, "mha, direct-minilm: teacher layer to learn from; default: the last but one"
    )
    relation_heads: int | None = setting(
        None, "mha, direct-minilm: default: the common divisor of both widths nearest to 48"
    )
    temperature: float = setting(1.0, "od: temperature of both distributions")
    positions: Literal["masked", "all"] = setting("masked", "od: tokens to compare predictions at")
    student_layers: int | None = setting(None, "default: half the teacher's")
    student_hidden: int | None = setting(None, "width; default: the teacher's")
    student_heads: int | None = setting(
        None, "default: the teacher's, or the nearest number that divides the width"
    )
    student_ffn: int | None = setting(None, "default: 4 times the width")
    init: str | None = setting(
        None,
        "random, embeddings, uniform, first, last, layers like 2,4,6, or a student's folder;"
        " default: uniform where the widths match, else embeddings",
    )
    data: list[str] = setting(  # noqa: RUF009 - a default_factory
        lambda: ["docs"],
        "docs (default), NAME=path/or/glob[:column] or"
        " NAME=hub:dataset[:config][:split][:column]; may be given several times",
    )
    alpha: float = setting(0.3, "a corpus of n tokens gets a share in proportion to n^alpha")
    seq_len: int = setting(128, "tokens in a sequence")
    batch_size: int = setting(16, "sequences per process and micro-batch")
    accumulate: int = setting(1, "micro-batches in a step of batch-size x accumulate x processes")
    steps: int = setting(100, "optimizer steps")
    lr: float = setting(6e-4, "peak learning rate")
    warmup: float = setting(0.1, "share of the steps in which it rises; then it falls to 0")
    weight_decay: float = setting(0.01, "AdamW's, on matrices alone")
    clip: float = setting(1.0, "largest norm of the gradient; 0: no limit")
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto", "auto: bf16 where the hardware multiplies it, else fp32"
    )
    device: str = setting("auto", "cuda where there is one, else cpu; or cpu, cuda, cuda:1")
    threads: int = setting(0, "CPU threads; 0: PyTorch's choice")
    compile: bool = setting(False, "torch.compile teacher and student")
    seed: int = setting(0, "of random weights, the order of the text and the masks")
    revision: str | None = setting(None, "of a teacher from the hub")
    out: str | None = setting(None, "run folder, must be new; default: runs/METHOD-1, -2, ...")
    save_every: int = setting(500, "steps between checkpoints")
    eval_every: int = setting(50, "steps between evaluations on held-out text")
    resume: bool = setting(False, "go on with --out")

    def __post_init__(self):
        at_least = dict.fromkeys(
            (
                "seq_len",
                "batch_size",
                "accumulate",
                "steps",
                "save_every",
                "eval_every",
                "student_layers",
                "student_hidden",
                "student_heads",
                "student_ffn",
                "teacher_layer",
                "relation_heads",
            ),
            1,
        )
        at_least |= dict.fromkeys(("weight_decay", "clip", "threads", "seed", "warmup", "alpha"), 0)
        at_least |= {"lr": 1e-12, "temperature": 1e-3, "seq_len": 3}
        at_most = {"warmup": 1, "alpha": 1, "seed": 2**32 - 2, "threads": 1024}
        at_most |= dict.fromkeys(("batch_size", "accumulate", "student_hidden"), 2**16)
        for name, least in at_least.items():
            value, most = getattr(self, name), at_most.get(name, 1e15)
            if value is not None and not least <= value <= most:
                flag = "--" + name.replace("_", "-")
                raise UserError(f"{flag} is {value}; it must be from {least} to {most:g}")


def parse_config(argv: list[str] | None = None) -> TrainConfig:
    """The settings of the command line; with --resume those of the run's own start record."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    for f in fields(TrainConfig):
        optional = type(None) in get_args(f.type)
        kind = get_args(f.type)[0] if optional else f.type  # int | None -> int
        shown = "" if f.default in (None, False) or f.name == "data" else f" (default: {f.default})"
        options = {"help": f.metadata["help"] + shown, "default": None}
        if kind is bool:
            options["action"] = "store_true"
        elif get_origin(kind) is Literal:
            options["choices"] = get_args(kind)
        elif get_origin(kind) is list:
            options["action"] = "append"
        else:
            options["type"] = kind
        parser.add_argument("--" + f.name.replace("_", "-"), **options)
    given = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None}
    return resumed_config(given) if given.get("resume") else TrainConfig(**given)


def resumed_config(given: dict) -> TrainConfig:
    if "out" not in given:
        raise UserError("--resume goes on with a run folder: name it with --out")
    settings = Run(given["out"]).newest_with("settings")["settings"]
    if settings.keys() != {f.name for f in fields(TrainConfig)}:
        raise UserError(
            f"{given['out']} was begun by another version of this program;"
            " go on with that one or start a new run"
        )
    free = {
        "out",
        "resume",
        "batch_size",
        "accumulate",
        "device",
        "threads",
        "save_every",
        "eval_every",
        "lr",
        "clip",
    }
    for name, value in given.items():
        if name not in free and settings[name] != value:
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"{flag} {value}, but {given['out']} was started with {settings[name]};"
                f" leave {flag} out to go on"
            )
    return TrainConfig(**{**settings, **given})


# --------------------------------------------------------------------------------------------------
# Processes and device
# --------------------------------------------------------------------------------------------------


# --------------------------------------------------------------------------------------------------
# One step
# --------------------------------------------------------------------------------------------------


class Transfer(nn.Module):
    """Student and learned maps as one module: DistributedDataParallel must see every gradient."""

    def __init__(self, student: Encoder, method: nn.Module):
        super().__init__()
        self.student, self.method = student, method

    def forward(self, teacher: Encoder | None, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.method(self.student, teacher, batch)


def make_optimizer(config: TrainConfig, transfer: Transfer) -> torch.optim.AdamW:
    trained = [p for p in transfer.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]
    # eps 1e-6: with 1e-8 a gradient that is rounding noise moves a weight by a full learning rate
    return torch.optim.AdamW(groups, lr=config.lr, eps=1e-6, fused=True)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Of optimizer step 0, 1, ...: up in a line to the peak, then down in a line to 0."""
    warmup = math.ceil(config.warmup * config.steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * (config.steps - step) / max(1, config.steps - warmup)


def train_step(config, wrapped, teacher, optimizer, batches, autocast, stopping: int):
    """One optimizer step on this rank's micro-batches -> (loss, finite, some rank told to stop).

    loss = sum over micro-batches and ranks / their count: how the step is cut up changes nothing.
    Each rank backpropagates its raw sum; DDP averages; the gradient is scaled by ranks / count.
    """
    totals, counts = [], []
    for turn, batch in enumerate(batches, 1):
        waits = isinstance(wrapped, DistributedDataParallel) and turn < len(batches)
        with wrapped.no_sync() if waits else nullcontext():
            with autocast():
                total, count = wrapped(teacher, batch)
            total.backward()
        totals.append(total.detach().double())
        counts.append(count.double())
    told = torch.tensor(float(stopping > 0), device=totals[0].device)
    total, count, told = all_reduced(torch.stack(totals).sum(), torch.stack(counts).sum(), told)
    if count == 0:
        raise UserError("a whole step has nothing to learn from; give longer sequences")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    torch._foreach_mul_([p.grad for p in parameters], world() / count)
    norm = nn.utils.clip_grad_norm_(parameters, config.clip or math.inf).item()
    # the same on all ranks, since both are made from all of them
    finite = math.isfinite(total) and math.isfinite(norm)
    if finite:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total / count, finite, told > 0


@torch.no_grad()
def held_out_loss(transfer, teacher, batches: list[Batch], autocast) -> float:
    """The method's own loss on text that training never sees; the ranks share the batches."""
    total = count = torch.zeros((), dtype=torch.float64, device=batches[0].ids.device)
    for batch in batches[rank() :: world()]:
        with autocast():
            part, number = transfer(teacher, batch)
        total, count = total + part, count + number
    total, count = all_reduced(total, count)
    return total / count


# --------------------------------------------------------------------------------------------------
# The run
# --------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    config = parse_config(argv)
    if rank() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - one voice; errors go to stderr
    if config.resume:
        run = Run(config.out, writes=rank() == 0)
        last = run.records()[-1]
        if last["event"] == "summary":
            run.remove_checkpoints()  # if it was killed between its summary and this
            print(
                f"{config.out} is finished: {config.steps} steps,"
                f" held-out loss {last['loss_after']}"
            )
            return 0
    elif config.out:
        Run(config.out).check_new()

    device = choose_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    bf16 = config.precision == "bf16"
    if config.precision == "auto":
        bf16 = native_bfloat16(device)

    def autocast():
        return torch.autocast(device.type, torch.bfloat16, enabled=bf16)

    # teacher, student, method, text
    parse_sources(config.data)  # a wrong name there should not wait for the teacher
    teacher, student, method, tokenizer, config = load_models(config)
    config = replace(config, precision="bf16" if bf16 else "fp32")
    text = Text(config.data, tokenizer, config.seq_len, alpha=config.alpha, seed=config.seed)
    for model in (teacher, student, method):
        if model is not None:
            model.to(device)
    held_out = text.held_out(config.batch_size, masked=method.masked_text)
    held_out = [batch.to(device) for batch in held_out]
    frozen = freeze_unreached(student, method, teacher, held_out[0])
    transfer = wrapped = Transfer(student, method)
    if config.compile and can_compile(device):
        for model in (teacher, student):
            if model is not None:
                model.compile()
    if world() > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        wrapped = DistributedDataParallel(transfer)
    optimizer = make_optimizer(config, transfer)

    # the run folder
    config, run = open_run(config)
    start, bad = 0, 0
    facts = {
        "settings": asdict(config),
        "processes": world(),
        "text": text.describe(),
        "sequences_a_step": config.batch_size * config.accumulate * world(),
        "teacher": teacher and {"name": config.teacher, "hash": weights_hash(teacher)},
        **provenance(),
    }
    if config.resume:
        run.check_unchanged(facts)
        state = run.newest()
        before = run.newest_with("processes")
        run.cut_log(state and state["log_length"])
        if state:
            student.load_state_dict(state["student"])
            method.load_state_dict(state["method"])
            optimizer.load_state_dict(state["optimizer"])
            text.load_state_dict(state["text"])
            start, bad = state["step"], state["bad"]
        print(f"going on with {run.folder} at step {start}, sequence {text.counts.sum()}")
        for what in ("processes", "sequences_a_step"):
            if facts[what] != before[what]:
                print(f"{what.replace('_', ' ')}: {facts[what]}, before {before[what]}")
        run.log("resume", step=start, **facts)
    else:
        run.create()
        run.log("start", **facts)
    print(f"student: {describe_encoder(student)}; starts from {config.init}")
    print(f"{config.method}: {method.describe()}" + (f"\n{frozen}" if frozen else ""))
    print(
        f"text: {sum(c['tokens'] or 0 for c in text.describe()):,} tokens;"
        f" {config.precision} on {machine()}; {run.folder}",
        flush=True,
    )

    def save(step: int) -> None:
        # no random state: order and masks follow from (seed, draw), and there is no dropout
        run.save(
            step,
            {
                "student": student.state_dict(),
                "method": method.state_dict(),
                "bad": bad,
                "optimizer": optimizer.state_dict(),
                "text": read,
            },
        )

    def draw():
        """This rank's batches of the next step, and how far the text is read then."""
        batches = text.step(
            config.batch_size, config.accumulate, rank(), world(), masked=method.masked_text
        )
        return batches, text.state_dict()

    # each step's batches are drawn in a thread while the step before computes
    drawing, drawn, read = ThreadPoolExecutor(1), None, text.state_dict()

    # the loop: one turn more than there are steps, so that the last evaluation is like the others
    signals, told = Signals(), False
    tokens = facts["sequences_a_step"] * config.seq_len
    progress = tqdm(total=config.steps, initial=start, unit="step", disable=rank() > 0 or None)
    spoke = time.monotonic()
    for step in range(start, config.steps + 1):
        # amid non-finite steps the good checkpoints stay; the last step's is for a failing export
        due = (step % config.save_every == 0 and not bad) or step == config.steps
        if step > start and (told or due):
            save(step)
        if told and step < config.steps:
            progress.close()
            print(
                f"stopped after step {step}; to go on: {launcher()} train.py"
                f" --out {run.folder} --resume",
                flush=True,
            )
            leave_together()
            return signals.status
        if step % config.eval_every == 0 or step == config.steps:
            loss = held_out_loss(transfer, teacher, held_out, autocast)
            run.log("eval", step=step, loss=loss if math.isfinite(loss) else None)
            progress.write(
                f"step {step:>6}/{config.steps}  held-out loss {loss:.4f}", file=sys.stdout
            )
        if step == config.steps:
            break
        clock = time.perf_counter()
        lr = learning_rate(config, step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        batches, read = (drawn or drawing.submit(draw)).result()
        drawn = drawing.submit(draw) if step + 1 < config.steps else None
        batches = [batch.to(device) for batch in batches]
        loss, finite, told = train_step(
            config, wrapped, teacher, optimizer, batches, autocast, signals.received
        )
        speed = tokens / (time.perf_counter() - clock)
        run.log(
            "step", step=step + 1, loss=loss if finite else None, lr=lr, tokens_per_s=round(speed)
        )
        bad = 0 if finite else bad + 1
        if bad:
            progress.write(
                f"step {step + 1} is skipped: its loss or gradient is not finite", file=sys.stdout
            )
        if bad >= BAD_STEPS:
            file = run.folder / f"bad-batch-rank{rank()}.safetensors"
            write_tensors(
                file,
                {
                    f"{turn}.{name}": tensor
                    for turn, batch in enumerate(batches)
                    for name, tensor in vars(batch).items()
                    if tensor is not None
                },
            )
            raise UserError(
                f"{bad} steps in a row had no finite loss or gradient, up to step {step + 1}; its"
                f" batch is in {file}; go on with --resume and a lower --lr than {config.lr:g}"
            )
        progress.set_postfix_str(f"loss {loss:.4f}, {speed:,.0f} tokens/s", refresh=False)
        progress.update()
        if progress.disable and (step == start or time.monotonic() - spoke >= 10):
            spoke = time.monotonic()
            left = tokens / speed * (config.steps - step - 1)
            print(
                f"step {step + 1:>6}/{config.steps}  loss {loss:.4f}  lr {lr:.1e}"
                f"  {speed:,.0f} tokens/s  {tqdm.format_interval(left)} left",
                flush=True,
            )
    progress.close()
    if rank() == 0:
        finish(config, run, teacher, student, method, tokenizer, text)
    leave_together()
    return 0


def open_run(config: TrainConfig) -> tuple[TrainConfig, Run]:
    """The run folder, not made yet; all ranks agree on its name."""
    numbers = (n for n in range(1, 10**6) if not Path(f"runs/{config.method}-{n}").exists())
    names = [config.out or f"runs/{config.method}-{next(numbers)}"]
    if dist.is_initialized():  # so no rank makes it before all have seen that it is not there
        dist.broadcast_object_list(names)
    return replace(config, out=names[0]), Run(names[0], writes=rank() == 0)


if __name__ == "__main__":
    cli.run(main)
