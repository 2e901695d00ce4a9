"""Corpora: what is held out, what is read of a hub dataset, what is kept on disk."""

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import MODEL_TYPES, CountingTokenizer, tiny_tokenizer

from distill.data import corpus
from distill.data.batches import Text
from distill.data.corpus import unknown_share
from minitransformer.files import UserError


def texts_of(lengths, first=10):
    """Texts of those lengths, in which every number stands once."""
    starts = first + np.cumsum([0, *lengths])
    return [" ".join(map(str, range(s, s + n))) for s, n in zip(starts, lengths, strict=False)]


def write(name, texts):
    with open(f"{name}.jsonl", "w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return f"{name}={name}.jsonl"


def corpora(*specs, seed=3, **settings):
    return Text(list(specs), CountingTokenizer(), 10, seed=seed, **settings).corpora


def words(rows):
    return set(np.unique(rows).tolist()) - {CountingTokenizer.sep_id}


def drawn(rows, count, start=0):
    return [tuple(rows.row(draw)) for draw in range(start, start + count)]


@pytest.fixture
def written(monkeypatch):
    """Return a list that grows by the name of each corpus that is tokenised."""
    names, whole = [], corpus.write_tokens
    record = lambda source, *rest: names.append(source.name) or whole(source, *rest)  # noqa: E731
    monkeypatch.setattr(corpus, "write_tokens", record)
    return names


@pytest.mark.parametrize(
    "lengths", [[50] * 5, [*range(1, 90)] * 2, [3000, 2000, *[20] * 300]], ids=len
)
def test_every_row_that_is_not_held_out_is_read_once_in_a_pass(folder, lengths):
    (rows,) = corpora(write("t", texts_of(lengths)))
    passes = [drawn(rows, rows.rows, number * rows.rows) for number in range(3)]
    assert all(sorted(read) == sorted(passes[0]) for read in passes)
    assert passes[0] != passes[1] != passes[2]
    held, train = words(rows.held), words(passes[0])
    assert not held & train
    assert len(held | train) > sum(lengths) - 2 * 8


def test_equal_documents_are_on_one_side_in_every_corpus(folder):
    """Also a file and a sample of it in another form, order and spacing."""
    texts = texts_of([20] * 2000) * 2
    random.Random(0).shuffle(texts)
    specs = [write("all", texts), f"sample={folder}/s.txt"]
    (folder / "s.txt").write_text("\n\n".join(text.replace(" ", " \n") for text in texts[::3]))
    both = corpora(*specs)
    held = set.union(*(words(rows.held) for rows in both))
    assert len(held) > 500
    assert not held & set.union(*(words(rows.train) for rows in both))
    assert words(corpora(specs[0], seed=4)[0].held) == words(both[0].held)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "the text is empty"),
        (["- -"] * 12, "the text is empty; 12 without tokens skipped"),
        (["11", "12", "13"], "3 documents are too few to train on sequences of 10 and hold one"),
        (["11 12 13 14 15 16 17"] * 200, "200 documents .* give more, different texts"),
        (["4 " * 90] * 20 + ["44 55 66"] * 20, "t: 93.8% of the letters are unknown"),
    ],
)
def test_text_that_nothing_can_be_learned_from(folder, texts, message):
    with pytest.raises(UserError, match=f"^--data .*{message}"):
        corpora(write("t", texts))


def test_what_was_read_is_printed_also_from_the_cache(folder, capsys):
    rows = [*texts_of([50] * 100, first=1000), "4 " * 4000, None, "", "- -", None]
    for _ in range(2):
        (read,) = corpora(write("t", rows))
        *_, line, warning = capsys.readouterr().out.splitlines()
        assert line.startswith("corpus t: 101 documents, 9,101 tokens, ")
        assert line.endswith(" held out; 1 empty skipped; 2 null skipped; 1 without tokens skipped")
        assert warning.startswith("WARNING: corpus t: 16.7% of the letters are unknown to the")
    skipped = {"empty skipped": 1, "null skipped": 2, "without tokens skipped": 1}
    assert read.facts["counts"] == skipped


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_unknown_share_is_that_of_letters(model_type):
    """A sentence in a script that the vocabulary lacks may become one token among full stops."""
    tokenizer = tiny_tokenizer(model_type)
    lost = "ഇത് ഒരു വാക്യം ആണ്" + " ." * 60
    share = unknown_share(tokenizer, [lost, "the text of a model. " * 3])
    if model_type == "roberta":  # bytes: nothing is unknown
        assert share == 0
    else:
        assert 0 < share < 0.3
        assert unknown_share(tokenizer, ["\u2603 \u2602"]) == 1  # signs alone
    assert unknown_share(tokenizer, ["the text of a model", "", "..."]) == 0


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65536, np.uint16), (65537, np.uint32)])
def test_every_id_of_the_vocabulary_is_stored_right(folder, vocab_size, dtype):
    spec = write("t", texts_of([20] * 50, first=vocab_size - 1000))
    (rows,) = Text([spec], CountingTokenizer(vocab_size), 10).corpora
    assert rows.train.dtype == rows.held.dtype == dtype
    assert max(words(rows.train) | words(rows.held)) >= vocab_size - 5


def test_tokens_are_made_once_and_anew_when_text_or_tokenizer_change(folder, written):
    spec, other = write("c", texts_of([20] * 200)), CountingTokenizer()
    assert corpora(spec)[0].facts == corpora(spec)[0].facts
    assert written == ["c"]
    other.hash = "other"
    Text([spec], other, 10)
    assert corpora(write("c", texts_of([20] * 201)))[0].facts["documents"] == 201
    assert len(written) == 3


@pytest.mark.parametrize("end", ["train", "held", "json"])
def test_damaged_tokens_are_made_anew(folder, written, end):
    spec = write("c", texts_of([20] * 200))
    expected = corpora(spec)[0].facts
    (file,) = (folder / "cache").rglob(f"*.{end}")
    before = file.read_bytes()
    (left := file.with_suffix(".train.host.1.tmp")).touch()  # of a process that was killed
    places = random.Random(0).sample(range(len(before)), 20)
    flipped = [before[:p] + bytes([before[p] ^ 1]) + before[p + 1 :] for p in places]
    for content in (*flipped, before[:-1], before + b"12", b"", None):
        file.unlink() if content is None else file.write_bytes(content)
        assert corpora(spec)[0].facts == expected
        assert file.read_bytes() == before
    assert len(written) == 1 + 24
    assert not left.exists()


def test_one_process_tokenises_and_others_wait(folder, written, monkeypatch):
    """Threads with a lock each behave as processes do."""
    spec, whole = write("c", texts_of([20] * 200)), corpus.encode
    monkeypatch.setattr(corpus, "encode", lambda *a: time.sleep(0.2) or whole(*a))
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(corpora, [spec] * 3))
    assert written == ["c"]


def test_a_hub_dataset_is_read_as_far_as_the_run_needs_it(folder, written, monkeypatch):
    """Further rows change neither its order nor what is held out; enough is reused."""
    for name, size in (("BLOCK", 16), ("HELD_OUT", 4), ("AT_ONCE", 4)):
        monkeypatch.setattr(corpus, name, size)
    (folder / "data").mkdir()
    write("data/a", texts_of([20] * 2000))

    def dataset(sequences=0, seed=3):
        return corpora(f"s=hub:{folder}/data", sequences=sequences, seed=seed)[0]

    short, longer = dataset(), dataset(1000)
    assert short.facts["documents"] < 500
    assert dataset(900).facts == longer.facts
    assert (short.rows, longer.rows, dataset(900).rows) == (16, 63 * 16, 57 * 16)
    assert written == ["s", "s"]
    whole = dataset(10_000)  # more than there is: several passes
    assert sorted(drawn(whole, whole.rows)) == sorted(drawn(whole, whole.rows, whole.rows))
    assert len(words(whole.train)) > 0.95 * 40_000
    other = dataset(seed=4)
    assert drawn(other, short.rows) != drawn(short, short.rows)
    for more in (longer, whole, other):
        assert more is other or drawn(more, short.rows) == drawn(short, short.rows)
        assert np.array_equal(more.held, short.held)
        assert (more.hash == short.hash) == (more is other)  # of all rows that a run may draw
