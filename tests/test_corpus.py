"""Token files and streams: what is held out, what is read, what is kept on disk."""

import io
import json
import os
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from conftest import CountingTokenizer, numbers

from distill.data import corpus
from distill.data.corpus import TokenFile, TokenStream, shuffled, tokenise
from distill.data.sources import parse_source
from minitransformer.files import UserError


def documents(lengths, first=10):
    """Documents of those lengths, in which every number stands once."""
    starts = first + np.cumsum([0, *lengths])
    return [" ".join(map(str, range(s, s + n))) for s, n in zip(starts, lengths, strict=False)]


def token_file(folder, texts, between="\n\n", seed=3):
    (folder / "t.txt").write_text(between.join(texts))
    return TokenFile(parse_source(f"t={folder}/t.txt"), CountingTokenizer(), 10, seed)


def words(rows):
    return set(np.concatenate(list(rows)).tolist()) - {CountingTokenizer.sep_id}


def one_pass(tokens, number=0):
    draws = range(number * tokens.train_rows, (number + 1) * tokens.train_rows)
    return [tuple(tokens.sequence(draw)) for draw in draws]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_shuffled_is_a_permutation(n):
    order = [shuffled(i, n, "key") for i in range(n)]
    assert sorted(order) == list(range(n))
    if n >= 1000:
        assert order != [shuffled(i, n, "other") for i in range(n)]
        assert abs(np.corrcoef(order, range(n))[0, 1]) < 4 / n**0.5
        assert len({shuffled(i, 10**12, "key") for i in range(n)}) == n


@pytest.mark.parametrize(
    "lengths",
    [[n] for n in (17, 29, 405, 1197, 5605)]
    + [[300, 40], [50] * 5, [9] * 19, [3] * 700, [*range(1, 90)] * 2, [2000, *[20] * 300]],
    ids=lambda lengths: f"{len(lengths)} documents",
)
def test_every_row_that_is_not_held_out_is_read_once_in_a_pass(folder, lengths):
    texts = documents(lengths)
    tokens = token_file(folder, texts)
    held = words(tokens.held_out(10**6))
    passes = [one_pass(tokens, number) for number in range(3)]
    assert all(sorted(read) == sorted(passes[0]) for read in passes)
    if len(passes[0]) > 20:
        assert passes[0] != passes[1] != passes[2]
    train = words(passes[0])
    assert train
    assert 1 <= len(held) <= max(16, sum(lengths) / 50 + max(lengths))
    assert not held & train
    assert len(held | train) > sum(lengths) - 2 * 8
    if len(lengths) > 100:
        for text in texts:
            assert len({int(word) in held for word in text.split()[:-8]}) <= 1


@pytest.mark.parametrize("between", ["\n\n", "\n"])
def test_equal_documents_are_on_one_side(folder, between):
    lines = documents([20] * 100) * 50
    random.Random(0).shuffle(lines)
    tokens = token_file(folder, lines, between)
    held, train = words(tokens.held_out(10**6)), words(one_pass(tokens))
    assert len(held) == 40  # two of the hundred
    assert not held & train
    assert len(train) == 98 * 20
    tokens = token_file(folder, documents([30] * 4) * 50)  # each is more than a tenth
    assert not words(tokens.held_out(10**6)) & words(one_pass(tokens))


def test_what_is_held_out_depends_on_the_documents_alone(folder, monkeypatch):
    """Not on their order, the seed, or how many were in memory at a time."""
    texts = documents([30] * 2000)
    expected = words(token_file(folder, texts).held_out(256))
    assert len(expected) == 40 * 30  # a fiftieth
    monkeypatch.setattr(corpus, "CHUNK", 1000)
    monkeypatch.setattr(corpus, "HELD_OUT_TOKENS", 1300)
    random.Random(1).shuffle(texts)
    tokens = token_file(folder, texts, seed=4)
    assert words(tokens.held_out(256)) == expected
    assert len(tokenise(parse_source(f"t={folder}/t.txt"), CountingTokenizer())[1]["held_out"]) < 50


def test_at_most_so_many_rows_are_held_out(folder, monkeypatch):
    monkeypatch.setattr(corpus, "HELD_OUT", 10)
    tokens = token_file(folder, documents([10] * 1000))
    assert len(tokens.held_out(10**6)) == 10
    assert len(tokens.held) < 11 * 8 + 11  # and the rest is trained on
    rows = tokens.held_out(3)  # spread over them, not the first ones alone
    assert rows[2].tolist() != tokens.held_out(10)[2].tolist()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "the text is empty; give other text, or the column that holds it as t=PATH:COLUMN"),
        (["11"], "2 tokens, but sequences of 10 take at least 16"),
        (["11 12 13 14 15 16 17"] * 200, "1600 tokens, .* some text that stands there only once"),
        (["- -"] * 1200, "the text is empty; skipped: 1,200 without tokens; give other text"),
        (["4 4 4 4 4 4 4 4 4 4 11"] * 20, r"90.9% of the tokens are unknown .*60,000\); give"),
    ],
)
def test_text_that_nothing_can_be_learned_from(folder, texts, message):
    with pytest.raises(UserError, match=message):
        token_file(folder, texts)


def test_what_was_read_is_printed_once_also_from_the_cache(folder, capsys):
    rows = [*documents([50] * 100), "4 " * 1000, None, "", "- -", None]
    (folder / "t.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    for _ in range(2):
        tokens = TokenFile(parse_source(f"t={folder}/t.jsonl"), CountingTokenizer(), 10, 0)
        line, warning = capsys.readouterr().out.splitlines()
        assert line == (
            "corpus t: 101 documents, 6,101 tokens, 16.7% of them unknown to the tokenizer;"
            " skipped: 1 empty, 2 null, 1 without tokens"
        )
        assert warning.startswith("warning: corpus t: 16.7% of the tokens are unknown to the")
    assert tokens.statistics.skipped == {"empty": 1, "null": 2, "without tokens": 1}


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65536, "uint16"), (65537, "uint32")])
def test_every_id_of_the_vocabulary_is_stored_right(folder, vocab_size, dtype):
    spec = numbers(folder, "t", 100, first=vocab_size - 100)
    file, sidecar = tokenise(parse_source(spec), CountingTokenizer(vocab_size))
    assert sidecar["dtype"] == dtype
    expected = [*range(vocab_size - 100, vocab_size), CountingTokenizer.sep_id]
    assert np.fromfile(file, sidecar["dtype"]).tolist() == expected


def test_the_token_file_is_made_once_and_anew_when_text_or_tokenizer_change(folder, monkeypatch):
    spec = numbers(folder, "c", 1000)
    made, whole = [], corpus._write_tokens
    monkeypatch.setattr(corpus, "_write_tokens", lambda *a: made.append(0) or whole(*a))
    first, sidecar = tokenise(parse_source(spec), CountingTokenizer())
    assert tokenise(parse_source(spec), CountingTokenizer()) == (first, sidecar)
    assert len(made) == 1
    other = CountingTokenizer()
    other.hash = "other"
    assert tokenise(parse_source(spec), other)[0] != first
    numbers(folder, "c", 1001)
    assert tokenise(parse_source(spec), CountingTokenizer())[1]["statistics"]["tokens"] == 1002
    assert len(made) == 3
    assert {path.suffix for path in first.parent.iterdir()} <= {".bin", ".json", ".lock"}


@pytest.mark.parametrize("end", [".bin", ".json"])
@pytest.mark.parametrize("content", [None, b"", b'{"tokens": [], "dtype": "x"}'])
def test_a_damaged_token_file_is_made_anew(folder, end, content):
    spec = numbers(folder, "c", 1000)
    file, sidecar = tokenise(parse_source(spec), CountingTokenizer())
    before = file.read_bytes()
    file.with_suffix(end).unlink()
    if content is not None:
        file.with_suffix(end).write_bytes(content)
    assert tokenise(parse_source(spec), CountingTokenizer()) == (file, sidecar)
    assert file.read_bytes() == before


def test_a_killed_tokenisation_leaves_no_file_that_is_believed_or_stays(folder, monkeypatch):
    spec = numbers(folder, "c", 1000)
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "fingerprint", lambda tokens: 1 / 0)
        patch.setattr("pathlib.Path.unlink", lambda self, missing_ok: None)  # killed: not tidied up
        with pytest.raises(ZeroDivisionError):
            tokenise(parse_source(spec), CountingTokenizer())
    (unfinished,) = (folder / "cache").rglob("*.tmp")
    name = unfinished.name.replace(f".{os.getpid()}.", ".0.")  # of another process
    unfinished.rename(unfinished.with_name(name))
    assert tokenise(parse_source(spec), CountingTokenizer())[1]["statistics"]["tokens"] == 1001
    assert not list((folder / "cache").rglob("*.tmp"))


def test_of_several_processes_one_makes_the_token_file(folder, monkeypatch):
    """Threads with a lock each behave as processes do: one writes, the others wait."""
    source, whole, made = parse_source(numbers(folder, "a", 4990)), corpus._write_tokens, []

    def write(*args):
        made.append(0)
        time.sleep(0.05)
        return whole(*args)

    monkeypatch.setattr(corpus, "_write_tokens", write)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: tokenise(source, CountingTokenizer()), range(4)))
    assert len(made) == 1


@pytest.fixture
def stream(folder, monkeypatch):
    """stream(texts, seed=0): a hub dataset in a local folder, with short blocks."""
    monkeypatch.setattr(corpus, "BLOCK", 16)
    monkeypatch.setattr(corpus, "HELD_OUT", 4)

    def make(texts, seed=0):
        dataset = folder / "dataset"
        dataset.mkdir(exist_ok=True)
        half = len(texts) // 2
        for shard, part in enumerate((texts[:half], texts[half:])):
            table = pyarrow.table({"text": part})
            pyarrow.parquet.write_table(table, dataset / f"{shard}.parquet", row_group_size=3)
        return TokenStream(parse_source(f"s=hub:{dataset}"), CountingTokenizer(), 10, seed)

    return make


def test_a_stream_holds_its_first_documents_out_of_every_pass(stream, capsys):
    """Also where an equal one comes later; the rest of a document is not trained on either."""
    texts = documents([50] * 12)
    rows = stream([None, *texts, "", texts[0], "- -"])
    assert "corpus s (its beginning): 2 documents, 102 tokens" in capsys.readouterr().out
    held = words(rows.held_out(100))
    assert held == set(range(10, 10 + 4 * 8))
    drawn = [tuple(rows.sequence(draw)) for draw in range(400)]
    assert words(drawn) == set(range(60, 610))
    reasons = {"empty": 1, "equal to a held-out one": 1, "null": 1, "without tokens": 1}
    assert rows.statistics.skipped == reasons
    assert rows.statistics.documents == 13
    assert rows.passes >= 4
    assert Counter(number for row in drawn for number in row)[300] in (rows.passes, rows.passes + 1)


def test_the_seed_decides_the_order_of_a_stream_alone(stream):
    other, again = (stream(documents([50] * 12), seed=seed) for seed in (1, 0))
    assert other.held_out(4)[0].tolist() == again.held_out(4)[0].tolist()
    orders = [[tuple(rows.sequence(n)) for n in range(16)] for rows in (other, again)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


@pytest.mark.parametrize("stop", [0, 1, 31, 32, 61, 150])
def test_a_stream_saved_anywhere_goes_on_the_same(stream, stop):
    """Also where it was saved twice without having read a document in between."""
    texts = documents([200, 3, 5, 300, 40, 2, 120])
    whole = stream(texts)
    expected = [tuple(whole.sequence(draw)) for draw in range(200)]
    rows = stream(texts)
    for draw in range(stop):
        rows.sequence(draw)
    state = rows.state_dict()
    for extra in (0, 1):
        resumed = stream(texts)
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        for draw in range(stop, stop + extra):
            resumed.sequence(draw)
        state = resumed.state_dict()
    last = stream(texts)
    last.load_state_dict(state)
    drawn = [tuple(last.sequence(draw)) for draw in range(stop + 1, 200)]
    assert drawn == expected[stop + 1 :]
    assert last.hash == whole.hash
    assert last.statistics == whole.statistics


def test_a_stream_that_nothing_can_be_learned_from(stream):
    short = "ends within 5 sequences, of which 4 are held out"
    for texts, message in (
        (documents([10, 10]), short + "$"),
        (documents([50]) * 40, short + "; skipped: 39 equal to a held-out one"),
        (["", " ", None] * 400, short + "; skipped: 800 empty, 400 null"),
        ([1] * 100, "column 'text' holds int, not text"),
        (["4 " * 999, *documents([50])], "95.2% of the tokens are unknown"),
        ([*documents([50] * 2), "4 " * 2000], "95.2% of the tokens are unknown"),  # only later
    ):
        with pytest.raises(UserError, match=message):
            stream(texts).sequence(0)
    rows = stream(documents([300, 0, 300]))
    rows.documents, rows.rest = (1 / 0 for _ in [0]), rows.rest[:0]
    with pytest.raises(UserError, match=r"stream broke off \(division by zero\)"):
        rows.sequence(0)


def test_a_document_of_any_length_is_tokenised_in_parts(stream, folder, monkeypatch):
    monkeypatch.setattr("distill.data.sources.LONGEST_DOCUMENT", 1000)
    monkeypatch.setattr(corpus, "CHUNK", 3000)
    longest, whole = [], CountingTokenizer.encode_batch

    def watched(self, texts):
        longest.append(sum(map(len, texts)))
        return whole(self, texts)

    monkeypatch.setattr(CountingTokenizer, "encode_batch", watched)
    texts = documents([20000, 300])
    assert stream(texts).rest.shape > (19000,)
    token_file(folder, texts)
    assert max(longest) < 5000
    assert sum(longest) == pytest.approx(2 * sum(map(len, texts)), rel=0.01)
