"""Spans of time and sizes, as people read them."""

from typing import Final

_UNITS_S: Final = {"d": 86_400, "h": 3600, "min": 60, "s": 1}


def span(seconds: float) -> str:
    """A span of time in its largest unit, rounded down.

    >>> span(200_000), span(61), span(0.4)
    ('2 d', '1 min', '0 s')
    """
    unit, size = next(((unit, size) for unit, size in _UNITS_S.items() if seconds >= size), ("s", 1))
    return f"{int(max(0, seconds) // size)} {unit}"


def size(count_bytes: int) -> str:
    """A number of bytes.

    >>> size(900), size(9_000_000), size(2_500_000_000)
    ('0.9 kB', '9.0 MB', '2.5 GB')
    """
    unit, factor = next(((unit, factor) for unit, factor in (("GB", 1e9), ("MB", 1e6)) if count_bytes >= factor), ("kB", 1e3))
    return f"{count_bytes / factor:.1f} {unit}"
