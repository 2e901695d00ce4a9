"""Tasks from packages, here from small archives of the same form."""

import bz2
import json

import pytest

from distill.evaluation import named_tasks
from distill.evaluation.named_tasks import LANGUAGES, NAMED


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """Files as the packages hold them, in place of `package_files`."""
    monkeypatch.setattr(named_tasks, "package_files", lambda *_: tmp_path)
    for name, (train, dev) in {
        "movies": (20, 30),
        "claims": (30, 20),
        "reviews": (100, 50),
    }.items():
        monkeypatch.setitem(named_tasks.SIZES, name, (train, dev))

    def write(member, content):
        file = tmp_path / member
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)

    rows = ["category,text,movie_name"]
    for film in range(40):
        labels = ("fresh", "rotten", "plot", "fresh")
        rows += [f"{label},{label} {film} {n},film {film}" for n, label in enumerate(labels)]
    rows += ["fresh,fresh 1 0,film 1", "rotten,,film 1"]
    write(named_tasks.MOVIES, bz2.compress("\n".join(rows).encode()))
    head = "Category\tText\nd\tstring\nclass\t\n\n"
    for member, first in zip(named_tasks.TOPICS, (0, 40), strict=True):
        lines = [f"topic{n % 3}\t{'word ' * n}report {n}\r\n" for n in range(first, first + 50)]
        write(member, (head + "".join(lines)).encode())

    def task_json(pairs):
        labels = "True", "False", "Neither"
        rows = []
        for text, label in pairs:
            rows.append({"input": text, "target_scores": {k: int(k == label) for k in labels}})
        return json.dumps({"examples": rows}).encode()

    passages = [(f"Page {n % 20}: a: b\nClaim: c {n}", ("True", "False")[n % 2]) for n in range(90)]
    write(named_tasks.CLAIMS, task_json(passages))
    for domain in named_tasks.DOMAINS:
        for language in LANGUAGES:
            texts = [(f"{language} {domain} {n}", "True") for n in range(200)]
            write(named_tasks.REVIEWS.format(domain=domain, language=language), task_json(texts))


def sources(split, pattern):
    return {text.split()[pattern] for text in split.texts}


def test_movies_are_half_fresh_and_no_film_is_in_both_splits(packages):
    task = NAMED["movies"]()
    dev = task.scored["dev"]
    assert task.classes == ("fresh", "rotten")
    for split, size in ((task.train, 20), (dev, 30)):
        assert len(set(split.texts)) == len(split.texts) == size
        assert sum(split.labels) == size / 2
        assert all(
            text.startswith(task.classes[n])
            for text, n in zip(split.texts, split.labels, strict=True)
        )
    assert not sources(task.train, 1) & sources(dev, 1)


def test_topics_keep_their_splits_but_for_reports_that_stand_in_both(packages):
    task = NAMED["topics"]()
    dev = task.scored["dev"]
    assert (len(task.train.texts), len(dev.texts)) == (25, 50)
    assert not set(task.train.texts) & set(dev.texts)
    assert max(len(text.split()) for text in task.train.texts) == 25


def test_claims_are_pairs_and_no_page_is_in_both_splits(packages):
    task = NAMED["claims"]()
    assert task.train.texts[0].startswith("Page ")
    assert task.train.texts[0].endswith(": a: b")
    assert task.train.text_pairs[0].startswith("c ")
    assert not sources(task.train, 1) & sources(task.scored["dev"], 1)


def test_reviews_are_aligned_and_no_block_is_in_both_splits(packages):
    task = NAMED["reviews"]()
    assert task.aligned
    assert list(task.scored) == list(LANGUAGES)
    rows = {name: [t.split()[1:] for t in split.texts] for name, split in task.scored.items()}
    assert all(rows[name] == rows["en"] for name in LANGUAGES)
    assert all(text.startswith("en ") for text in task.train.texts)
    blocks = [
        {(d, int(n) // 50) for d, n in part}
        for part in ([text.split()[1:] for text in task.train.texts], rows["en"])
    ]
    assert not blocks[0] & blocks[1]
    assert NAMED["reviews"]().hash == task.hash
