"""What a student keeps of many languages: two tasks out of LibreOffice's help, as rows.

    python -m distill.study.multilingual RUN --help-text FOLDER --out languages.json

help-part        from which part of the suite is this paragraph? Fine-tuned in English alone and
                 tested in every language, as XNLI is; whole pages are trained on or tested
help-retrieval   no fine-tuning: is the paragraph's translation the nearest of 1,000 English ones,
                 by the cosine of the mean over the last layer's real tokens?

Both read the held-out pages, which no student was distilled on, with the run's teacher, its
untrained start and the student. Sources of the protocols: arXiv 1809.05053, 1812.10464.
"""

import hashlib
import json
import re
import statistics
from pathlib import Path

import pandas
import torch

from distill.evaluation.as_is import sentence_vectors
from distill.evaluation.columns import Model, load_models
from distill.evaluation.finetune import Grid, Recipe
from distill.evaluation.table import record, result_records
from distill.evaluation.tasks import Split, Task
from distill.study import help_text
from distill.study.help_text import ENGLISH
from distill.training import cli
from distill.training.device import choose_device, choose_precision
from minitransformer.files import atomic, cache_folder

LANGUAGES = ("de", "es", "fr", "it", "nl", "pl", "ru", "fi", "vi", "ja", "ko", "zh-cn")
LANGUAGES += help_text.KEPT_OUT
PARTS = ("scalc", "sbasic", "swriter", "simpress", "smath")  # translated into all of them
GIVEAWAYS = re.compile(r"calc|basic|writer|impress|math", re.IGNORECASE)
SIZES = {"train": 300, "held-out": 60}  # paragraphs of a part, in a language
CANDIDATES, QUERIES = 1_000, 200
RATE, EPOCHS = 2e-4, 3


def part_task(frame: pandas.DataFrame) -> Task:
    """Return the task; paragraphs that name a part of the suite in English are left out."""
    frame = readable(frame)
    frame = frame[~frame[ENGLISH].str.contains(GIVEAWAYS)]

    def split(name: str, language: str) -> Split:
        texts, labels = [], []
        rows = frame[frame["split"] == name].dropna(subset=[language])
        for label, part in enumerate(PARTS):
            of_part = rows["page"].str.startswith(f"{part}/")
            chosen = rows.loc[of_part, language].tolist()[: SIZES[name]]
            texts += chosen
            labels += [label] * len(chosen)
        return Split(texts, None, labels)

    scored = {language: split("held-out", language) for language in (ENGLISH, *LANGUAGES)}
    return Task("help-part", split("train", ENGLISH), scored, PARTS, ("accuracy",))


def retrieval_sets(frame: pandas.DataFrame) -> dict[str, tuple[list[str], list[str]]]:
    """Return {language: (queries, English candidates)}: query i belongs to candidate i."""
    frame = readable(frame[frame["split"] == "held-out"])
    sets = {}
    for language in LANGUAGES:
        translated = frame.dropna(subset=[language])[:QUERIES]
        others = frame.drop(translated.index)[: CANDIDATES - len(translated)]
        candidates = translated[ENGLISH].tolist() + others[ENGLISH].tolist()
        sets[language] = (translated[language].tolist(), candidates)
    return sets


def readable(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Return the paragraphs of 40 to 400 characters, in a fixed order without any meaning."""
    frame = frame[frame[ENGLISH].str.len().between(40, 400)]
    order = [hashlib.sha256(text.encode()).digest() for text in frame[ENGLISH]]
    return frame.assign(order=order).sort_values("order")


def retrieval(model: Model, sets: dict, device: torch.device, cache: Path) -> dict[str, float]:
    """Return {language: share of the queries whose translation is the nearest candidate}; what was
    computed for this model before is read from the cache.
    """
    key = json.dumps([model.fingerprint, sets], sort_keys=True)
    file = cache / f"retrieval-{hashlib.sha256(key.encode()).hexdigest()}.json"
    if file.exists():
        return json.loads(file.read_text())
    texts = sorted({text for queries, candidates in sets.values() for text in queries + candidates})
    place = {text: row for row, text in enumerate(texts)}
    vectors = sentence_vectors(model, texts, device)  # (M, D)
    shares = {}
    for language, (queries, candidates) in sets.items():
        query = vectors[[place[text] for text in queries]]
        candidate = vectors[[place[text] for text in candidates]]
        nearest = (query @ candidate.T).argmax(dim=-1)
        shares[language] = float((nearest == torch.arange(len(queries))).float().mean())
    with atomic(file) as unfinished:
        unfinished.write_text(json.dumps(shares))
    return shares


def main() -> int:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run folder of train.py")
    parser.add_argument("--teacher", required=True, help="the run's teacher")
    parser.add_argument("--help-text", type=Path, required=True, help="folder of help_text.build")
    parser.add_argument("--out", type=Path, required=True, help="file for the rows")
    config = parser.parse_args()

    frame = help_text.build(config.help_text)
    task, sets = part_task(frame), retrieval_sets(frame)
    models = load_models([config.run], config.teacher)
    device = choose_device("auto")
    recipe = Recipe(precision=choose_precision("auto", device), device=str(device))
    cache = cache_folder() / "finetune"
    cache.mkdir(exist_ok=True)
    rows, grids = [], {}
    for name, model in models.items():
        model.encoder.to(device)
        grids[name, task.name] = Grid(model, task, recipe, [RATE], [EPOCHS], 2)
        grids[name, task.name].compute()
        shares = retrieval(model, sets, device, cache)
        by_language = {f"accuracy {language}": share for language, share in shares.items()}
        mean = statistics.fmean(shares.values())
        for metric, share in {"accuracy": mean, **by_language}.items():
            rows.append(record(name, "help-retrieval", metric, [share], 1 / CANDIDATES))
        print(f"{name}: {task.name} and help-retrieval are done", flush=True)
    rows += result_records(grids)
    with atomic(config.out) as unfinished:
        unfinished.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    cli.run(main)
