"""What keeps a namespace small, away from every call's path and on a connection of its own."""

import time
from functools import partial
from typing import Any, Final

from mcpguard.stores.redis.address import RedisAddress
from mcpguard.stores.redis.link import Command, Link, scan
from mcpguard.stores.redis.rows import BUCKET_MS, bucket, place
from mcpguard.stores.redis.states import counter_key

EVERY_MS: Final = 60_000
"""How often; one wrapper does it for all."""

TIMEOUT_S: Final = 2.0
"""How long any step may take. No call waits for it."""

_AT_ONCE: Final = 10_000
"""Rows that go in one command: some milliseconds, so that no decision waits long behind it."""

_BATCH: Final = 500

_DROP_UNUSED: Final = """
local gone = 0
for at = 2, #KEYS do
  if redis.call('EXISTS', KEYS[at]) == 0 then
    gone = gone + redis.call('HDEL', KEYS[1], string.match(KEYS[at], '%d+$'))
  end
end
return gone
"""


class Upkeep:
    """Lets go of what is too old or too much.

    Args:
        address: The server.
        prefix: What the namespace's keys begin with.
        keep_us: How long audit rows are kept.
        max_bytes: How much memory they may take before the oldest go.
    """

    def __init__(self, address: RedisAddress, prefix: str, *, keep_us: int, max_bytes: int) -> None:
        self._address = address
        self._prefix = prefix
        self._keep_us = keep_us
        self._max_bytes = max_bytes
        self._next_s = 0.0

    def tend(self) -> None:
        """Once a minute, if no other wrapper has done it.

        Raises:
            StoreUnavailable: It could not be done.
        """
        if time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + EVERY_MS / 1000
        link = Link(self._address, timeout_s=TIMEOUT_S, key=self._prefix + "audit", deadline_s=_soon_s())
        try:
            if self._ask(link, ("SET", self._prefix + "tended", 1, "NX", "PX", EVERY_MS)) is not None:
                self._prune(link)
        finally:
            link.close()

    def _prune(self, link: Link) -> None:
        seconds, _ = self._ask(link, ("TIME",))
        audit = self._prefix + "audit"
        horizon_ms = int(seconds) * 1000 - self._keep_us // 1000
        while self._ask(link, ("XTRIM", audit, "MINID", "~", max(0, horizon_ms), "LIMIT", _AT_ONCE)):
            pass
        self._drop_outcomes(link)
        if too_many := self._too_many(link):
            while self._ask(link, ("XTRIM", audit, "MAXLEN", "~", too_many, "LIMIT", _AT_ONCE)):
                pass
            self._drop_outcomes(link)
        self._drop_counters(link)

    def _too_many(self, link: Link) -> int:
        """How many rows may stay, if they and their outcomes take too much memory; else 0."""
        audit = self._prefix + "audit"
        keys = [audit, *self._outcomes(link).values()]
        size = 0
        for at in range(0, len(keys), _BATCH):  # a month has thousands of them: one by one they would take minutes
            questions = [("MEMORY", "USAGE", key) for key in keys[at : at + _BATCH]]
            size += sum([int(link.checked(reply) or 0) for reply in link.ask(questions, deadline_s=_soon_s())])
        if size <= self._max_bytes:
            return 0
        return max(1, int(self._ask(link, ("XLEN", audit))) * self._max_bytes // size)

    def _drop_outcomes(self, link: Link) -> None:
        """Drop the outcomes of rows that are gone."""
        oldest = self._ask(link, ("XRANGE", self._prefix + "audit", "-", "+", "COUNT", 1))
        seconds, _ = self._ask(link, ("TIME",))
        first = bucket(place(oldest[0][0])) if oldest else int(seconds) * 1000 // BUCKET_MS
        for one, key in self._outcomes(link).items():
            if one < first:
                self._ask(link, ("UNLINK", key))
                self._ask(link, ("SREM", self._prefix + "outcomes", one))
            elif one == first and oldest:
                self._drop_some_outcomes(link, key, place(oldest[0][0]))

    def _outcomes(self, link: Link) -> dict[int, str]:
        """The hashes of outcomes, by their numbers."""
        found = self._ask(link, ("SMEMBERS", self._prefix + "outcomes"))
        return {int(one): f"{self._prefix}outcomes:{int(one)}" for one in found}

    def _drop_some_outcomes(self, link: Link, key: str, oldest: int) -> None:
        """Drop outcomes from a hash some of whose rows are still there."""
        for some in scan(partial(self._ask, link), key):
            if gone := [name for name in some if place(name) < oldest]:
                self._ask(link, ("HDEL", key, *gone))

    def _drop_counters(self, link: Link) -> None:
        """Drop counters from the index whose keys have expired."""
        index = self._prefix + "counters"
        for some in scan(partial(self._ask, link), index):
            if some:
                keys = [counter_key(self._prefix, int(one)) for one in some]
                self._ask(link, ("EVAL", _DROP_UNUSED, 1 + len(keys), index, *keys))

    def _ask(self, link: Link, command: Command) -> Any:
        return link.checked(link.ask([command], deadline_s=_soon_s())[0])


def _soon_s() -> float:
    return time.monotonic() + TIMEOUT_S
