"""Plain text tables."""


def columns(rows: list[list[str]]) -> str:
    """Align rows of equal length: the first column to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("    ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
