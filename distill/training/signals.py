"""Signals that end a run: the step in progress is finished and saved first."""

import signal
import time


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
