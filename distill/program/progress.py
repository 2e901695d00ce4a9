"""Progress of long work: a bar on a terminal, a plain line every ten seconds elsewhere."""

import time

from tqdm import tqdm


class Progress:
    """Show how many bytes are done and, where `total` is known, the time that is left."""

    def __init__(self, what: str, total: int | None):
        self.what, self.total, self.done = what, total, 0
        self.start = self.last = time.monotonic()
        self.bar = tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=None)

    def update(self, amount: int) -> None:
        self.done += amount
        self.bar.update(amount)
        now = time.monotonic()
        if self.bar.disable and now - self.last >= 10:
            self.last = now
            line = f"{self.what}: {self.done / 1e6:.0f} MB"
            if self.total:
                seconds_left = (self.total - self.done) * (now - self.start) / self.done
                line += f" of {self.total / 1e6:.0f} MB, {seconds_left:.0f} s left"
            print(line, flush=True)

    def close(self) -> None:
        self.bar.close()
