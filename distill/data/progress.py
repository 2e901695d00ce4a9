"""Progress of long work: a bar on a terminal, a plain line every ten seconds elsewhere."""

import sys

from tqdm import tqdm


class Lines:
    """A file for a bar where no terminal is: each new state of the bar becomes a printed line."""

    last = ""

    def write(self, text: str) -> None:
        if text.strip() not in ("", self.last):
            self.last = text.strip()
            print(self.last, flush=True)

    def flush(self) -> None:
        pass


def progress_bar(what: str, total: int | None, unit: str, done: int = 0) -> tqdm:
    """Return a bar of `total` units, of which `done` are done; None where it is unknown."""
    settings = {"desc": what, "total": total, "unit": unit, "initial": done}
    settings["unit_scale"] = total is None
    # both: a rank above 0 has no stdout, and must not draw over the bar of rank 0
    if sys.stdout.isatty() and sys.stderr.isatty():
        return tqdm(**settings)
    line = "{desc}: {n_fmt} of {total_fmt}, {remaining} left" if total else "{desc}: {n_fmt}"
    line += "{postfix}"
    return tqdm(**settings, file=Lines(), delay=10, mininterval=10, bar_format=line)
