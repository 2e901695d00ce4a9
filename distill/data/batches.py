"""Batches: sequences from several corpora, in an order that processes can share and resume.

    sources.py   what --data names  ->  documents
    corpus.py    documents          ->  token files and streams, cut into rows of N - 2 tokens
    this file    rows               ->  [CLS] row [SEP]; every sequence is full, so no time goes
                                        into padding
                 order              ->  draw 0, 1, 2, ...; draw g says corpus and row; ranks and
                                        micro-batches slice it

Nothing here owns a random state that could be lost: order and masks are functions of (seed, draw).
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from distill.data.corpus import HELD_OUT, TokenFile, TokenStream
from distill.data.sources import Source, parse_source
from distill.method import Batch
from minitransformer.files import UserError
from minitransformer.tokenizer import Tokenizer

MASK_SHARE = 0.15  # of the tokens are to be predicted


def parse_sources(specs: list[str]) -> list[Source]:
    """Return what the values of `--data` name. Cheap: it looks no further than file names."""
    sources = [parse_source(spec) for spec in specs]
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise UserError(
            f"--data: the names {', '.join(names)} are not all different; give each corpus its own"
            " NAME="
        )
    return sources


class Text:
    """The corpora of a run as one endless sequence of draws.

    Corpus i gets the share p_i = n_i^alpha / sum_j n_j^alpha of the draws (n in tokens). Chance has
    no part in it: each draw goes to the corpus that is furthest behind its share, so after g draws
    every count is below p_i * g + 1.
    """

    def __init__(
        self,
        specs: list[str],
        tokenizer: Tokenizer,
        length: int,
        *,
        alpha: float = 0.3,
        seed: int = 0,
    ):
        sources = parse_sources(specs)
        self.tokenizer, self.length, self.seed = tokenizer, length, seed
        self.corpora, weights = [], []
        for source in sources:
            kind = TokenStream if source.kind == "hub" else TokenFile
            corpus = kind(source, tokenizer, length, seed)
            size = source.tokens or corpus.tokens
            if size is None and len(sources) > 1:
                raise UserError(
                    f"--data {source.name}: its size is unknown, which {len(sources)} corpora need;"
                    " append @TOKENS, e.g. @1.2e9"
                )
            self.corpora.append(corpus)
            weights.append(float(size or 1) ** alpha)
        self.streams = [corpus for corpus in self.corpora if isinstance(corpus, TokenStream)]
        self.shares = np.array(weights) / sum(weights)
        self.counts = np.zeros(len(weights), dtype=np.int64)  # draws from each corpus

    def step(
        self, batch_size: int, accumulate: int, rank: int = 0, world: int = 1, *, masked: bool
    ) -> list[Batch]:
        """Return this rank's micro-batches of the next optimizer step.

        The step takes batch_size * accumulate * world draws, the same ones however it is split.
        """
        batches = []
        for turn in range(accumulate * world):
            draws = [self._draw() for _ in range(batch_size)]
            if turn % world == rank:
                rows = [(draw, self.corpora[i].sequence(place)) for draw, i, place in draws]
                batches.append(self._batch(rows, masked, self.seed))
        return batches

    def _draw(self) -> tuple[int, int, int]:
        """Return the number of the next draw, which corpus it goes to, and its number there."""
        draw = int(self.counts.sum())
        corpus = int(np.argmax(self.shares * (draw + 1) - self.counts))
        self.counts[corpus] += 1
        return draw, corpus, int(self.counts[corpus]) - 1

    def held_out(self, batch_size: int, *, masked: bool) -> list[Batch]:
        """Return batches of text that no run trains on; their masks do not depend on the seed."""
        rows = []
        for corpus in self.corpora:
            rows += corpus.held_out(max(1, HELD_OUT // len(self.corpora)))
        numbered = list(enumerate(rows))
        starts = range(0, len(rows), batch_size)
        parts = [numbered[start : start + batch_size] for start in starts]
        return [self._batch(part, masked, seed=2**32 - 1) for part in parts]

    def _batch(self, rows: list[tuple[int, np.ndarray]], masked: bool, seed: int) -> Batch:
        """Return the batch of (draw, row) pairs; the masks depend on the seed."""
        ids = np.empty((len(rows), self.length), dtype=np.int64)  # (B, N)
        ids[:, 0], ids[:, -1] = self.tokenizer.cls_id, self.tokenizer.sep_id
        ids[:, 1:-1] = [row for _, row in rows]
        batch = Batch(torch.from_numpy(ids), torch.ones(ids.shape, dtype=torch.bool))
        if masked:
            masked_ids, positions = ids.copy(), []
            for b, (draw, _) in enumerate(rows):
                masked_ids[b], chosen = mask_tokens(ids[b], self.tokenizer, [seed, draw])
                positions.append(chosen + b * self.length)
            batch.masked_ids = torch.from_numpy(masked_ids)
            batch.positions = torch.from_numpy(np.concatenate(positions))
        return batch

    def describe(self) -> list[dict]:
        """Return what the log says of each corpus; `tokens` is None where the size is unknown.

        For streams, `documents`, `unknown_share` and `skipped` count what was read so far.
        """
        return [
            {
                "name": corpus.name,
                "tokens": corpus.tokens,
                "hash": corpus.hash,
                "documents": corpus.statistics.documents,
                "unknown_share": corpus.statistics.unknown_share,
                "skipped": dict(corpus.statistics.skipped),
                "share": float(share),
                "sequences_drawn": int(drawn),
            }
            for corpus, share, drawn in zip(self.corpora, self.shares, self.counts, strict=True)
        ]

    def state_dict(self) -> dict:
        streams = [stream.state_dict() for stream in self.streams]
        return {"counts": self.counts.tolist(), "streams": streams}

    def load_state_dict(self, state: dict) -> None:
        self.counts = np.array(state["counts"], dtype=np.int64)
        for stream, saved in zip(self.streams, state["streams"], strict=True):
            stream.load_state_dict(saved)


def prefetch(
    text: Text, steps: int, *share: int, masked: bool
) -> Iterator[tuple[list[Batch], dict]]:
    """Yield this rank's micro-batches of each step, and the text's state behind that step.

    share   what Text.step takes: batch_size, accumulate, rank, world

    A thread draws the next step while the current one computes, so the text itself is ahead of the
    state, which is what a checkpoint must hold. Nothing is drawn beyond `steps`.
    """

    def draw() -> tuple[list[Batch], dict]:
        batches = text.step(*share, masked=masked)
        return batches, text.state_dict()

    with ThreadPoolExecutor(1) as thread:
        drawn = thread.submit(draw)
        for step in range(1, steps + 1):
            result = drawn.result()
            if step < steps:
                drawn = thread.submit(draw)
            yield result


def mask_tokens(
    row: np.ndarray, tokenizer: Tokenizer, seed: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Mask one sequence (N,) as BERT does; the draw depends on `seed` = [run's seed, draw] alone.

    round(0.15 * n) of the n tokens that are not special are chosen, at least one: 80 % of them
    become [MASK], 10 % a random token, 10 % stay. Returns (masked ids (N,), chosen places (M,)).
    """
    if tokenizer.mask_id is None:
        raise UserError(
            "the teacher's tokenizer has no mask token, which this method's masked text needs;"
            " choose --method mha, hs or direct-minilm, or a teacher with a mask token"
        )
    rng = np.random.default_rng(seed)
    candidates = np.flatnonzero(~np.isin(row, tokenizer.special_ids))
    masked = row.copy()
    chosen = rng.permutation(candidates)[: max(1, round(MASK_SHARE * len(candidates)))]
    fate = rng.random(len(chosen))
    masked[chosen[fate < 0.8]] = tokenizer.mask_id
    replaced = chosen[(fate >= 0.8) & (fate < 0.9)]
    masked[replaced] = rng.integers(tokenizer.vocab_size, size=len(replaced))
    return masked, np.sort(chosen)
