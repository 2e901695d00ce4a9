"""The model card: RUN/README.md in the form that the Hugging Face hub reads."""

import re
import shlex
from pathlib import Path

from huggingface_hub import ModelCardData

from distill.training.processes import launcher
from minitransformer.default_teacher import DEFAULT_TEACHER
from minitransformer.files import atomic
from minitransformer.model import Encoder

DEFAULT_ID = "sentence-transformers/all-MiniLM-L6-v2"  # what the default teacher is on the hub
FINE_TUNE = """
**Made for fine-tuning.** Its last layer learned queries, keys and values only; the rest of that
layer {rest}.
"""
CARD = """---
{metadata}---

# {name}

An encoder {verb} from `{source}`, for any later task.

- method: `{method}`; held-out loss {losses} in {steps} steps
- student: {sizes}

Text it was trained on:

{text}
{fine_tune}
## Use

```python
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModel.from_pretrained("{name}")

from sentence_transformers import SentenceTransformer  # mean of the last hidden states

vectors = SentenceTransformer("{name}").encode(["a sentence"])
```

## Reproduce

```bash
{launcher} {program}
```
"""


def write_card(
    folder: Path, record: dict, student: Encoder, losses: str, sizes: str, text: list[dict]
) -> None:
    """Write the card of a finished run.

    record   the run's start record
    losses   on held-out text, before and after
    sizes    of the student, and what it started from
    text     Text.describe() at the end
    """
    settings = record["settings"]
    # MLM may have no teacher; then it goes on with the model that --init names
    source = settings["teacher"] if record["teacher"] else settings["init"]
    datasets = [re.match("[^=]*=hub:([^:@]+)", spec) for spec in settings["data"]]
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="fill-mask" if student.mlm_head is not None else "feature-extraction",
        tags=["distillation", settings["method"], "sentence-transformers"],
        base_model=hub_id(source),
        datasets=[found[1] for found in datasets if found and hub_id(found[1])] or None,
    )
    corpora = []
    for corpus in text:
        size = "size unknown" if corpus["tokens"] is None else f"{corpus['tokens']:,} tokens"
        corpora.append(f"- {corpus['name']}: {corpus['share']:.1%} of the sequences, {size}")
    card = CARD.format(
        metadata=f"{metadata}\n",
        name=folder.name,
        verb="trained further" if settings["method"] == "mlm" else "distilled",
        source=hub_id(source) or source,
        method=settings["method"],
        steps=settings["steps"],
        text="\n".join(corpora),
        fine_tune=fine_tune(record),
        launcher=launcher(record["processes"]),
        program=shlex.join(["train.py", *record["argv"][1:]]),
        losses=losses,
        sizes=sizes,
    )
    with atomic(folder / "README.md") as temporary:
        temporary.write_text(card, "utf-8")


def fine_tune(record: dict) -> str:
    """Return what a user of a student of mha or direct-minilm should know; else nothing."""
    settings, layers = record["settings"], record["start"]["layers"]
    if settings["method"] not in ("mha", "direct-minilm"):
        return ""
    rest = "never learned: without fine-tuning its sentence vectors say little"
    if layers and layers[-1] == settings["teacher_layer"]:
        rest = f"is still that of the teacher's layer {layers[-1]}"
    return FINE_TUNE.format(rest=rest)


def hub_id(name: str) -> str | None:
    """Return the hub id of a model or data set, None for a local folder."""
    if name == DEFAULT_TEACHER:
        return DEFAULT_ID
    return None if Path(name).exists() else name
