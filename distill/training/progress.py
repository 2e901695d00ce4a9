"""Progress of training: a bar on a terminal, a plain line every ten seconds elsewhere."""

import sys
import time

from tqdm import tqdm


class StepProgress:
    """Print steps and evaluations of a run that goes from optimizer step `start` to `steps`."""

    def __init__(self, start: int, steps: int, step_tokens: int, shown: bool):
        self.steps, self.step_tokens = steps, step_tokens
        self.bar = tqdm(total=steps, initial=start, unit="step", disable=None if shown else True)
        self.printed = float("-inf")

    def say(self, line: str) -> None:
        self.bar.write(line, file=sys.stdout)

    def evaluated(self, step: int, loss: float) -> None:
        self.say(f"step {step:>6}/{self.steps}  held-out loss {loss:.4f}")

    def stepped(self, step: int, loss: float, lr: float, speed: float) -> None:
        """Show a step that is done; `speed` is in tokens per second."""
        self.bar.set_postfix_str(f"loss {loss:.4f}, {speed:,.0f} tokens/s", refresh=False)
        self.bar.update()
        if self.bar.disable and time.monotonic() - self.printed >= 10:
            self.printed = time.monotonic()
            left = tqdm.format_interval(self.step_tokens / speed * (self.steps - step))
            print(
                f"step {step:>6}/{self.steps}  loss {loss:.4f}  lr {lr:.1e}"
                f"  {speed:,.0f} tokens/s  {left} left",
                flush=True,
            )

    def close(self) -> None:
        self.bar.close()
