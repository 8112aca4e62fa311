"""Whether a refused call is held until its limits have room, and for how long."""

from collections.abc import Sequence

from mcpguard.light_typing import Final
from mcpguard.limiter.sliding import Exceeded, Limit, State, charge, live, retry_after

MAX_WAITING: Final = 64
"""How many calls a wrapper holds. Further calls are denied at once."""

MAX_WAITING_BYTES: Final = 16 * 1024 * 1024
"""If the calls that a wrapper holds are longer together, further calls are denied at once, too: they are kept in memory."""


def is_held(limits: Sequence[Limit], exceeded: Sequence[Exceeded], waited_us: int) -> bool:
    """Whether a refused call is held.

    Each limit that refuses it must have a `wait` that has not passed, and must have room before that. Of a cap only the wait
    counts: nobody knows when a call in flight will end.

    Args:
        limits: The call's limits.
        exceeded: The limits that refuse it.
        waited_us: How long it has been held.
    """
    for at, retry_us in exceeded:
        limit = limits[at]
        left_us = limit.wait_us - waited_us
        if left_us <= 0 or (retry_us is None and limit.counts != "concurrent") or (retry_us or 0) > left_us:
            return False
    return True


def wait_in_queue_us(limit: Limit, log: State, now_us: int, ahead: Sequence[int]) -> int | None:
    """After how long a limit has room for a call, if the calls that wait before it are admitted as soon as there is room.

    Args:
        limit: A limit of the call that has a window.
        log: Its counter's log.
        now_us: The store's time.
        ahead: What each of the calls before it takes of the limit, in their order.

    Returns:
        The wait in microseconds; None if the call costs more than the whole limit.
    """
    n, window_us = limit.n, limit.window_us
    at_us = max(now_us, log[-2]) if log else now_us
    for cost in filter(None, ahead):  # entries without cost would push others together in a full log
        log = live(log, window_us, at_us)
        wait_us = retry_after(log, n, window_us, at_us, cost)
        if wait_us is not None:
            at_us += wait_us
            log = charge(live(log, window_us, at_us), n, window_us, at_us, cost)
    wait_us = retry_after(live(log, window_us, at_us), n, window_us, at_us, limit.cost)
    return None if wait_us is None else at_us - now_us + wait_us
