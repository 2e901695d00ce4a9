"""Distil a Transformer encoder into a smaller one, for any later task.

    python train.py                                            the default: hs from minilm
    python train.py --method mha --teacher-layer 4             another method
    python train.py --teacher google-bert/bert-base-uncased --data web='corpus/*.parquet' \\
        --steps 100000 --batch-size 256 --out runs/bert        a real teacher, your own text
    python train.py --out runs/bert --resume                   resume where it stopped
    torchrun --nproc-per-node 8 train.py ...                   the same on eight GPUs (or processes)

Read it top to bottom: settings; device, models, text, optimizer, run folder; the loop. The losses
are in distill/*.py; checkpoints, signals, processes and the closing report in distill/training/.
"""

import math
import os
import shlex
import signal
import sys
import time
from dataclasses import asdict, dataclass, fields, replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from distill import METHODS
from distill.data.batches import Text, prefetch
from distill.data.sources import parse_sources
from distill.hs import STRATEGIES
from distill.method import Batch, Method
from distill.training import cli, processes, report, setup
from distill.training.cli import setting
from distill.training.device import autocast, choose_device, choose_precision, provenance
from distill.training.processes import rank, world
from distill.training.run import Run, Signals, input_hashes, is_finished, resume, resumed_settings
from minitransformer.files import UserError
from minitransformer.model import Encoder

DATA_HELP = "wordnet, docs, NAME=path/glob[:column], NAME=hub:dataset[:config][:split][:column]"
INIT_HELP = "random, embeddings, uniform (default if sizes match), first, last, 1,4,6, or a folder"
LR_HELP = f"peak learning rate; default: {', '.join(f'{m} {METHODS[m].peak_lr}' for m in METHODS)}"
MOST = 2**16  # of sizes: a larger one is a slip, and would fill the memory


@dataclass(frozen=True)
class TrainConfig:
    """Settings, each declared once. None: the default depends on others; the log has its value."""

    teacher: str = setting("minilm", "minilm, a folder, or a hub id")
    method: str = setting("hs", "what to transfer", choices=tuple(METHODS))
    plain: bool = setting(False, "compute the loss by the formula in the method's file; slower")
    mapping: str = setting("uniform", "hs: student to teacher layers", choices=STRATEGIES)
    teacher_layer: int | None = setting(None, "highest teacher layer to learn from", least=1)
    relation_heads: int | None = setting(None, "mha, direct-minilm; default: about 48", least=1)
    temperature: float = setting(1.0, "od: temperature of both distributions", least=1e-3)
    positions: str = setting("masked", "od: tokens to compare at", choices=("masked", "all"))
    student_layers: int | None = setting(None, "default: half the teacher's", least=1, most=MOST)
    student_hidden: int | None = setting(None, "default: the teacher's", least=1, most=MOST)
    student_heads: int | None = setting(None, "default: about as many as the teacher's", least=1)
    student_ffn: int | None = setting(None, "default: the teacher's, or 4 x the width", least=1)
    init: str | None = setting(None, INIT_HELP)
    data: tuple[str, ...] = setting(("wordnet",), f"{DATA_HELP}; may be repeated")
    alpha: float = setting(0.3, "a corpus of n tokens gets a share ~ n^alpha", least=0, most=1)
    seq_len: int = setting(128, "tokens in a sequence", least=3, most=MOST)
    batch_size: int = setting(16, "sequences per process and micro-batch", least=1, most=MOST)
    accumulate: int = setting(1, "micro-batches per process and step", least=1, most=MOST)
    steps: int = setting(250, "optimizer steps; 0: export the untrained student", least=0)
    lr: float | None = setting(None, LR_HELP, least=1e-12)
    warmup: float = setting(0.1, "share of the steps before the peak", least=0, most=1)
    weight_decay: float = setting(0.01, "of AdamW; not of embeddings, biases and norms", least=0)
    clip: float = setting(1.0, "largest norm of the gradient; 0: no limit", least=0)
    precision: str = setting("auto", "auto: bf16 if native", choices=("auto", "fp32", "bf16"))
    device: str = setting("auto", "cpu, cuda, cuda:1 or mps; auto: cuda where there is one")
    threads: int = setting(0, "CPU threads; 0: PyTorch's choice", least=0, most=1024)
    compile: bool = setting(False, "torch.compile teacher and student")
    seed: int = setting(0, "for initialisation, order, masks", least=0, most=2**32 - 2)
    revision: str | None = setting(None, "of a teacher from the hub")
    out: str | None = setting(None, "run folder, must be new; default: runs/METHOD-1, -2, ...")
    save_every: int = setting(500, "steps between checkpoints", least=1)
    eval_every: int = setting(50, "steps between evaluations on held-out text", least=1)
    resume: bool = setting(False, "resume the run in --out")

    def __post_init__(self):
        for f in fields(self):
            cli.check_number(f.name, getattr(self, f.name), f.metadata["least"], f.metadata["most"])


def parse_config(argv: list[str] | None = None) -> TrainConfig:
    """Return the settings of the command line; with --resume those of the run it names."""
    given = cli.given_settings(TrainConfig, __doc__.splitlines()[0], argv)
    for name in {"out", "init"} & given.keys():
        given[name] = os.path.expanduser(given[name])
    if given.get("resume"):
        return TrainConfig(**resumed_settings(TrainConfig, given))
    config = TrainConfig(**given)
    for name in given:
        owners = [method for method, kind in METHODS.items() if name in kind.settings]
        if owners and config.method not in owners:
            whose = f"{' and '.join(owners)}, not of --method {config.method}"
            raise UserError(f"{cli.flag(name)} is a setting of {whose}; leave it out")
    return config


class Transfer(nn.Module):
    """Student and method as one module: DistributedDataParallel must see every gradient."""

    def __init__(self, student: Encoder, method: Method):
        super().__init__()
        self.student, self.method = student, method

    def forward(self, teacher: Encoder | None, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.method(self.student, teacher, batch)


def main(argv: list[str] | None = None) -> int:
    config = parse_config(argv)
    if rank() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - only rank 0 prints
    run = Run(config.out, writes=rank() == 0)
    with run.open(f"runs/{config.method}", config.resume), Signals() as signals:
        if config.resume and is_finished(run):
            return 0
        status = distil(config, run, signals)
    processes.leave_together()
    return status


def distil(config: TrainConfig, run: Run, signals: Signals) -> int:
    """Train, and return the exit status: 0, or that of a signal which stopped the run."""
    # ---- device and precision ----
    device = choose_device(config.device)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    precision = choose_precision(config.precision, device)
    lr = METHODS[config.method].peak_lr if config.lr is None else config.lr
    config = replace(config, precision=precision, lr=lr)
    mixed_precision = autocast(device, precision)

    # ---- teacher, student, method, text ----
    parse_sources(config.data)  # fail on a bad --data before loading the teacher
    teacher, start, config, models_record = setup.load_models(config)
    student, method = start.student, start.method
    step_sequences = config.batch_size * config.accumulate * world()
    sequences = config.steps * step_sequences  # that the run reads in all
    if config.resume:
        sequences = run.records()[0]["sequences"]  # a resumed run reads the text it began with
    options = {"alpha": config.alpha, "seed": config.seed, "sequences": sequences}
    text = Text(config.data, start.tokenizer, config.seq_len, **options)
    held_out = [b.to(device) for b in text.held_out(config.batch_size, masked=method.masked_text)]
    transfer = Transfer(student, method).to(device)
    if teacher is not None:
        teacher.to(device)

    # ---- the start record of the log; under torchrun, that of all processes must be equal ----
    record = {
        "settings": asdict(config) | {"out": str(run.folder)},
        "processes": world(),
        "sequences": sequences,
        "sequences_a_step": step_sequences,
        "text": text.describe(),
        **models_record,
        **provenance(),
    }
    processes.join(device)
    processes.check_alike(asdict(config) | input_hashes(record))

    # ---- optimizer ----
    with mixed_precision:
        frozen = setup.freeze_unreached(student, method, teacher, held_out[0])
    if config.compile:
        student.compile()
        if teacher is not None:
            teacher.compile()
    wrapped = transfer if world() == 1 else DistributedDataParallel(transfer)
    optimizer = setup.make_optimizer(transfer, config.lr, config.weight_decay)
    trained = [p for group in optimizer.param_groups for p in group["params"]]

    # ---- run folder: a new log, or the state of the newest checkpoint ----
    parts = {"student": student, "method": method, "optimizer": optimizer}
    first = drawn = 0  # steps done, and sequences drawn for them
    if config.resume:
        first, drawn = resume(run, record, parts)
        processes.check_alike({"the step of the checkpoint": first})
    else:
        run.log("start", **record)
    report.announce(config, run, start, record["text"], frozen)

    # ---- the loop: steps + 1 turns, the last one only evaluates and saves ----
    split = (config.batch_size, config.accumulate, rank(), world())
    batches = prefetch(text, drawn, config.steps - first, *split, masked=method.masked_text)
    # None: shown only on a terminal
    bar = tqdm(total=config.steps, initial=first, unit="step", disable=rank() > 0 or None)
    signals.listen()
    stop = False
    for step in range(first, config.steps + 1):
        last = step == config.steps
        # the last step is saved in any case, so that a kill during the export costs no step
        if step > first and (stop or last or step % config.save_every == 0):
            # no random state: order and masks follow from (seed, draw), and there is no dropout
            state = {name: part.state_dict() for name, part in parts.items()}
            run.save(step, {**state, "sequences": drawn})
        if stop and not last:
            break
        if step % config.eval_every == 0 or last:
            loss = held_out_loss(transfer, teacher, held_out, mixed_precision)
            check_finite(step, "held-out loss", loss)
            run.log("eval", step=step, loss=loss)
            bar.write(f"step {step:>6}/{config.steps}  held-out loss {loss:.4f}", sys.stdout)
        if last:
            break

        began = time.perf_counter()
        lr = setup.learning_rate(step, config.steps, config.lr, config.warmup)
        setup.set_learning_rate(optimizer, lr)
        totals, counts = [], []  # of each micro-batch: sum of the loss, and what it counts
        micro_batches = [batch.to(device) for batch in next(batches)]  # ids and mask (B, N)
        for turn, batch in enumerate(micro_batches, 1):
            # DistributedDataParallel averages gradients over the ranks only when this is set
            wrapped.require_backward_grad_sync = turn == len(micro_batches)
            with mixed_precision:  # the method runs teacher and student, as far up as it reads them
                total, count = wrapped(teacher, batch)
            total.backward()  # of the sum: gradients of micro-batches add up
            totals.append(total)
            counts.append(count)

        # loss = sum over micro-batches and ranks / their count: how a step is cut changes nothing
        total, count, votes = processes.sums_over_ranks(totals, counts, [signals.vote(device)])
        gradients = [p.grad for p in trained]
        # DistributedDataParallel left the mean over ranks of the gradient of their sums
        scale = world() / count
        norm = nn.utils.get_total_norm(gradients) * scale
        if config.clip:
            scale = scale * (config.clip / (norm + 1e-6)).clamp(max=1)
        torch._foreach_mul_(gradients, scale.float())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        # the only wait for the device in a step
        total, count, votes, norm = torch.stack([total, count, votes, norm]).tolist()
        loss, stop = total / (count or math.nan), votes > 0
        check_finite(step + 1, "loss", loss)
        check_finite(step + 1, "gradient", norm)
        drawn += step_sequences
        speed = step_sequences * config.seq_len / (time.perf_counter() - began)
        run.log("step", step=step + 1, loss=loss, lr=lr, tokens_per_s=round(speed))
        bar.set_postfix_str(f"loss {loss:.4f}, {speed:,.0f} tokens/s", refresh=False)
        bar.update()
    bar.close()
    if stop and not last:
        command = f"{processes.launcher(world())} train.py --out {shlex.quote(str(run.folder))}"
        print(f"stopped after step {step}; to resume: {command} --resume")
        return 128 + (signals.received or signal.SIGTERM)  # or another rank received one
    if rank() == 0:
        report.finish(config, run, start)
    return 0


@torch.no_grad()
def held_out_loss(
    transfer: Transfer, teacher: Encoder | None, batches: list[Batch], mixed_precision
):
    """Return the loss on text that training never sees; each rank computes its share of it."""
    zero = torch.zeros((), device=batches[0].ids.device)  # a rank may have no batch
    totals, counts = [zero], [zero]
    for batch in batches[rank() :: world()]:
        with mixed_precision:
            total, count = transfer(teacher, batch)
        totals.append(total)
        counts.append(count)
    total, count = processes.sums_over_ranks(totals, counts).tolist()
    return total / count if count else math.nan


def check_finite(step: int, what: str, value: float) -> None:
    """End the run on all ranks before a checkpoint could hold a state that is not finite."""
    if not math.isfinite(value):
        remedy = "lower --lr and --resume" if step else "choose another teacher or --init"
        raise UserError(f"the {what} of step {step} is not finite; {remedy}")


if __name__ == "__main__":
    cli.run(main)
