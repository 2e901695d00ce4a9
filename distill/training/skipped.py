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
        self.in_a_row = 0 if taken else self.in_a_row + 1
        if taken:
            return ""
        reason = "its loss or gradient is not finite" if count else "it has nothing to learn from"
        if self.in_a_row == LONGEST:
            remedy = "go on with --resume and a lower --lr"
            if count == 0:
                remedy = "all its tokens are special; go past them with --resume"
                self.in_a_row = 0
                save(step)
            raise UserError(
                f"{LONGEST} steps in a row were skipped, up to step {step}: {reason}; {remedy}"
            )
        return reason

    def state_dict(self) -> dict:
        return {"in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict) -> None:
        self.in_a_row = state["in_a_row"]
