"""Corpora: documents as tokens on disk, cut into rows of N - 2 (batches.py adds [CLS] and [SEP]).

A corpus is tokenised once, into a memory-mapped file of training text, another of held-out text,
and a sidecar that says what is in them. A hub dataset is read only as far as the run needs it.

A document is held out if the hash of its text says so: equal documents are on one side, in every
corpus alike, so that no held-out text is trained on.
"""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import xxhash
from filelock import AcquireReturnProxy, FileLock, Timeout
from tqdm import tqdm

from distill.data.sources import Source, documents, identity
from minitransformer.files import UserError, atomic, cache_folder
from minitransformer.tokenizer import Tokenizer, without_surrogates

HELD_OUT = 256  # rows that are evaluated on, at most
BLOCK = 4096  # rows of a hub dataset that are shuffled together
AT_ONCE = 256  # documents that are tokenised together
WAIT = 3  # seconds for another process, before it is said


class Corpus:
    """The rows of one source; a share of 1 / `one_in` of its documents is held out.

    Training rows come in a new shuffled order with each pass. Those of a hub dataset are shuffled
    in blocks, so that their order does not depend on how far it was read; the run needs `rows`.
    """

    def __init__(
        self, source: Source, tokenizer: Tokenizer, length: int, seed: int, one_in: int, rows=0
    ):
        self.name, self.seed, body = source.name, seed, length - 2
        blocks = max(1, -(-rows // BLOCK))
        wanted = [blocks * BLOCK * body, HELD_OUT * body] if source.hub else [np.inf, np.inf]
        self.facts, *files = tokenise(source, tokenizer, one_in, wanted)
        self.train, self.held = (f[: len(f) // body * body].reshape(-1, body) for f in files)
        self.rows = self.block = len(self.train)
        self.hash, self.tokens = self.facts["hash"], source.tokens
        if source.hub:  # the cache may hold more than this run needs; no draw depends on that
            self.rows = min(self.rows, blocks * BLOCK)
            self.block, self.held = BLOCK, self.held[:HELD_OUT]
            self.hash = content_hash(self.train[:BLOCK]) + content_hash(self.held)
        elif not self.tokens:
            self.tokens = sum(self.facts["tokens"])
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

    def held_out(self, count: int) -> np.ndarray:
        """Return at most `count` rows (rows, N - 2), spread over those that are held out."""
        spread = np.linspace(0, len(self.held), min(count, len(self.held)), endpoint=False)
        return self.held[spread.astype(int)]

    def describe(self) -> dict:
        """Return what the log says; of a hub dataset it counts what was read."""
        logged = {name: self.facts[name] for name in ("documents", "unknown_share", "skipped")}
        return {"name": self.name, "tokens": self.tokens, "hash": self.hash, **logged}

    def report(self) -> None:
        """Print what was read; warn of or refuse text that the tokenizer does not know."""
        share, (train, held) = self.facts["unknown_share"], self.facts["tokens"]
        print(
            f"corpus {self.name}: {self.facts['documents']:,} documents, {train + held:,} tokens,"
            f" {held:,} of them held out{reasons(self.facts['skipped'])}",
            flush=True,
        )
        problem = (
            f"{self.name}: {share:.1%} of the letters are unknown to the teacher's tokenizer;"
            " give a teacher that knows this script, or other text"
        )
        if share > 0.9:
            raise UserError(f"--data {problem}")
        if share > 0.1:
            print(f"warning: corpus {problem}", flush=True)


def reasons(skipped: dict[str, int]) -> str:
    parts = [f"{count:,} {reason}" for reason, count in sorted(skipped.items())]
    return "; skipped: " + ", ".join(parts) if parts else ""


def tokenise(
    source: Source, tokenizer: Tokenizer, one_in: int, wanted: list[float]
) -> tuple[dict, np.ndarray, np.ndarray]:
    """Return the facts about a source, its tokens to train on, and those that are held out.

    wanted   how many tokens of both are needed; a text that ends before is read as a whole

    They are made on the first call. Later ones take them from the cache if it holds enough of them
    and its content is what was written. One process makes them, others wait for it.
    """
    key = f"{identity(source)} {tokenizer.hash} {one_in} 4".encode()
    stem = cache_folder() / "tokens" / content_hash(key)
    stem.parent.mkdir(exist_ok=True)
    with locked(stem, source.name):
        found = open_tokens(stem)
        if not (found and (found[0]["complete"] or holds(found[0], wanted))):
            print(f"tokenising {source.name} (once) …", flush=True)
            write_tokens(source, tokenizer, one_in, wanted, stem)
            found = open_tokens(stem)
    return found


def locked(stem: Path, name: str) -> AcquireReturnProxy:
    """Take the lock on STEM.*; where another process holds it, say so and wait."""
    lock = FileLock(f"{stem}.lock")
    try:
        return lock.acquire(timeout=WAIT)
    except Timeout:
        print(f"waiting for another process, which tokenises {name} …", flush=True)
        return lock.acquire()


def holds(facts: dict, wanted: list[float]) -> bool:
    return all(np.greater_equal(facts["tokens"], wanted))


def open_tokens(stem: Path) -> tuple[dict, np.ndarray, np.ndarray] | None:
    """Return what write_tokens wrote; None where it is missing, cut off or damaged."""
    try:
        hashed, facts = json.loads(stem.with_suffix(".json").read_bytes())
        if hashed != content_hash(json.dumps(facts).encode()):
            return None
        files = [map_tokens(stem.with_suffix(end), facts["dtype"]) for end in (".train", ".held")]
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return (facts, *files) if facts["hash"] == "".join(map(content_hash, files)) else None


def map_tokens(file: Path, dtype: str) -> np.ndarray:
    return np.memmap(file, dtype, "r") if file.stat().st_size else np.empty(0, dtype)


def content_hash(content: bytes | np.ndarray) -> str:
    return xxhash.xxh3_128_hexdigest(content)


def write_tokens(
    source: Source, tokenizer: Tokenizer, one_in: int, wanted: list[float], stem: Path
) -> None:
    """Write the tokens of all documents, [SEP] behind each, and last a sidecar that vouches for it.

    The dtype follows the vocabulary (XLM-R has 250,002 ids).
    """
    dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
    facts = {"dtype": dtype, "documents": 0, "tokens": [0, 0], "complete": True}
    skipped, letters, unknown = Counter(), 0, 0
    with atomic(stem.with_suffix(".train")) as train, atomic(stem.with_suffix(".held")) as held:
        with (
            open(train, "wb") as train_file,
            open(held, "wb") as held_file,
            tqdm(desc=source.name, unit="token", unit_scale=True, disable=None) as bar,
        ):
            rest = documents(source, skipped)
            while texts := list(islice(rest, AT_ONCE)):
                for text, row in zip(texts, encode(tokenizer, texts), strict=True):
                    ids, letters, unknown = row[0], letters + row[1], unknown + row[2]
                    if not ids:
                        skipped["without tokens"] += 1
                        continue
                    side = is_held_out(text, one_in)
                    (held_file if side else train_file).write(np.array(ids, dtype))
                    facts["tokens"][side] += len(ids)
                    facts["documents"] += 1
                    bar.update(len(ids))
                if holds(facts, wanted):
                    facts["complete"] = False
                    break
        if not facts["documents"]:
            raise UserError(
                f"--data {source.name}: the text is empty{reasons(skipped)}; give other text, or"
                f" the column that holds it as {source.name}=PATH:COLUMN"
            )
        facts["hash"] = "".join(content_hash(map_tokens(file, dtype)) for file in (train, held))
    facts |= {"unknown_share": unknown / max(1, letters), "skipped": skipped}
    with atomic(stem.with_suffix(".json")) as unfinished:
        unfinished.write_text(json.dumps([content_hash(json.dumps(facts).encode()), facts]))


def is_held_out(text: str, one_in: int) -> bool:
    """Return whether a text is held out, as one in so many is. White space does not count."""
    words = " ".join(text.split()).encode("utf-8", "replace")
    return xxhash.xxh3_64_intdigest(words) < 2**64 // one_in


def encode(tokenizer: Tokenizer, texts: list[str]) -> Iterator[tuple[list[int], int, int]]:
    """Yield of each text its ids with [SEP], [] where it has none; how many letters and digits it
    has; and how many of these no known token stands for.
    """
    encoded = tokenizer.pipeline.encode_batch(without_surrogates(texts), add_special_tokens=False)
    for text, encoding in zip(texts, encoded, strict=True):
        ids, unknown = encoding.ids, 0
        if tokenizer.unk_id is None or tokenizer.unk_id in ids:
            known = bytearray(len(text))
            # The unknown ones last: pieces such as "▁" claim the first letter of what follows.
            tokens = zip(ids, encoding.offsets, strict=True)
            for token, (start, stop) in sorted(tokens, key=lambda t: t[0] == tokenizer.unk_id):
                known[start:stop] = bytes([token != tokenizer.unk_id]) * (stop - start)
            unknown = sum(c.isalnum() and not k for c, k in zip(text, known, strict=True))
        yield ids and [*ids, tokenizer.sep_id], sum(map(str.isalnum, text)), unknown


def unknown_share(tokenizer: Tokenizer, texts: list[str]) -> float:
    """Return the share of all letters and digits that are unknown to the tokenizer.

    Not of the tokens: in a script that the vocabulary lacks, a whole word or sentence becomes one.
    """
    rows = list(encode(tokenizer, texts))
    return sum(row[2] for row in rows) / max(1, sum(row[1] for row in rows))
