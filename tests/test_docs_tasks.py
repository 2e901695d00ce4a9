"""The tasks made from docs: balanced, without leaks, the same at every call."""

import pytest

from distill.evaluation import docs_tasks
from distill.evaluation.docs_tasks import DOCS, docs_library, docs_next, docs_order, swappable
from minitransformer.errors import UserError


@pytest.mark.parametrize("make", DOCS.values())
def test_docs_tasks_are_whole_balanced_and_do_not_leak(make):
    task = make()
    train, dev = task.train, task.scored["dev"]
    assert 400 <= len(train.texts) <= 512
    assert 500 <= len(dev.texts) <= 640
    for split in (train, dev):
        counts = [split.labels.count(c) for c in range(len(task.classes))]
        assert max(counts) <= 1.1 * min(counts)
        assert len(set(split.texts)) == len(split.texts)
    learned, asked = (set(s.texts) | set(s.text_pairs or ()) for s in (train, dev))
    assert not learned & asked
    assert make().hash == task.hash


def test_docs_documents_are_in_one_split_each():
    splits = {}
    for (split, _), document, _ in docs_tasks.docs_paragraphs():
        splits.setdefault(document, set()).add(split)
    assert all(len(of) == 1 for of in splits.values())
    share = sum(of == {"dev"} for of in splits.values()) / len(splits)
    assert 0.2 < share < 0.3


def test_docs_library_names_no_library():
    for split in (docs_library().train, docs_library().scored["dev"]):
        for text in split.texts:
            assert not any(name in text.lower() for name in ("numpy", "pandas", "python", "sympy"))


def test_docs_order_swaps_two_neighbours():
    paragraphs = docs_tasks.docs_paragraphs()
    written = {sentence for _, _, paragraph in paragraphs for sentence in paragraph}
    bags = {tuple(sorted(sentence.split())) for sentence in written}
    split = docs_order().train
    for text, label in zip(split.texts, split.labels, strict=True):
        assert (text in written) == (label == 1)
        assert tuple(sorted(text.split())) in bags  # no bag of words can tell
    assert swappable(["A", "cat", "sat", "on", "on", "`x`", "mats", "here."]) == [1, 2]


def test_docs_next_cannot_be_told_from_one_sentence():
    """Most second sentences of wrong pairs are also those of right ones."""
    train = docs_next().train
    seconds = {0: set(), 1: set()}
    for second, label in zip(train.text_pairs, train.labels, strict=True):
        seconds[label].add(second)
    assert len(seconds[0] & seconds[1]) > 0.8 * len(seconds[0])


def test_too_few_docstrings_are_one_line(monkeypatch):
    monkeypatch.setattr(docs_tasks, "docs_documents", lambda: [("numpy.a", "Too short.")])
    for make in DOCS.values():
        with pytest.raises(UserError, match="too few docstrings"):
            make()
