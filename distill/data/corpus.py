"""Corpora: documents as tokens on disk, cut into rows of N - 2 (batches.py adds [CLS] and [SEP]).

A document is held out if the hash of its text says so: equal documents are on one side, in every
corpus alike, so that no held-out text is trained on.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import xxhash
from filelock import FileLock
from tqdm import tqdm

from distill.data.sources import Source, documents, identity
from minitransformer.files import UserError, atomic, cache_folder, read_hashed, write_hashed
from minitransformer.tokenizer import Tokenizer, without_surrogates

HELD_OUT = 256  # rows that are evaluated on, at most
FORMAT = 6  # of a token file; to be raised whenever the same text gives other tokens
BLOCK = 4096  # rows of a hub dataset that are shuffled together
AT_ONCE = 256  # documents that are tokenised together

content_hash = xxhash.xxh3_128_hexdigest


class Corpus:
    """The rows of one source; one in `one_in` of its documents is held out.

    Each pass has another order. A hub dataset is read as far as `rows` need it, and shuffled in
    blocks, so that the order does not depend on how far it was read.
    """

    def __init__(
        self, source: Source, tokenizer: Tokenizer, length: int, seed: int, one_in: int, rows=0
    ):
        self.name, self.seed, body = source.name, seed, length - 2
        blocks = max(1, -(-rows // BLOCK))
        wanted = [blocks * BLOCK * body, HELD_OUT * body] if source.hub else [np.inf, np.inf]
        self.facts, *files = tokenise(source, tokenizer, one_in, wanted)
        self.train, self.held = (f[: len(f) // body * body].reshape(-1, body) for f in files)
        self.rows = self.block = len(self.train)  # files: read whole, shuffled whole
        self.tokens = source.tokens or sum(self.facts["tokens"])  # as declared, else as read
        self.hash = "".join(self.facts["hash"])
        if source.hub:  # the cache may hold more than this run needs; no draw depends on that
            self.rows = min(self.rows, blocks * BLOCK)
            self.block, self.held = BLOCK, self.held[:HELD_OUT]
            self.hash = content_hash(self.train[: self.rows]) + content_hash(self.held)
        self._order = None, None  # (pass, block) of the last draw, and the order of its rows

    def row(self, draw: int) -> np.ndarray:
        """Return the tokens (N - 2,) of the corpus's draw number `draw`."""
        passes, position = divmod(draw, self.rows)
        block, place = divmod(position, self.block)
        if self._order[0] != (passes, block):
            rng = np.random.default_rng([self.seed, passes, block, *self.name.encode()])
            size = min(self.block, self.rows - block * self.block)
            self._order = (passes, block), rng.permutation(size)
        return self.train[block * self.block + self._order[1][place]]

    def report(self) -> None:
        """Print what was read; refuse text of which the tokenizer knows next to nothing."""
        share, (train, held) = self.facts["unknown_share"], self.facts["tokens"]
        tokens = f"{train + held:,} tokens, {held:,} held out{listed(self.facts['counts'])}"
        print(f"corpus {self.name}: {self.facts['documents']:,} documents, {tokens}", flush=True)
        problem = f"{self.name}: {share:.1%} of the letters are unknown to the teacher's tokenizer"
        if share > 0.9:
            raise UserError(f"--data {problem}; give a teacher that knows this script")
        if share > 0.1:
            print(f"WARNING: corpus {problem}", flush=True)


def listed(counts: dict[str, int]) -> str:
    return "".join(f"; {count:,} {what}" for what, count in sorted(counts.items()))


def tokenise(
    source: Source, tokenizer: Tokenizer, one_in: int, wanted: list[float]
) -> tuple[dict, np.ndarray, np.ndarray]:
    """Return, through the cache, the facts about a source, its tokens to train on, and held-out."""
    key = f"{identity(source)} {tokenizer.hash} {one_in} {FORMAT}".encode()
    stem = cache_folder() / "tokens" / content_hash(key)
    stem.parent.mkdir(exist_ok=True)
    with FileLock(f"{stem}.lock"):
        found = open_tokens(stem)
        if not found or (not found[0]["complete"] and any(np.less(found[0]["tokens"], wanted))):
            print(f"tokenising {source.name} (once) …", flush=True)
            write_tokens(source, tokenizer, one_in, wanted, stem)
            found = open_tokens(stem)
    return found


def open_tokens(stem: Path) -> tuple[dict, np.ndarray, np.ndarray] | None:
    """Return what write_tokens wrote; None where it is missing, cut off or damaged."""
    try:
        facts = read_hashed(stem.with_suffix(".json"))  # None: a TypeError below
        paths = stem.with_suffix(".train"), stem.with_suffix(".held")
        empty = np.empty(0, facts["dtype"])  # NumPy maps no empty file
        files = [np.memmap(p, facts["dtype"], "r") if p.stat().st_size else empty for p in paths]
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return (facts, *files) if facts["hash"] == [*map(content_hash, files)] else None


def write_tokens(
    source: Source, tokenizer: Tokenizer, one_in: int, wanted: list[float], stem: Path
) -> None:
    """Write the tokens of the documents, [SEP] after each, and last a sidecar with their hash."""
    dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"  # XLM-R has 250,002 ids
    facts = {"dtype": dtype, "documents": 0, "tokens": [0, 0], "complete": True}
    counts, letters, unknown = Counter(), 0, 0
    digests = xxhash.xxh3_128(), xxhash.xxh3_128()
    for left in stem.parent.glob(f"{stem.name}.*.tmp"):  # by a process that was killed
        left.unlink()
    with (
        atomic(stem.with_suffix(".train")) as train,
        atomic(stem.with_suffix(".held")) as held,
        open(train, "wb") as train_file,
        open(held, "wb") as held_file,
    ):
        rest = iter(tqdm(documents(source, counts), source.name, unit="text", disable=None))
        while facts["complete"] and (texts := list(islice(rest, AT_ONCE))):
            for text, row in zip(texts, encode(tokenizer, texts), strict=True):
                ids, letters, unknown = row[0], letters + row[1], unknown + row[2]
                if not ids:
                    counts["without tokens skipped"] += 1
                    continue
                held_out, content = is_held_out(text, one_in), np.array(ids, dtype).tobytes()
                (held_file if held_out else train_file).write(content)
                digests[held_out].update(content)
                facts["tokens"][held_out] += len(ids)
                facts["documents"] += 1
            facts["complete"] = any(np.less(facts["tokens"], wanted))
        if not facts["documents"]:
            raise UserError(f"--data {source.name}: the text is empty{listed(counts)}")
    facts["hash"] = [digest.hexdigest() for digest in digests]
    facts |= {"unknown_share": unknown / max(1, letters), "counts": counts}
    write_hashed(stem.with_suffix(".json"), facts)


def is_held_out(text: str, one_in: int) -> bool:
    """Return whether a text is held out, as one in so many is. White space does not count."""
    words = " ".join(text.split()).encode("utf-8", "replace")
    return xxhash.xxh3_64_intdigest(words) < 2**64 // one_in


def encode(tokenizer: Tokenizer, texts: list[str]) -> Iterator[tuple[list[int], int, int]]:
    """Yield of each text its ids with [SEP] (or []), its letters (or signs), and those unknown."""
    encoded = tokenizer.pipeline.encode_batch(without_surrogates(texts), add_special_tokens=False)
    for text, encoding in zip(texts, encoded, strict=True):
        ids, unknown = encoding.ids, 0
        counted = str.isalnum if any(map(str.isalnum, text)) else lambda c: not c.isspace()
        if tokenizer.unk_id is None or tokenizer.unk_id in ids:
            known = bytearray(len(text))
            # Unknown tokens come last: the offsets of pieces like "▁" overlap the next letter.
            tokens = zip(ids, encoding.offsets, strict=True)
            for token, (start, stop) in sorted(tokens, key=lambda t: t[0] == tokenizer.unk_id):
                known[start:stop] = bytes([token != tokenizer.unk_id]) * (stop - start)
            unknown = sum(counted(c) and not k for c, k in zip(text, known, strict=True))
        yield ids and [*ids, tokenizer.sep_id], sum(map(counted, text)), unknown


def unknown_share(tokenizer: Tokenizer, texts: list[str]) -> float:
    """Return the share of letters and digits (not of tokens: one may be a sentence) unknown."""
    rows = list(encode(tokenizer, texts))
    return sum(row[2] for row in rows) / max(1, sum(row[1] for row in rows))
