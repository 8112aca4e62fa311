"""Times and waits in the units that are shown."""


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
