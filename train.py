"""Distil a Transformer encoder into a smaller one, for any later task.

    python train.py                                                     a whole run: 6-layer teacher, `docs` text, MHA transfer
    python train.py --method hs --mapping uniform+last                  another method
    python train.py --teacher google-bert/bert-base-uncased --data web='corpus/*.parquet' --steps 100000 --out runs/bert
    python train.py --out runs/bert --resume                            goes on where it stopped
    torchrun --nproc-per-node 8 train.py ...                            the same on eight GPUs (or CPU processes)

Read it top to bottom: settings, processes, teacher and student, text, one step, evaluation, checkpoint, loop, table.
"""

import math
import os
import shutil
import signal
import statistics
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, get_args, get_origin

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from distill import METHODS, build_method
from distill.run import Run
from distill.student import add_mlm_head, default_init, is_folder, start_student, student_config
from minitransformer import cli, cost
from minitransformer.config import UserError
from minitransformer.data import Batch, Text
from minitransformer.model import Encoder
from minitransformer.pretrained import load_pretrained, save_pretrained, weights_hash

BAD_STEPS = 10  # non-finite steps in a row after which the run stops

# ----------------------------------------------------------------------------------------------------------------------
# Settings: each declared once; the command line is made from this class
# ----------------------------------------------------------------------------------------------------------------------


def setting(default, help: str):
    make = {"default_factory": default} if callable(default) else {"default": default}
    return field(**make, metadata={"help": help})


@dataclass(frozen=True)
class TrainConfig:
    teacher: str = setting("embedded", "embedded, a folder, or a hub id such as google-bert/bert-base-uncased")
    method: Literal["mha", "hs", "od", "direct-minilm", "mlm"] = setting("mha", "which knowledge to transfer")
    mapping: str = setting("uniform", "hs: layer map: single, uniform, last, uniform-consecutive or uniform+last")
    teacher_layer: int | None = setting(None, "mha, direct-minilm: teacher layer to learn from (default: the last but one)")
    relation_heads: int | None = setting(None, "mha, direct-minilm: relation heads (default: common divisor of the widths nearest to 48)")
    temperature: float = setting(1.0, "od: temperature of both distributions")
    positions: Literal["masked", "all"] = setting("masked", "od: at which tokens the distributions are compared")
    student_layers: int | None = setting(None, "student layers (default: half the teacher's)")
    student_hidden: int | None = setting(None, "student width (default: the teacher's)")
    student_heads: int | None = setting(None, "student attention heads (default: the teacher's, or the nearest that divides the width)")
    student_ffn: int | None = setting(None, "student FFN width (default: 4 times the width)")
    init: str | None = setting(None, "random, embeddings, uniform, first, last, a list like 2,4,6, or another student's folder (default: uniform where widths match, else embeddings)")
    data: list[str] = setting(lambda: ["docs"], "docs, NAME=path/or/glob[:column] or NAME=hub:dataset[:config][:split][:column]; several times for several corpora")
    alpha: float = setting(0.3, "several corpora: a corpus of n tokens has a share in proportion to n^alpha")
    seq_len: int = setting(128, "tokens in a sequence")
    batch_size: int = setting(16, "sequences per process and micro-batch; a step sees batch-size x accumulate x processes")
    accumulate: int = setting(1, "micro-batches in a step")
    steps: int = setting(200, "optimizer steps")
    lr: float = setting(6e-4, "peak learning rate")
    warmup: float = setting(0.1, "share of the steps in which the learning rate rises; it falls linearly to 0 after them")
    weight_decay: float = setting(0.01, "AdamW's, on matrices alone")
    clip: float = setting(1.0, "largest norm of the gradient (0: no limit)")
    precision: Literal["auto", "fp32", "bf16"] = setting("auto", "auto: bf16 where the hardware multiplies it, else fp32")
    device: str = setting("auto", "auto (cuda where there is one), cpu, cuda, cuda:1, ...")
    threads: int = setting(0, "CPU threads (0: PyTorch's choice)")
    compile: bool = setting(False, "torch.compile teacher and student")
    seed: int = setting(0, "of the student's random weights, the order of the text and the masks")
    revision: str | None = setting(None, "revision of a teacher from the hub")
    out: str | None = setting(None, "run folder, must be new (default: runs/METHOD-1, -2, ...)")
    save_every: int = setting(500, "steps between checkpoints")
    eval_every: int = setting(100, "steps between evaluations on held-out text")
    resume: bool = setting(False, "go on with --out")

    def __post_init__(self):
        for name in ("seq_len", "batch_size", "accumulate", "steps", "save_every", "eval_every"):
            self._at_least(name, 1)
        for name in ("student_layers", "student_hidden", "student_heads", "student_ffn", "teacher_layer", "relation_heads"):
            if getattr(self, name) is not None:
                self._at_least(name, 1)
        for name in ("weight_decay", "clip", "threads", "seed", "warmup", "alpha"):
            self._at_least(name, 0)
        for name in ("lr", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"--{name} is {getattr(self, name)}, must be above 0 and finite")
        for name in ("warmup", "alpha"):
            if getattr(self, name) > 1:
                raise UserError(f"--{name} is {getattr(self, name)}, must be from 0 to 1")
        if self.seed >= 2**32 - 1:
            raise UserError(f"--seed is {self.seed}, must be below {2**32 - 1}")

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not least <= value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} is {value}, must be at least {least} and finite")


def parse_config(argv: list[str] | None = None) -> TrainConfig:
    """The settings of the command line; with --resume those of the run's own start record."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    for f in fields(TrainConfig):
        kind = next((k for k in get_args(f.type) if k is not type(None)), f.type) if None in (f.default,) else f.type
        options: dict = {"help": f.metadata["help"] + ("" if f.default is None or f.name == "data" else f" (default: {f.default})")}
        if kind is bool:
            options["action"] = "store_true"
        elif get_origin(kind) is Literal:
            options["choices"] = get_args(kind)
        elif get_origin(kind) is list:
            options["action"] = "append"
        else:
            options["type"] = kind
        parser.add_argument("--" + f.name.replace("_", "-"), default=None, **options)
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    return resumed_config(given) if given.get("resume") else TrainConfig(**given)


def resumed_config(given: dict) -> TrainConfig:
    if "out" not in given:
        raise UserError("--resume goes on with a run folder: name it with --out")
    settings = Run(given["out"]).start_record()["settings"]
    free = {"out", "resume", "batch_size", "accumulate", "device", "threads", "save_every", "eval_every"}
    for name, value in given.items():
        if name not in free and settings[name] != value:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} {value}, but {given['out']} was started with {settings[name]}; leave {flag} out to go on")
    return TrainConfig(**{**settings, **given})


# ----------------------------------------------------------------------------------------------------------------------
# Processes and device
# ----------------------------------------------------------------------------------------------------------------------


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def choose_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device


def all_reduced(*numbers: Tensor) -> list[float]:
    """The sums of the numbers over all processes, in one collective and one wait for the device."""
    packed = torch.stack([number.detach().double() for number in numbers])
    if dist.is_initialized():
        dist.all_reduce(packed)
    return packed.tolist()


# ----------------------------------------------------------------------------------------------------------------------
# Teacher, student, method
# ----------------------------------------------------------------------------------------------------------------------


def load_models(config: TrainConfig):
    """(teacher or None, student, method, tokenizer, the settings with what was left open filled in)."""
    folder = config.init if config.init and is_folder(config.init) else None
    wants_teacher = METHODS[config.method].needs_teacher
    teacher = tokenizer = student = None
    if wants_teacher or not folder:
        teacher, tokenizer = load_pretrained(config.teacher, config.revision)
        teacher.requires_grad_(False)
    if folder:
        student, own_tokenizer = load_pretrained(folder)
        if teacher and own_tokenizer.hash != tokenizer.hash:
            raise UserError(
                f"tokenizers differ: --init {folder} {own_tokenizer.hash[:8]} ({own_tokenizer.vocab_size} tokens), --teacher "
                f"{config.teacher} {tokenizer.hash[:8]} ({tokenizer.vocab_size} tokens); a student reads with its teacher's"
            )
        tokenizer = own_tokenizer
        for name, size in student_sizes(student.config).items():
            if getattr(config, name) not in (None, size):
                flag = "--" + name.replace("_", "-")
                raise UserError(f"{flag} {getattr(config, name)}, but --init {folder} has {size}; leave {flag} out")
    reads_mlm = METHODS[config.method].masked_text
    if student is None:
        sizes = (config.student_layers, config.student_hidden, config.student_heads, config.student_ffn)
        shape = student_config(teacher.config, *sizes)
        init = config.init or default_init(shape, teacher.config)
        student = start_student(init, shape, teacher, config.seed, mlm_head=reads_mlm)
        config = replace(config, init=init)
    elif reads_mlm:
        add_mlm_head(student, teacher, config.seed)
    method = build_method(
        config.method,
        student.config,
        teacher.config if wants_teacher else None,
        mapping=config.mapping,
        teacher_layer=config.teacher_layer,
        relation_heads=config.relation_heads,
        temperature=config.temperature,
        positions=config.positions,
    )
    method.check_models(student, teacher)
    if config.seq_len > student.config.max_tokens:
        raise UserError(f"--seq-len {config.seq_len}, but the model has positions for {student.config.max_tokens} tokens")
    chosen = {name: getattr(method, name) for name in ("teacher_layer", "relation_heads") if hasattr(method, name)}
    return teacher, student, method, tokenizer, replace(config, **student_sizes(student.config), **chosen)


def student_sizes(config) -> dict[str, int]:
    return {
        "student_layers": config.num_hidden_layers,
        "student_hidden": config.hidden_size,
        "student_heads": config.num_attention_heads,
        "student_ffn": config.intermediate_size,
    }


def freeze_unreached(student: Encoder, method: nn.Module, teacher: Encoder | None, batch: Batch) -> str:
    """Freezes what the method's gradient never reaches, found by asking for one; returns a line about it."""
    total, _ = method(student, teacher, batch)
    total.backward()
    unreached = {name: p for name, p in student.named_parameters() if p.grad is None}
    for parameter in unreached.values():
        parameter.requires_grad_(False)
    student.zero_grad(set_to_none=True)
    method.zero_grad(set_to_none=True)
    if not unreached:
        return ""
    modules = dict.fromkeys(name.rpartition(".")[0] for name in unreached)
    count = sum(p.numel() for p in unreached.values())
    return f"never learns under this method, hence frozen ({count / 1e6:.1f} M parameters): {', '.join(modules)}"


class Transfer(nn.Module):
    """Student and learned maps as one module, so that DistributedDataParallel sees every gradient."""

    def __init__(self, student: Encoder, method: nn.Module):
        super().__init__()
        self.student, self.method = student, method

    def forward(self, teacher: Encoder | None, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.method(self.student, teacher, batch)


# ----------------------------------------------------------------------------------------------------------------------
# One step
# ----------------------------------------------------------------------------------------------------------------------


def make_optimizer(config: TrainConfig, transfer: Transfer) -> torch.optim.AdamW:
    trained = [p for p in transfer.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]
    # eps 1e-6: with 1e-8 a gradient that is rounding noise moves a weight by a full learning rate
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, eps=1e-6, fused=True)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Of optimizer step `step` = 0, 1, ...: up in a line to the peak, down in a line to 0."""
    warmup = math.ceil(config.warmup * config.steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * (config.steps - step) / max(1, config.steps - warmup)


def train_step(config, wrapped, teacher, optimizer, batches, autocast, stopping: int) -> tuple[float, bool, bool]:
    """One optimizer step on this rank's micro-batches. Returns (loss, whether it was finite, whether a rank was told to stop).

    loss = sum over micro-batches and ranks / their count, so how the step is cut up does not change it. Each rank
    backpropagates its raw sum; DistributedDataParallel averages, so the gradient is scaled by ranks / count.
    """
    totals, counts = [], []
    for turn, batch in enumerate(batches, 1):
        waits = isinstance(wrapped, DistributedDataParallel) and turn < len(batches)
        with wrapped.no_sync() if waits else nullcontext(), autocast():
            total, count = wrapped(teacher, batch)
        with wrapped.no_sync() if waits else nullcontext():
            total.backward()
        totals.append(total.detach())
        counts.append(count)
    device = totals[0].device
    told = torch.tensor(float(stopping), device=device)
    total, count, told = all_reduced(torch.stack(totals).double().sum(), torch.stack(counts).double().sum(), told)
    if count == 0:
        raise UserError("a whole step had nothing to learn from; give longer sequences or larger batches")
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
    torch._foreach_mul_(gradients, world() / count)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, config.clip or math.inf, foreach=True)
    finite = math.isfinite(total) and math.isfinite(norm)  # the same on every rank: both come from all of them
    if finite:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total / count, finite, told > 0


@torch.no_grad()
def held_out_loss(transfer: Transfer, teacher: Encoder | None, batches: list[Batch], autocast) -> float:
    """The method's own loss on text that training never sees; the ranks share the batches."""
    total = count = torch.zeros((), dtype=torch.float64, device=next(transfer.parameters()).device)
    for batch in batches[rank() :: world()]:
        with autocast():
            part, number = transfer(teacher, batch)
        total, count = total + part, count + number
    total, count = all_reduced(total, count)
    return total / count


# ----------------------------------------------------------------------------------------------------------------------
# The run
# ----------------------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    config = parse_config(argv)
    if rank() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - one voice; errors go to stderr
    if config.resume:
        records = Run(config.out).records()
        if records[-1]["event"] == "summary":
            print(f"{config.out} is finished: {config.steps} steps, held-out loss {records[-1]['loss_after']:.4f}")
            return 0
    elif config.out and os.path.exists(config.out):
        raise UserError(f"--out {config.out} exists; choose another name, or add --resume to go on with it")
    device = choose_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    bf16 = config.precision == "bf16" or (config.precision == "auto" and cli.native_bfloat16(device))

    def autocast():
        return torch.autocast(device.type, torch.bfloat16, enabled=bf16)

    teacher, student, method, tokenizer, config = load_models(config)
    config = replace(config, precision="bf16" if bf16 else "fp32")
    text = Text(config.data, tokenizer, config.seq_len, alpha=config.alpha, seed=config.seed)
    for model in (teacher, student, method):
        if model is not None:
            model.to(device)
    held_out = [b.to(device) for b in text.held_out(config.batch_size, masked=method.masked_text)]
    probe = Batch(*(None if t is None else t[:1] for t in vars(held_out[0]).values()))
    frozen = freeze_unreached(student, method, teacher, probe)
    student.train()
    transfer = wrapped = Transfer(student, method)
    if config.compile:
        compile_models(device, teacher, student)
    if world() > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        wrapped = DistributedDataParallel(transfer)
    optimizer = make_optimizer(config, transfer)

    config, run = open_run(config)
    start, bad = 0, 0
    if config.resume:
        state = run.newest()
        run.cut_log(state and state["log_length"])
        if state:
            student.load_state_dict(state["student"])
            method.load_state_dict(state["method"])
            optimizer.load_state_dict(state["optimizer"])
            text.load_state_dict(state["text"])
            start, bad = state["step"], state["bad"]
        print(f"going on with {run.folder} at step {start}, sequence {text.counts.sum()}, on {world()} process(es)")
        run.log("resume", step=start, processes=world(), **cli.provenance())
    else:
        run.log(
            "start",
            settings=asdict(config),
            teacher={"name": config.teacher, "hash": weights_hash(teacher)} if teacher else None,
            text=text.describe(),
            processes=world(),
            **cli.provenance(),
        )
    print(f"{config.method}: {method.describe()}")
    print(f"student: {describe_encoder(student)}, start: {config.init}" + (f"\n{frozen}" if frozen else ""))
    print(f"text: {sum(c['tokens'] or 0 for c in text.describe()):,} tokens; {config.precision} on {cli.machine()}; {run.folder}")

    def save(step: int) -> None:
        state = {"student": student.state_dict(), "method": method.state_dict(), "optimizer": optimizer.state_dict()}
        run.save(step, {**state, "text": text.state_dict(), "bad": bad})

    signals = Signals()
    tokens = config.batch_size * config.accumulate * world() * config.seq_len
    bar = tqdm(total=config.steps, initial=start, unit="step", disable=None if rank() == 0 else True, smoothing=0.1)
    began = spoke = time.monotonic()
    told = False
    for step in range(start, config.steps + 1):
        if step > start and (told or step % config.save_every == 0) and step < config.steps:
            save(step)
        if told and step < config.steps:
            bar.close()
            print(f"stopped after step {step}; go on with: python train.py --out {run.folder} --resume", flush=True)
            return signals.status
        if step % config.eval_every == 0 or step == config.steps:
            loss = held_out_loss(transfer, teacher, held_out, autocast)
            run.log("eval", step=step, loss=loss)
            bar.write(f"step {step:>6}  held-out loss {loss:.4f}", file=sys.stdout)
        if step == config.steps:
            break
        clock = time.perf_counter()
        batches = text.step(config.batch_size, config.accumulate, rank(), world(), masked=method.masked_text)
        batches = [batch.to(device) for batch in batches]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        loss, finite, told = train_step(config, wrapped, teacher, optimizer, batches, autocast, signals.received)
        bad = 0 if finite else bad + 1
        speed = tokens / (time.perf_counter() - clock)
        run.log("step", step=step + 1, loss=loss if finite else None, lr=learning_rate(config, step), tokens_per_s=round(speed))
        if bad > BAD_STEPS:
            file = run.folder / f"bad-batch-rank{rank()}.safetensors"
            save_file({f"{i}.ids": b.ids.cpu() for i, b in enumerate(batches)}, file)
            raise UserError(f"{bad} steps in a row were not finite, the last is {step + 1}; its text is in {file}; lower --lr {config.lr}")
        bar.set_postfix_str(f"loss {loss:.4f}, {speed:,.0f} tokens/s", refresh=False)
        bar.update()
        now = time.monotonic()
        if bar.disable and (step == start or now - spoke >= 10):
            spoke = now
            left = (now - began) / (step + 1 - start) * (config.steps - step - 1)
            print(
                f"step {step + 1:>6}/{config.steps}  loss {loss:.4f}  lr {learning_rate(config, step):.1e}"
                f"  {speed:,.0f} tokens/s  {tqdm.format_interval(left)} left",
                flush=True,
            )
    bar.close()
    if rank() == 0:
        finish(config, run, teacher, student, method, tokenizer, text)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    return 0


def open_run(config: TrainConfig) -> tuple[TrainConfig, Run]:
    """The run folder, made unless it is resumed. All ranks agree on its name."""
    out = config.out
    if out is None:
        number = 1
        while Path(f"runs/{config.method}-{number}").exists():
            number += 1
        names = [f"runs/{config.method}-{number}"]
        if dist.is_initialized():
            dist.broadcast_object_list(names)
        out = names[0]
    if dist.is_initialized():
        dist.barrier()  # no rank makes the folder before all have seen that it is not there
    run = Run(out, writes=rank() == 0)
    if not config.resume:
        run.create()
    return replace(config, out=out), run


class Signals:
    """SIGTERM and Ctrl-C let the step finish, so that it can be saved; a second one ends the program at once."""

    def __init__(self):
        self.received = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number, frame) -> None:
        self.received = number
        signal.signal(number, signal.SIG_DFL)

    @property
    def status(self) -> int:
        return 128 + (self.received or signal.SIGTERM)


def compile_models(device: torch.device, *models: Encoder | None) -> None:
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and not shutil.which(compiler):
        print(f"--compile: no C++ compiler ({compiler}) on this machine; going on without")
        return
    for model in models:
        if model is not None:
            model.compile()


# ----------------------------------------------------------------------------------------------------------------------
# The end: export, picture, table
# ----------------------------------------------------------------------------------------------------------------------


def describe_encoder(encoder: Encoder) -> str:
    c, (total, _) = encoder.config, cost.parameter_counts(encoder)
    return f"{c.num_hidden_layers} layers x {c.hidden_size}, {c.num_attention_heads} heads, FFN {c.intermediate_size}, {total / 1e6:.1f} M"


def finish(config, run, teacher, student, method, tokenizer, text) -> None:
    """Export, loss.png, summary and table; the checkpoints go last, so a kill in here loses nothing."""
    student.eval()
    save_pretrained(run.folder, student, tokenizer)
    if maps := {name: p.detach().cpu().contiguous() for name, p in method.named_parameters()}:
        save_file(maps, run.folder / "projections.safetensors")
    records = run.records()
    steps = [r for r in records if r["event"] == "step"]
    evals = [r for r in records if r["event"] == "eval"]
    plot_loss(config, steps, evals, run.folder / "loss.png")
    models = [m for m in (teacher, student) if m is not None]
    short, long = (cost.latencies(models, batch, min(128, config.seq_len)) for batch in (1, 32))
    speed = statistics.median(r["tokens_per_s"] for r in steps)
    skipped = sum(r["loss"] is None for r in steps)
    summary = {"loss_before": evals[0]["loss"], "loss_after": evals[-1]["loss"], "tokens_per_s": speed, "skipped_steps": skipped}
    latency = [statistics.median(seconds) for seconds in short]
    run.log("summary", **summary, text=text.describe(), latency_s=latency)
    run.remove_checkpoints()

    names = ["teacher", "student"][-len(models) :]
    rows = [
        ("", names),
        ("layers x width", [f"{m.config.num_hidden_layers} x {m.config.hidden_size}" for m in models]),
        ("parameters", [f"{cost.parameter_counts(m)[0] / 1e6:.1f} M" for m in models]),
        ("size, float32", [f"{cost.megabytes(m):.0f} MB" for m in models]),
        (f"latency 1 x {min(128, config.seq_len)}, median", [f"{1e3 * statistics.median(s):.1f} ms" for s in short]),
        (f"latency 32 x {min(128, config.seq_len)}, median", [f"{1e3 * statistics.median(s):.0f} ms" for s in long]),
    ]
    print()
    for name, cells in rows:
        print(f"{name:<26}" + "".join(f"{cell:>12}" for cell in cells))
    print(f"\n{config.method} loss on held-out text  {evals[0]['loss']:.4f} -> {evals[-1]['loss']:.4f}")
    print(f"training                  {speed:,.0f} tokens/s" + (f", {skipped} steps skipped" if skipped else ""))
    print(f"student                   {run.folder}\n\nnext:\n  python evaluate.py {run.folder}")
    print(f'  python -c "from transformers import AutoModel; print(AutoModel.from_pretrained(\'{run.folder}\'))"')


def plot_loss(config, steps, evals, file: Path) -> None:
    import matplotlib.pyplot as plt  # here, because a run should begin before a second of imports for its last picture

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([r["step"] for r in steps], [math.nan if r["loss"] is None else r["loss"] for r in steps], lw=1, label="training")
    axes.plot([r["step"] for r in evals], [r["loss"] for r in evals], "o-", label="held-out")
    axes.set(xlabel="optimizer step", ylabel=f"{config.method} loss", title=f"{config.out}: {config.teacher} -> student")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    cli.run(main)
