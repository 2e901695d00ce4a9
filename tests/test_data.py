"""The order of the text, its shares, its masks: functions of (seed, draw) and of nothing else."""

import json
from collections import Counter

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from conftest import WORDS, tiny_tokenizer

from distill.data import batches as data
from distill.data import corpus
from distill.data.batches import Text, mask_tokens
from distill.data.corpus import TokenFile, TokenStream, shuffled, tokenise
from distill.data.sources import parse_source
from minitransformer.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


class CountingTokenizer:
    """Each word is a number and its own id, so that a row shows which part of the text it is."""

    cls_id, sep_id, pad_id, mask_id = 1, 2, 0, 3
    special_ids = (0, 1, 2, 3)
    hash = "counting"

    def __init__(self, vocab_size=60000):
        self.vocab_size = vocab_size

    def encode_batch(self, texts):
        return [[int(word) for word in text.split()] for text in texts]


def numbers(folder, name, count, first=10, tokenizer=None):
    """A corpus of that many different numbers in one document, and its --data value."""
    (folder / f"{name}.txt").write_text(" ".join(map(str, range(first, first + count))))
    return f"{name}={folder}/{name}.txt"


# ---- order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_shuffled_is_a_permutation(n):
    order = [shuffled(i, n, "key") for i in range(n)]
    assert sorted(order) == list(range(n))
    if n >= 1000:
        assert order != [shuffled(i, n, "other") for i in range(n)]
        assert abs(np.corrcoef(order, range(n))[0, 1]) < 4 / n**0.5


def test_shuffled_without_holding_the_order():
    assert len({shuffled(i, 10**12, "key") for i in range(1000)}) == 1000


@pytest.mark.parametrize("rows", [2, 3, 49, 50, 51, 149, 700])
def test_a_pass_reads_every_row_but_the_held_out_ones_once(folder, rows, capsys):
    """In another order in each pass; a pass that begins is announced."""
    spec = numbers(folder, "c", 8 * rows - 1 + 5)  # with the [SEP] at the end, and some left over
    tokens = TokenFile(parse_source(spec), CountingTokenizer(), 10, seed=3)
    held = {tuple(row) for row in tokens.held_out(10**6)}
    assert len(held) == tokens.held == max(1, rows // 50)
    passes = []
    for number in range(3):
        draws = range(number * tokens.train, (number + 1) * tokens.train)
        passes.append([tuple(tokens.sequence(draw, read=True)) for draw in draws])
    everything = {tuple(range(10 + i, 18 + i)) for i in range(0, 8 * rows, 8)}
    for read in passes:
        assert len(set(read)) == len(read)
        assert set(read) == everything - held
    if rows > 10:
        assert passes[0] != passes[1] != passes[2]
    said = capsys.readouterr().out
    assert said.count("pass 2 begins") == said.count("pass 3 begins") == 1


def test_held_out_rows_are_never_drawn_over_several_passes(folder):
    text = Text(
        [numbers(folder, "a", 4000), numbers(folder, "b", 900, first=20000)],
        CountingTokenizer(),
        10,
        seed=1,
    )
    held = {tuple(row.tolist()) for batch in text.held_out(16, masked=False) for row in batch.ids}
    assert {row[1] >= 20000 for row in held} == {True, False}  # of both corpora
    drawn = Counter()
    for _ in range(100):
        (batch,) = text.step(32, 1, masked=False)
        drawn.update(tuple(row.tolist()) for row in batch.ids)
    assert max(drawn.values()) > 3  # so there were several passes
    assert not held & drawn.keys()


def test_the_order_depends_on_the_seed_and_on_nothing_else(folder):
    spec = numbers(folder, "c", 4000)

    def rows(seed, skip=0):
        text = Text([spec], CountingTokenizer(), 10, seed=seed)
        if skip:  # a resume: the counts alone say where it stands
            text.load_state_dict({"counts": [skip], "streams": [None]})
        np.random.seed(skip)
        torch.manual_seed(skip)
        (batch,) = text.step(40 - skip, 1, masked=True)
        return torch.stack((batch.ids, batch.masked_ids))

    assert torch.equal(rows(5), rows(5))
    assert torch.equal(rows(5)[:, 16:], rows(5, skip=16))
    assert not torch.equal(rows(5), rows(6))


def test_held_out_text_and_its_masks_do_not_depend_on_the_seed(folder):
    spec = numbers(folder, "c", 4000)
    batches = [
        Text([spec], CountingTokenizer(), 10, seed=seed).held_out(3, masked=True) for seed in (0, 1)
    ]
    assert [b.masked_ids.tolist() for b in batches[0]] == [
        b.masked_ids.tolist() for b in batches[1]
    ]


# ---- shares --------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7, 1.0])
def test_shares_follow_n_to_the_alpha(folder, alpha, monkeypatch):
    """Fifteen languages, 100,000 sequences: the counts are p_i * 100,000 to within two, where
    chance would have a standard deviation of a hundred.
    """
    sizes = np.array([1e9, 5e8, 3e8, 1e8, 8e7, 5e7, 2e7, 1e7, 5e6, 2e6, 1e6, 3e5, 1e5, 2e4, 4000])
    specs = [f"{numbers(folder, f'l{i}', 100)}@{size:.0f}" for i, size in enumerate(sizes)]
    text = Text(specs, CountingTokenizer(), 10, alpha=alpha)
    monkeypatch.setattr(TokenFile, "sequence", lambda self, draw, read: None)
    share = sizes**alpha / (sizes**alpha).sum()
    worst = 0.0
    for draw in range(100_000):
        text._draw(read=False)
        if draw % 97 == 0 or draw == 99_999:
            off = text.counts - share * (draw + 1)
            assert off.max() < 1
            worst = max(worst, abs(off).max())
    assert text.counts.sum() == 100_000
    assert worst < 2
    assert [row["share"] for row in text.describe()] == pytest.approx(list(share))
    assert [row["sequences_drawn"] for row in text.describe()] == text.counts.tolist()


def test_sizes_are_those_of_the_files_where_none_is_declared(folder):
    text = Text(
        [numbers(folder, "a", 999), numbers(folder, "b", 99)], CountingTokenizer(), 10, alpha=0.5
    )
    assert [row["tokens"] for row in text.describe()] == [1000, 100]
    assert list(text.shares) == pytest.approx([10**0.5 / (1 + 10**0.5), 1 / (1 + 10**0.5)])


# ---- token files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [(300, "uint16"), (65536, "uint16"), (65537, "uint32"), (250002, "uint32")],
)
def test_every_id_of_the_vocabulary_is_stored_right(folder, vocab_size, dtype):
    """XLM-R's 250,001 would be 53,393 in 16 bits."""
    last = range(vocab_size - 100, vocab_size)
    (folder / "t.txt").write_text(" ".join(map(str, last)))
    tokenizer = CountingTokenizer(vocab_size)
    file, sidecar = tokenise(parse_source(f"t={folder}/t.txt"), tokenizer)
    assert sidecar["dtype"] == dtype
    assert np.fromfile(file, sidecar["dtype"]).tolist() == [*last, tokenizer.sep_id]
    text = Text([f"t={folder}/t.txt"], tokenizer, 12)
    (batch,) = text.step(10, 1, masked=True)
    held = text.held_out(1, masked=False)[0].ids[0, 1:-1].tolist()
    body = batch.ids[:9, 1:-1].flatten().tolist()
    assert {*body, *held} == set(last)
    assert batch.ids.dtype == torch.int64
    assert batch.masked_ids.max() < vocab_size


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
    assert tokenise(parse_source(spec), CountingTokenizer())[1]["tokens"] == 1002
    assert len(made) == 3
    names = {path.suffix for path in first.parent.iterdir()}
    assert names == {".bin", ".json", ".lock"}


@pytest.mark.parametrize("damage", ["no file", "cut off", "no sidecar", "empty sidecar", "?"])
def test_a_damaged_token_file_is_made_anew(folder, damage):
    spec = numbers(folder, "c", 1000)
    file, sidecar = tokenise(parse_source(spec), CountingTokenizer())
    before = file.read_bytes()
    beside = file.with_suffix(".json")
    if damage == "no file":
        file.unlink()
    elif damage == "cut off":
        file.write_bytes(before[:100])
    elif damage == "no sidecar":
        beside.unlink()
    else:
        beside.write_bytes(b"" if damage == "empty sidecar" else b'{"tokens": [], "dtype": "x"}')
    assert tokenise(parse_source(spec), CountingTokenizer()) == (file, sidecar)
    assert file.read_bytes() == before


def test_a_killed_tokenisation_leaves_no_file_that_is_believed(folder, monkeypatch):
    spec = numbers(folder, "c", 1000)
    with monkeypatch.context() as patch:
        patch.setattr(corpus.os, "fsync", lambda handle: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tokenise(parse_source(spec), CountingTokenizer())
    assert [path.suffix for path in (folder / "cache/minitransformer/tokens").iterdir()] == [
        ".lock"
    ]
    assert tokenise(parse_source(spec), CountingTokenizer())[1]["tokens"] == 1001


# ---- masks ---------------------------------------------------------------------------------------


def test_masking_is_80_10_10_of_15_percent_and_spares_special_tokens():
    tokenizer = CountingTokenizer(50000)
    rng = np.random.default_rng(0)
    kinds = np.zeros(3)
    for index in range(2000):
        row = rng.integers(10, 50000, size=128)
        row[[0, 40, 80, 127]] = tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, 0
        masked, chosen = mask_tokens(row, tokenizer, [7, index])
        assert chosen.sum() == round(0.15 * 124)
        assert not chosen[[0, 40, 80, 127]].any()
        assert (masked == row)[~chosen].all()
        kinds += ((masked == tokenizer.mask_id)[chosen].sum(), 0, (masked == row)[chosen].sum())
        kinds[1] += (
            chosen.sum()
            - (masked == tokenizer.mask_id)[chosen].sum()
            - (masked == row)[chosen].sum()
        )
    total = kinds.sum()
    for count, share in zip(kinds, (0.8, 0.1, 0.1), strict=True):
        assert abs(count - share * total) < 4 * (total * share * (1 - share)) ** 0.5
    again = mask_tokens(row, tokenizer, [7, 1999])
    assert (again[0] == masked).all()
    assert not (mask_tokens(row, tokenizer, [7, 0])[0] == masked).all()
    assert not (mask_tokens(row, tokenizer, [8, 1999])[0] == masked).all()


def test_masks_are_drawn_anew_in_every_pass(folder):
    text = Text([numbers(folder, "c", 400)], CountingTokenizer(), 10)
    masks = {}
    for _ in range(5):
        (batch,) = text.step(49, 1, masked=True)
        for row, ids in enumerate(batch.ids):
            chosen = batch.sequences(row, row + 1).positions
            masks.setdefault(tuple(ids.tolist()), []).append(tuple(chosen.tolist()))
    assert {len(of_row) for of_row in masks.values()} == {5}
    assert sum(len(set(of_row)) == 1 for of_row in masks.values()) < 10
    assert len({of_row[0] for of_row in masks.values()}) > 5  # nor the same for all rows


def test_masking_of_very_little_and_of_nothing():
    tokenizer = CountingTokenizer()
    masked, chosen = mask_tokens(np.array([1, 2, 2]), tokenizer, [0, 0])
    assert not chosen.any()
    assert masked.tolist() == [1, 2, 2]
    _, chosen = mask_tokens(np.array([1, 77, 2]), tokenizer, [0, 0])
    assert chosen.tolist() == [False, True, False]  # at least one


def test_every_place_is_chosen_as_often():
    tokenizer, counts = CountingTokenizer(), np.zeros(30)
    for index in range(6000):
        counts += mask_tokens(np.arange(10, 40), tokenizer, [0, index])[1]
    share = round(0.15 * 30) / 30
    assert abs(counts - 6000 * share).max() < 4.5 * (6000 * share * (1 - share)) ** 0.5


# ---- streams -------------------------------------------------------------------------------------


@pytest.fixture
def stream(folder, monkeypatch):
    """stream(documents, length=10, seed=0): a hub dataset in a local folder, with short buffers."""
    monkeypatch.setattr(corpus, "BUFFER", 16)
    monkeypatch.setattr(corpus, "HELD_OUT", 4)

    def make(documents, tokens="", length=10, seed=0):
        dataset = folder / "dataset"
        dataset.mkdir(exist_ok=True)
        half = len(documents) // 2
        for shard, texts in enumerate((documents[:half], documents[half:])):
            pyarrow.parquet.write_table(
                pyarrow.table({"text": texts}), dataset / f"{shard}.parquet", row_group_size=3
            )
        source = parse_source(f"s=hub:{dataset}{tokens}")
        return TokenStream(source, CountingTokenizer(), length, seed)

    return make


def documents(lengths, first=10):
    starts = first + np.cumsum([0, *lengths])
    return [" ".join(map(str, range(s, s + n))) for s, n in zip(starts, lengths, strict=False)]


def test_a_stream_holds_its_first_rows_out_of_every_pass(stream, capsys):
    rows = stream(documents([50] * 12), length=10)
    held = {tuple(row) for row in rows.held_out(100)}
    assert len(held) == 4
    assert min(min(row) for row in held) == 10  # the first of the text
    drawn = [tuple(rows.sequence(draw, read=True)) for draw in range(400)]
    assert not held & set(drawn)
    assert capsys.readouterr().out.count("begins") == rows.passes >= 4
    assert max(Counter(drawn).values()) <= rows.passes + 1


def test_every_rank_draws_the_same_from_a_stream(stream):
    made = [stream(documents([50] * 12)) for _ in range(2)]
    reads = [True, False]
    for draw in range(50):
        one, two = (rows.sequence(draw, read) for rows, read in zip(made, reads, strict=True))
        assert (one == two).all()
    assert made[0].hash == made[1].hash
    assert [(other := stream(documents([50] * 12), seed=1)).sequence(0, True).tolist()] != [
        stream(documents([50] * 12)).sequence(0, True).tolist()
    ]
    assert other.held_out(4)[0].tolist() == made[0].held_out(4)[0].tolist()


@pytest.mark.parametrize("stop", [0, 1, 7, 30, 31, 32, 33, 60, 61, 100, 150])
def test_a_stream_saved_anywhere_goes_on_the_same(stream, stop):
    """Also where it was saved twice without having read a document in between."""
    texts = documents([200, 3, 5, 300, 40, 2, 120])
    whole = stream(texts)
    expected = [tuple(whole.sequence(draw, read=True)) for draw in range(200)]
    rows = stream(texts)
    for draw in range(stop):
        rows.sequence(draw, read=True)
    state = rows.state_dict()
    for extra in (0, 1):
        resumed = stream(texts)
        resumed.load_state_dict(
            json.loads(json.dumps(state, default=lambda t: t.tolist()), object_hook=_tensors)
        )
        for draw in range(stop, stop + extra):
            resumed.sequence(draw, read=True)
        state = resumed.state_dict()
    last = stream(texts)
    last.load_state_dict(state)
    drawn = [tuple(last.sequence(draw, read=True)) for draw in range(stop + 1, 200)]
    assert drawn == expected[stop + 1 :]
    assert last.hash == whole.hash


def _tensors(state):
    return {
        key: torch.tensor(value) if key in ("rest", "buffer") and value is not None else value
        for key, value in state.items()
    }


def test_a_stream_that_is_too_short_or_no_text_or_breaks_off(stream, monkeypatch):
    with pytest.raises(UserError, match="ends within 5 sequences, of which 4 are held out"):
        stream(documents([10, 10]))
    with pytest.raises(UserError, match="column 'text' holds int, not text"):
        stream([1] * 100)
    rows = stream([None, *documents([300, 0, 300])])  # a missing text is an empty one
    rows.rows = iter([])
    rows.rows = (1 / 0 for _ in [0])
    rows.rest = rows.rest[:0]
    with pytest.raises(UserError, match=r"stream broke off \(division by zero\)"):
        rows.sequence(0, read=True)


def test_a_streams_size_is_declared_by_the_user(stream, folder):
    rows = stream(documents([100, 100]), tokens="@1.2e9")
    assert rows.tokens == 1_200_000_000
    stream(documents([100, 100]))
    specs = [f"s=hub:{folder}/dataset", numbers(folder, "c", 1000)]
    with pytest.raises(UserError, match="--data s: its size is unknown, which 2 corpora need"):
        Text(specs, CountingTokenizer(), 10)
    Text([specs[0] + "@1000", specs[1]], CountingTokenizer(), 10)


def test_rows_are_framed_by_the_special_tokens(folder):
    tokenizer = tiny_tokenizer()
    (folder / "w.txt").write_text("\n\n".join(" ".join(WORDS) for _ in range(60)))
    text = Text([f"w={folder}/w.txt"], tokenizer, 16)
    (batch,) = text.step(8, 1, masked=True)
    assert batch.ids.shape == batch.mask.shape == batch.masked_ids.shape == (8, 16)
    for ids in (batch.ids, batch.masked_ids):
        assert (ids[:, 0] == tokenizer.cls_id).all()
        assert (ids[:, -1] == tokenizer.sep_id).all()
    assert batch.mask.all()
    special = torch.isin(batch.ids, torch.tensor(tokenizer.special_ids)).flatten()
    assert not special[batch.positions].any()
    assert all(len(batch.sequences(row, row + 1).positions) for row in range(len(batch.ids)))
    assert data.MASK_SHARE == 0.15


def test_text_in_a_script_that_the_tokenizer_does_not_know(folder):
    (folder / "w.txt").write_text("字 " * 2000)
    text = Text([f"w={folder}/w.txt"], tiny_tokenizer(), 16)
    with pytest.raises(UserError, match="nothing but special tokens"):
        text.held_out(8, masked=True)
    assert text.held_out(8, masked=False)
