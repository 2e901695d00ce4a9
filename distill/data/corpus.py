"""Corpora: documents as tokens, cut into rows of N - 2 (data.py adds [CLS] and [SEP]).

    TokenFile     docs and files: tokenised once into a memory-mapped file beside a sidecar that
                  says what is in it
    TokenStream   hub datasets: tokenised as they arrive, shuffled in a buffer, never on disk as a
                  whole

Both have `name`, `tokens` (None where unknown), `hash`, `sequence(draw, read)`, `held_out(n)`,
`state_dict`, `load_state_dict`.
"""

import fcntl
import hashlib
import json
import os
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from distill.data.sources import Source, documents, identity
from distill.program.progress import Progress
from minitransformer.errors import UserError, first_line
from minitransformer.files import cache_folder
from minitransformer.tokenizer import Tokenizer

HELD_OUT = 256  # rows a corpus at most; a fiftieth of a small one
BUFFER = 4096  # rows in the shuffle buffer of a stream
CHUNK = 1_000_000  # characters tokenised at a time


class TokenFile:
    """Tokens of docs or files in a memory-mapped file; its i-th sequence is tokens i*(N-2) ...
    (i+1)*(N-2)-1.

    Every s-th sequence is held out, spread evenly. The others come in a new shuffled order with
    each pass.
    """

    def __init__(self, source: Source, tokenizer: Tokenizer, length: int, seed: int):
        self.name, self.seed, self.body = source.name, seed, length - 2
        file, sidecar = tokenise(source, tokenizer)
        self.tokens, self.hash = sidecar["tokens"], sidecar["hash"]
        count = self.tokens // self.body
        if count < 2:
            raise UserError(
                f"--data {self.name}: {self.tokens} tokens, but sequences of {length} take at"
                f" least {2 * self.body}"
            )
        self.memory = np.memmap(file, dtype=sidecar["dtype"], mode="r")
        self.stride = min(count, max(50, count // HELD_OUT))
        self.held = count // self.stride
        self.train = count - self.held

    def sequence(self, draw: int, read: bool) -> np.ndarray | None:
        passes, position = divmod(draw, self.train)
        if position == 0 and passes > 0:
            print(
                f"corpus {self.name}: all {self.train} sequences read, pass {passes + 1} begins",
                flush=True,
            )
        if not read:
            return None
        index = shuffled(position, self.train, f"{self.seed} {self.name} {passes}")
        return self._row(index + index // (self.stride - 1))  # steps over the held-out ones

    def held_out(self, sequences: int) -> list[np.ndarray]:
        return [self._row((i + 1) * self.stride - 1) for i in range(min(sequences, self.held))]

    def _row(self, index: int) -> np.ndarray:
        return self.memory[index * self.body : (index + 1) * self.body]

    def state_dict(self) -> None:
        return None  # the draw alone says where it stands

    def load_state_dict(self, state: None) -> None:
        pass


def shuffled(index: int, n: int, key: str) -> int:
    """Element `index` of a fixed pseudo-random order of 0 ... n-1, without holding that order (n
    may be 10^9).

    A Feistel cipher permutes the next power of four; steps that land beyond n - 1 are walked on.
    """
    half = max(1, (n - 1).bit_length() + 1) // 2 or 1
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
    """The source's token file and its sidecar {dtype, tokens, hash, tokenizer}, made on the first
    call.

    Documents are joined by [SEP]. The dtype follows the vocabulary (XLM-R's 250,002 ids do not fit
    16 bits). Processes that want the same file at once wait for the one that makes it.
    """
    key = hashlib.sha256(f"{identity(source)} {tokenizer.hash} 1".encode()).hexdigest()[:24]
    folder = cache_folder() / "tokens"
    file, sidecar_file = folder / f"{key}.bin", folder / f"{key}.json"
    unfinished = file.with_suffix(".tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{key}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                sidecar = _read_sidecar(file, sidecar_file)
                if sidecar is None:
                    sidecar = _write_tokens(source, tokenizer, unfinished)
                    os.replace(unfinished, file)
                    unfinished.write_text(json.dumps(sidecar))
                    os.replace(unfinished, sidecar_file)  # last: it vouches for a complete file
            finally:
                unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write the token file {file} ({error.strerror}); XDG_CACHE_HOME moves the cache"
        ) from None
    return file, sidecar


def _read_sidecar(file: Path, sidecar_file: Path) -> dict | None:
    """The sidecar of a whole token file; None where one was never made or was damaged since."""
    try:
        sidecar = json.loads(sidecar_file.read_bytes())
        size = sidecar["tokens"] * np.dtype(sidecar["dtype"]).itemsize
        return sidecar if file.stat().st_size == size else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _write_tokens(source: Source, tokenizer: Tokenizer, file: Path) -> dict:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    digest, tokens = hashlib.sha256(), 0
    size = sum(os.path.getsize(f) for f in source.files)
    bar = Progress(f"tokenising {source.name}", size or None)
    with open(file, "wb") as out:
        for chunk in _chunks(documents(source)):
            rows = tokenizer.encode_batch(chunk)
            ids = np.fromiter(
                chain.from_iterable([*row, tokenizer.sep_id] for row in rows), dtype=dtype
            )
            out.write(ids.tobytes())
            digest.update(ids.tobytes())
            tokens += len(ids)
            bar.update(sum(len(text.encode("utf-8", "surrogatepass")) for text in chunk))
        out.flush()
        os.fsync(out.fileno())
    bar.close()
    if tokens == 0:
        raise UserError(f"--data {source.name}: the text is empty")
    return {
        "dtype": dtype.name,
        "tokens": tokens,
        "hash": digest.hexdigest(),
        "tokenizer": tokenizer.hash,
    }


def _chunks(texts):
    chunk, size = [], 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


class TokenStream:
    """A hub dataset, tokenised as it arrives and shuffled in a buffer; its first sequences are held
    out.

    Every rank reads the whole stream and keeps its slice, which makes the order the same for any
    number of ranks. The state is the library's own position, the tokens left over from the last
    document, and the buffer with its generator: exact on resume.
    """

    def __init__(self, source: Source, tokenizer: Tokenizer, length: int, seed: int):
        self.name, self.body = source.name, length - 2
        self.source, self.tokenizer = source, tokenizer
        self.dataset = self._open()
        self.tokens = source.tokens or self._declared_tokens()
        self.hash = hashlib.sha256(
            f"{source.dataset} {source.config} {source.split}".encode()
        ).hexdigest()
        self.rng = np.random.default_rng([seed, *source.name.encode()])
        self.passes, self.rest, self.buffer = 0, np.empty(0, dtype=np.int64), None
        self.position = None  # of a resumed stream that was not read from yet
        self.rows = iter(self.dataset)
        held = [self._next_row() for _ in range(HELD_OUT)]
        # one row more, to see that there is one; then put back
        self.rest = np.concatenate([self._next_row(), self.rest])
        self.held = held

    def _open(self):
        import datasets  # here, because its two seconds of import are owed by streams alone

        datasets.disable_progress_bars()
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
                f"--data {self.name}: no column {source.column!r}, but {', '.join(columns)}"
            )
        return dataset.select_columns([source.column])

    def _declared_tokens(self) -> int | None:
        splits = self.dataset.info.splits or {}
        known = self.source.split in splits
        return splits[self.source.split].num_bytes // 4 if known else None

    def _next_row(self) -> np.ndarray:
        while len(self.rest) < self.body:
            try:
                document = next(self.rows, None)
            except Exception as error:  # of the library or the network: many unrelated types
                raise UserError(
                    f"--data {self.name}: the stream broke off ({first_line(error)}); once it can"
                    " be read again, --resume goes on from the last checkpoint"
                ) from None
            self.position = None
            if document is None:
                self._start_again()
                continue
            text = document[self.source.column]
            if not isinstance(text, str | None):
                raise UserError(
                    f"--data {self.name}: column {self.source.column!r} holds"
                    f" {type(text).__name__}, not text"
                )
            ids = self.tokenizer.encode_batch([text or ""])[0]
            ids = np.array([*ids, self.tokenizer.sep_id], dtype=np.int64)
            self.rest = np.concatenate([self.rest, ids])
        row, self.rest = self.rest[: self.body], self.rest[self.body :]
        return row

    def _start_again(self) -> None:
        if not hasattr(self, "held"):
            raise UserError(
                f"--data {self.name}: the stream ends within {HELD_OUT + 1} sequences, of which"
                f" {HELD_OUT} are held out"
            )
        self.passes += 1
        print(f"corpus {self.name}: the stream ended, pass {self.passes + 1} begins", flush=True)
        self.dataset.load_state_dict({})  # else a resumed stream begins where it was resumed
        self.rows, self.rest = iter(self.dataset), np.empty(0, dtype=np.int64)
        for _ in range(HELD_OUT):
            self._next_row()

    def sequence(self, draw: int, read: bool) -> np.ndarray:
        if self.buffer is None:
            self.buffer = np.stack([self._next_row() for _ in range(BUFFER)])  # (BUFFER, N-2)
        slot = int(self.rng.integers(BUFFER))
        sequence = self.buffer[slot].copy()
        self.buffer[slot] = self._next_row()
        # of the text that was really read
        self.hash = hashlib.sha256(self.hash.encode() + sequence.tobytes()).hexdigest()
        return sequence

    def held_out(self, sequences: int) -> list[np.ndarray]:
        return self.held[:sequences]

    def state_dict(self) -> dict:
        return {
            "dataset": self.position or json.dumps(self.dataset.state_dict()),
            "rng": json.dumps(self.rng.bit_generator.state),
            "rest": torch.from_numpy(self.rest.copy()),
            "buffer": None if self.buffer is None else torch.from_numpy(self.buffer.copy()),
            "passes": self.passes,
            "hash": self.hash,
        }

    def load_state_dict(self, state: dict) -> None:
        self.position = state["dataset"]
        self.dataset.load_state_dict(json.loads(self.position))
        self.rows = iter(self.dataset)
        self.rng.bit_generator.state = json.loads(state["rng"])
        self.rest = state["rest"].numpy()
        self.buffer = None if state["buffer"] is None else state["buffer"].numpy()
        self.passes, self.hash = state["passes"], state["hash"]
