"""Deletes old rows and expired counters of a namespace, on a connection of its own, so that no call waits."""

import struct
import time
from collections.abc import Iterator
from contextlib import closing

from mcpguard.light_typing import Final
from mcpguard.stores.redis.layout import RedisKeys
from mcpguard.stores.redis.link import Link, scan
from mcpguard.stores.redis.server import ASIDE_S, RedisServer, parse_time_us, script
from mcpguard.stores.redis.url import RedisUrl

EVERY_MS: Final = 60_000
"""How often upkeep is done, by one wrapper for all."""

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


def prune(address: RedisUrl, namespace: str, before_us: int) -> Iterator[int]:
    """Delete a namespace's rows that were written before a time. Yields the number of rows of each portion.

    Args:
        address: The server.
        namespace: The namespace.
        before_us: The time, by the server's clock.

    Raises:
        StoreUnavailable: The server does not answer, or refuses.
    """
    keys = RedisKeys(namespace)
    with closing(Link(address, timeout_s=ASIDE_S, key=keys.meta)) as link:
        while link.reply("EXISTS", *keys.audit[:2]):
            keep_us = parse_time_us(link.reply("TIME")) - before_us
            dropped = _prune_some(link, keys, max_bytes=_NO_BOUND, keep_us=max(0, keep_us))
            if not dropped:
                return
            yield dropped


class RedisUpkeep:
    """Upkeep of a namespace, in small pieces: the server decides no call while it runs one.

    The scripts that write rows keep the audit log below `max_bytes`. Upkeep makes it smaller if that bound was lowered.

    Args:
        server: The namespace.
        keep_us: How long audit rows are kept.
        max_bytes: The bound of the audit log.

    Attributes:
        is_unfinished: Whether `tend` has to be called soon to go on.
    """

    def __init__(self, server: RedisServer, *, keep_us: int, max_bytes: int) -> None:
        self._server = server
        self._keep_us = keep_us
        self._max_bytes = max_bytes
        self._next_s = 0.0
        self._cursor = b"0"  # up to which labels are examined
        self.is_unfinished = False

    def tend(self) -> None:
        """Do upkeep, unless a wrapper has done it in the last minute. If it takes longer than `PORTION_S`, do a part of it.

        Raises:
            StoreUnavailable: It could not be done.
        """
        goes_on, self.is_unfinished = self.is_unfinished, False
        if not goes_on and time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + EVERY_MS / 1000
        keys = self._server.keys
        with self._server.aside() as link:
            if not goes_on and link.ask([("SET", keys.tended, 1, "NX", "PX", EVERY_MS)]) == [None]:
                return  # the reply is an error if the server's memory is full: deleting rows makes room
            until_s = time.monotonic() + PORTION_S
            while _prune_some(link, keys, max_bytes=self._max_bytes, keep_us=self._keep_us):
                if time.monotonic() > until_s:
                    self.is_unfinished = True
                    return
            for cursor, some in scan(lambda command: link.reply(*command), keys.labels, self._cursor):
                if some:  # a counter whose keys have expired leaves its label
                    both = [key for one in some for key in (keys.log(int(one)), keys.in_flight(int(one)))]
                    link.reply("EVAL", _DROP_UNUSED, 1 + len(both), keys.labels, *both)
                self._cursor = cursor
                if cursor != b"0" and time.monotonic() > until_s:
                    self.is_unfinished = True
                    return


def _prune_some(link: Link, keys: RedisKeys, *, max_bytes: int, keep_us: int) -> int:
    """Delete some audit rows that are too old, or for which there is no room. Returns how many; 0 if none is left to delete."""
    bounds = struct.pack("<qq", max_bytes, keep_us // 1000)
    return int(link.reply("EVAL", script("prune"), len(keys.audit), *keys.audit, bounds))
