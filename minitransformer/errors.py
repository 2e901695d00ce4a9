"""Errors that the user can correct, and how any error becomes one short line."""

LONGEST = 390  # characters of a message


class UserError(ValueError):
    """A user error; the message is one line: what is wrong, expected and actual values, remedy."""

    def __init__(self, message: str):
        super().__init__(shortened(message, LONGEST))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; libraries explain themselves in paragraphs."""
    line = str(error).strip().split("\n")[0]
    return shortened(line, 200) or type(error).__name__


def shortened(line: str, length: int) -> str:
    """Cut a line to this many characters, with dots for what was cut."""
    return line if len(line) <= length else line[: length - 4] + " ..."
