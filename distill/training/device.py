"""Devices and precision, and what a measured number depends on besides its command."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from distill.training.processes import world
from minitransformer.files import UserError, first_line, shortened


def provenance() -> dict:
    """Return what a number depends on besides its command: argv, commit, versions, machine."""
    names = ("torch", "numpy", "tokenizers", "datasets", "safetensors")
    versions = {name: importlib.metadata.version(name) for name in names}
    versions["python"] = platform.python_version()
    return {"argv": sys.argv, "commit": commit(), "versions": versions, "machine": machine()}


def commit() -> str | None:
    """Return the commit of this checkout, `-dirty` where files differ; None without git."""
    if shutil.which("git") is None:
        return None
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty"]
    folder = Path(__file__).parent
    return (
        subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout.strip() or None
    )


def machine() -> str:
    """Return one line: processor, cores, threads, GPUs."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        models = re.findall(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M)
        name = models[0] if models else name
    line = f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        line += f", {torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return line


def choose_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is cuda where there is one, else cpu.

    Under torchrun `cuda` is this process' own GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("only cpu, cuda and mps are supported")
        if name == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) if world() > 1 else 0)
        torch.empty(0, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device {name} cannot be used here ({shortened(first_line(error), 80)}); give auto,"
            " cpu, cuda, cuda:N or mps"
        ) from None
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """Return fp32 or bf16; `auto` is bf16 where the hardware multiplies it: emulated, it is up to
    50 times slower.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # on mps it was not measured: float32 is the safe choice
        capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        names = ("avx512_bf16", "amx_bf16", "bf16")
        native = any(capabilities.get(name, False) for name in names)
    return "bf16" if native else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which products run in this precision; it may be entered again."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
