"""The command line of the programs: settings from a dataclass, user errors as one line."""

import argparse
import itertools
import os
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import field, fields
from pathlib import Path
from typing import NoReturn, get_args, get_origin

import torch
import torch.distributed as dist

from minitransformer.files import UserError, first_line, printable


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line and flags are not guessed from their beginnings."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, **settings)

    def parse_args(self, args: list[str] | None = None) -> argparse.Namespace:
        words = sys.argv[1:] if args is None else args
        for name, value in itertools.pairwise(["", *words]):
            if re.fullmatch("(--[^=]*=)?", value) or any("\ud800" <= c <= "\udfff" for c in value):
                raise UserError(f"{name} {value!r} is empty or not UTF-8; give another value")
        return super().parse_args(words)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists every setting)")


def setting(default, help: str, *, least=None, most=1e15, choices=None):
    """Declare a setting as a dataclass field: its default, help, bounds or choices."""
    metadata = {"help": help, "least": least, "most": most, "choices": choices}
    return field(default=default, metadata=metadata)


def given_settings(config_class: type, description: str, argv: list[str] | None) -> dict:
    """Return the settings that the command line gives; --field-name for each field of the class."""
    parser = Parser(description=description, argument_default=argparse.SUPPRESS)
    for f in fields(config_class):
        kind = get_args(f.type)[0] if type(None) in get_args(f.type) else f.type  # int | None
        options = {"help": f.metadata["help"]}
        if kind is bool:
            options["action"] = "store_true"
        elif get_origin(kind) is tuple:
            options["action"] = "append"
        else:
            options |= {"type": kind, "choices": f.metadata["choices"]}
            if f.default is not None:
                options["help"] += f" (default: {f.default})"
        parser.add_argument(flag(f.name), **options)
    return vars(parser.parse_args(argv))


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def check_number(name: str, value, least: float | None, most: float = 1e15) -> None:
    if None not in (value, least) and not least <= value <= most:  # NaN too
        bounds = f"at least {least:g}" if value < least else f"from {least:g} to {most:g}"
        raise UserError(f"{flag(name)} is {value}; it must be {bounds}")


def run(main: Callable[[], int]) -> NoReturn:
    """Exit with main's status; print an error that the user can fix as one line on stderr."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115 - None: it is closed
        stream.reconfigure(errors="replace", line_buffering=True)
        setattr(sys, name, stream)
    try:
        status = main()
    except SystemExit as leaving:  # --help
        status = leaving.code
    except BaseException as error:
        status, line = answer(error)
        if line is None:
            traceback.print_exception(error)
        else:
            print(f"{Path(sys.argv[0]).name}: {printable(line)}", file=sys.stderr)
    if dist.is_initialized():  # amid an error: gloo's destructors could wait for ever
        os._exit(status)
    sys.exit(status)


def answer(error: BaseException) -> tuple[int, str | None]:
    """Return the exit status for an error, and one line about it; None for a bug."""
    if isinstance(error, UserError):
        return 2, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        error = error.__context__  # torch.save hides a full disk under an error of its own
    if isinstance(error, OSError):
        return 2, first_line(error)
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in text:
        return 2, f"out of memory ({first_line(error)}); lower --batch-size or --threads"
    # gloo has no error type of its own; the process that failed has said why
    lost = isinstance(error, dist.DistBackendError) or "gloo" in text
    if dist.is_initialized() and isinstance(error, RuntimeError) and lost:
        return 1, f"rank {dist.get_rank()} lost another process ({text}); use --resume"
    return 1, None
