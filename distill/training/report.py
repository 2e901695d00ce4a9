"""What train.py prints, and what a finished run leaves: export, loss.png, model card, summary."""

import json
import shlex
from pathlib import Path

import safetensors.torch

from distill.student import Start
from distill.training.device import machine
from distill.training.processes import launcher
from distill.training.run import Run
from minitransformer.default_teacher import DEFAULT_TEACHER
from minitransformer.files import atomic
from minitransformer.model import Encoder
from minitransformer.pretrained import save_pretrained

DEFAULT_ID = "sentence-transformers/all-MiniLM-L6-v2"  # what the default teacher is on the hub
CARD = """---
library_name: transformers
pipeline_tag: {task}
tags: [distillation, {method}, sentence-transformers]
{base_model}---

# {name}

An encoder {made} `{source}` by the method `{method}`:
{sizes}.
Held-out loss {losses} in {steps} steps on sequences of {seq_len} tokens;
later positions were not trained.

## Text

{text}

## Command

```bash
{command}
```
"""


def announce(config, run: Run, start: Start, text: list[dict], frozen: list[str]) -> None:
    """Print what is about to be trained, on what."""
    copied = f" from layers {', '.join(map(str, start.layers))}" if start.layers else ""
    sizes = f"{describe_encoder(start.student)}, {start.tokenizer.pooling} pooling"
    print(f"student: {sizes}; --init {config.init}{copied}")
    print(f"{config.method}: {start.method.describe()}")
    if frozen:
        modules = dict.fromkeys(name.rpartition(".")[0] for name in frozen)
        print(f"frozen, since this method does not reach them: {', '.join(modules)}")
    if (fit := start.student.config.max_tokens) > config.seq_len:
        print(f"note: positions {config.seq_len + 1} to {fit} are not trained, they stay as copied")
    for warning in start.warnings:
        print(f"WARNING: {warning}")
    tokens = sum(corpus["tokens"] for corpus in text)
    print(f"text: {tokens:,} tokens; {config.precision} on {machine()}; {run.folder}")


def describe_encoder(encoder: Encoder) -> str:
    """Return its sizes; the MLM head is not counted, it is no part of a deployed encoder."""
    config, parts = encoder.config, (encoder.embeddings, encoder.blocks)
    total = short_count(sum(p.numel() for part in parts for p in part.parameters()))
    layers = f"{config.num_hidden_layers} layers x {config.hidden_size}"
    heads = f"{config.num_attention_heads} heads, FFN {config.intermediate_size}"
    return f"{layers}, {heads}, {total} parameters"


def short_count(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.1f} k"


def finish(config, run: Run, start: Start) -> None:
    """Export, plot, write the card, print a summary; checkpoints go last: a kill loses nothing."""
    if maps := dict(start.method.named_parameters()):
        maps = {name: parameter.detach().cpu() for name, parameter in maps.items()}
        with atomic(run.folder / "projections.safetensors") as temporary:
            temporary.write_bytes(safetensors.torch.save(maps))
    save_pretrained(run.folder, start.student.eval(), start.tokenizer)
    records = run.records()
    steps = [r for r in records if r["event"] == "step"]
    evals = [r for r in records if r["event"] == "eval"]
    plot_loss(config, steps, evals, run.folder / "loss.png")
    before, after = evals[0]["loss"], evals[-1]["loss"]
    write_card(run.folder, records[0], start, f"{before:.4f} -> {after:.4f}")
    run.log("summary", loss_before=before, loss_after=after)
    run.remove_checkpoints()
    print(f"\nheld-out {config.method} loss {before:.4f} -> {after:.4f}")
    if after > before + 1e-4:
        print("WARNING: the held-out loss rose; lower --lr or change --init")
    print(f"\nnext:\n  python evaluate.py {shlex.quote(str(run.folder))}")


def write_card(folder: Path, record: dict, start: Start, losses: str) -> None:
    """Write RUN/README.md in the form that the Hugging Face hub reads, from the start record."""
    settings, argv = record["settings"], record["argv"]
    # MLM may have no teacher; then it continues the training of the model that --init names
    source = settings["teacher"] if record["teacher"] else settings["init"]
    source = DEFAULT_ID if source == DEFAULT_TEACHER else source
    on_hub = not Path(source).expanduser().exists()
    shares = [f"- {part['name']}: {part['share']:.1%} of the sequences" for part in record["text"]]
    facts = {
        "task": "feature-extraction" if start.student.mlm_head is None else "fill-mask",
        "base_model": f"base_model: {json.dumps(source)}\n" if on_hub else "",
        "name": folder.name,
        "source": source,
        "made": "trained from" if settings["steps"] else "not trained, initialised from",
        "sizes": describe_encoder(start.student),
        "losses": losses,
        "text": "\n".join(shares),
        "command": " ".join([launcher(record["processes"]), shlex.join(["train.py", *argv[1:]])]),
    }
    with atomic(folder / "README.md") as temporary:
        temporary.write_text(CARD.format_map(settings | facts), "utf-8")


def plot_loss(config, steps: list[dict], evals: list[dict], file: Path) -> None:
    from matplotlib.figure import Figure  # imported late: slow, and only needed here

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([r["step"] for r in steps], [r["loss"] for r in steps], label="training")
    axes.plot([r["step"] for r in evals], [r["loss"] for r in evals], "o-", label="held-out")
    axes.set(xlabel="optimizer step", ylabel=f"{config.method} loss")
    axes.legend()
    with atomic(file) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
