"""Times and spans of time, as policies and options write them and as people read them."""

import re

from mcpguard.light_typing import Final
from mcpguard.text.printing import amount

UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
"""The units of a span of time and their seconds, the shortest first."""

_NAMES: Final = {"s": "second", "m": "minute", "h": "hour", "d": "day", "w": "week"}
SPAN: Final = re.compile(r"([0-9]{1,30})([smhdw])")
"""A span of time as a text."""


def seconds_of(text: object) -> int | None:
    """The seconds of a span of time; None if the text is no such span.

    >>> seconds_of("90m"), seconds_of("0s"), seconds_of("1 h"), seconds_of(5)
    (5400, 0, None, None)
    """
    match = SPAN.fullmatch(text) if isinstance(text, str) else None
    return int(match[1]) * UNITS_S[match[2]] if match else None


def span(us: int) -> str:
    """A span of whole seconds in the longest unit that has no fraction, as `seconds_of` parses it.

    >>> span(5_000_000), span(5_400_000_000), span(0)
    ('5s', '90m', '0s')
    """
    count, unit = _in_longest_unit(us)
    return f"{count}{unit}"


def window(us: int) -> str:
    """The length of a window in words.

    >>> window(3_600_000_000), window(5_400_000_000)
    ('hour', '90 minutes')
    """
    return span_in_words(us).removeprefix("1 ")


def span_in_words(us: int) -> str:
    """A span of time in words.

    >>> span_in_words(5_000_000), span_in_words(1_000_000)
    ('5 seconds', '1 second')
    """
    count, unit = _in_longest_unit(us)
    return amount(count, _NAMES[unit])


def _in_longest_unit(us: int) -> tuple[int, str]:
    unit = next((unit for unit in reversed(UNITS_S) if us and us % (UNITS_S[unit] * 1_000_000) == 0), "s")
    return us // (UNITS_S[unit] * 1_000_000), unit


def span_up(ms: int, below: int) -> str:
    """A wait, rounded up, in the shortest unit of which it has fewer than `below`; else in weeks.

    >>> span_up(1, 1000), span_up(999_001, 1000), span_up(90_000_000, 1000)
    ('1s', '17m', '25h')
    """
    spans = [(-(-ms // (seconds * 1000)), unit) for unit, seconds in UNITS_S.items()]
    return next(f"{count}{unit}" for count, unit in spans if count < below or unit == "w")


def span_down(seconds: float) -> str:
    """A span of time in its longest unit up to days, rounded down.

    >>> span_down(200_000), span_down(61), span_down(0.4)
    ('2 d', '1 min', '0 s')
    """
    unit = next((unit for unit in "dhm" if seconds >= UNITS_S[unit]), "s")
    return f"{int(max(0, seconds) // UNITS_S[unit])} {'min' if unit == 'm' else unit}"


def rfc3339(time_us: int) -> str:
    """Wall-clock time in UTC, to the microsecond. Exact for every time from year 1 to 9999.

    >>> rfc3339(1_767_225_600_000_001)
    '2026-01-01T00:00:00.000001Z'
    """
    from datetime import UTC, datetime, timedelta  # loaded with the first audit row that is shown: it takes a millisecond

    time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")


def ms_up(us: int) -> int:
    """Microseconds in milliseconds, rounded up, so that a wait of that length is long enough."""
    return -(-us // 1000)
