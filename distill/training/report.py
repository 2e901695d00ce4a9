"""The end of a run: export, loss.png, model card, summary, and the lines that train.py prints."""

import statistics
from pathlib import Path

import safetensors.torch

from distill.training import cost
from distill.training.card import write_card
from distill.training.device import machine
from distill.training.models import Models
from distill.training.run import Run
from minitransformer.files import atomic
from minitransformer.model import Encoder
from minitransformer.pretrained import save_pretrained


def announce(config, run: Run, models: Models, text, frozen: str) -> None:
    """Print what is about to be trained, on what."""
    start = describe_start(config.init, models.start["layers"])
    print(f"student: {describe_encoder(models.student)}; {start}")
    form = ", by the formula of its page" if config.plain else ""
    print(f"{config.method}: {models.method.describe()}{form}")
    if frozen:
        print(frozen)
    size = describe_size(text.describe())
    print(f"text: {size}; {config.precision} on {machine()}; {run.folder}", flush=True)


def describe_encoder(encoder: Encoder) -> str:
    config, (total, _) = encoder.config, cost.parameter_counts(encoder)
    return (
        f"{config.num_hidden_layers} layers x {config.hidden_size},"
        f" {config.num_attention_heads} heads, FFN {config.intermediate_size},"
        f" {total / 1e6:.1f} M parameters"
    )


def describe_start(init: str, layers: list[int]) -> str:
    if not layers:
        return f"starts from {init}"
    plural = "s" if len(layers) > 1 else ""
    return f"starts from teacher layer{plural} {', '.join(map(str, layers))} ({init})"


def describe_size(text: list[dict]) -> str:
    """Return how many tokens the corpora of Text.describe() have together."""
    sizes = [corpus["tokens"] for corpus in text]
    return "size unknown" if None in sizes else f"{sum(sizes):,} tokens"


def finish(config, run: Run, models: Models, text) -> None:
    """Write all that a finished run leaves, then print what came of it.

    The checkpoints go last, so a kill in here loses nothing.
    """
    student = models.student.eval()
    if maps := dict(models.method.named_parameters()):
        maps = {name: parameter.detach().cpu() for name, parameter in maps.items()}
        with atomic(run.folder / "projections.safetensors") as temporary:
            temporary.write_bytes(safetensors.torch.save(maps))
    save_pretrained(run.folder, student, models.tokenizer)
    records = run.records()
    steps = [r for r in records if r["event"] == "step"]
    evals = [r for r in records if r["event"] == "eval"]
    plot_loss(config, steps, evals, run.folder / "loss.png")
    summary = {
        "loss_before": evals[0]["loss"],
        "loss_after": evals[-1]["loss"],
        "tokens_per_s": statistics.median(r["tokens_per_s"] for r in steps),
        "skipped_steps": sum(r["loss"] is None for r in steps),
        "text": text.describe(),
    }
    losses = f"{show_loss(evals[0])} -> {show_loss(evals[-1])}"
    sizes = f"{describe_encoder(student)}; {describe_start(config.init, models.start['layers'])}"
    write_card(run.folder, records[0], student, losses, sizes, summary["text"])
    run.log("summary", **summary)
    run.remove_checkpoints()
    print(f"\nheld-out {config.method} loss  {losses}")
    print(f"training speed     {summary['tokens_per_s']:,.0f} tokens/s")
    if warning := ended_worse(config.method, *(record["loss"] for record in (evals[0], evals[-1]))):
        print(warning)
    if summary["skipped_steps"]:
        print(f"skipped steps      {summary['skipped_steps']}")
    print(f"student            {run.folder}\n\nnext:\n  python evaluate.py {run.folder}")


def ended_worse(method: str, before: float | None, after: float | None) -> str:
    """Return a warning if the held-out loss ended above that of the start, else nothing."""
    if before is not None and after is not None and after <= before:
        return ""
    return (
        f"WARNING: the {method} loss ended above that of the untrained start: this training did"
        " harm; lower --lr, train for more --steps, or change --student-layers or --init"
    )


def show_loss(record: dict) -> str:
    return "not finite" if record["loss"] is None else f"{record['loss']:.4f}"


def plot_loss(config, steps: list[dict], evals: list[dict], file: Path) -> None:
    import matplotlib.pyplot as plt  # imported late: slow, and only needed here

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for records, style, label in ((steps, "-", "training"), (evals, "o-", "held-out")):
        losses = [r["loss"] for r in records]  # None leaves a gap
        axes.plot([r["step"] for r in records], losses, style, linewidth=1, label=label)
    axes.set(
        xlabel="optimizer step",
        ylabel=f"{config.method} loss",
        title=f"{file.parent}: {config.teacher} -> student",
    )
    axes.legend()
    axes.grid(alpha=0.3)
    with atomic(file) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)
