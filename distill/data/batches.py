"""Data: from documents to packed batches of tokens, in an order that any number of processes can
share and resume.

    text.py     sources       ->  documents
    corpus.py   documents     ->  token files and streams, cut into rows of N - 2 tokens
    this file   rows          ->  [CLS] row [SEP]; every sequence is full, so no time goes into
                padding
                global order  ->  draw 0, 1, 2, ...; draw g says corpus and row; ranks and micro-
                              batches slice it

Nothing here owns a random state that could be lost: the order and the masks are functions of (seed,
draw). Only the buffer of a stream has a generator, which is saved with its position.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from distill.data.corpus import HELD_OUT, TokenFile, TokenStream
from distill.data.sources import Source, parse_source
from distill.method import Batch
from minitransformer.errors import UserError
from minitransformer.tokenizer import Tokenizer

# of the tokens are to be predicted: 80 % of those as [MASK], 10 % as a random token, 10 % kept
MASK_SHARE = 0.15


def parse_sources(specs: list[str]) -> list[Source]:
    """The corpora that the values of `--data` name. Cheap: it looks no further than file names."""
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

    Corpus i has the share p_i = n_i^alpha / sum_j n_j^alpha of the draws (n in tokens). No chance
    is in it: each draw goes to the corpus that is furthest behind its share, so after g draws no
    count is ever one above p_i * g.
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
        names = [source.name for source in sources]
        if length < 3:
            raise UserError(
                f"--seq-len {length} leaves no room between [CLS] and [SEP]; give at least 3"
            )
        self.tokenizer, self.length, self.seed = tokenizer, length, seed
        self.corpora = []
        for source in sources:
            kind = TokenStream if source.kind == "hub" else TokenFile
            self.corpora.append(kind(source, tokenizer, length, seed))
        sizes = [s.tokens or c.tokens for s, c in zip(sources, self.corpora, strict=True)]
        if len(sizes) > 1 and None in sizes:
            name = names[sizes.index(None)]
            raise UserError(
                f"--data {name}: its size is unknown, which {len(sizes)} corpora need; append"
                " @TOKENS, e.g. @1.2e9"
            )
        shares = np.array([1.0 if size is None else float(size) ** alpha for size in sizes])
        self.shares = shares / shares.sum()
        self.counts = np.zeros(len(sizes), dtype=np.int64)

    def step(
        self, batch_size: int, accumulate: int, rank: int = 0, world: int = 1, *, masked: bool
    ) -> list[Batch]:
        """This rank's micro-batches of the next optimizer step, which is batch_size * accumulate *
        world draws long.
        """
        batches = []
        for turn in range(accumulate * world):
            rows = [self._draw(read=turn % world == rank) for _ in range(batch_size)]
            if turn % world == rank:
                batches.append(self._batch(rows, masked))
        return batches

    def _draw(self, read: bool) -> tuple[int, np.ndarray | None]:
        index = int(self.counts.sum())
        corpus = int(np.argmax(self.shares * (index + 1) - self.counts))
        sequence = self.corpora[corpus].sequence(int(self.counts[corpus]), read)
        self.counts[corpus] += 1
        return index, sequence

    def held_out(self, batch_size: int, *, masked: bool, sequences: int = HELD_OUT) -> list[Batch]:
        """Batches of text that no run trains on, with masks that do not depend on the run's seed."""
        each = max(1, sequences // len(self.corpora))
        rows = [row for corpus in self.corpora for row in corpus.held_out(each)]
        numbered = list(enumerate(rows))
        starts = range(0, len(rows), batch_size)
        batches = [self._batch(numbered[i : i + batch_size], masked, 2**32 - 1) for i in starts]
        if masked and not any(len(batch.positions) for batch in batches):
            raise UserError(
                "the held-out text is nothing but special tokens, so there is no word to predict;"
                " does the tokenizer know its script?"
            )
        return batches

    def _batch(self, rows, masked: bool, seed: int | None = None) -> Batch:
        ids = np.empty((len(rows), self.length), dtype=np.int64)  # (B, N)
        ids[:, 0], ids[:, -1] = self.tokenizer.cls_id, self.tokenizer.sep_id
        ids[:, 1:-1] = [row for _, row in rows]
        batch = Batch(torch.from_numpy(ids), torch.ones(ids.shape, dtype=torch.bool))
        if masked:
            seed = self.seed if seed is None else seed
            drawn = [
                mask_tokens(row, self.tokenizer, [seed, index])
                for (index, _), row in zip(rows, ids, strict=True)
            ]
            batch.masked_ids = torch.from_numpy(np.stack([masked_row for masked_row, _ in drawn]))
            chosen = np.stack([chosen for _, chosen in drawn])  # (B, N) bool
            batch.positions = torch.from_numpy(np.flatnonzero(chosen))
        return batch

    def describe(self) -> list[dict]:
        """What stands in the log: name, size in tokens, hash and share of each corpus, and how many
        sequences were drawn.
        """
        rows = zip(self.corpora, self.shares, self.counts, strict=True)
        return [
            {
                "name": c.name,
                "tokens": c.tokens,
                "hash": c.hash,
                "share": float(p),
                "sequences_drawn": int(n),
            }
            for c, p, n in rows
        ]

    def state_dict(self) -> dict:
        return {
            "counts": self.counts.tolist(),
            "streams": [corpus.state_dict() for corpus in self.corpora],
        }

    def load_state_dict(self, state: dict) -> None:
        self.counts = np.array(state["counts"], dtype=np.int64)
        for corpus, stream in zip(self.corpora, state["streams"], strict=True):
            corpus.load_state_dict(stream)


class Prefetcher:
    """Draw the batches of the next step in a thread while the current step computes.

    `next()` returns this rank's micro-batches of one step; `steps` is how many steps are still to
    come, and nothing is drawn beyond them. `state` is the text's state as of the batches that
    `next()` returned last: what a checkpoint must hold, since the text itself is one step ahead.
    """

    def __init__(
        self,
        text: Text,
        batch_size: int,
        accumulate: int,
        rank: int,
        world: int,
        *,
        masked: bool,
        steps: int,
    ):
        self.text, self.masked, self.steps_left = text, masked, steps
        self.share = (batch_size, accumulate, rank, world)
        self.state = text.state_dict()
        self._thread = ThreadPoolExecutor(1)
        self._drawn = None  # the first step is drawn by the first next()

    def next(self) -> list[Batch]:
        """Return this rank's micro-batches of the next step; errors of the thread are raised here."""
        drawn = self._drawn or self._thread.submit(self._draw)
        batches, self.state = drawn.result()
        self.steps_left -= 1
        self._drawn = self._thread.submit(self._draw) if self.steps_left > 0 else None
        return batches

    def _draw(self) -> tuple[list[Batch], dict]:
        batches = self.text.step(*self.share, masked=self.masked)
        return batches, self.text.state_dict()


def mask_tokens(
    row: np.ndarray, tokenizer: Tokenizer, seed: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Dynamic masking 80/10/10 of one sequence (N,); the draw depends on `seed` = [run's seed,
    draw] alone.

    Returns (masked ids (N,), chosen (N,) bool). round(0.15 * n) of the n tokens that are not
    special are chosen, at least one.
    """
    rng = np.random.default_rng(seed)
    candidates = np.flatnonzero(~np.isin(row, tokenizer.special_ids))
    chosen = np.zeros(len(row), dtype=bool)
    masked = row.copy()
    if len(candidates):
        picked = rng.permutation(candidates)[: max(1, round(MASK_SHARE * len(candidates)))]
        chosen[picked] = True
        fate = rng.random(len(picked))
        masked[picked[fate < 0.8]] = tokenizer.mask_id
        replaced = picked[(fate >= 0.8) & (fate < 0.9)]
        masked[replaced] = rng.integers(tokenizer.vocab_size, size=len(replaced))
    return masked, chosen
