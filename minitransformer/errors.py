"""Errors that the user can mend, and how any error is told in one line."""


class UserError(ValueError):
    """A user error; the message is one line: what is wrong, expected and actual values, remedy."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; libraries explain themselves in paragraphs."""
    return str(error).strip().split("\n")[0] or type(error).__name__
