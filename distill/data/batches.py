"""Batches: sequences from several corpora, in an order that processes can share and resume.

    sources.py   what --data names  ->  documents
    corpus.py    documents          ->  tokens on disk, cut into rows of N - 2
    this file    rows               ->  [CLS] row [SEP], each full: no time goes into padding

Draw g and its masks are functions of (seed, g) alone, so there is no state to save or to lose.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from distill.data.corpus import HELD_OUT, Corpus
from distill.data.sources import Source, look_up, parse_sources
from distill.method import Batch
from minitransformer.files import UserError
from minitransformer.tokenizer import Tokenizer

MASK_SHARE = 0.15  # of the tokens are to be predicted
CYCLE = 2**16  # draws after which their order among the corpora repeats


class Text:
    """The corpora of a run as one endless sequence of draws.

    Corpus i gets the share p_i = n_i^alpha / sum_j n_j^alpha of the draws (n in tokens). The run
    takes `sequences` of them; a hub dataset is read as far as that needs.
    """

    def __init__(
        self, specs: list[str], tokenizer: Tokenizer, length: int, *, alpha=0.3, seed=0, sequences=0
    ):
        self.tokenizer, self.length, self.seed = tokenizer, length, seed
        sources = [look_up(source) if source.hub else source for source in parse_sources(specs)]
        # Hold out one document in fifty of every corpus; more if these fill no whole sequence.
        for one_in in (50, 10, 3):
            self._open(sources, alpha, sequences, one_in)
            if held := any(len(corpus.held) for corpus in self.corpora):
                break
        for corpus in self.corpora:
            corpus.report()
            if corpus.rows == 0 or not held:
                few = f"{corpus.facts['documents']:,} documents are too few to train on sequences"
                says = f"{few} of {length} and hold one out; give more, different texts"
                raise UserError(f"--data {corpus.name}: {says}")

    def _open(self, sources: list[Source], alpha: float, sequences: int, one_in: int) -> None:
        """Open the corpora; share the draws out among them."""
        settings = self.tokenizer, self.length, self.seed, one_in
        files = {s.name: Corpus(s, *settings) for s in sources if not s.hub}
        sizes = [s.tokens or (None if s.hub else files[s.name].tokens) for s in sources]
        if None in sizes and len(sizes) > 1:  # a hub dataset without @TOKENS
            name = sources[sizes.index(None)].name
            raise UserError(f"--data {name}: of several corpora, each needs a size; append @TOKENS")
        weights = np.array([float(size or 1) ** alpha for size in sizes])
        self.shares = weights / weights.sum()
        self.corpus_of_draw, self.places, self.counts = share_out(self.shares)
        if not self.counts.all():
            raise UserError(f"--alpha {alpha}: a corpus gets none of {CYCLE:,} sequences; lower it")
        cycles, rest = divmod(sequences, CYCLE)
        rows = cycles * self.counts + np.bincount(self.corpus_of_draw[:rest], minlength=len(sizes))
        self.corpora = [
            files.get(source.name) or Corpus(source, *settings, int(rows[i]))
            for i, source in enumerate(sources)
        ]

    def step(
        self, first_draw: int, batch_size: int, accumulate: int, rank=0, world=1, *, masked: bool
    ) -> list[Batch]:
        """Return this rank's micro-batches of the step whose first draw is number `first_draw`.

        The step takes batch_size * accumulate * world draws, the same ones however it is split.
        """
        batches = []
        for turn in range(rank, accumulate * world, world):
            start = first_draw + turn * batch_size
            rows = []
            for draw in range(start, start + batch_size):
                cycles, place = divmod(draw, CYCLE)
                corpus = self.corpus_of_draw[place]
                number = int(cycles * self.counts[corpus] + self.places[place])
                rows.append((draw, self.corpora[corpus].row(number)))
            batches.append(self._batch(rows, masked, self.seed))
        return batches

    def held_out(self, batch_size: int, *, masked: bool) -> list[Batch]:
        """Return batches of text that no run trains on; their masks do not depend on the seed."""
        count = max(1, HELD_OUT // len(self.corpora))
        rows = []
        for corpus in self.corpora:  # spread over its held-out text
            places = np.linspace(0, len(corpus.held), min(count, len(corpus.held)), endpoint=False)
            rows += list(corpus.held[places.astype(int)])
        starts = range(0, len(rows), batch_size)
        parts = [list(enumerate(rows))[start : start + batch_size] for start in starts]
        return [self._batch(part, masked, seed=2**32 - 1) for part in parts]

    def _batch(self, rows: list[tuple[int, np.ndarray]], masked: bool, seed: int) -> Batch:
        """Return the batch of (draw, row) pairs; the masks depend on the seed."""
        ids = np.empty((len(rows), self.length), dtype=np.int64)  # (B, N)
        ids[:, 0], ids[:, -1] = self.tokenizer.cls_id, self.tokenizer.sep_id
        ids[:, 1:-1] = [row for _, row in rows]
        batch = Batch(torch.from_numpy(ids), torch.ones(ids.shape, dtype=torch.bool), full=True)
        if masked:
            masked_ids, positions = ids.copy(), []
            for b, (draw, _) in enumerate(rows):
                masked_ids[b], chosen = mask_tokens(ids[b], self.tokenizer, [seed, draw])
                positions.append(chosen + b * self.length)
            batch.masked_ids = torch.from_numpy(masked_ids)
            batch.positions = torch.from_numpy(np.concatenate(positions))
        return batch

    def describe(self) -> list[dict]:
        """Return what the log says of each corpus; of a hub dataset, of what was read of it."""
        described = []
        for corpus, share in zip(self.corpora, self.shares, strict=True):
            row = {name: corpus.facts[name] for name in ("documents", "unknown_share", "counts")}
            row |= {"name": corpus.name, "tokens": corpus.tokens, "hash": corpus.hash}
            described.append(row | {"share": float(share)})
        return described


def share_out(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the corpus of each draw of a cycle, its number there, and the draws of each corpus."""
    counts = np.zeros(len(shares), np.int64)
    corpora, places = np.zeros((2, CYCLE), np.int64)
    if len(shares) == 1:
        return corpora, np.arange(CYCLE), counts + CYCLE
    for draw in range(CYCLE):
        # the corpus furthest behind: no count is ever 1 above its share
        corpora[draw] = corpus = np.argmax(shares * (draw + 1) - counts)
        places[draw] = counts[corpus]
        counts[corpus] += 1
    return corpora, places, counts


def prefetch(
    text: Text, first_draw: int, steps: int, batch_size, accumulate, rank=0, world=1, *, masked
) -> Iterator[list[Batch]]:
    """Yield this rank's micro-batches of each step; a thread makes those of the next meanwhile."""
    split = batch_size, accumulate, rank, world
    draws = (first_draw + step * batch_size * accumulate * world for step in range(steps))
    with ThreadPoolExecutor(1) as thread:
        begun = (thread.submit(text.step, draw, *split, masked=masked) for draw in draws)
        ahead = next(begun, None)
        while ahead:
            made, ahead = ahead, next(begun, None)
            yield made.result()


def mask_tokens(
    row: np.ndarray, tokenizer: Tokenizer, seed: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Mask one sequence (N,) as BERT does; the draw depends on `seed` = [run's seed, draw] alone.

    round(0.15 * n) of the n tokens that are not special are chosen, at least one: 80 % of them
    become [MASK], 10 % a random token, 10 % stay. Returns (masked ids (N,), chosen places (M,)).
    """
    if tokenizer.mask_id is None:
        raise UserError("the tokenizer has no mask token; choose --method mha, hs or direct-minilm")
    rng = np.random.default_rng(seed)
    candidates = np.flatnonzero(~np.isin(row, tokenizer.special_ids))
    masked = row.copy()
    chosen = rng.permutation(candidates)[: max(1, round(MASK_SHARE * len(candidates)))]
    fate = rng.random(len(chosen))
    masked[chosen[fate < 0.8]] = tokenizer.mask_id
    replaced = chosen[(fate >= 0.8) & (fate < 0.9)]
    masked[replaced] = rng.integers(tokenizer.vocab_size, size=len(replaced))
    return masked, np.sort(chosen)
