"""Signals that end a run: the step in progress is finished and saved first."""

import signal
import time

import torch

NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")  # Windows lacks the last two


class Signals:
    """Let the step finish on SIGTERM, Ctrl-C, a closed terminal or SIGUSR1, so that it is saved.

    Schedulers signal every process and torchrun passes it on, so a signal often comes twice within
    a moment; one that comes 3 s later ends the program at once.
    """

    def __init__(self):
        self.received, self.since = 0, 0.0
        for name in NAMES:
            number = getattr(signal, name, None)
            if number and signal.getsignal(number) != signal.SIG_IGN:  # nohup's choice stays
                signal.signal(number, self._note)

    def _note(self, number: int, frame) -> None:
        if not self.received:
            self.received, self.since = number, time.monotonic()
        elif time.monotonic() > self.since + 3:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def vote(self, device: torch.device) -> torch.Tensor:
        """Return 1 if this process received a signal, else 0, to be summed over the ranks."""
        return torch.tensor(float(self.received > 0), device=device)

    @property
    def status(self) -> int:
        """Return the exit status; where another rank received the signal, that of SIGTERM."""
        return 128 + (self.received or signal.SIGTERM)
