"""Steps that teach nothing: a loss or gradient that is not finite, or nothing to count."""

from collections.abc import Callable

from minitransformer.errors import UserError

LONGEST = 10  # skipped steps in a row after which the run stops


class SkippedSteps:
    """Count skipped steps in a row. Such a step changes no weight; a checkpoint holds the count."""

    def __init__(self):
        self.in_a_row = 0

    def note(self, step: int, taken: bool, count: float, save: Callable[[int], None]) -> str:
        """Note a step; return why it was skipped, "" if it was not.

        Errors: UserError after LONGEST in a row. If this step had nothing to count it is saved
        before, so that --resume goes past it; if its loss was not finite, the run resumes from
        where it was still finite.
        """
        if taken:
            self.in_a_row = 0
            return ""
        self.in_a_row += 1
        enough = self.in_a_row >= LONGEST
        if count == 0:
            if enough:
                self.in_a_row = 0
                save(step)
                raise UserError(
                    f"{LONGEST} steps in a row had nothing to learn from, up to step {step}: their"
                    " tokens are all special; go past them with --resume, or train on other text"
                )
            return "it has nothing to learn from"
        if enough:
            raise UserError(
                f"{LONGEST} steps in a row had no finite loss or gradient, up to step {step}; go on"
                " with --resume and a lower --lr"
            )
        return "its loss or gradient is not finite"

    def state_dict(self) -> dict:
        return {"in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict) -> None:
        self.in_a_row = state["in_a_row"]
