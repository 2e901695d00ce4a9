"""Corpora: documents as tokens on disk, cut into rows of N - 2 (batches.py adds [CLS] and [SEP]).

A corpus is tokenised once, into a memory-mapped file of training text, another of held-out text,
and a sidecar that says what is in them. A hub dataset is read only as far as the run needs it.

A document is held out if the hash of its text says so: equal documents are on one side, in every
corpus alike, so that no held-out text is trained on.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from tqdm import tqdm

from distill.data.sources import LONGEST_DOCUMENT, Source, documents, identity
from minitransformer.files import UserError, atomic, cache_folder, locked
from minitransformer.tokenizer import Tokenizer, without_surrogates

HELD_OUT = 256  # rows that are evaluated on, at most
BLOCK = 4096  # rows of a hub dataset that are shuffled together
CHUNK = 1_000_000  # characters tokenised at a time
WARN_UNKNOWN, REFUSE_UNKNOWN = 0.1, 0.9  # shares of unknown letters


class Corpus:
    """The rows of one source; a share of 1 / `one_in` of its documents is held out.

    Training rows come in a new shuffled order with each pass. Those of a hub dataset are shuffled
    in blocks, so that their order does not depend on how far it was read; the run needs `rows`.
    """

    def __init__(
        self, source: Source, tokenizer: Tokenizer, length: int, seed: int, one_in: int, rows=0
    ):
        self.name, self.seed, self.body = source.name, seed, length - 2
        is_hub = source.kind == "hub"
        blocks = max(1, -(-rows // BLOCK))
        wanted = [blocks * BLOCK * self.body, HELD_OUT * self.body] if is_hub else None
        self.facts, train, held = tokenise(source, tokenizer, one_in, wanted)
        self.train, self.held = (
            tokens[: len(tokens) // self.body * self.body].reshape(-1, self.body)
            for tokens in (train, held)
        )
        self.rows = self.block = len(self.train)
        self.hash, self.tokens = self.facts["hash"], source.tokens
        if is_hub:  # more of it may be read later: what is drawn before stays as it is
            self.rows -= 0 if self.facts["complete"] else self.rows % BLOCK
            self.block, self.held = BLOCK, self.held[:HELD_OUT]
            self.hash = content_hash(self.train[:BLOCK]) + content_hash(self.held)
        elif not self.tokens:
            self.tokens = sum(self.facts["tokens"])
        self._order = None, np.empty(0)  # (pass, block) and their order, of the last draw

    def row(self, draw: int) -> np.ndarray:
        """Return the tokens (N - 2,) of the corpus's draw number `draw`."""
        passes, position = divmod(draw, self.rows)
        block, place = divmod(position, self.block)
        if self._order[0] != (passes, block):
            rng = np.random.default_rng([self.seed, passes, block, *self.name.encode()])
            size = min(self.block, self.rows - block * self.block)
            self._order = (passes, block), rng.permutation(size)
        return self.train[block * self.block + self._order[1][place]]

    def held_out(self, count: int) -> np.ndarray:
        """Return at most `count` rows (rows, N - 2), spread over those that are held out."""
        spread = np.linspace(0, len(self.held), min(count, len(self.held)), endpoint=False)
        return self.held[spread.astype(int)]

    def report(self, tokenizer: Tokenizer) -> None:
        """Print what was read; warn or refuse where much of it is unknown to the tokenizer."""
        share, (train, held) = self.facts["unknown_share"], self.facts["tokens"]
        print(
            f"corpus {self.name}: {self.facts['documents']:,} documents, {train + held:,} tokens,"
            f" {held:,} of them held out, {share:.1%} of the letters unknown to the tokenizer"
            f"{reasons(self.facts['skipped'])}",
            flush=True,
        )
        problem = (
            f"{share:.1%} of the letters are unknown to the teacher's tokenizer (a vocabulary of"
            f" {tokenizer.vocab_size:,}); give a teacher whose tokenizer knows this script, or"
            " other text"
        )
        if share > REFUSE_UNKNOWN:
            raise UserError(f"--data {self.name}: {problem}")
        if share > WARN_UNKNOWN:
            print(f"warning: corpus {self.name}: {problem}", flush=True)


def reasons(skipped: dict[str, int]) -> str:
    parts = [f"{count:,} {reason}" for reason, count in sorted(skipped.items())]
    return "; skipped: " + ", ".join(parts) if parts else ""


# --------------------------------------------------------------------------------------------------
# Token files
# --------------------------------------------------------------------------------------------------


def tokenise(
    source: Source, tokenizer: Tokenizer, one_in: int, wanted: list[int] | None
) -> tuple[dict, np.ndarray, np.ndarray]:
    """Return the facts about a source, its tokens to train on, and those that are held out.

    wanted   how many of both are needed; None: all

    They are made on the first call. Later ones take them from the cache if it holds enough of them
    and its content is what was written. One process makes them, others wait for it.
    """
    key = f"{identity(source)} {tokenizer.hash} {one_in} {LONGEST_DOCUMENT} 4"
    stem = cache_folder() / "tokens" / content_hash(key.encode())
    stem.parent.mkdir(exist_ok=True)
    with locked(stem.with_suffix(".lock"), f"tokenises {source.name}"):
        found = open_tokens(stem)
        enough = found and (
            found[0]["complete"] or all(np.greater_equal(found[0]["tokens"], wanted))
        )
        if not enough:
            print(f"tokenising {source.name} (once) …", flush=True)
            write_tokens(source, tokenizer, one_in, wanted, stem)
            found = open_tokens(stem)
    return found


def open_tokens(stem: Path) -> tuple[dict, np.ndarray, np.ndarray] | None:
    """Return what write_tokens wrote; None where it is missing, cut off or damaged."""
    try:
        hashed, facts = json.loads(stem.with_suffix(".json").read_bytes())
        if hashed != content_hash(json.dumps(facts).encode()):
            return None
        tokens = [
            np.memmap(file, facts["dtype"], "r") if file.stat().st_size else np.empty(0, np.uint16)
            for file in (stem.with_suffix(".train"), stem.with_suffix(".held"))
        ]
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    return (facts, *tokens) if facts["hash"] == "".join(map(content_hash, tokens)) else None


def content_hash(content) -> str:
    return xxhash.xxh3_128_hexdigest(content)


def write_tokens(
    source: Source, tokenizer: Tokenizer, one_in: int, wanted: list[int] | None, stem: Path
) -> None:
    """Write the tokens of all documents, [SEP] behind each, and beside them what they are.

    The dtype follows the vocabulary (XLM-R has 250,002 ids).
    """
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    facts = {"dtype": dtype.name, "documents": 0, "tokens": [0, 0], "complete": True}
    skipped, letters, unknown = Counter(), 0, 0
    digests = [xxhash.xxh3_128(), xxhash.xxh3_128()]
    with (
        atomic(stem.with_suffix(".train")) as train,
        atomic(stem.with_suffix(".held")) as held,
        open(train, "wb") as train_file,
        open(held, "wb") as held_file,
        tqdm(desc=source.name, unit="token", unit_scale=True, disable=None, mininterval=1) as bar,
    ):
        for texts in chunks(documents(source, skipped)):
            for text, row in zip(texts, encode(tokenizer, texts), strict=True):
                letters, unknown = letters + row.letters, unknown + row.unknown
                if not row.ids:
                    skipped["without tokens"] += 1
                    continue
                side = int(is_held_out(text, one_in))
                tokens = np.array([*row.ids, tokenizer.sep_id], dtype)
                (train_file, held_file)[side].write(tokens)
                digests[side].update(tokens)
                facts["tokens"][side] += len(tokens)
                facts["documents"] += 1
                bar.update(len(tokens))
            if wanted and all(np.greater_equal(facts["tokens"], wanted)):
                facts["complete"] = False
                break
        if not facts["documents"]:
            raise UserError(
                f"--data {source.name}: the text is empty{reasons(skipped)}; give other text, or"
                f" the column that holds it as {source.name}=PATH:COLUMN"
            )
    facts["unknown_share"] = unknown / max(1, letters)
    facts["skipped"] = dict(skipped)
    facts["hash"] = "".join(digest.hexdigest() for digest in digests)
    with atomic(stem.with_suffix(".json")) as unfinished:  # last: it vouches for the other two
        unfinished.write_text(json.dumps([content_hash(json.dumps(facts).encode()), facts]))


def is_held_out(text: str, one_in: int) -> bool:
    """Return whether a text is held out, of which one in so many is; white space does not count."""
    words = " ".join(text.split()).encode("utf-8", "replace")
    return xxhash.xxh3_64_intdigest(words) < 2**64 // one_in


def chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield the texts in lists of about CHUNK characters: what is tokenised at a time."""
    chunk, size = [], 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


class Row(NamedTuple):
    """A text's ids, its letters and digits, and how many of these no known token stands for."""

    ids: list[int]
    letters: int
    unknown: int


def encode(tokenizer: Tokenizer, texts: list[str]) -> Iterator[Row]:
    """Yield the tokens of each text: no special tokens, nothing cut, nothing padded."""
    encoded = tokenizer.pipeline.encode_batch(without_surrogates(texts), add_special_tokens=False)
    for text, encoding in zip(texts, encoded, strict=True):
        ids, unknown = encoding.ids, 0
        if tokenizer.unk_id is None or tokenizer.unk_id in ids:
            known = bytearray(len(text))
            for token, (start, stop) in zip(ids, encoding.offsets, strict=True):
                if token != tokenizer.unk_id:
                    known[start:stop] = b"\1" * (stop - start)
            unknown = sum(c.isalnum() and not k for c, k in zip(text, known, strict=True))
        yield Row(ids, sum(map(str.isalnum, text)), unknown)


def unknown_share(tokenizer: Tokenizer, texts: list[str]) -> float:
    """Return the share of all letters and digits that are unknown to the tokenizer.

    Not of the tokens: in a script that the vocabulary lacks, a whole word or sentence becomes one.
    """
    rows = list(encode(tokenizer, texts))
    return sum(row.unknown for row in rows) / max(1, sum(row.letters for row in rows))
