"""Tasks from packages, here from small archives of the same form."""

import bz2
import itertools
import json
import re

import pytest

from distill.evaluation import named_tasks
from distill.evaluation.named_tasks import LANGUAGES, NAMED


@pytest.fixture(autouse=True)
def packages(monkeypatch, tmp_path):
    """Files as the packages hold them, in place of `package_files`."""
    monkeypatch.setattr(named_tasks, "package_files", lambda *_: tmp_path)
    sizes = {"movies": (20, 30), "topics": (25, 50), "claims": (30, 20), "reviews": (100, 50)}
    monkeypatch.setattr(named_tasks, "SIZES", sizes)

    def write(member, content):
        (tmp_path / member).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / member).write_bytes(content)

    rows = ["category,text,movie_name"]
    for film in range(40):
        labels = ("fresh", "rotten", "plot", "fresh")
        rows += [f"{label},{label} {film} {n},film {film}" for n, label in enumerate(labels)]
    rows += ["fresh,fresh 1 0,film 1", "rotten,,film 1"]
    write(named_tasks.MOVIES, bz2.compress("\n".join(rows).encode()))
    for member, first in zip(named_tasks.TOPICS, (0, 40), strict=True):
        lines = [f"topic{n % 3}\t{'word ' * n}report {n}\r\n" for n in range(first, first + 50)]
        write(member, ("Category\tText\nd\tstring\nclass\t\n\n" + "".join(lines)).encode())

    def task_json(texts):
        scores = [{"True": n % 2, "False": 1 - n % 2, "Neither": 0} for n in range(len(texts))]
        rows = zip(texts, scores, strict=True)
        rows = [{"input": text, "target_scores": by_label} for text, by_label in rows]
        return json.dumps({"examples": rows}).encode()

    pages = [f"Page {n % 20}: a: b\nClaim: c {n}" for n in range(90)]
    write(named_tasks.CLAIMS, task_json(pages))
    for domain, language in itertools.product(named_tasks.DOMAINS, LANGUAGES):
        texts = [f"{language} {domain} {n}" for n in range(200)]
        member = named_tasks.REVIEWS.format(domain=domain, language=language)
        write(member, task_json(texts))


def sources(split):
    return {text.split()[1] for text in split.texts}


def test_movies_are_half_fresh_and_no_film_is_in_both_splits():
    task = NAMED["movies"]()
    assert task.classes == ("fresh", "rotten")
    for split, size in ((task.train, 20), (task.scored["dev"], 30)):
        assert len(set(split.texts)) == len(split.texts) == 2 * sum(split.labels) == size
        words = [task.classes[n] for n in split.labels]
        assert [text.split()[0] for text in split.texts] == words
    assert not sources(task.train) & sources(task.scored["dev"])


def test_topics_keep_their_splits_but_for_reports_that_stand_in_both():
    task = NAMED["topics"]()
    assert [len(split.texts) for split in task.splits.values()] == [25, 50]
    assert not set(task.train.texts) & set(task.scored["dev"].texts)
    assert max(len(text.split()) for text in task.train.texts) == 25


def test_claims_are_pairs_and_no_page_is_in_both_splits():
    task = NAMED["claims"]()
    assert re.fullmatch(r"Page \d+: a: b", task.train.texts[0])
    assert task.train.text_pairs[0].startswith("c ")
    assert not sources(task.train) & sources(task.scored["dev"])


def test_reviews_are_aligned_and_no_block_is_in_both_splits():
    task = NAMED["reviews"]()
    rows = {name: [text.split() for text in split.texts] for name, split in task.splits.items()}
    assert {row[0] for row in rows["train"]} == {"en"}
    blocks = [{(d, int(n) // 50) for _, d, n in rows[name]} for name in ("train", "en")]
    assert not blocks[0] & blocks[1]
    found = {name: [row[1:] for row in rows[name]] for name in task.scored}
    assert found == dict.fromkeys(LANGUAGES, found["en"])
    assert task.aligned
