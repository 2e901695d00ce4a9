"""Corpora: documents as tokens, cut into rows of N - 2 (batches.py adds [CLS] and [SEP]).

    TokenFile     docs and files: tokenised once into a memory-mapped file beside a sidecar that
                  says what is in it
    TokenStream   hub datasets: tokenised as they arrive, shuffled in a buffer, never on disk as a
                  whole

Both have `name`, `tokens` (None where unknown), `statistics`, `hash`, `sequence(draw, read)`,
`held_out(n)`, `state_dict`, `load_state_dict`.

Whole documents are held out, and equal documents are on one side, so that no held-out text is
trained on. "Equal" means the same tokens.
"""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from distill.data.sources import NoColumn, Source, cut, documents, identity, text_of
from distill.program.progress import progress_bar
from minitransformer.errors import UserError, first_line
from minitransformer.files import atomic, cache_folder
from minitransformer.tokenizer import Tokenizer

HELD_OUT = 256  # rows a corpus at most; a fiftieth of a small one
HELD_OUT_TOKENS = HELD_OUT * 512  # the most that a token file's sidecar names documents for
BUFFER = 4096  # rows in the shuffle buffer of a stream
CHUNK = 1_000_000  # characters tokenised at a time
WARN_UNKNOWN, REFUSE_UNKNOWN = 0.1, 0.9  # shares of unknown tokens

Span = tuple[int, int]  # start and stop in a token file


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


def announce_pass(name: str, what: str, number: int) -> None:
    """Print that pass 2, 4, 8, ... begins; a line a pass would flood the log of a tiny corpus."""
    if number & (number - 1) == 0:
        print(f"corpus {name}: {what}, pass {number} begins", flush=True)


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
        self._hold_out(smallest(dict(enumerate(sidecar["held_out"])), wanted))
        if len(self.held) > self.tokens // 10:
            self._hold_out(smallest(self._pieces(tokenizer.sep_id), wanted))
        self.train_rows = (self.tokens - len(self.held)) // self.body
        if self.train_rows == 0 or len(self.held) < self.body:
            raise UserError(
                f"--data {self.name}: {self.tokens} tokens, but sequences of {length} take at"
                f" least {2 * self.body}, and some text that stands there only once to hold out"
            )

    def _hold_out(self, groups: dict[int, list[Span]]) -> None:
        """Take these spans of the file out of the training text."""
        spans = sorted((start, stop) for group in groups.values() for start, stop in group)
        self.held = np.concatenate([self.memory[start:stop] for start, stop in spans])
        starts, stops = np.array(spans).T
        self.left_out = np.cumsum([0, *(stops - starts)])  # tokens, up to each span
        self.gaps = starts - self.left_out[:-1]  # where in the training text a span is missing

    def _pieces(self, sep_id: int) -> dict[int, list[Span]]:
        """Return where each piece of a document and its copies stand, by hash."""
        pieces, start = defaultdict(list), 0
        for end in (np.flatnonzero(self.memory == sep_id) + 1).tolist():
            for piece in range(start, end, self.body):
                stop = min(piece + self.body, end)
                pieces[fingerprint(self.memory[piece:stop])].append((piece, stop))
            start = end
        return pieces

    def sequence(self, draw: int, read: bool) -> np.ndarray | None:
        passes, position = divmod(draw, self.train_rows)
        if position == 0 and passes > 0:
            announce_pass(self.name, f"all {self.train_rows} sequences read", passes + 1)
        if not read:
            return None
        index = shuffled(position, self.train_rows, f"{self.seed} {self.name} {passes}")
        places = np.arange(index * self.body, (index + 1) * self.body)  # in the training text
        gaps_before = np.searchsorted(self.gaps, places, side="right")
        return self.memory[places + self.left_out[gaps_before]]

    def held_out(self, sequences: int) -> list[np.ndarray]:
        rows = len(self.held) // self.body
        count = min(sequences, rows, HELD_OUT)
        spread = [i * rows // count * self.body for i in range(count)]
        return [self.held[start : start + self.body] for start in spread]

    def state_dict(self) -> None:
        return None  # the draw alone says where it stands

    def load_state_dict(self, state: None) -> None:
        pass


def smallest(groups: dict[int, list[Span]], wanted: int) -> dict[int, list[Span]]:
    """Return the groups with the smallest hashes that together hold `wanted` tokens.

    Which they are does not depend on the order in which documents came, nor on whether some with
    larger hashes were dropped before.
    """
    kept, size = {}, 0
    for key in sorted(groups):
        if size < wanted:
            kept[key] = groups[key]
            size += sum(stop - start for start, stop in groups[key])
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
    key = hashlib.sha256(f"{identity(source)} {tokenizer.hash} 2".encode()).hexdigest()[:24]
    folder = cache_folder() / "tokens"
    file, sidecar_file = folder / f"{key}.bin", folder / f"{key}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{key}.lock"):
            sidecar = _read_sidecar(file, sidecar_file)
            if sidecar is None:
                for killed in folder.glob(f"{key}.*.tmp"):
                    killed.unlink()
                with atomic(file) as unfinished:
                    facts = _write_tokens(source, tokenizer, unfinished)
                with atomic(sidecar_file) as unfinished:  # last: it vouches for a complete file
                    unfinished.write_text(json.dumps(facts))
                sidecar = _read_sidecar(file, sidecar_file)
    except (OSError, NotImplementedError) as error:  # the latter where locks are not supported
        raise UserError(
            f"cannot write the token file {file} ({first_line(error)}); XDG_CACHE_HOME moves the"
            " cache"
        ) from None
    return file, sidecar


def _read_sidecar(file: Path, sidecar_file: Path) -> dict | None:
    """Return the sidecar of a whole token file; None where there is none or it was damaged."""
    try:
        sidecar = json.loads(sidecar_file.read_bytes())
        size = sidecar["statistics"]["tokens"] * np.dtype(sidecar["dtype"]).itemsize
        return sidecar if file.stat().st_size == size else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _write_tokens(source: Source, tokenizer: Tokenizer, file: Path) -> dict:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    statistics, digest, groups = Statistics(), hashlib.sha256(), defaultdict(list)
    plain = all(Path(name).suffix in (".txt", ".jsonl") for name in source.files)
    size = sum(os.path.getsize(name) for name in source.files) if plain else 0
    bar = progress_bar(f"tokenising {source.name}", size or None, "B")
    with open(file, "wb") as out:
        for texts in chunks(documents(source, statistics.skipped)):
            start = statistics.tokens
            for row in statistics.encode(tokenizer, texts):
                document = np.array(row, dtype=dtype)
                groups[fingerprint(document)].append((start, start + len(row)))
                start += len(row)
                out.write(document.tobytes())
                digest.update(document.tobytes())
            groups = defaultdict(list, smallest(groups, HELD_OUT_TOKENS))
            bar.update(sum(len(text.encode("utf-8", "surrogatepass")) for text in texts))
    bar.close()
    if statistics.tokens == 0:
        raise UserError(f"--data {source.name}: the text is empty{statistics.reasons()}")
    return {
        "dtype": dtype.name,
        "statistics": vars(statistics),
        "hash": digest.hexdigest(),
        "held_out": list(groups.values()),
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
    """A hub dataset, tokenised as it arrives and shuffled in a buffer.

    The documents of its first HELD_OUT rows are held out, and later documents equal to one of them
    are skipped, in every pass. Every rank reads the whole stream and keeps its slice, which makes
    the order the same for any number of ranks. The state is the library's own position, the tokens
    left over from the last document, and the buffer with its generator: exact on resume.
    """

    def __init__(self, source: Source, tokenizer: Tokenizer, length: int, seed: int):
        self.name, self.body = source.name, length - 2
        self.source, self.tokenizer = source, tokenizer
        self.dataset = self._open()
        self.tokens = source.tokens or self._declared_tokens()
        facts = f"{source.dataset} {source.config} {source.split}"
        self.hash = hashlib.sha256(facts.encode()).hexdigest()
        self.rng = np.random.default_rng([seed, *source.name.encode()])
        self.statistics, self.passes, self.fresh, self.buffer = Statistics(), 0, 0, None
        self.rest = np.empty(0, dtype=np.int64)  # tokens that are in no row yet
        self.position = None  # of a resumed stream that was not read from yet
        self.held_documents: set[int] = set()  # fingerprints
        self.held = np.empty(0, dtype=np.int64)
        self.documents = iter(self.dataset)
        while len(self.held) < HELD_OUT * self.body or len(self.rest) < self.body:
            self._read_document()
        self.statistics.report(self.name, tokenizer, " (its beginning)")

    def _open(self):
        import datasets  # here, because its two seconds of import are owed by streams alone

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its errors are raised as well
        source = self.source
        try:
            dataset = datasets.load_dataset(
                source.dataset, source.config or None, split=source.split, streaming=True
            )
            columns = dataset.column_names or list(next(iter(dataset)))
        except Exception as error:  # the library raises a dozen unrelated types for a wrong name
            raise UserError(
                f"--data {self.name}: cannot open the hub dataset {source.dataset}"
                f" ({first_line(error)})"
            ) from None
        if source.column not in columns:
            raise UserError(
                f"--data {self.name}: no column {source.column!r}, but {', '.join(columns[:10])}"
            )
        return dataset.select_columns([source.column])

    def _declared_tokens(self) -> int | None:
        split = (self.dataset.info.splits or {}).get(self.source.split)
        return split and split.num_bytes // 4

    def _read_document(self) -> None:
        """Append the tokens of the stream's next document to those held out or to `rest`."""
        try:
            row = next(self.documents, None)
        except Exception as error:  # of the library or the network: many unrelated types
            raise UserError(
                f"--data {self.name}: the stream broke off ({first_line(error)}); once it can"
                " be read again, --resume goes on from the last checkpoint"
            ) from None
        self.position = None
        if row is None:
            self._start_again()
            return
        column = self.source.column
        value = row.get(column, NoColumn(row))
        statistics = self.statistics if self.passes == 0 else Statistics()
        text = text_of(value, f"--data {self.name}: column {column!r}", statistics.skipped)
        new = [self.rest]
        for texts in chunks(cut(text or "")):
            for ids in statistics.encode(self.tokenizer, texts):
                tokens = np.array(ids, dtype=np.int64)
                key = fingerprint(tokens)
                if len(self.held) < HELD_OUT * self.body:
                    self.held_documents.add(key)
                    self.held = np.concatenate([self.held, tokens])
                elif key in self.held_documents:
                    statistics.skipped["equal to a held-out one"] += 1
                else:
                    new.append(tokens)
                    self.fresh += len(tokens)
        self.rest = np.concatenate(new)

    def _start_again(self) -> None:
        if self.fresh < self.body:  # the held-out rows are not full, or nothing else came
            raise UserError(
                f"--data {self.name}: the stream ends within {HELD_OUT + 1} sequences, of which"
                f" {HELD_OUT} are held out{self.statistics.reasons()}"
            )
        self.passes, self.fresh = self.passes + 1, 0
        announce_pass(self.name, "the stream ended", self.passes + 1)
        self.dataset.load_state_dict({})  # else a resumed stream begins where it was resumed
        self.documents, self.rest = iter(self.dataset), np.empty(0, dtype=np.int64)

    def _next_row(self) -> np.ndarray:
        while len(self.rest) < self.body:
            self._read_document()
        row, self.rest = self.rest[: self.body], self.rest[self.body :]
        return row

    def sequence(self, draw: int, read: bool) -> np.ndarray:
        if self.buffer is None:
            self.buffer = np.stack([self._next_row() for _ in range(BUFFER)])  # (BUFFER, N-2)
            self.statistics.report(self.name, self.tokenizer, " (so far)")
        slot = int(self.rng.integers(BUFFER))
        sequence = self.buffer[slot].copy()
        self.buffer[slot] = self._next_row()
        # of the text that was really read
        self.hash = hashlib.sha256(self.hash.encode() + sequence.tobytes()).hexdigest()
        return sequence

    def held_out(self, sequences: int) -> list[np.ndarray]:
        return list(self.held[: HELD_OUT * self.body].reshape(HELD_OUT, self.body)[:sequences])

    def state_dict(self) -> dict:
        return {
            "dataset": self.position or json.dumps(self.dataset.state_dict()),
            "rng": json.dumps(self.rng.bit_generator.state),
            "rest": torch.from_numpy(self.rest.copy()),
            "buffer": None if self.buffer is None else torch.from_numpy(self.buffer.copy()),
            "passes": self.passes,
            "fresh": self.fresh,
            "hash": self.hash,
            "statistics": {**vars(self.statistics), "skipped": dict(self.statistics.skipped)},
        }

    def load_state_dict(self, state: dict) -> None:
        self.position = state["dataset"]
        self.dataset.load_state_dict(json.loads(self.position))
        self.documents = iter(self.dataset)
        self.rng.bit_generator.state = json.loads(state["rng"])
        self.rest = state["rest"].numpy()
        self.buffer = None if state["buffer"] is None else state["buffer"].numpy()
        self.passes, self.fresh, self.hash = state["passes"], state["fresh"], state["hash"]
        self.statistics = Statistics(**state["statistics"])
