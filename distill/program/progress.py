"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import time

from tqdm import tqdm


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
