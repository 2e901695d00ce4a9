"""Devices and precision, and the provenance of a measured number."""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch

from distill.training.processes import world
from minitransformer.files import UserError, first_line


def provenance() -> dict:
    """Return what a measured number depends on: command line, commit, versions, machine."""
    names = ("torch", "numpy", "tokenizers", "datasets", "safetensors")
    versions = {name: importlib.metadata.version(name) for name in names}
    versions["python"] = platform.python_version()
    return {"argv": sys.argv, "commit": commit(), "versions": versions, "machine": machine()}


def commit() -> str | None:
    """Return the commit of this checkout, `-dirty` where a .py file differs; None without git."""
    options = {"cwd": Path(__file__).parent, "capture_output": True, "text": True}
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], **options).stdout.strip()
        changed = subprocess.run(["git", "diff", "--name-only", "HEAD", "--", ":/*.py"], **options)
    except FileNotFoundError:
        return None
    return (f"{head}-dirty" if changed.stdout else head) or None


def machine() -> str:
    """Return one line: processor, cores, threads, GPUs."""
    cpu = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)", cpu.read_text() if cpu.exists() else "", re.M)
    name = model[1] if model else platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}"


def choose_device(name: str) -> torch.device:
    """Return the device; `auto` is cuda if there is one, else cpu; cuda: the process' own GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if name == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) if world() > 1 else 0)
        torch.zeros((), device=device).item()  # meta, for one, has no values
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError, LookupError, ImportError) as error:
        raise UserError(f"--device {name} cannot be used here: {first_line(error)}") from None
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """Return fp32 or bf16; `auto` avoids emulated bf16, which is up to 50 times slower."""
    if name != "auto":
        return name
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # on mps it was not measured
        found = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        native = any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bf16" if native else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which products run in this precision; it may be entered again."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
