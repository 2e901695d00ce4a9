"""What both programs do at their edges: parse flags, answer a mistake in one line, say where a
figure was measured.
"""

import argparse
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist

from minitransformer.errors import UserError


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
