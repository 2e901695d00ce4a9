"""The order of the text, its shares, its masks: functions of (seed, draw) and of nothing else."""

import numpy as np
import pytest
import torch
from conftest import WORDS, CountingTokenizer, numbers, tiny_tokenizer

from distill.data import corpus
from distill.data.batches import Text, mask_tokens, prefetch
from minitransformer.files import UserError


def rows_of(steps):
    return torch.cat([torch.stack((b.ids, b.masked_ids), 1) for step in steps for b in step])


def test_the_order_depends_on_the_seed_and_on_nothing_else(folder):
    """Not on a resume, global generators, ranks or micro-batches; nor on drawing ahead."""
    specs = [numbers(folder, "a", 4000), numbers(folder, "b", 900, first=20000)]

    def text(seed=5, counts=None):
        made = Text(specs, CountingTokenizer(), 10, seed=seed)
        if counts:  # a resume: the counts alone say where it stands
            made.load_state_dict({"counts": counts, "streams": []})
        np.random.seed(len(counts or []))
        torch.manual_seed(len(counts or []))
        return made

    held = (rows_of([text(seed).held_out(3, masked=True)]) for seed in (0, 1))
    assert torch.equal(*held)  # the held-out text and its masks: not even on the seed
    whole = text()
    expected = rows_of(whole.step(12, 1, masked=True) for _ in range(4))
    assert torch.equal(expected, rows_of([text().step(4, 12, masked=True)]))
    assert not torch.equal(expected, rows_of([text(6).step(4, 12, masked=True)]))
    first = text()
    first.step(12, 1, masked=True)
    resumed = text(counts=first.counts.tolist())
    assert torch.equal(expected[12:], rows_of([resumed.step(4, 9, masked=True)]))
    ranks = [text(), text(), text()]
    steps = [rank.step(2, 2, r, 3, masked=True) for _ in range(4) for r, rank in enumerate(ranks)]
    micro_batches = [steps[3 * n + r][m] for n in range(4) for m in range(2) for r in range(3)]
    assert torch.equal(expected, rows_of([micro_batches]))
    assert all((rank.counts == whole.counts).all() for rank in ranks)


def test_prefetching_draws_ahead_and_its_state_does_not(folder):
    spec = numbers(folder, "a", 4000)
    plain, ahead = (Text([spec], CountingTokenizer(), 10) for _ in range(2))
    drawn = list(prefetch(ahead, 5, 3, 2, 1, 2, masked=True))
    for step, (batches, state) in enumerate(drawn, 1):
        expected = rows_of([plain.step(3, 2, 1, 2, masked=True)])
        assert torch.equal(expected, rows_of([batches]))
        assert state["counts"] == [12 * step]
    assert ahead.counts.tolist() == [60]  # nothing beyond the last step
    ahead._draw = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        next(prefetch(ahead, 5, 3, 2, 1, 2, masked=True))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_shares_follow_n_to_the_alpha(folder, alpha):
    """Every count is p_i * draws to within two; by chance it would be off by dozens."""
    sizes = np.array([1e9, 5e8, 3e8, 1e8, 8e7, 5e7, 2e7, 1e7, 5e6, 2e6, 1e6, 3e5, 1e5, 2e4, 4000])
    specs = [f"{numbers(folder, f'l{i}', 100)}@{size:.0f}" for i, size in enumerate(sizes)]
    text = Text(specs, CountingTokenizer(), 10, alpha=alpha)
    share = sizes**alpha / (sizes**alpha).sum()
    worst = 0.0
    for draw in range(20_000):
        text._draw()
        if draw % 97 == 0 or draw == 19_999:
            off = text.counts - share * (draw + 1)
            assert off.max() < 1
            worst = max(worst, abs(off).max())
    assert text.counts.sum() == 20_000
    assert worst < 2
    assert [row["share"] for row in text.describe()] == pytest.approx(list(share))
    assert [row["sequences_drawn"] for row in text.describe()] == text.counts.tolist()


def test_sizes_are_those_of_the_files_where_none_is_declared(folder, monkeypatch):
    specs = [numbers(folder, "a", 999), numbers(folder, "b", 99)]
    text = Text(specs, CountingTokenizer(), 10, alpha=0.5)
    assert [row["tokens"] for row in text.describe()] == [1000, 100]
    assert list(text.shares) == pytest.approx([10**0.5 / (1 + 10**0.5), 1 / (1 + 10**0.5)])
    row = {"documents": 1, "unknown_share": 0.0, "skipped": {}}
    assert text.describe()[0].items() >= row.items()
    with pytest.raises(UserError, match="names a, a are not all different"):
        Text([specs[0], specs[0]], CountingTokenizer(), 10)
    monkeypatch.setattr(corpus, "HELD_OUT", 4)
    monkeypatch.setattr(corpus, "BLOCK", 4)
    (folder / "dataset").mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / "dataset" / name).write_bytes((folder / name).read_bytes())
    stream = f"s=hub:{folder}/dataset"
    with pytest.raises(UserError, match="--data s: its size is unknown, which 2 corpora need"):
        Text([stream, specs[1]], CountingTokenizer(), 10)
    assert Text([stream], CountingTokenizer(), 10).describe()[0]["tokens"] is None
    declared = Text([stream + "@1.2e9", specs[1]], CountingTokenizer(), 10)
    assert declared.describe()[0]["tokens"] == 1_200_000_000


def test_masking_is_80_10_10_of_15_percent_and_spares_special_tokens():
    tokenizer = CountingTokenizer(50000)
    rng = np.random.default_rng(0)
    masks = kept = total = 0
    places = np.zeros(128)
    for index in range(2000):
        row = rng.integers(10, 50000, size=128)
        row[[0, 40, 80, 127]] = tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, 0
        masked, chosen = mask_tokens(row, tokenizer, [7, index])
        assert len(set(chosen)) == len(chosen) == round(0.15 * 124)
        assert (chosen == np.sort(chosen)).all()
        assert not {0, 40, 80, 127} & set(chosen)
        assert set(np.flatnonzero(masked != row)) <= set(chosen)
        masks += (masked == tokenizer.mask_id)[chosen].sum()
        kept += (masked == row)[chosen].sum()
        places[chosen] += 1
        total += len(chosen)
    for count, share in ((masks, 0.8), (total - masks - kept, 0.1), (kept, 0.1)):
        assert abs(count - share * total) < 4 * (total * share * (1 - share)) ** 0.5
    assert abs(places[places > 0] - total / 124).max() < 5 * (2000 * 0.15 * 0.85) ** 0.5
    again = mask_tokens(row, tokenizer, [7, 1999])
    assert (again[0] == masked).all()
    assert not (mask_tokens(row, tokenizer, [7, 0])[0] == masked).all()
    assert not (mask_tokens(row, tokenizer, [8, 1999])[0] == masked).all()


def test_masks_are_drawn_anew_in_every_pass(folder):
    text = Text([numbers(folder, "c", 400)], CountingTokenizer(), 10)
    masks = {}
    for _ in range(5):
        (batch,) = text.step(text.corpora[0].train_rows, 1, masked=True)
        chosen = torch.zeros(batch.ids.shape).flatten()
        chosen[batch.positions] = 1
        for ids, row in zip(batch.ids, chosen.view_as(batch.ids), strict=True):
            masks.setdefault(tuple(ids.tolist()), []).append(tuple(row.tolist()))
    assert {len(row_masks) for row_masks in masks.values()} == {5}
    assert sum(len(set(row_masks)) == 1 for row_masks in masks.values()) < 10
    assert len({row_masks[0] for row_masks in masks.values()}) > 5  # nor the same for all rows


def test_masking_of_very_little_and_of_nothing():
    masked, chosen = mask_tokens(np.array([1, 2, 2]), CountingTokenizer(), [0, 0])
    assert len(chosen) == 0
    assert masked.tolist() == [1, 2, 2]
    _, chosen = mask_tokens(np.array([1, 77, 2]), CountingTokenizer(), [0, 0])
    assert chosen.tolist() == [1]  # at least one


def test_rows_are_framed_by_the_special_tokens(folder):
    tokenizer = tiny_tokenizer()
    lines = [" ".join(WORDS[i % 12 :] + WORDS[: i % 12]) for i in range(60)]
    (folder / "w.txt").write_text("\n\n".join(lines))
    text = Text([f"w={folder}/w.txt"], tokenizer, 16)
    (batch,) = text.step(8, 1, masked=True)
    assert batch.ids.shape == batch.mask.shape == batch.masked_ids.shape == (8, 16)
    assert batch.ids.dtype == batch.masked_ids.dtype == torch.int64
    for ids in (batch.ids, batch.masked_ids):
        assert (ids[:, 0] == tokenizer.cls_id).all()
        assert (ids[:, -1] == tokenizer.sep_id).all()
    assert batch.mask.all()
    special = torch.isin(batch.ids, torch.tensor(tokenizer.special_ids)).flatten()
    assert not special[batch.positions].any()
    assert all(len(batch.sequences(row, row + 1).positions) for row in range(len(batch.ids)))


def test_masked_text_needs_a_mask_token_and_words(folder):
    spec = numbers(folder, "a", 400)
    tokenizer = CountingTokenizer()
    tokenizer.mask_id = None
    text = Text([spec], tokenizer, 10)
    assert text.held_out(8, masked=False)
    with pytest.raises(UserError, match=r"no mask token.*; choose --method mha"):
        text.held_out(8, masked=True)
