"""The tasks made from docs: balanced, large enough, without leaks, the same at every call."""

import math

import pytest

from distill.evaluation import docs_tasks
from distill.evaluation.docs_tasks import DOCS, swappable
from minitransformer.files import UserError


@pytest.fixture(scope="module")
def tasks():
    return {name: make() for name, make in DOCS.items()}


@pytest.mark.parametrize("name", DOCS)
def test_docs_tasks_are_large_balanced_and_do_not_leak(name, tasks):
    task = tasks[name]
    train, dev = task.train, task.scored["dev"]
    assert math.sqrt(0.6 * 0.4 / len(dev.texts)) < 0.01  # two points are two standard errors
    for split in (train, dev):
        counts = [split.labels.count(c) for c in range(len(task.classes))]
        assert max(counts) <= 1.35 * min(counts)
        examples = list(zip(split.texts, split.text_pairs or split.texts, strict=True))
        assert len(set(examples)) == len(examples)
    learned, asked = (set(s.texts) | set(s.text_pairs or ()) for s in (train, dev))
    assert not learned & asked


def test_docs_documents_are_in_one_split_each():
    splits = {}
    for (split, _), document, _ in docs_tasks.docs_paragraphs():
        splits.setdefault(document, set()).add(split)
    assert all(len(names) == 1 for names in splits.values())
    share = sum(names == {"dev"} for names in splits.values()) / len(splits)
    assert 0.45 < share < 0.55


@pytest.mark.slow
def test_docs_order_swaps_two_neighbours(tasks):
    paragraphs = docs_tasks.docs_paragraphs()
    written = {sentence for _, _, paragraph in paragraphs for sentence in paragraph}
    bags = {tuple(sorted(sentence.split())) for sentence in written}
    split = tasks["docs-order"].train
    for text, label in zip(split.texts, split.labels, strict=True):
        assert (text in written) == (label == 1)
        assert tuple(sorted(text.split())) in bags  # no bag of words can tell
    assert swappable(["A", "cat", "sat", "on", "on", "`x`", "mats", "here."]) == [1, 2]


def test_docs_next_cannot_be_told_from_one_sentence(tasks):
    """Each first sentence is in one right and one wrong pair, and most second ones are, too."""
    train = tasks["docs-next"].train
    assert DOCS["docs-next"]().hash == tasks["docs-next"].hash  # the same at every call
    sides = {0: [], 1: []}
    for first, second, label in zip(train.texts, train.text_pairs, train.labels, strict=True):
        sides[label].append((first, second))
    firsts = [sorted(first for first, _ in pairs) for pairs in sides.values()]
    seconds = [{second for _, second in pairs} for pairs in sides.values()]
    assert firsts[0] == firsts[1]
    assert len(seconds[0] & seconds[1]) > 0.9 * len(seconds[0])
    assert not set(sides[0]) & set(sides[1])


def test_too_few_docstrings_are_one_line(monkeypatch):
    few = [(("train", "numpy"), "numpy.a", ["Too short."])]
    monkeypatch.setattr(docs_tasks, "docs_paragraphs", lambda: few)
    for make in DOCS.values():
        with pytest.raises(UserError, match="too few docstrings"):
            make()
