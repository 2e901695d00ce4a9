"""The model card: RUN/README.md in the form that the Hugging Face hub reads."""

import shlex
from pathlib import Path

from minitransformer.embedded import EMBEDDED_TEACHER
from minitransformer.files import atomic
from minitransformer.model import Encoder

EMBEDDED_ID = "sentence-transformers/all-MiniLM-L6-v2"  # what the embedded teacher is on the hub
FINE_TUNE = {
    "mha": "queries, keys and values",
    "direct-minilm": "queries, keys and values",
}


def write_card(
    folder: Path, record: dict, student: Encoder, summary: dict, text: list[dict]
) -> None:
    """Write the card of a finished run.

    record    the run's start record
    summary   loss_before and loss_after on held-out text
    text      Text.describe() at the end
    """
    settings = record["settings"]
    method = settings["method"]
    # MLM may have no teacher; then it goes on with the model that --init names
    source = settings["teacher"] if record["teacher"] else settings["init"]
    base_model = hub_id(source)
    verb = "trained further" if method == "mlm" else "distilled"
    datasets = []
    for spec in settings["data"]:
        place = spec.partition("=")[2].removeprefix("hub:").split(":")[0]
        if "=hub:" in spec and not Path(place).exists():
            datasets.append(place.split("@")[0])
    head = student.mlm_head is not None

    metadata = ["library_name: transformers"]
    metadata.append(f"pipeline_tag: {'fill-mask' if head else 'feature-extraction'}")
    metadata += ["tags:", "- distillation", f"- {method}", "- sentence-transformers"]
    if base_model:
        metadata.append(f"base_model: {base_model}")
    if datasets:
        metadata += ["datasets:", *(f"- {name}" for name in datasets)]

    sizes = student.config
    corpora = []
    for corpus in text:
        size = "size unknown" if corpus["tokens"] is None else f"{corpus['tokens']:,} tokens"
        corpora.append(f"- {corpus['name']}: {corpus['share']:.1%} of the sequences, {size}")
    lines = ["---", *metadata, "---", "", f"# {folder.name}", ""]
    lines += [
        f"An encoder {verb} from `{base_model or source}`, for any later task.",
        "",
        f"- method: `{method}`; held-out loss {loss(summary['loss_before'])} before training,"
        f" {loss(summary['loss_after'])} after {settings['steps']} steps",
        f"- student: {sizes.num_hidden_layers} layers, width {sizes.hidden_size},"
        f" {sizes.num_attention_heads} heads, FFN {sizes.intermediate_size},"
        f" vocabulary {sizes.vocab_size:,}; {start_of(record)}",
        "",
        "Text it was trained on:",
        "",
        *corpora,
        "",
    ]
    if method in FINE_TUNE:
        lines += [
            f"**Fine-tune this model.** Its last layer learned {FINE_TUNE[method]} only; the output"
            " of that layer never learned, so untuned sentence vectors say little.",
            "",
        ]
    lines += [
        "## Use",
        "",
        "```python",
        "from transformers import AutoModel, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{folder.name}")',
        f'model = AutoModel.from_pretrained("{folder.name}")',
        "",
        "from sentence_transformers import SentenceTransformer  # mean of the last hidden states",
        "",
        f'vectors = SentenceTransformer("{folder.name}").encode(["a sentence"])',
        "```",
        "",
        "## Reproduce",
        "",
        "```bash",
        command(record),
        "```",
        "",
    ]
    with atomic(folder / "README.md") as temporary:
        temporary.write_text("\n".join(lines), "utf-8")


def hub_id(name: str) -> str | None:
    """Return the hub id of a model, None for a local folder."""
    if name == EMBEDDED_TEACHER:
        return EMBEDDED_ID
    return None if Path(name).exists() else name


def start_of(record: dict) -> str:
    layers = ", ".join(map(str, record["start"]["layers"]))
    return f"started from {f'teacher layers {layers}' if layers else record['settings']['init']}"


def loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def command(record: dict) -> str:
    """Return the command line that began the run."""
    program = "python train.py"
    if record["processes"] > 1:
        program = f"torchrun --nproc-per-node {record['processes']} train.py"
    return f"{program} {shlex.join(record['argv'][1:])}".rstrip()
