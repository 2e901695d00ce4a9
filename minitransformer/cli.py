"""What both programs do at their edges: parse flags, answer a mistake in one line, say where a
figure was measured.
"""

import argparse
import errno
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from tqdm import tqdm

from minitransformer.config import UserError


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line and flags are not guessed from their beginnings."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists every setting)")


def run(main: Callable[[], int]) -> NoReturn:
    """Exits with main's status; a UserError is one line on stderr and status 2, Ctrl-C outside the
    training loop status 130, the loss of another process status 1.
    """

    def leave(line: str, status: int) -> NoReturn:
        print(f"{Path(sys.argv[0]).name}: {' '.join(line.split())}", file=sys.stderr, flush=True)
        sys.exit(status)

    try:
        sys.exit(main())
    except UserError as error:
        leave(str(error), 2)
    except KeyboardInterrupt:
        leave("interrupted", 130)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - else Python complains once more
        leave("nobody reads the output any more (a closed pipe)", 1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
            raise  # not the disk's state but a defect
        leave(f"{error.filename or 'a file'}: {error.strerror}", 2)
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in text:
            leave(f"out of memory ({text}); lower --batch-size, raise --accumulate", 2)
        # gloo has no error type of its own; the process that failed has said why
        lost = isinstance(error, dist.DistBackendError) or "gloo" in text
        if not (dist.is_initialized() and lost):
            raise
        leave(f"rank {dist.get_rank()} lost another process ({text}); nothing was saved", 1)


def launcher() -> str:
    """How this program was started: python, or torchrun with as many processes."""
    if "LOCAL_WORLD_SIZE" not in os.environ:
        return "python"
    return f"torchrun --nproc-per-node {os.environ['LOCAL_WORLD_SIZE']}"


class Signals:
    """SIGTERM, Ctrl-C and a closed terminal let the step finish, so that it is saved.

    Schedulers signal every process and torchrun passes it on, so one often comes twice within a
    moment; one that comes 3 s later ends the program at once.
    """

    def __init__(self):
        self.received, self.since = 0, 0.0
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup's choice stays
                signal.signal(number, self._note)

    def _note(self, number, frame) -> None:
        if not self.received:
            self.received, self.since = number, time.monotonic()
        elif time.monotonic() > self.since + 3:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    @property
    def status(self) -> int:
        return 128 + (self.received or signal.SIGTERM)  # another rank may have been the one told


def cache_folder() -> Path:
    """Where downloads, token files and cached results stay: $XDG_CACHE_HOME/minitransformer."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minitransformer"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{folder} ({error.strerror})"
        raise UserError(f"cannot make the cache folder {reason}; set XDG_CACHE_HOME") from None
    return folder


def provenance() -> dict:
    """What a number depends on beside its command: argv, commit, versions, machine."""
    root = Path(__file__).resolve().parent.parent
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    names = ("torch", "numpy", "tokenizers", "datasets", "safetensors")
    versions = {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in names
    }
    return {
        "argv": sys.argv,
        "commit": git.stdout.strip() or None,
        "versions": versions,
        "machine": machine(),
    }


def machine() -> str:
    """One line: processor or GPU, cores, threads, memory."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    line = f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {memory:.0f} GiB"
    if torch.cuda.is_available():
        line += f", {torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return line


def choose_device(name: str) -> torch.device:
    """`auto`, or a name that PyTorch knows; under torchrun `cuda` is this process' own GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("only cpu and cuda are supported")
        if device.type == "cuda":
            if not torch.cuda.is_available():
                raise RuntimeError("PyTorch finds no GPU")
            if device.index is None:
                device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here ({reason}); give auto") from None
    return device


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has what it needs; if not, one line says what is missing."""
    compiler = os.environ.get("CXX", "g++")
    found = shutil.which(compiler) if device.type == "cpu" else importlib.util.find_spec("triton")
    if not found:
        missing = f"C++ compiler ({compiler})" if device.type == "cpu" else "triton package"
        print(f"--compile: there is no {missing} on this machine; going on without")
    return bool(found)


def native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products run in hardware; elsewhere they are emulated, up to fifty
    times slower than float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


class Progress:
    """A tqdm bar on a terminal; elsewhere a plain line on stdout every ten seconds, with the time
    left where it is known.
    """

    def __init__(self, what: str, total: int | None, unit: str = "B"):
        self.what, self.total, self.done, self.start = what, total, 0, time.monotonic()
        self.last = self.start
        self.bar = tqdm(total=total, desc=what, unit=unit, unit_scale=True, disable=None)

    def update(self, amount: int) -> None:
        self.done += amount
        self.bar.update(amount)
        now = time.monotonic()
        if self.bar.disable and now - self.last >= 10:
            self.last = now
            line = f"{self.what}: {self.done / 1e6:.0f} MB"
            if self.total:
                left = (self.total - self.done) * (now - self.start) / self.done
                line += f" of {self.total / 1e6:.0f} MB, {left:.0f} s left"
            print(line, flush=True)

    def close(self) -> None:
        self.bar.close()
