"""Steps that teach nothing: a loss or gradient that is not finite, or nothing to count."""

from minitransformer.files import UserError

LONGEST = 10  # skipped steps in a row after which the run stops


class SkippedSteps:
    """Count skipped steps in a row. Such a step changes no weight; a checkpoint holds the count."""

    def __init__(self):
        self.in_a_row = 0

    def note(self, step: int, taken: bool, count: float) -> str:
        """Note a step; return why it was skipped, "" if it was not.

        Errors: UserError after LONGEST in a row; the run resumes from where it was still finite.
        """
        self.in_a_row = 0 if taken else self.in_a_row + 1
        if taken:
            return ""
        reason = "its loss or gradient is not finite" if count else "it has nothing to learn from"
        if self.in_a_row == LONGEST:
            raise UserError(
                f"{LONGEST} steps in a row were skipped, up to step {step}: {reason}; go on with"
                " --resume and a lower --lr, or with other text"
            )
        return reason

    def state_dict(self) -> dict:
        return {"in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict) -> None:
        self.in_a_row = state["in_a_row"]
