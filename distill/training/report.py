"""The end of a run: export, loss.png, summary and the table that train.py closes with."""

import math
import statistics
from pathlib import Path

from distill.program import cost
from distill.training.run import write_tensors
from minitransformer.model import Encoder
from minitransformer.pretrained import save_pretrained


def describe_encoder(encoder: Encoder) -> str:
    c, (total, _) = encoder.config, cost.parameter_counts(encoder)
    return (
        f"{c.num_hidden_layers} layers x {c.hidden_size}, {c.num_attention_heads} heads,"
        f" FFN {c.intermediate_size}, {total / 1e6:.1f} M parameters"
    )


def finish(config, run, teacher, student, method, tokenizer, text) -> None:
    """Export, loss.png, summary, table. The checkpoints go last: a kill in here loses nothing."""
    student.eval()
    if maps := dict(method.named_parameters()):
        write_tensors(run.folder / "projections.safetensors", maps)
    save_pretrained(run.folder, student, tokenizer)
    records = run.records()
    steps = [r for r in records if r["event"] == "step"]
    evals = [r for r in records if r["event"] == "eval"]
    plot_loss(config, steps, evals, run.folder / "loss.png")
    models = [m for m in (teacher, student) if m is not None]
    short, long = (cost.latencies(models, batch, min(128, config.seq_len)) for batch in (1, 32))
    speed = statistics.median(r["tokens_per_s"] for r in steps)
    skipped = sum(r["loss"] is None for r in steps)
    summary = {
        "loss_before": evals[0]["loss"],
        "loss_after": evals[-1]["loss"],
        "tokens_per_s": speed,
        "skipped_steps": skipped,
    }
    latency = [statistics.median(seconds) for seconds in short]
    run.log("summary", **summary, text=text.describe(), latency_s=latency)
    run.remove_checkpoints()

    shape = f"x {min(128, config.seq_len)}, median"
    print(f"\n{'':<26}" + "".join(f"{name:>12}" for name in ["teacher", "student"][-len(models) :]))
    for name, cells in (
        (
            "layers x width",
            [f"{m.config.num_hidden_layers} x {m.config.hidden_size}" for m in models],
        ),
        ("parameters", [f"{cost.parameter_counts(m)[0] / 1e6:.1f} M" for m in models]),
        ("size, float32", [f"{cost.megabytes(m):.0f} MB" for m in models]),
        (f"latency 1 {shape}", [f"{1e3 * statistics.median(s):.1f} ms" for s in short]),
        (f"latency 32 {shape}", [f"{1e3 * statistics.median(s):.0f} ms" for s in long]),
    ):
        print(f"{name:<26}" + "".join(f"{cell:>12}" for cell in cells))
    print(f"\nheld-out {config.method} loss  {shown(evals[0])} -> {shown(evals[-1])}")
    print(
        f"training speed     {speed:,.0f} tokens/s"
        + f"\nskipped steps      {skipped}, not finite" * bool(skipped)
    )
    print(f"student            {run.folder}\n\nnext:\n  python evaluate.py {run.folder}")


def shown(record: dict) -> str:
    return "not finite" if record["loss"] is None else f"{record['loss']:.4f}"


def plot_loss(config, steps, evals, file: Path) -> None:
    import matplotlib.pyplot as plt  # here: a run should not begin with imports for its end

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for records, style, label in ((steps, "-", "training"), (evals, "o-", "held-out")):
        losses = [math.nan if r["loss"] is None else r["loss"] for r in records]
        axes.plot([r["step"] for r in records], losses, style, linewidth=1, label=label)
    axes.set(
        xlabel="optimizer step",
        ylabel=f"{config.method} loss",
        title=f"{config.out}: {config.teacher} -> student",
    )
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)
    plt.close(figure)
