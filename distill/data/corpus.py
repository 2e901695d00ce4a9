"""Corpora: documents as tokens, cut into rows of N - 2 (batches.py adds [CLS] and [SEP]).

    TokenFile     docs and files: tokenised once into a memory-mapped file beside a sidecar that
                  says what is in it
    TokenStream   hub datasets: tokenised as they arrive, shuffled in blocks, never on disk as a
                  whole

Both have `name`, `tokens` (None where unknown), `statistics`, `hash`, `sequence(draw)` and
`held_out(n)`. Draws may be left out, but not go back.

Whole documents are held out, and equal documents are on one side, so that no held-out text is
trained on. "Equal" means the same tokens.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from distill.data.progress import progress_bar
from distill.data.sources import Source, cut, documents, identity, text_of
from minitransformer.files import UserError, atomic, cache_folder, first_line
from minitransformer.tokenizer import Tokenizer

HELD_OUT = 256  # rows a corpus at most; a fiftieth of a small one
HELD_OUT_TOKENS = HELD_OUT * 512  # the most that a token file's sidecar names documents for
BLOCK = 4096  # rows of a stream that are shuffled together
CHUNK = 1_000_000  # characters tokenised at a time
WARN_UNKNOWN, REFUSE_UNKNOWN = 0.1, 0.9  # shares of unknown tokens

Span = tuple[int, int, int]  # hash, start and stop of some text in a token file


@dataclass
class Statistics:
    """What was read of a corpus; `skipped` says how many rows gave no text, by reason."""

    documents: int = 0
    tokens: int = 0  # with the [SEP] behind each document
    unknown: int = 0
    skipped: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        self.skipped = Counter(self.skipped)

    def encode(self, tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
        """Return and count the tokens of each text and [SEP]; a text without tokens gives none."""
        rows = []
        for ids in tokenizer.encode_batch(texts):
            if ids:
                rows.append([*ids, tokenizer.sep_id])
                self.documents += 1
                self.tokens += len(ids) + 1
                self.unknown += ids.count(tokenizer.unk_id)  # 0 where that is None
            else:
                self.skipped["without tokens"] += 1
        return rows

    @property
    def unknown_share(self) -> float:
        return self.unknown / max(1, self.tokens - self.documents)

    def reasons(self) -> str:
        parts = [f"{count:,} {reason}" for reason, count in sorted(self.skipped.items())]
        return "; skipped: " + ", ".join(parts) if parts else ""

    def report(self, name: str, tokenizer: Tokenizer, note: str = "") -> None:
        """Print what was read; warn or refuse where much of it is unknown to the tokenizer."""
        print(
            f"corpus {name}{note}: {self.documents:,} documents, {self.tokens:,} tokens,"
            f" {self.unknown_share:.1%} of them unknown to the tokenizer{self.reasons()}",
            flush=True,
        )
        problem = (
            f"{self.unknown_share:.1%} of the tokens are unknown to the teacher's tokenizer (a"
            f" vocabulary of {tokenizer.vocab_size:,}); give a teacher whose tokenizer knows this"
            " script, or other text"
        )
        if self.unknown_share > REFUSE_UNKNOWN:
            raise UserError(f"--data {name}: {problem}")
        if self.unknown_share > WARN_UNKNOWN:
            print(f"warning: corpus {name}: {problem}", flush=True)


def fingerprint(tokens: np.ndarray) -> int:
    """Return a 64-bit hash of a document's tokens."""
    return int.from_bytes(hashlib.blake2b(tokens.tobytes(), digest_size=8).digest(), "big")


# --------------------------------------------------------------------------------------------------
# Token files
# --------------------------------------------------------------------------------------------------


class TokenFile:
    """Tokens of docs or files in a memory-mapped file, cut into rows of N - 2.

    The documents with the smallest hashes are held out: a fiftieth of the tokens, at most HELD_OUT
    rows, at least one row. Where that would take more than a tenth (few or long documents), every
    document is cut into pieces of one row, and equal pieces are on one side. The other rows come in
    a new shuffled order with each pass.
    """

    def __init__(self, source: Source, tokenizer: Tokenizer, length: int, seed: int):
        self.name, self.seed, self.body = source.name, seed, length - 2
        file, sidecar = tokenise(source, tokenizer)
        self.statistics, self.hash = Statistics(**sidecar["statistics"]), sidecar["hash"]
        self.tokens = self.statistics.tokens
        self.statistics.report(self.name, tokenizer)
        self.memory = np.memmap(file, dtype=sidecar["dtype"], mode="r")
        wanted = max(self.body, min(self.tokens // 50, HELD_OUT * self.body))
        self._hold_out(smallest(sidecar["held_out"], wanted))
        if len(self.held) > self.tokens // 10:
            self._hold_out(smallest(self._pieces(tokenizer.sep_id), wanted))
        self.train_rows = (self.tokens - len(self.held)) // self.body
        if self.train_rows == 0 or len(self.held) < self.body:
            raise UserError(
                f"--data {self.name}: {self.tokens} tokens, but sequences of {length} take at"
                f" least {2 * self.body}, and some text that stands there only once to hold out"
            )

    def _hold_out(self, spans: list[Span]) -> None:
        """Take these spans of the file out of the training text."""
        starts, stops = np.array(sorted(span[1:] for span in spans)).T
        parts = [self.memory[start:stop] for start, stop in zip(starts, stops, strict=True)]
        self.held = np.concatenate(parts)
        self.left_out = np.cumsum([0, *(stops - starts)])  # tokens, up to each span
        self.gaps = starts - self.left_out[:-1]  # where in the training text a span is missing

    def _pieces(self, sep_id: int) -> Iterator[Span]:
        start = 0
        for end in (np.flatnonzero(self.memory == sep_id) + 1).tolist():
            for piece in range(start, end, self.body):
                stop = min(piece + self.body, end)
                yield fingerprint(self.memory[piece:stop]), piece, stop
            start = end

    def sequence(self, draw: int) -> np.ndarray:
        passes, position = divmod(draw, self.train_rows)
        index = shuffled(position, self.train_rows, f"{self.seed} {self.name} {passes}")
        places = np.arange(index * self.body, (index + 1) * self.body)  # in the training text
        gaps_before = np.searchsorted(self.gaps, places, side="right")
        return self.memory[places + self.left_out[gaps_before]]

    def held_out(self, sequences: int) -> list[np.ndarray]:
        rows = len(self.held) // self.body
        count = min(sequences, rows, HELD_OUT)
        spread = [i * rows // count * self.body for i in range(count)]
        return [self.held[start : start + self.body] for start in spread]


def smallest(spans: Iterable[Span], wanted: int) -> list[Span]:
    """Return the spans with the smallest hashes that together hold `wanted` tokens.

    Which they are does not depend on the order in which documents came, nor on whether some with
    larger hashes were dropped before. Equal ones are all in or all out.
    """
    kept, size = [], 0
    for key, start, stop in sorted(spans):
        if size >= wanted and key != kept[-1][0]:
            break
        kept.append((key, start, stop))
        size += stop - start
    return kept


def shuffled(index: int, n: int, key: str) -> int:
    """Return element `index` of a fixed pseudo-random order of 0 ... n-1.

    The order is never held as a whole (n may be 10^9): a Feistel cipher permutes the next power of
    four, and steps that land beyond n - 1 are walked on.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for turn in range(4):
            digest = hashlib.blake2b(f"{key} {turn} {right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & low)
        index = left << half | right
        if index < n:
            return index


def tokenise(source: Source, tokenizer: Tokenizer) -> tuple[Path, dict]:
    """Return the source's token file and its sidecar, both made on the first call.

    The file holds the tokens of all documents, [SEP] behind each; the sidecar says {dtype,
    statistics, hash, held_out}. The dtype follows the vocabulary (XLM-R has 250,002 ids).
    Processes that want the same file at once wait for the one that makes it.
    """
    key = hashlib.sha256(f"{identity(source)} {tokenizer.hash} 3".encode()).hexdigest()[:24]
    folder = cache_folder() / "tokens"
    file, sidecar_file = folder / f"{key}.bin", folder / f"{key}.json"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / f"{key}.lock"):
        if _read_sidecar(file, sidecar_file) is None:
            for killed in folder.glob(f"{key}.*.tmp"):
                killed.unlink()
            with atomic(file) as unfinished:
                sidecar = _write_tokens(source, tokenizer, unfinished)
            with atomic(sidecar_file) as unfinished:  # last: it vouches for a complete file
                unfinished.write_text(json.dumps(sidecar))
        return file, _read_sidecar(file, sidecar_file)


def _read_sidecar(file: Path, sidecar_file: Path) -> dict | None:
    """Return the sidecar of a whole token file; None where there is none or it was damaged."""
    try:
        sidecar = json.loads(sidecar_file.read_bytes())
        size = sidecar["statistics"]["tokens"] * np.dtype(sidecar["dtype"]).itemsize
        return sidecar if file.stat().st_size == size else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _write_tokens(source: Source, tokenizer: Tokenizer, file: Path) -> dict:
    """Write the tokens of all documents to the file, and return its sidecar."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    statistics, digest, spans = Statistics(), hashlib.sha256(), []
    with open(file, "wb") as out, progress_bar(f"tokenising {source.name}", None, "token") as bar:
        for texts in chunks(documents(source, statistics.skipped)):
            start = statistics.tokens
            for row in statistics.encode(tokenizer, texts):
                document = np.array(row, dtype=dtype)
                spans.append((fingerprint(document), start, start + len(row)))
                start += len(row)
                out.write(document.tobytes())
                digest.update(document.tobytes())
            spans = smallest(spans, HELD_OUT_TOKENS)
            bar.update(statistics.tokens - bar.n)
    if statistics.tokens == 0:
        raise UserError(
            f"--data {source.name}: the text is empty{statistics.reasons()}; give other text, or"
            f" the column that holds it as {source.name}=PATH:COLUMN"
        )
    return {
        "dtype": dtype.name,
        "statistics": vars(statistics),
        "hash": digest.hexdigest(),
        "held_out": spans,
    }


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


# --------------------------------------------------------------------------------------------------
# Streams
# --------------------------------------------------------------------------------------------------


class TokenStream:
    """A hub dataset, tokenised as it arrives and shuffled in blocks of BLOCK rows.

    The documents of its first HELD_OUT rows are held out, and later documents equal to one of them
    are skipped, in every pass. Every rank reads the whole stream and keeps its slice, which makes
    the order the same for any number of ranks. The state is that before the block which is drawn
    from, with the library's own position in the dataset; a resume reads this block again.
    """

    def __init__(self, source: Source, tokenizer: Tokenizer, length: int, seed: int):
        self.name, self.seed, self.body = source.name, seed, length - 2
        self.source, self.tokenizer = source, tokenizer
        self.dataset = self._open()
        split = (self.dataset.info.splits or {}).get(source.split)
        self.tokens = source.tokens or (split.num_bytes // 4 if split else None)
        facts = f"{source.dataset} {source.config} {source.split}"
        self.hash = hashlib.sha256(facts.encode()).hexdigest()  # then also of the text read
        self.statistics, self.passes, self.blocks = Statistics(), 0, 0
        self.rest = np.empty(0, dtype=np.int64)  # tokens that are in no row yet
        self.held_documents: set[int] = set()  # fingerprints
        self.held = np.empty(0, dtype=np.int64)
        self._read_from({})
        while len(self.held) < HELD_OUT * self.body or len(self.rest) < self.body:
            self._read_document()
            if self.passes > 0:
                raise UserError(
                    f"--data {self.name}: the stream ends within {HELD_OUT + 1} sequences, of"
                    f" which {HELD_OUT} are held out{self.statistics.reasons()}"
                )
        self.saved = self._state()
        self.statistics.report(self.name, tokenizer, " (its beginning)")

    def _open(self):
        import datasets  # here, because its two seconds of import are owed by streams alone

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its errors are raised as well
        source = self.source
        try:
            dataset = datasets.load_dataset(
                source.dataset, source.config or None, split=source.split, streaming=True
            ).select_columns([source.column])
            next(iter(dataset), None)  # only now are the columns of some formats known
        except Exception as error:  # the library raises a dozen unrelated types for a wrong name
            raise UserError(
                f"--data {self.name}: cannot open column {source.column!r} of the hub dataset"
                f" {source.dataset} ({first_line(error)})"
            ) from None
        return dataset

    def _read_from(self, position: dict) -> None:
        """Go to a position in the dataset; {} is its beginning."""
        self.position = position
        self.dataset.load_state_dict(position)
        self.documents = iter(self.dataset)

    def _read_document(self) -> None:
        """Append the tokens of the stream's next document to those held out or to `rest`."""
        try:
            row = next(self.documents, None)
        except Exception as error:  # of the library or the network: many unrelated types
            raise UserError(
                f"--data {self.name}: the stream broke off ({first_line(error)}); once it can"
                " be read again, --resume goes on from the last checkpoint"
            ) from None
        if row is None:
            self.passes += 1
            self._read_from({})
            return
        self.position = self.dataset.state_dict()
        statistics = self.statistics if self.passes == 0 else Statistics()
        text = text_of(row, self.source.column, f"--data {self.name}", statistics.skipped)
        for part in cut(text):
            for ids in statistics.encode(self.tokenizer, [part]):
                tokens = np.array(ids, dtype=np.int64)
                key = fingerprint(tokens)
                if len(self.held) < HELD_OUT * self.body:
                    self.held_documents.add(key)
                    self.held = np.concatenate([self.held, tokens])
                elif key in self.held_documents:
                    statistics.skipped["equal to a held-out one"] += 1
                else:
                    self.rest = np.concatenate([self.rest, tokens])

    def _read_block(self) -> None:
        self.saved = self._state()
        block = np.empty((BLOCK, self.body), dtype=np.int64)  # (BLOCK, N - 2)
        for row in block:
            while len(self.rest) < self.body:
                self._read_document()
            row[:], self.rest = self.rest[: self.body], self.rest[self.body :]
        self.hash = hashlib.sha256(self.hash.encode() + block.tobytes()).hexdigest()
        rng = np.random.default_rng([self.seed, self.blocks, *self.name.encode()])
        self.block = rng.permutation(block)
        self.blocks += 1
        if self.blocks == 1:
            self.statistics.report(self.name, self.tokenizer, " (so far)")

    def sequence(self, draw: int) -> np.ndarray:
        block, place = divmod(draw, BLOCK)
        while self.blocks <= block:
            self._read_block()
        return self.block[place]

    def held_out(self, sequences: int) -> list[np.ndarray]:
        return list(self.held[: HELD_OUT * self.body].reshape(HELD_OUT, self.body)[:sequences])

    def _state(self) -> dict:
        state = {name: getattr(self, name) for name in ("position", "passes", "blocks", "hash")}
        statistics = {**vars(self.statistics), "skipped": dict(self.statistics.skipped)}
        return {**state, "rest": torch.tensor(self.rest), "statistics": statistics}

    def state_dict(self) -> dict:
        return self.saved

    def load_state_dict(self, state: dict) -> None:
        self.saved = state
        self.passes, self.blocks, self.hash = state["passes"], state["blocks"], state["hash"]
        self.rest, self.statistics = state["rest"].numpy(), Statistics(**state["statistics"])
        self._read_from(state["position"])
