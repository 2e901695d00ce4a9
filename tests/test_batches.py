"""The order of the text, its shares, its masks: functions of (seed, draw) and of nothing else."""

import numpy as np
import pytest
import torch
from conftest import WORDS, CountingTokenizer, numbers, tiny_tokenizer

from distill.data.batches import CYCLE, Text, mask_tokens, prefetch, share_out
from minitransformer.files import UserError


def rows_of(steps):
    return torch.cat([torch.stack((b.ids, b.masked_ids), 1) for step in steps for b in step])


def test_the_order_depends_on_the_seed_and_on_nothing_else(folder):
    """Not on earlier draws, global generators, ranks or micro-batches."""
    specs = [numbers(folder, "a", 4000), numbers(folder, "b", 900, first=20000)]
    text = Text(specs, CountingTokenizer(), 10, seed=5)
    other = Text(specs, CountingTokenizer(), 10, seed=6)
    held = (rows_of([made.held_out(3, masked=True)]) for made in (text, other))
    assert torch.equal(*held)  # the held-out text and its masks: not even on the seed
    expected = rows_of(text.step(12 * step, 12, 1, masked=True) for step in range(4))
    assert not torch.equal(expected, rows_of([other.step(0, 4, 12, masked=True)]))
    np.random.seed(1)
    torch.manual_seed(1)
    again = Text(specs, CountingTokenizer(), 10, seed=5)
    assert torch.equal(expected[12:], rows_of([again.step(12, 4, 9, masked=True)]))
    assert torch.equal(expected, rows_of([again.step(0, 4, 12, masked=True)]))
    ranks = [[text.step(12 * n, 2, 2, rank, 3, masked=True) for rank in range(3)] for n in range(4)]
    micro_batches = [ranks[n][rank][m] for n in range(4) for m in range(2) for rank in range(3)]
    assert torch.equal(expected, rows_of([micro_batches]))


def test_prefetching_draws_one_step_ahead_and_nothing_beyond_the_last(folder):
    text = Text([numbers(folder, "a", 4000)], CountingTokenizer(), 10)
    expected = [rows_of([text.step(7 + 12 * n, 3, 2, 1, 2, masked=True)]) for n in range(5)]
    begun, whole = [], text.step
    text.step = lambda *args, **settings: begun.append(args[0]) or whole(*args, **settings)
    steps = prefetch(text, 7, 5, 3, 2, 1, 2, masked=True)
    for step, batches in enumerate(steps, 1):
        assert torch.equal(expected[step - 1], rows_of([batches]))
        assert begun[:step] == [7 + 12 * n for n in range(step)]
    assert len(begun) == 5


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_shares_follow_n_to_the_alpha(folder, alpha):
    """Every count is p_i * draws to within two; by chance it would be off by dozens."""
    sizes = np.array([1e9, 5e8, 3e8, 1e8, 8e7, 5e7, 2e7, 1e7, 5e6, 2e6, 1e6, 3e5, 1e5, 2e4, 4000])
    share = sizes**alpha / (sizes**alpha).sum()
    corpora, places, counts = share_out(share)
    drawn = np.cumsum(corpora[:, None] == np.arange(15), axis=0)  # (CYCLE, corpora)
    off = drawn - share * np.arange(1, CYCLE + 1)[:, None]
    assert off.max() < 1
    assert abs(off).max() < 2
    assert (drawn[-1] == counts).all()
    assert (places == drawn[np.arange(CYCLE), corpora] - 1).all()
    spec = numbers(folder, "l0", 9000)
    specs = [f"{spec.replace('l0=', f'l{i}=')}@{size:.0f}" for i, size in enumerate(sizes)]
    if alpha == 1:  # 4,000 of 2e9 tokens
        with pytest.raises(
            UserError, match=r"--alpha 1\.0: a corpus gets none of 65,536 sequences"
        ):
            Text(specs, CountingTokenizer(), 10, alpha=alpha)
        return
    text = Text(specs, CountingTokenizer(), 10, alpha=alpha)
    assert [row["share"] for row in text.describe()] == pytest.approx(list(share))
    first, second = (text.step(start, 50, 1, masked=False)[0].ids for start in (0, CYCLE))
    assert not torch.equal(first, second)  # the next cycle reads on


def test_sizes_are_those_of_the_files_where_none_is_declared(folder):
    specs = [numbers(folder, "a", 8999), numbers(folder, "b", 899, first=10_000)]
    text = Text(specs, CountingTokenizer(), 10, alpha=0.5)
    sizes = np.array([row["tokens"] for row in text.describe()])
    assert sizes.tolist() == [8999 + 450, 899 + 45]  # with [SEP] behind each document
    assert list(text.shares) == pytest.approx(list(sizes**0.5 / (sizes**0.5).sum()))
    (folder / "dataset").mkdir()
    (folder / "a.txt").rename(folder / "dataset" / "a.txt")
    with pytest.raises(UserError, match="--data s: of several corpora, each needs a size; append"):
        Text([f"s=hub:{folder}/dataset", specs[1]], CountingTokenizer(), 10)
    declared = Text([f"s=hub:{folder}/dataset@1.2e9", specs[1]], CountingTokenizer(), 10)
    assert declared.describe()[0]["tokens"] == 1_200_000_000


def test_masking_is_80_10_10_of_15_percent_and_spares_special_tokens():
    tokenizer = CountingTokenizer(50000)
    rng = np.random.default_rng(0)
    masks = kept = total = 0
    for index in range(2000):
        row = rng.integers(10, 50000, size=128)
        row[[0, 40, 80, 127]] = tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, 0
        masked, chosen = mask_tokens(row, tokenizer, [7, index])
        assert len(set(chosen)) == len(chosen) == round(0.15 * 124)
        assert not {0, 40, 80, 127} & set(chosen)
        assert set(np.flatnonzero(masked != row)) <= set(chosen)
        masks += (masked == tokenizer.mask_id)[chosen].sum()
        kept += (masked == row)[chosen].sum()
        total += len(chosen)
    for count, share in ((masks, 0.8), (total - masks - kept, 0.1), (kept, 0.1)):
        assert abs(count - share * total) < 4 * (total * share * (1 - share)) ** 0.5
    assert not (mask_tokens(row, tokenizer, [7, 0])[0] == masked).all()
    assert not (mask_tokens(row, tokenizer, [8, 1999])[0] == masked).all()


def test_rows_are_framed_by_the_special_tokens(folder):
    tokenizer = tiny_tokenizer()
    lines = [" ".join(WORDS[i % 12 :] + WORDS[: i % 12]) for i in range(200)]
    (folder / "w.txt").write_text("\n\n".join(lines))
    text = Text([f"w={folder}/w.txt"], tokenizer, 16)
    (batch,) = text.step(0, 8, 1, masked=True)
    for ids in (batch.ids, batch.masked_ids):
        assert ids[:, 0].eq(tokenizer.cls_id).all()
        assert ids[:, -1].eq(tokenizer.sep_id).all()
    assert batch.full
    assert batch.mask.all()


def test_masked_text_needs_a_mask_token_and_words(folder):
    tokenizer = CountingTokenizer()
    tokenizer.mask_id = None
    text = Text([numbers(folder, "a", 4000)], tokenizer, 10)
    assert text.held_out(8, masked=False)
    with pytest.raises(UserError, match=r"no mask token.*; choose --method mha"):
        text.held_out(8, masked=True)
