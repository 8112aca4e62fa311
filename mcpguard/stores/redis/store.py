"""Stores counters and audit log on a server that many machines share.

A decision is one script, which runs by the server's clock. It reads the counters of all calls, decides, and writes counters and
audit rows. It is a second implementation of `limiter/sliding.py`, and is tested against that step by step. All keys of a
namespace are in one slot, `{mcpguard:NAMESPACE}:…`. The script that writes a row also makes room for it.
"""

import contextlib
import struct
from collections.abc import Callable, Mapping, Sequence

from mcpguard.errors import StoreUnavailable
from mcpguard.identity.client_agents import NOTE_KEPT_US
from mcpguard.light_typing import Any, Final
from mcpguard.limiter.plan import Counter, counter_id
from mcpguard.limiter.sliding import State
from mcpguard.session.audit import Outcome, Row, session_of
from mcpguard.session.journal import Journal
from mcpguard.session.verdict import DecisionRequest, Ending, Verdict
from mcpguard.stores.api import Clock, Options
from mcpguard.stores.clock import boot_us, wall_us
from mcpguard.stores.redis import layout
from mcpguard.stores.redis.layout import RedisKeys
from mcpguard.stores.redis.leases import LeasedCall, Leases
from mcpguard.stores.redis.reader import RedisReader
from mcpguard.stores.redis.request import Commands, counters_of, errors_of, verdicts_of
from mcpguard.stores.redis.server import LEASE_US, TRIES, RedisServer
from mcpguard.stores.redis.upkeep import RedisUpkeep
from mcpguard.stores.redis.url import RedisUrl
from mcpguard.stores.rows import Losses
from mcpguard.text.printing import compact

MOST_SEEN: Final = 20_000
"""How many counters are remembered: as many as local counting keeps."""

_LEFT_SHARE: Final = 3 / 4
"""The share of them that is left when there were more, so that cleaning up is rare."""

_pack: Final = struct.Struct("<qq").pack
"""Packs two numbers, as the first argument of `settle.lua` and `append.lua` has them."""


class RedisStore(RedisReader):
    """A store on a server.

    A decision without a reply is `StoreUnavailable` here, but the server may still run its script. Each script has a deadline
    in the server's time, and refuses after it without charging. Before it, the call is counted although this store did not
    admit it, so no limit is exceeded.

    Args:
        address: The server's address.
        options: How the store is used.
        clock: The store's time instead of the server's, for tests.
        wall: Wall-clock time, for the audit log.
        lease_us: How long a call in flight keeps its place if this process dies or loses the server.
        notify: Is told of damaged rows, which are left out. Without it such a row is an error.

    Attributes:
        warnings: See `Recoverable`.

    Raises:
        StoreUnavailable: The server does not answer, refuses us, or is too old.
    """

    def __init__(
        self,
        address: RedisUrl,
        options: Options | None = None,
        *,
        clock: Clock | None = None,
        wall: Clock = wall_us,
        lease_us: int = LEASE_US,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        options = options or Options()
        self._server = server = RedisServer(address, options, clock=clock, lease_us=lease_us)
        super().__init__(server, Losses(address.shown, notify).skip)
        self.warnings = server.warnings
        self._max_bytes = options.max_bytes
        self._wall = wall
        self._ticks = clock or boot_us
        self._leases = Leases(lease_us, self._ticks)
        self._commands = Commands(server.shas["charge"], server.keys, max_bytes=options.max_bytes, clock=clock)
        self._seen = Seen()
        self._known: set[str] = set()  # the sessions of which no reply was lost, so that their rows have no doubles
        self._upkeep = RedisUpkeep(server, keep_us=options.keep_us, max_bytes=options.max_bytes)

    @property
    def args_key(self) -> bytes:
        """See `CallStore`."""
        return self._server.args_key

    def decide(self, requests: Sequence[DecisionRequest], journal: Journal) -> list[Verdict]:
        """See `Store`. The script decides, and writes the rows of calls that are forwarded. Those of others are appended."""
        time_us, before = self._wall(), journal.state
        verdicts = self._decided(requests, journal, time_us)
        denials = journal.rows(requests, verdicts, time_us, are_forwarded_written=True)
        try:
            row_ids = self._append(denials) if denials else []
        except StoreUnavailable:  # the calls are decided without this store, so none of them keeps a place
            self._known.discard(journal.session)  # the calls get other rows, which replace those that are here
            journal.state = before
            for one in verdicts:
                self._leases.end(one.row_id or 0)
            raise
        denied = [one for one in verdicts if one.has_own_row and not one.forwards]
        for one, row_id in zip(denied, row_ids, strict=True):
            one.row_id = row_id
        return verdicts

    def _decided(self, requests: Sequence[DecisionRequest], journal: Journal, time_us: int) -> list[Verdict]:
        """The verdicts on requests. Those that are forwarded have rows, and keep their places."""
        counters = requests[0].plan.counters if len(requests) == 1 else counters_of(requests)
        has_caps = any(one.plan.caps for one in requests)

        def pack(deadline_us: int) -> bytes:
            return self._commands.command(requests, counters, journal, time_us=time_us, deadline_us=deadline_us)

        for _ in range(TRIES):
            sent_us = self._ticks() if has_caps else 0
            self._known.discard(journal.session)  # until it is known which rows there are
            reply = self._server.run_in_time("charge", pack)
            self._seen.note(counters, reply[1:], reply[0])
            verdicts = verdicts_of(requests, counters, reply)
            are_kept = not has_caps or self._keep_places(verdicts, sent_us)
            self._known.add(journal.session)
            if are_kept:
                return verdicts
        raise StoreUnavailable(
            f"{self._server.shown} gave the call's place to another call each time",
            "check whether this process is often stopped",
        )

    def _keep_places(self, verdicts: Sequence[Verdict], sent_us: int) -> bool:
        """Keep the places that calls have just got.

        This process may have been stopped before it read the reply, for longer than the leases. Then they are renewed.

        Returns:
            False if a place was given to another call, so that this one must not be forwarded. Then all rows are deleted.
        """
        places: dict[int, LeasedCall] = {}
        for one in verdicts:
            if one.forwards and one.row_id is not None and (caps := one.taken_caps):
                places[one.row_id] = LeasedCall(self._server.keys.caps(caps), sent_us)
        if not self._leases.are_kept(places, self._server.run):
            self._append((), [(one.row_id, one.decision) for one in verdicts if one.row_id is not None])
            return False
        for call_id, place in places.items():
            self._leases.add(call_id, place)
        return True

    def settle(self, endings: Sequence[Ending]) -> None:
        """See `Store`. If it fails, the places become free when their leases end."""
        keys = self._server.keys
        places: list[tuple[int, str]] = []
        errors: list[tuple[Counter, int]] = []
        for ending in endings:
            places += [(ending.row_id, key) for key in keys.caps(ending.plan.counters)]
            errors += errors_of(ending.plan) if ending.failed else []
        kept = {ending.row_id: self._leases.end(ending.row_id) for ending in endings}
        if not (places or errors):
            return
        named = [keys.labels, *[key for _, key in places], *[keys.log(counter.id) for counter, _ in errors]]
        args = [layout.member(row_id) for row_id, _ in places]
        args += [part for counter, n in errors for part in (str(n), str(counter.window_us), counter.label)]

        def pack(deadline_us: int) -> bytes:
            return self._server.packed("settle", named, _pack(deadline_us, len(places)), *args)

        now_us, *found = self._server.run_in_time("settle", pack)
        self._seen.note([counter for counter, _ in errors], found[len(places) :], now_us)
        freed = [row_id for (row_id, _), was_there in zip(places, found, strict=False) if was_there]
        for call_id, place in kept.items():
            if place is not None:
                self._leases.settled(place, freed.count(call_id))

    def give_places(self, calls: Mapping[int, Sequence[Counter]]) -> None:
        """See `Recoverable`."""
        keys = self._server.keys
        for some in layout.batches(list(calls.items())):
            sent_us = self._ticks()
            named = [keys.in_flight(counter.id) for _, counters in some for counter in counters]
            args = [part for call_id, counters in some for one in counters for part in (one.label, layout.member(call_id))]
            self._server.run("give_places", [keys.labels, *named], *args)
            for call_id, counters in some:
                if counters:
                    self._leases.add(call_id, LeasedCall(keys.caps(counters), sent_us))

    def append(self, rows_to_write: Sequence[Row]) -> list[int]:
        """See `Store`. The rows replace those that a decision without a reply may have written of the same calls."""
        if not rows_to_write:
            return []
        first = rows_to_write[0]
        is_known = session_of(first) in self._known
        written = () if is_known else self._written(first, max(0, self._wall() - first.time_us))
        row_ids = self._append(rows_to_write, [(one.row_id, one.row.decision) for one in written])
        self._known.add(session_of(first))
        return row_ids

    def _append(self, rows: Sequence[Row], replaced: Sequence[tuple[int, str]] = ()) -> list[int]:
        """Append rows, and delete those that they replace: their ids and decisions."""
        row_ids: list[int] = []
        for some in layout.batches(rows) or [()]:
            args: list[bytes | str] = [
                part for row_id, decision in replaced for part in (str(layout.stream(decision)), layout.stream_id(row_id))
            ]
            for row in some:
                args += (str(layout.stream(row.decision)), *layout.packed(row))
            head = _pack(self._max_bytes, len(replaced))
            row_ids += map(layout.row_id, self._server.run("append", self._server.keys.audit, head, *args))
            replaced = ()
        return row_ids

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """See `Store`."""
        audit, _, outcomes_key, _ = self._server.keys.audit
        for some in layout.batches(outcomes):
            args = [part for row_id, outcome, us in some for part in (layout.stream_id(row_id), f"{outcome} {us}")]
            self._server.run("record", (audit, outcomes_key), *args)

    def last_seen(self) -> tuple[dict[int, State], int]:
        """See `Store`."""
        return self._seen.logs(), self._server.now_us()

    @property
    def forgotten_until_us(self) -> int:
        """See `Store`."""
        return self._seen.forgotten_until_us

    def adopt(self, logs: Sequence[tuple[Counter, State]], write_back_id: str) -> None:
        """See `Store`."""
        keys = self._server.keys
        for number, some in enumerate(layout.batches(logs)):
            once = keys.adopted(write_back_id, number * layout.BATCH)
            args = [part for counter, log in some for part in (str(counter.window_us), counter.label, compact(log))]
            self._server.run("adopt", [once, keys.labels, *[keys.log(counter.id) for counter, _ in some]], *args)

    def reset(self, labels: Sequence[str]) -> int:
        """See `Store`."""
        keys, gone = self._server.keys, 0
        for some in layout.batches(labels):
            ids = [counter_id(label) for label in some]
            both = [key for one in ids for key in (keys.log(one), keys.in_flight(one))]
            count, _ = self._server.ask_together(("DEL", *both), ("HDEL", keys.labels, *ids))
            gone += count
            self._seen.forget(ids)
        return gone

    def take_note(self, namespace: str, key: str) -> str:
        """See `Store`.

        `GETDEL` would do the same as the second command, but is not among the rights that the manual has always asked for.
        """
        name = RedisKeys(namespace).note(key)
        return self._noted("GET", name) and self._noted("SET", name, "", "XX", "GET", "PX", 1)

    def _noted(self, *command: str | int) -> str:
        """The text of the note that a command returns; empty if it returns none, or if the note has expired."""
        (value,) = self._server.ask(command)
        noted_us, _, text = (value or b"").decode().partition(" ")
        return text if text and abs(self._wall() - int(noted_us)) <= NOTE_KEPT_US else ""

    def keep_pace(self, hurry: Callable[[], None]) -> None:
        """See `CallStore`. Does nothing: a call is in the server when it is decided."""

    def catch_up(self) -> bool:
        """See `CallStore`. There is nothing to do: the server decides."""
        return False

    def tend(self) -> None:
        """See `Store`. Renews leases. Once a minute one wrapper deletes old rows for all, in portions if that takes long.

        A failure is ignored: if the server cannot be used, the next call finds out.
        """
        with contextlib.suppress(StoreUnavailable):
            self._leases.renew_due(self._server.run_aside)
        self.warnings = (*self._server.warnings, *self._leases.take_loss())
        with contextlib.suppress(StoreUnavailable):
            self._upkeep.tend()

    @property
    def needs_tending(self) -> bool:
        """See `CallStore`. While calls are in flight, their leases are renewed."""
        return self._leases.has_work or self._upkeep.is_unfinished

    def close(self) -> None:
        """See `Store`."""
        self._server.close()


_Value = tuple[int, bytes | None]
"""A counter's window and value."""


class Seen:
    """The counters' values, the most recently used last.

    Args:
        most: How many are kept. Beyond that, empty counters are forgotten first, then the least recently used.

    Attributes:
        forgotten_until_us: Until when one that was forgotten may hold something; 0 if there is none.
    """

    def __init__(self, most: int = MOST_SEEN) -> None:
        self.forgotten_until_us = 0
        self._most = most
        self._values: dict[int, _Value] = {}  # by counter id

    def note(self, counters: Sequence[Counter], values: Sequence[Any], now_us: int) -> None:
        """Note the current values of counters, except those of calls in flight. More values may follow."""
        for counter, value in zip(counters, values, strict=False):
            if counter.window_us:
                self._values.pop(counter.id, None)
                self._values[counter.id] = counter.window_us, value
        if len(self._values) > self._most:  # takes a few milliseconds, once for thousands of new counters
            alive = [
                (key, (window_us, value))
                for key, (window_us, value) in self._values.items()
                if value and layout.newest_us(value) + window_us > now_us
            ]
            left = round(self._most * _LEFT_SHARE)
            self._values = dict(alive[-left:])
            gone = [layout.newest_us(value) + window_us for _, (window_us, value) in alive[:-left] if value]
            self.forgotten_until_us = max([self.forgotten_until_us, *gone])

    def forget(self, ids: Sequence[int]) -> None:
        """Forget these counters, because they were emptied."""
        for key in ids:
            self._values.pop(key, None)

    def logs(self) -> dict[int, State]:
        """The counters' logs, by id."""
        return {key: layout.log(value) for key, (_, value) in self._values.items()}
