"""Devices and precision, and what a measured number depends on beside its command."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from minitransformer.errors import UserError


def provenance() -> dict:
    """What a number depends on beside its command: argv, commit, versions, machine."""
    root = Path(__file__).resolve().parents[2]
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
