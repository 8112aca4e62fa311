"""Counters and audit on a server that many machines share.

One decision is one script: it reads the counters of all calls, decides, and writes counters and audit rows, on the server's
clock. It is the pure functions that every other store uses, once more, and tested against them step by step.
All keys of a namespace lie in one slot, `{mcpguard:NAMESPACE}:…`. The audit is bounded by whoever writes to it, in the script.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any, Final

from redis.exceptions import ResponseError

from mcpguard.core import limiter, policy
from mcpguard.core.audit import Outcome, Row, compact, session_of
from mcpguard.core.journal import Journal
from mcpguard.core.limiter import State
from mcpguard.core.policy import Counter, counter_id
from mcpguard.core.verdict import DecisionRequest, Verdict
from mcpguard.errors import StoreUnavailable
from mcpguard.stores.api import Clock, Entry, Held, Options, Wanted
from mcpguard.stores.clock import monotonic_us, wall_us
from mcpguard.stores.redis import checks, notes, rows, states
from mcpguard.stores.redis.link import Command, Link, scan
from mcpguard.stores.redis.request import appended, arguments, bounds, counters_of, named, verdicts_of
from mcpguard.stores.redis.scripts import script
from mcpguard.stores.redis.seen import Seen
from mcpguard.stores.redis.upkeep import Upkeep
from mcpguard.stores.redis.url import RedisUrl

SCHEMA: Final = 1
"""The form of a namespace's keys. One that was released only gets additions."""

OPEN_TIMEOUT_S: Final = 2.0
"""How long opening takes at the most; no call waits for it."""

LOOK_BACK: Final = 20_000
LOOK_BACK_US: Final = 10_000_000
"""How many of the newest rows are searched for those of a decision whose reply was lost, and how far back before it."""

NEARBY_US: Final = 200_000
"""How far around the time of such a decision others are searched, however many came since."""

_BATCH: Final = 500
_FIRST_LOOK: Final = 8
_LONG_BYTES: Final = 1 << 20
"""Replies of about this length are read in time."""

_TRIES: Final = 3

_Found = tuple[bytes, Sequence[bytes]]
"""The id of a row, and its fields."""


class RedisStore:
    """A store on a server.

    Where no reply to a decision comes, it is unavailable here; the server may still run it until the deadline that it was
    sent with, in the server's time. Then the call is counted though this store did not admit it, so that no limit is
    exceeded. A script that starts after its deadline refuses, and charges nothing.

    Args:
        address: The server.
        options: How it is used.
        clock: The store's time, instead of the server's: for tests.
        wall: Wall-clock time, for the audit.

    Attributes:
        warnings: What the server's owner should know of its set-up.

    Raises:
        StoreUnavailable: It does not answer, refuses us, or is too old.
    """

    needs_tending = False

    def __init__(
        self, address: RedisUrl, options: Options | None = None, *, clock: Clock | None = None, wall: Clock = wall_us
    ) -> None:
        options = options or Options()
        self._shown = address.shown
        self._timeout_s = options.timeout_ms / 1000
        self._max_bytes = options.max_bytes
        self._clock = clock
        self._wall = wall
        self._prefix = states.prefix(options.namespace)
        self._audit = rows.keys(self._prefix)
        names = ("charge", "adopt", "append", "record")
        self._scripts = {name: script(name, told_time=clock is not None) for name in names}
        self._shas: dict[str, bytes] = {}
        self._ahead_us = 0
        self._seen = Seen()
        self._reply_lost = True
        self._upkeep = Upkeep(address, self._prefix, keep_us=options.keep_us, max_bytes=options.max_bytes)
        deadline_s = time.monotonic() + max(OPEN_TIMEOUT_S, self._timeout_s)
        self._link = Link(address, timeout_s=self._timeout_s, key=self._key("meta"), deadline_s=deadline_s)
        try:
            self._begin(deadline_s)
        except BaseException:
            self._link.close()
            raise

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _counter_key(self, key: int) -> str:
        return states.counter_key(self._prefix, key)

    def _begin(self, deadline_s: float) -> None:
        """What every connection begins with: will this server do, and what do all who use it share?"""
        *answers, server_time = self._link.ask([*checks.QUESTIONS, ("TIME",)], deadline_s=deadline_s)
        self._note_time(_time_us(self._link.checked(server_time)))
        self.warnings = checks.judged(self._shown, answers)
        meta = self._key("meta")
        commands: list[Command] = [
            ("HSETNX", meta, "schema", SCHEMA),
            ("HSETNX", meta, "args_key", os.urandom(32)),
            ("HMGET", meta, "schema", "args_key"),
            ("XDEL", self._key("refused"), "0-0"),  # does nothing; what the audit needs only when it is full is refused at once
            ("HDEL", self._key("outcomes"), ""),
            *(("SCRIPT", "LOAD", text) for text in self._scripts.values()),
        ]
        replies = self._link.ask(commands, deadline_s=deadline_s)
        _, _, (schema, self.args_key), _, _, *shas = map(self._link.checked, replies)
        if int(schema) > SCHEMA:
            raise StoreUnavailable(
                f"{self._shown} has schema {int(schema)}, and this mcpguard knows schemas up to {SCHEMA}",
                "use the mcpguard that wrote it, or another namespace",
            )
        self._shas = dict(zip(self._scripts, shas, strict=True))

    def _note_time(self, server_us: int) -> None:
        """Note how far the server's clock is ahead of ours, at least: its reply took some time to come."""
        self._ahead_us = server_us - monotonic_us()

    def _now_us(self) -> int:
        return self._clock() if self._clock else monotonic_us() + self._ahead_us

    def _ask(self, *commands: Command, deadline_s: float | None = None) -> list[Any]:
        """The replies to commands, on a connection that the server has not closed.

        Raises:
            StoreUnavailable: They did not come, or one of them is an error.
        """
        return [self._link.checked(reply) for reply in self._replies(commands, deadline_s)]

    def _replies(self, commands: Sequence[Command], deadline_s: float | None = None) -> list[Any]:
        deadline_s = deadline_s or time.monotonic() + self._timeout_s
        if self._link.is_lost:
            self._link.renew(deadline_s)
            self._begin(deadline_s)
        return self._link.ask(commands, deadline_s=deadline_s)

    def _run(self, name: str, keys: Sequence[str], *args: bytes | str, deadline_s: float | None = None) -> Any:
        """What a script returns. A server that does not know it any more is told it again."""
        rest = (len(keys), *keys, *args, *(() if self._clock is None else (self._clock(),)))
        reply = self._replies([("EVALSHA", self._shas[name], *rest)], deadline_s)[0]
        if isinstance(reply, ResponseError) and str(reply).startswith("NOSCRIPT"):
            reply = self._replies([("EVAL", self._scripts[name], *rest)], deadline_s)[0]
        return self._link.checked(reply)

    def decide(self, requests: Sequence[DecisionRequest], journal: Journal) -> list[Verdict]:
        """See `Store`."""
        time_us = self._wall()
        counters = counters_of(requests)
        values, told = self._charge(requests, counters, journal, time_us)
        self._seen.note(counters, values, self._now_us())
        verdicts = verdicts_of(requests, told)
        if len(verdicts) == 1 and verdicts[0].forwards:
            journal.wrote(requests[0], verdicts[0])
            return verdicts
        journal.rows(requests, verdicts, time_us)  # as the script has written them
        return verdicts

    def _charge(
        self, requests: Sequence[DecisionRequest], counters: Sequence[Counter], journal: Journal, time_us: int
    ) -> tuple[list[bytes | None], list[Any]]:
        """Let the server decide, within the time that a call has: what the counters are now, and what became of each call."""
        end_s = time.monotonic() + self._timeout_s
        keys, labels = named(self._prefix, tuple(counters))
        told = arguments(requests, counters, journal, time_us)
        for _ in range(_TRIES):
            deadline_us = int(end_s * 1_000_000) + self._ahead_us
            self._reply_lost = True
            bounded = bounds(deadline_us, journal.seq, self._max_bytes)
            server_us, *done = self._run("charge", keys, labels, bounded, *told, deadline_s=end_s)
            self._note_time(server_us)
            self._reply_lost = False
            if done or not requests:
                return done[: len(counters)], done[len(counters) :]
            # Its clock runs ahead of what we thought: it has charged nothing, and now we know its time
        raise StoreUnavailable(f"{self._shown} takes up calls too late", "is its machine, or its clock, in trouble?")

    def append(self, rows_to_write: Sequence[Row]) -> list[int]:
        """See `Store`. What a row says takes the place of what a decision whose reply was lost has written of the same call."""
        doubled = self._doubled(rows_to_write[0]) if self._reply_lost and rows_to_write else []
        added: list[int] = []
        for at in range(0, len(rows_to_write), _BATCH):
            replaced = doubled if at == 0 else []
            told: list[bytes | str] = [part for stream, name in replaced for part in (str(stream), name)]
            for row in rows_to_write[at : at + _BATCH]:
                told += (str(rows.stream(row)), rows.packed(row))
            added += map(rows.row_id, self._run("append", self._audit, appended(self._max_bytes, len(replaced)), *told))
        self._reply_lost = False
        return added

    def _doubled(self, first: Row) -> list[tuple[int, bytes]]:
        """The rows that the session of `first` has written already, from its number on.

        A decision has written them when `first` was made; what was written back since, lately. A call may wait for the search:
        it is given up after half a budget.
        """
        end_s = time.monotonic() + self._timeout_s / 2
        session = session_of(first)
        age_us = max(0, self._wall() - first.time_us)
        made_us = self._now_us() - age_us
        begin_us = made_us - NEARBY_US - int(self._timeout_s * 1_000_000)  # its row was made when the reply did not come
        nearby = ("XRANGE", str(max(0, begin_us) // 1000), str(max(0, made_us + NEARBY_US) // 1000))
        lately = ("XREVRANGE", "+", str(max(0, made_us - LOOK_BACK_US) // 1000))
        doubled: dict[tuple[int, bytes], None] = {}
        for stream in (1, 2) if age_us > NEARBY_US else ():
            for name, seq in self._rows_of(session, stream, *nearby, end_s=end_s - self._timeout_s / 4):
                if seq >= first.seq:
                    doubled[stream, name] = None
        for stream in (1, 2):
            for name, seq in self._rows_of(session, stream, *lately, end_s=end_s):
                if seq < first.seq:
                    break
                doubled[stream, name] = None
        return list(doubled)

    def _rows_of(
        self, session: str, stream: int, command: str, begin: str, end: str, *, end_s: float
    ) -> Iterator[tuple[bytes, int]]:
        """A session's rows with their numbers, in the order of a command, until a time. Few at first: rows may be long."""
        count, seen, needle = _FIRST_LOOK, 0, session.encode()
        while seen < LOOK_BACK:
            found = self._ask((command, self._audit[stream - 1], begin, end, "COUNT", count))[0]
            for name, fields in found:
                if any(needle in part for part in fields):  # to read them all would take its time
                    one = rows.row(fields)
                    if session_of(one) == session:
                        yield name, one.seq
            seen += len(found)
            if len(found) < count or time.monotonic() > end_s:
                return
            size = sum([len(part) for _, fields in found for part in fields])
            count = max(1, min(8 * count, _BATCH, _LONG_BYTES * count // size))
            begin = "(" + found[-1][0].decode()

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """See `Store`."""
        for at in range(0, len(outcomes), _BATCH):
            some = outcomes[at : at + _BATCH]
            told = [part for row, outcome, us in some for part in (rows.stream_id(row), f"{outcome} {us}")]
            self._run("record", (self._key("audit"), self._key("outcomes")), *told)

    def entries(self, *, after: int = 0, wanted: Wanted | None = None) -> Iterator[Entry]:
        """See `Store`."""
        while found := self._page("XRANGE", "(" + rows.stream_id(after), "+"):
            yield from self._joined(found, wanted)
            after = rows.row_id(found[-1][0])

    def newest(self, *, wanted: Wanted | None = None) -> Iterator[Entry]:
        """See `Store`."""
        before = "+"
        while found := self._page("XREVRANGE", before, "-"):
            yield from self._joined(found, wanted)
            before = "(" + found[-1][0].decode()

    def _page(self, command: str, begin: str, end: str) -> list[_Found]:
        """The next rows of both streams, in the order of a command, as they were at one moment."""
        asked = [(command, key, begin, end, "COUNT", _BATCH) for key in self._audit[:2]]
        *_, pages = self._ask(("MULTI",), *asked, ("EXEC",))
        sign = -1 if command == "XREVRANGE" else 1
        found = [(sign * rows.row_id(name), (name, fields)) for page in pages for name, fields in self._link.checked(page)]
        found.sort(key=itemgetter(0))
        for page in pages:
            if len(page) == _BATCH:  # what comes after its last row is not read yet
                last = sign * rows.row_id(page[-1][0])
                found = [one for one in found if one[0] <= last]
        return [one for _, one in found]

    def _joined(self, found: Sequence[_Found], wanted: Wanted | None) -> list[Entry]:
        """Rows that are wanted, with how their calls ended."""
        outcomes = self._ask(("HMGET", self._key("outcomes"), *(name for name, _ in found)))[0]
        joined = [rows.entry(name, fields, outcome) for (name, fields), outcome in zip(found, outcomes, strict=True)]
        return [one for one in joined if wanted is None or wanted.admits(one.record)]

    def last_seen(self) -> tuple[dict[int, State], int]:
        """See `Store`."""
        return self._seen.logs(), self._now_us()

    def adopt(self, logs: Sequence[tuple[Counter, State]], once: str) -> None:
        """See `Store`."""
        for at in range(0, len(logs), _BATCH):
            some = logs[at : at + _BATCH]
            counters = [self._counter_key(counter.id) for counter, _ in some]
            keys = [self._key(f"adopted:{once}:{at}"), self._key("counters"), *counters]
            told = [part for counter, log in some for part in (str(counter.window_us), counter.label, compact(log))]
            self._run("adopt", keys, *told)

    def held(self) -> list[Held]:
        """See `Store`."""
        index: dict[bytes, bytes] = {}
        for some_labels in scan(lambda command: self._ask(command)[0], self._key("counters")):
            index |= some_labels
        held: list[Held] = []
        labels = list(index.items())
        for at in range(0, len(labels), _BATCH):
            some = labels[at : at + _BATCH]
            values, time_there = self._ask(("MGET", *(self._counter_key(int(key)) for key, _ in some)), ("TIME",))
            now_us = self._clock() if self._clock else _time_us(time_there)
            for (_, name), value in zip(some, values, strict=True):
                label = name.decode()
                used = limiter.used(limiter.live(states.log(value), policy.window_of(label), now_us))
                held += [Held(label, used)] if used else []
        return held

    def reset(self, labels: Sequence[str]) -> int:
        """See `Store`."""
        gone = 0
        for at in range(0, len(labels), _BATCH):
            ids = [counter_id(label) for label in labels[at : at + _BATCH]]
            keys = [self._counter_key(key) for key in ids]
            *_, (count, _) = self._ask(("MULTI",), ("DEL", *keys), ("HDEL", self._key("counters"), *ids), ("EXEC",))
            gone += count
            self._seen.forget(ids)
        return gone

    def peek(self, counters: Sequence[Counter]) -> tuple[list[State], int]:
        """See `Store`."""
        asked = [("MGET", *(self._counter_key(counter.id) for counter in counters))] if counters else []
        time_there, *values = self._ask(("TIME",), *asked)
        now_us = self._clock() if self._clock else _time_us(time_there)
        return [states.log(value) for value in (values[0] if values else ())], now_us

    def noted_agents(self, namespace: str, tool_use_ids: Sequence[str]) -> dict[str, str]:
        """See `Store`."""
        if not tool_use_ids:
            return {}
        values = self._ask(notes.asking(namespace, tool_use_ids))[0]
        return notes.read(tool_use_ids, values, wall_us=self._wall())

    def tend(self) -> None:
        """See `Store`. Once a minute, by one wrapper for all: lets go of what is too old or too much.

        What fails is put off: whether the server is there, calls find out.
        """
        with contextlib.suppress(StoreUnavailable):
            self._upkeep.tend()

    def close(self) -> None:
        """See `Store`."""
        self._link.close()


def _time_us(reply: Sequence[bytes]) -> int:
    """What a server has answered to `TIME`, as one number."""
    seconds, us = reply
    return int(seconds) * 1_000_000 + int(us)
