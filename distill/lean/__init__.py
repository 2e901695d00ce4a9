"""The methods' losses, computed faster; tests check that both agree. Skip them at first."""


def slices(start, stop, size):
    """Return start:stop in parts of at most `size`."""
    return [slice(i, min(i + size, stop)) for i in range(start, stop, size)]
