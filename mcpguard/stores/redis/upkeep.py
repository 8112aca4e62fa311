"""Deletes old rows and expired counters of a namespace, on a connection of its own, so that no call waits."""

import struct
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial

from mcpguard.light_typing import Any, Final
from mcpguard.stores.redis import rows
from mcpguard.stores.redis.link import Command, Link, scan
from mcpguard.stores.redis.scripts import script
from mcpguard.stores.redis.states import counter_key
from mcpguard.stores.redis.url import RedisUrl

EVERY_MS: Final = 60_000
"""How often upkeep is done, by one wrapper for all."""

TIMEOUT_S: Final = 2.0
"""How long a step may take. No call waits for it."""

PORTION_S: Final = 2.0
"""After this long upkeep pauses, because the same thread renews leases."""

_NO_BOUND: Final = 2**53 - 1

_DROP_UNUSED: Final = """
local gone = 0
for at = 2, #KEYS, 2 do
  if redis.call('EXISTS', KEYS[at], KEYS[at + 1]) == 0 then
    gone = gone + redis.call('HDEL', KEYS[1], string.match(KEYS[at], '%d+$'))
  end
end
return gone
"""


def prune(address: RedisUrl, prefix: str, before_us: int) -> Iterator[int]:
    """Delete a namespace's rows that were written before a time. Yields the number of rows of each portion.

    Args:
        address: The server.
        prefix: The beginning of the namespace's keys.
        before_us: The time, by the server's clock.

    Raises:
        StoreUnavailable: The server does not answer, or refuses.
    """
    keys = rows.audit_keys(prefix)
    link = Link(address, timeout_s=TIMEOUT_S, key=keys[0], deadline_s=_soon_s())
    try:
        while _ask(link, ("EXISTS", *keys[:2])):
            seconds, part_us = _ask(link, ("TIME",))
            keep_ms = (int(seconds) * 1_000_000 + int(part_us) - before_us) // 1000
            dropped = _ask(link, ("EVAL", script("prune"), len(keys), *keys, struct.pack("<qq", _NO_BOUND, max(0, keep_ms))))
            if not dropped:
                return
            yield int(dropped)
    finally:
        link.close()


class Upkeep:
    """Upkeep of a namespace, in small pieces: the server decides no call while it runs one.

    The scripts that write rows keep the audit log below `max_bytes`. Upkeep makes it smaller if that bound was lowered.

    Args:
        address: The server.
        prefix: The beginning of the namespace's keys.
        keep_us: How long audit rows are kept.
        max_bytes: The bound of the audit log.
    """

    def __init__(self, address: RedisUrl, prefix: str, *, keep_us: int, max_bytes: int) -> None:
        self._address = address
        self._prefix = prefix
        self._keep_us = keep_us
        self._max_bytes = max_bytes
        self._next_s = 0.0
        self._steps: Generator[None, None, None] | None = None  # what is left of the upkeep that has begun

    @property
    def is_unfinished(self) -> bool:
        """Whether `tend` has to be called soon to go on."""
        return self._steps is not None

    def tend(self) -> None:
        """Do upkeep, unless a wrapper has done it in the last minute. If it takes longer than `PORTION_S`, do a part of it.

        Raises:
            StoreUnavailable: It could not be done.
        """
        steps, self._steps = self._steps, None
        if steps is None:
            if time.monotonic() < self._next_s:
                return
            self._next_s = time.monotonic() + EVERY_MS / 1000
            steps = self._work()
        until_s = time.monotonic() + PORTION_S
        for _ in steps:
            if time.monotonic() > until_s:
                self._steps = steps
                return

    def close(self) -> None:
        """Leave the rest of the upkeep that has begun."""
        if self._steps is not None:
            self._steps.close()
            self._steps = None

    def _work(self) -> Generator[None, None, None]:
        """Do upkeep, and pause after each piece."""
        with self._link() as link:
            (is_mine,) = link.ask([("SET", self._prefix + "tended", 1, "NX", "PX", EVERY_MS)], deadline_s=_soon_s())
            if is_mine is not None:  # it is an error if the server's memory is full: deleting rows makes room
                yield from self._prune(link)

    def run(self, text: str, *rest: bytes | str | int) -> Any:
        """Run a script, and return its reply.

        Args:
            text: The script.
            rest: The number of keys, the keys, and the arguments.

        Raises:
            StoreUnavailable: The server does not answer, or refuses.
        """
        with self._link() as link:
            return _ask(link, ("EVAL", text, *rest))

    def _link(self) -> closing[Link]:
        return closing(Link(self._address, timeout_s=TIMEOUT_S, key=self._prefix + "audit", deadline_s=_soon_s()))

    def _prune(self, link: Link) -> Iterator[None]:
        """Delete old rows, and index entries of expired counters."""
        keys = rows.audit_keys(self._prefix)
        bounds = struct.pack("<qq", self._max_bytes, self._keep_us // 1000)
        while _ask(link, ("EVAL", script("prune"), len(keys), *keys, bounds)):
            yield
        yield from self._drop_counters(link)

    def _drop_counters(self, link: Link) -> Iterator[None]:
        """Delete the index entries of counters whose keys have expired."""
        index = self._prefix + "counters"
        for some in scan(partial(_ask, link), index):
            if some:
                keys = [counter_key(self._prefix, int(one), window_us=us) for one in some for us in (1, 0)]
                _ask(link, ("EVAL", _DROP_UNUSED, 1 + len(keys), index, *keys))
                yield


def _ask(link: Link, command: Command) -> Any:
    return link.checked(link.ask([command], deadline_s=_soon_s())[0])


def _soon_s() -> float:
    return time.monotonic() + TIMEOUT_S
