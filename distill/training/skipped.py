"""Steps that teach nothing: a loss or gradient that is not finite, or nothing to count."""

from collections.abc import Callable

from distill.method import Batch
from distill.training.processes import rank
from distill.training.run import Run, write_tensors
from minitransformer.errors import UserError

LONGEST = 10  # skipped steps in a row after which the run stops


class SkippedSteps:
    """Count skipped steps in a row. Such a step changes no weight; a checkpoint holds the count."""

    def __init__(self, run: Run):
        self.run, self.in_a_row, self.count = run, 0, 0.0

    def note(self, finite: bool, count: float) -> str:
        """Note a step; return why it was skipped, "" if it was not."""
        self.in_a_row = 0 if finite else self.in_a_row + 1
        self.count = count
        if finite:
            return ""
        return "its loss or gradient is not finite" if count else "it has nothing to learn from"

    def stop_after_too_many(
        self, step: int, batches: list[Batch], lr: float, save: Callable[[int], None]
    ) -> None:
        """Stop the run with a UserError if the last LONGEST steps were skipped.

        If `step` had nothing to count, it is saved first, so that --resume goes past it; if its
        loss was not finite, the run resumes from before, and its batch is kept.
        """
        if self.in_a_row < LONGEST:
            return
        if not self.count:
            self.in_a_row = 0
            save(step)
            raise UserError(
                f"{LONGEST} steps in a row had nothing to learn from, up to step {step}: their"
                " tokens are all special; go past them with --resume, or train on other text"
            )
        file = self.run.folder / f"bad-batch-rank{rank()}.safetensors"
        tensors = {}
        for turn, batch in enumerate(batches):
            for name, tensor in vars(batch).items():
                if tensor is not None:
                    tensors[f"{turn}.{name}"] = tensor
        write_tensors(file, tensors)
        raise UserError(
            f"{LONGEST} steps in a row had no finite loss or gradient, up to step {step}; its batch"
            f" is in {file}; go on with --resume and a lower --lr than {lr:g}"
        )

    def state_dict(self) -> dict:
        return {"in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict) -> None:
        self.in_a_row = state["in_a_row"]
