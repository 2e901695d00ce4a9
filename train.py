"""Distil a Transformer encoder into a smaller one, for any later task.

    python train.py                                            a whole run: MHA, default teacher
    python train.py --method hs --mapping uniform+last         another method
    python train.py --teacher google-bert/bert-base-uncased --data web='corpus/*.parquet' \\
        --steps 100000 --batch-size 256 --out runs/bert        a real teacher, your own text
    python train.py --out runs/bert --resume                   resume where it stopped
    torchrun --nproc-per-node 8 train.py ...                   the same on eight GPUs (or processes)

Read it top to bottom: settings; device, models, text, optimizer, run folder; the loop. The loss is
in distill/mha.py, hs.py, od.py, direct_minilm.py, mlm.py; what surrounds the loop (checkpoints,
signals, processes, the closing report) is in distill/training/.
"""

import math
import os
import sys
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from distill import METHODS
from distill.data.batches import Text, prefetch
from distill.data.sources import parse_sources
from distill.hs import STRATEGIES
from distill.method import Batch, Method
from distill.training import cli
from distill.training.cli import setting
from distill.training.device import autocast, can_compile, choose_device, choose_precision
from distill.training.models import freeze_unreached, load_models
from distill.training.optimizer import learning_rate, make_optimizer, set_learning_rate
from distill.training.processes import (
    average_gradients,
    connect,
    launcher,
    leave_together,
    rank,
    sums_over_ranks,
    world,
)
from distill.training.report import announce, finish
from distill.training.resume import begin, is_finished, resume, resumed_settings, start_record
from distill.training.run import Run
from distill.training.signals import Signals
from distill.training.skipped import SkippedSteps
from distill.training.validation import held_out_loss
from minitransformer.model import Encoder

# --------------------------------------------------------------------------------------------------
# Settings: each is declared once, with its bounds; the command line is made from this class
# --------------------------------------------------------------------------------------------------

# peak learning rate of each method where --lr is not given
PEAK_LR = {"mha": 1e-3, "hs": 1e-3, "od": 6e-4, "direct-minilm": 1e-3, "mlm": 6e-4}


@dataclass(frozen=True)
class TrainConfig:
    """None: the default depends on other settings; the log's start record has its value."""

    teacher: str = setting("minilm", "minilm, a folder, or a hub id")
    method: str = setting("mha", "what to transfer", choices=tuple(METHODS))
    plain: bool = setting(False, "compute the loss by the formula as its page shows it; slower")
    mapping: str = setting(
        "uniform", "hs: which student layer learns from which teacher layer", choices=STRATEGIES
    )
    teacher_layer: int | None = setting(
        None, "mha, direct-minilm: teacher layer to learn from; default: the last but one", least=1
    )
    relation_heads: int | None = setting(
        None, "mha, direct-minilm: default: the common divisor of both widths nearest 48", least=1
    )
    temperature: float = setting(1.0, "od: temperature of both distributions", least=1e-3)
    positions: str = setting(
        "masked", "od: tokens to compare predictions at", choices=("masked", "all")
    )
    student_layers: int | None = setting(None, "default: half the teacher's", least=1)
    student_hidden: int | None = setting(None, "width; default: the teacher's", least=1, most=2**16)
    student_heads: int | None = setting(
        None, "default: the teacher's, or the nearest number that divides the width", least=1
    )
    student_ffn: int | None = setting(
        None, "default: the teacher's where the widths are equal, else 4 x the width", least=1
    )
    init: str | None = setting(
        None,
        "random, embeddings, uniform, first, last, layers like 2,4,6, or a student's folder;"
        " default: uniform where width, heads and FFN match, else embeddings",
    )
    data: list[str] = setting(  # noqa: RUF009 - makes a default_factory
        ["docs"],
        "docs (default), NAME=path/or/glob[:column] or"
        " NAME=hub:dataset[:config][:split][:column]; may be given several times",
    )
    alpha: float = setting(
        0.3, "a corpus of n tokens gets a share in proportion to n^alpha", least=0, most=1
    )
    seq_len: int = setting(128, "tokens in a sequence", least=3)
    batch_size: int = setting(16, "sequences per process and micro-batch", least=1, most=2**16)
    accumulate: int = setting(
        1, "micro-batches in a step of batch-size x accumulate x processes", least=1, most=2**16
    )
    steps: int = setting(250, "optimizer steps", least=1)
    lr: float | None = setting(None, f"peak learning rate; default: {PEAK_LR}", least=1e-12)
    warmup: float = setting(
        0.1, "share of the steps in which it rises; then it falls to 0", least=0, most=1
    )
    weight_decay: float = setting(
        0.01, "AdamW's, on the matrices of layers and learned maps alone", least=0
    )
    clip: float = setting(1.0, "largest norm of the gradient; 0: no limit", least=0)
    precision: str = setting(
        "auto",
        "auto: bf16 where the hardware multiplies it, else fp32",
        choices=("auto", "fp32", "bf16"),
    )
    device: str = setting("auto", "cpu, cuda, cuda:1 or mps; auto: cuda where there is one")
    threads: int = setting(0, "CPU threads; 0: PyTorch's choice", least=0, most=1024)
    compile: bool = setting(False, "torch.compile teacher and student")
    seed: int = setting(
        0, "of random weights, the order of the text and the masks", least=0, most=2**32 - 2
    )
    revision: str | None = setting(None, "of a teacher from the hub")
    out: str | None = setting(None, "run folder, must be new; default: runs/METHOD-1, -2, ...")
    save_every: int = setting(500, "steps between checkpoints", least=1)
    eval_every: int = setting(50, "steps between evaluations on held-out text", least=1)
    resume: bool = setting(False, "go on with --out")

    def __post_init__(self):
        if self.lr is None:
            object.__setattr__(self, "lr", PEAK_LR.get(self.method, PEAK_LR["mha"]))
        cli.check_bounds(self)


def parse_config(argv: list[str] | None = None) -> TrainConfig:
    """Return the settings of the command line; with --resume those of the run it names."""
    given = cli.given_settings(TrainConfig, __doc__.splitlines()[0], argv)
    if given.get("resume"):
        given = resumed_settings(TrainConfig, given)
    return TrainConfig(**given)


# --------------------------------------------------------------------------------------------------
# The run
# --------------------------------------------------------------------------------------------------


class Transfer(nn.Module):
    """Student and learned maps as one module: DistributedDataParallel must see every gradient."""

    def __init__(self, student: Encoder, method: Method):
        super().__init__()
        self.student, self.method = student, method

    def forward(self, teacher: Encoder | None, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.method(self.student, teacher, batch)


def main(argv: list[str] | None = None) -> int:
    config = parse_config(argv)
    if rank() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - only rank 0 prints
    with Run(config.out, writes=rank() == 0) as run:
        if config.resume:
            run.lock()
            if is_finished(run):
                return 0
        else:
            run.check_new()
        status = distil(config, run)
    leave_together()
    return status


def distil(config: TrainConfig, run: Run) -> int:
    """Train, and return the exit status: 0, or that of a signal which stopped the run."""
    # ---- device and precision ----
    device = choose_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    config = replace(config, precision=choose_precision(config.precision, device))
    products = autocast(device, config.precision)

    # ---- teacher, student, method, text ----
    parse_sources(config.data)  # fail on a bad --data before loading the teacher
    models, config = load_models(config)
    teacher, student, method = models.teacher, models.student, models.method
    text = Text(
        config.data,
        models.tokenizer,
        config.seq_len,
        alpha=config.alpha,
        seed=config.seed,
        sequences=config.steps * config.batch_size * config.accumulate * world(),
    )
    held_out = text.held_out(config.batch_size, masked=method.masked_text)
    held_out = [batch.to(device) for batch in held_out]
    for model in (teacher, student, method):
        if model is not None:
            model.to(device)
    frozen = freeze_unreached(student, method, teacher, held_out[0])
    if config.compile and can_compile(device):
        student.compile()
        if teacher is not None:
            teacher.compile()
    transfer = Transfer(student, method)
    wrapped = connect(transfer, device)  # under torchrun: averages gradients over the ranks

    # ---- optimizer ----
    optimizer = make_optimizer(transfer, config.lr, config.weight_decay)
    trained = [p for group in optimizer.param_groups for p in group["params"]]

    # ---- run folder: a new one, or the state of its newest checkpoint ----
    skipped = SkippedSteps()
    parts = {"student": student, "method": method, "optimizer": optimizer, "skipped": skipped}
    record = start_record(config, models, text)
    first, sequences = resume(run, record, parts) if config.resume else (begin(run, record), 0)
    announce(config, run, models, text, frozen)

    share = (config.batch_size, config.accumulate, rank(), world())
    drawn = prefetch(text, sequences, config.steps - first, *share, masked=method.masked_text)

    def save(step: int) -> None:
        # no random state: order and masks follow from (seed, draw), and there is no dropout
        state = {name: part.state_dict() for name, part in parts.items()}
        run.save(step, {**state, "sequences": sequences})

    # ---- the loop: one turn more than steps, so that the last evaluation is like the others ----
    signals, stop = Signals(), False
    step_sequences = config.batch_size * config.accumulate * world()
    step_tokens = step_sequences * config.seq_len
    bar = tqdm(total=config.steps, initial=first, unit="step", disable=None, mininterval=1)
    for step in range(first, config.steps + 1):
        last = step == config.steps
        # do not overwrite good checkpoints while steps are skipped; the last step is saved in any
        # case, so that a kill during the export costs no step
        due = step % config.save_every == 0 and not skipped.in_a_row
        if step > first and (stop or due or last):
            save(step)
        if stop and not last:
            break
        if step % config.eval_every == 0 or last:
            loss = held_out_loss(transfer, teacher, held_out, products)
            run.log("eval", step=step, loss=loss if math.isfinite(loss) else None)
            bar.write(f"step {step:>6}/{config.steps}  held-out loss {loss:.4f}", sys.stdout)
        if last:
            break

        began = time.perf_counter()
        lr = learning_rate(step, config.steps, config.lr, config.warmup)
        set_learning_rate(optimizer, lr)
        totals, counts = [], []  # of each micro-batch: sum of the loss, and what it counts
        micro_batches = [batch.to(device) for batch in next(drawn)]  # ids and mask (B, N)
        sequences += step_sequences
        for turn, batch in enumerate(micro_batches, 1):
            with average_gradients(wrapped, now=turn == len(micro_batches)):
                with products:
                    # the method runs teacher and student, as far up as it reads them
                    total, count = wrapped(teacher, batch)
                total.backward()  # of the sum: gradients of micro-batches add up
            totals.append(total.detach())
            counts.append(count)
        # loss = sum over micro-batches and ranks / their count: how a step is cut changes nothing
        total, count, votes = sums_over_ranks(totals, counts, [signals.vote(device)])
        loss = total / count if count else math.nan
        # DistributedDataParallel left the mean over ranks of the gradient of their sums
        scale = world() / count if count else 0.0
        torch._foreach_mul_([p.grad for p in trained], scale)
        norm = nn.utils.clip_grad_norm_(trained, config.clip or math.inf).item()
        finite = math.isfinite(loss) and math.isfinite(norm)  # the same on all ranks
        if finite:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        stop = votes > 0
        speed = step_tokens / (time.perf_counter() - began)
        run.log(
            "step", step=step + 1, loss=loss if finite else None, lr=lr, tokens_per_s=round(speed)
        )
        bar.set_postfix_str(f"loss {loss:.4f}, {speed:,.0f} tokens/s", refresh=False)
        bar.update()
        if reason := skipped.note(step + 1, finite, count):
            bar.write(f"step {step + 1} is skipped: {reason}", sys.stdout)
    bar.close()
    if stop and not last:
        print(
            f"stopped after step {step}; to go on: {launcher(world())} train.py --out {run.folder}"
            " --resume",
            flush=True,
        )
        return signals.status
    if rank() == 0:
        finish(config, run, models, text)
    return 0


if __name__ == "__main__":
    cli.run(main)
