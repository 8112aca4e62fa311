"""Stores counters and audit log on a server that many machines share.

A decision is one script, which runs by the server's clock. It reads the counters of all calls, decides, and writes counters and
audit rows. It is a second implementation of `limiter/sliding.py`, and is tested against that step by step. All keys of a
namespace are in one slot, `{mcpguard:NAMESPACE}:…`. The script that writes a row also makes room for it.
"""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from time import monotonic

from redis.exceptions import ResponseError

from mcpguard.errors import StoreUnavailable
from mcpguard.light_typing import Any, Final
from mcpguard.limiter.plan import Counter, counter_id
from mcpguard.limiter.sliding import State
from mcpguard.session.audit import Outcome, Row, session_of
from mcpguard.session.journal import Journal
from mcpguard.session.verdict import DecisionRequest, Ending, Verdict
from mcpguard.stores.api import Clock, Options
from mcpguard.stores.clock import boot_us, wall_us
from mcpguard.stores.losses import Losses
from mcpguard.stores.redis import checks, notes, rows, states
from mcpguard.stores.redis.duplicates import duplicates
from mcpguard.stores.redis.leases import Leases, Place
from mcpguard.stores.redis.link import Command, Link
from mcpguard.stores.redis.reader import Reader, parse_time_us
from mcpguard.stores.redis.request import (
    Commands,
    counters_of,
    errors_of,
    pack_append_head,
    pack_settle_head,
    time_in,
    usual_verdict,
    verdicts_of,
)
from mcpguard.stores.redis.scripts import LEASE_US, script
from mcpguard.stores.redis.seen import Seen
from mcpguard.stores.redis.upkeep import Upkeep
from mcpguard.stores.redis.url import RedisUrl
from mcpguard.text.printing import compact

SCHEMA: Final = 1
"""The version of the keys' layout. A layout that was released only gets additions."""

OPEN_TIMEOUT_S: Final = 2.0
"""How long opening may take. No call waits for it."""

_BATCH: Final = 500
_TRIES: Final = 3


class RedisStore:
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

    args_key: bytes

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
        self._shown = address.shown
        self._timeout_s = options.timeout_ms / 1000
        self._timeout_us = options.timeout_ms * 1000
        self._max_bytes = options.max_bytes
        self._clock = clock
        self._wall = wall
        self._prefix = states.prefix(options.namespace)
        self._audit = rows.audit_keys(self._prefix)
        self._leases = Leases(lease_us)
        self._ticks = clock or boot_us
        names = ("charge", "settle", "give_places", "renew", "adopt", "append", "record")
        self._scripts = {name: script(name, is_time_given=clock is not None, lease_us=lease_us) for name in names}
        self._shas: dict[str, bytes] = {}
        self._ahead_us = 0
        self._seen = Seen()
        self._reply_lost = True
        self._sessions: set[str] = set()  # whose rows are known to have no doubles: this process's, and those that it took in
        self._upkeep = Upkeep(address, self._prefix, keep_us=options.keep_us, max_bytes=options.max_bytes)
        deadline_s = monotonic() + max(OPEN_TIMEOUT_S, self._timeout_s)
        self._link = Link(address, timeout_s=self._timeout_s, key=self._key("meta"), deadline_s=deadline_s)
        self._reader = reader = Reader(self._ask, self._link.checked, Losses(self._shown, notify).skip, self._prefix, clock)
        self.entries, self.newest, self.rows, self.tally = reader.entries, reader.newest, reader.rows, reader.tally
        self.outcomes_of, self.held, self.peek = reader.outcomes_of, reader.held, reader.peek
        try:
            self._begin(deadline_s)
        except BaseException:
            self._link.close()
            raise

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _counter_key(self, key: int, window_us: int = 1) -> str:
        return states.counter_key(self._prefix, key, window_us=window_us)

    def _begin(self, deadline_s: float) -> None:
        """Check the server, create what is missing in the namespace, and load the scripts. Each connection begins with this."""
        *answers, server_time = self._link.ask([*checks.QUESTIONS, ("TIME",)], deadline_s=deadline_s)
        self._note_time(parse_time_us(self._link.checked(server_time)))
        self._server_warnings = self.warnings = checks.check(self._shown, answers)
        meta = self._key("meta")
        commands: list[Command] = [
            ("HSETNX", meta, "schema", SCHEMA),
            ("HSETNX", meta, "args_key", os.urandom(32)),
            ("HMGET", meta, "schema", "args_key"),
            ("XDEL", self._key("refused"), "0-0"),  # does nothing: shows now whether we have the rights to delete rows
            ("HDEL", self._key("outcomes"), ""),
            *(("SCRIPT", "LOAD", text) for text in self._scripts.values()),
        ]
        schema_set, key_set, found, *others = self._link.ask(commands, deadline_s=deadline_s)
        if None in self._link.checked(found):  # a server whose memory is full refuses to set even what is set
            self._link.checked(schema_set)
            self._link.checked(key_set)
        schema, self.args_key = found
        _, _, *shas = map(self._link.checked, others)
        if int(schema) > SCHEMA:
            raise StoreUnavailable(
                f"{self._shown} has schema {int(schema)}, and this mcpguard knows schemas up to {SCHEMA}",
                "use the mcpguard that wrote it, or another namespace",
            )
        self._shas = dict(zip(self._scripts, shas, strict=True))
        self._commands = Commands(self._shas["charge"], self._prefix, max_bytes=self._max_bytes, clock=self._clock)

    def _note_time(self, server_us: int) -> None:
        """Note how far the server's clock is ahead of ours, at least: the reply has taken some time. Ours counts sleep, too."""
        self._ahead_us = server_us - boot_us()

    def _now_us(self) -> int:
        return self._clock() if self._clock else boot_us() + self._ahead_us

    def _ask(self, *commands: Command, deadline_s: float | None = None) -> list[Any]:
        """Send commands, on a new connection if the server has closed the last one. Returns their replies.

        Raises:
            StoreUnavailable: There is no reply in time, or one of them is an error.
        """
        return [self._link.checked(reply) for reply in self._replies(commands, deadline_s)]

    def _replies(self, commands: Sequence[Command], deadline_s: float | None = None) -> list[Any]:
        deadline_s = deadline_s or monotonic() + self._timeout_s
        if self._link.is_lost():
            self._reconnect(deadline_s)
        return self._link.ask(commands, deadline_s=deadline_s)

    def _reconnect(self, deadline_s: float) -> None:
        """Replace the connection."""
        self._link.renew(deadline_s)
        self._begin(deadline_s)

    def _run(self, name: str, keys: Sequence[str], *args: bytes | str, deadline_s: float | None = None) -> Any:
        """Run a script and return its reply."""
        deadline_s = deadline_s or monotonic() + self._timeout_s
        command: Command = ("EVALSHA", self._shas[name], *self._arguments(keys, *args))
        reply = self._replies([command], deadline_s)[0]
        if isinstance(reply, ResponseError):
            self._load_again(name, reply, deadline_s)
            reply = self._ask(command, deadline_s=deadline_s)[0]
        return reply

    def _arguments(self, keys: Sequence[str], *args: bytes | str) -> Command:
        """What follows the script in the command that runs it."""
        return len(keys), *keys, *args, *(() if self._clock is None else (self._clock(),))

    def _load_again(self, name: str, error: ResponseError, deadline_s: float) -> None:
        """Load a script again, if the error says that the server has forgotten it.

        Raises:
            StoreUnavailable: It is another error.
        """
        if not str(error).startswith("NOSCRIPT"):
            self._link.checked(error)
        self._ask(("SCRIPT", "LOAD", self._scripts[name]), deadline_s=deadline_s)

    def decide(self, requests: Sequence[DecisionRequest], journal: Journal) -> list[Verdict]:
        """See `Store`. The script decides, and writes the rows of calls that are forwarded. Those of others are appended."""
        time_us = self._wall()
        self._sessions.add(journal.session)
        verdicts = self._decided(requests, journal, time_us)
        if denials := journal.rows(requests, verdicts, time_us, are_forwarded_written=True):
            self._append_denials(denials, verdicts, journal)
        return verdicts

    def _append_denials(self, denials: Sequence[Row], verdicts: Sequence[Verdict], journal: Journal) -> None:
        """Append the rows of denials. If that fails the calls are decided without this store, so none of them keeps a place."""
        try:
            row_ids = self._append(denials)
        except StoreUnavailable:
            self._reply_lost = True  # the calls get other rows, which replace those that are here
            journal.take_back()
            for one in verdicts:
                self._leases.end(one.row_id or 0)
            raise
        denied = [one for one in verdicts if one.has_own_row and not one.forwards]
        for one, row_id in zip(denied, row_ids, strict=True):
            one.row_id = row_id

    def _decided(self, requests: Sequence[DecisionRequest], journal: Journal, time_us: int) -> list[Verdict]:
        """The verdicts on requests. Those that are forwarded have rows, and keep their places."""
        counters = requests[0].plan.counters if len(requests) == 1 else counters_of(requests)
        has_caps = any(one.plan.caps for one in requests)
        for _ in range(_TRIES):
            sent_us = self._ticks() if has_caps else 0
            reply = self._charge(requests, counters, journal, time_us)
            self._seen.note(counters, reply)
            if type(reply) is bytes:
                return [usual_verdict(requests[0].plan, reply)]
            verdicts = verdicts_of(requests, counters, reply)
            if not has_caps or self._keep_places(verdicts, sent_us):
                return verdicts
        raise StoreUnavailable(
            f"{self._shown} gave the call's place to another call each time", "check whether this process is often stopped"
        )

    def _charge(
        self, requests: Sequence[DecisionRequest], counters: Sequence[Counter], journal: Journal, time_us: int
    ) -> Sequence[Any]:
        """Let the server decide. Returns the reply of `charge.lua`."""
        for _ in range(_TRIES):
            end_s, end_us = monotonic() + self._timeout_s, boot_us() + self._timeout_us
            if self._link.is_lost():
                self._reconnect(end_s)
            self._reply_lost = True
            deadline_us = end_us + self._ahead_us
            command = self._commands.command(requests, counters, journal, time_us=time_us, deadline_us=deadline_us)
            reply = self._link.exchange(command, deadline_s=end_s)
            if isinstance(reply, ResponseError):
                self._load_again("charge", reply, end_s)
                reply = self._link.checked(self._link.exchange(command, deadline_s=end_s))
            self._ahead_us = time_in(reply) - boot_us()
            self._reply_lost = False
            if len(reply) > 1:
                return reply  # type: ignore[no-any-return]
            # The server's clock is further ahead than we knew, or the command was sent too late, because this machine is busy.
            # It has charged nothing, and now we know its time
        raise self._too_late()

    def _too_late(self) -> StoreUnavailable:
        return StoreUnavailable(f"{self._shown} starts scripts too late", "check the load and the clock of its machine")

    def _keep_places(self, verdicts: Sequence[Verdict], sent_us: int) -> bool:
        """Keep the places that calls have just got.

        This process may have been stopped before it read the reply, for longer than the leases. Then they are renewed.

        Returns:
            False if a place was given to another call, so that this one must not be forwarded. Then all rows are deleted.
        """
        places: dict[int, Place] = {}
        for one in verdicts:
            if one.in_flight is None or not one.forwards or one.row_id is None:
                continue
            if caps := one.taken_caps:
                place = places[one.row_id] = self._leases.new(self._cap_keys(caps), sent_us)
                one.lease = place.lease
        if self._any_late(places):
            self._reply_lost = True  # until it is known whether the rows stay
            self._leases.renew(places, self._renew, self._ticks)
            is_lost = self._any_late(places)
            if is_lost:
                self._delete_rows(verdicts)
            self._reply_lost = False
            if is_lost:
                return False
        for call_id, place in places.items():
            self._leases.add(call_id, place)
        return True

    def _delete_rows(self, verdicts: Sequence[Verdict]) -> None:
        """Delete the rows of a decision."""
        ids = [rows.stream_id(one.row_id) for one in verdicts if one.row_id is not None]
        args = [part for stream_id in ids for part in (str(rows.stream("allowed")), stream_id)]
        self._run("append", self._audit, pack_append_head(self._max_bytes, len(ids)), *args)

    def _any_late(self, places: Mapping[int, Place]) -> bool:
        now_us = self._ticks()
        return any(self._leases.is_late(place, now_us) for place in places.values())

    def _cap_keys(self, counters: Sequence[Counter]) -> list[str]:
        return [self._counter_key(counter.id, 0) for counter in counters]

    def _renew(self, keys: Sequence[str], members: Sequence[str]) -> Sequence[int]:
        return self._run("renew", keys, *members)  # type: ignore[no-any-return]

    def _renew_aside(self, keys: Sequence[str], members: Sequence[str]) -> Sequence[int]:
        """As `_renew`, on a connection of its own."""
        return self._upkeep.run(self._scripts["renew"], *self._arguments(keys, *members))  # type: ignore[no-any-return]

    def settle(self, endings: Sequence[Ending]) -> None:
        """See `Store`. If it fails, the places become free when their leases end."""
        places: list[tuple[Ending, str]] = []
        errors: list[tuple[Counter, int]] = []
        for ending in endings:
            caps = [counter for counter in ending.plan.counters if not counter.window_us]
            places += [(ending, key) for key in self._cap_keys(caps)]
            errors += errors_of(ending.plan) if ending.failed else []
        kept = {ending.row_id: self._leases.end(ending.row_id) for ending in endings}
        if not (places or errors):
            return
        keys = [self._key("counters"), *(key for _, key in places), *(self._counter_key(counter.id) for counter, _ in errors)]
        args = [rows.member(ending.row_id) for ending, _ in places]
        args += [part for counter, n in errors for part in (str(n), str(counter.window_us), counter.label)]
        for _ in range(_TRIES):
            end_s = monotonic() + self._timeout_s
            deadline_us = boot_us() + self._timeout_us + self._ahead_us
            reply = self._run("settle", keys, pack_settle_head(deadline_us, len(places)), *args, deadline_s=end_s)
            self._note_time(reply[0])
            if len(reply) > 1:
                break
        else:
            raise self._too_late()
        were_there, values = reply[2 : 2 + len(places)], reply[2 + len(places) :]
        self._seen.note([counter for counter, _ in errors], [reply[0], *values])
        freed = {(ending.row_id, key) for (ending, key), was_there in zip(places, were_there, strict=True) if was_there}
        now_us = self._ticks()
        for call_id, place in kept.items():
            if place is not None:
                self._leases.settled(place, [key for key in place.keys if (call_id, key) in freed], now_us)

    def give_places(self, calls: Mapping[int, Sequence[Counter]]) -> None:
        """See `Recoverable`."""
        for at in range(0, len(calls), _BATCH):
            some = list(calls.items())[at : at + _BATCH]
            sent_us = self._ticks()
            keys = [key for _, counters in some for key in self._cap_keys(counters)]
            args = [part for call_id, counters in some for one in counters for part in (one.label, rows.member(call_id))]
            self._run("give_places", [self._key("counters"), *keys], *args)
            for call_id, counters in some:
                if counters:
                    self._leases.add(call_id, self._leases.new(self._cap_keys(counters), sent_us))

    def append(self, rows_to_write: Sequence[Row]) -> list[int]:
        """See `Store`. The rows replace those that a decision without a reply may have written of the same calls."""
        if not rows_to_write:
            return []
        session = session_of(rows_to_write[0])
        is_in_doubt = self._reply_lost or session not in self._sessions
        row_ids = self._append(rows_to_write, self._already_written(rows_to_write[0]) if is_in_doubt else ())
        self._sessions.add(session)
        self._reply_lost = False
        return row_ids

    def _append(self, rows_to_write: Sequence[Row], replaced: Sequence[tuple[int, bytes]] = ()) -> list[int]:
        row_ids: list[int] = []
        for at in range(0, len(rows_to_write), _BATCH):
            args: list[bytes | str] = [part for stream, stream_id in replaced for part in (str(stream), stream_id)]
            for row in rows_to_write[at : at + _BATCH]:
                args += (str(rows.stream(row.decision)), *rows.packed(row))
            head = pack_append_head(self._max_bytes, len(replaced))
            row_ids += map(rows.row_id, self._run("append", self._audit, head, *args))
            replaced = ()
        return row_ids

    def _already_written(self, first: Row) -> list[tuple[int, bytes]]:
        age_us = max(0, self._wall() - first.time_us)
        made_us = self._now_us() - age_us
        return duplicates(self._ask, self._audit[:2], first, age_us=age_us, made_us=made_us, timeout_s=self._timeout_s)

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """See `Store`."""
        for at in range(0, len(outcomes), _BATCH):
            some = outcomes[at : at + _BATCH]
            args = [part for row_id, outcome, us in some for part in (rows.stream_id(row_id), f"{outcome} {us}")]
            self._run("record", (self._key("audit"), self._key("outcomes")), *args)

    def last_seen(self) -> tuple[dict[int, State], int]:
        """See `Store`."""
        return self._seen.logs(), self._now_us()

    @property
    def forgotten_until_us(self) -> int:
        """See `Store`."""
        return self._seen.forgotten_until_us

    def adopt(self, logs: Sequence[tuple[Counter, State]], write_back_id: str) -> None:
        """See `Store`."""
        for at in range(0, len(logs), _BATCH):
            some = logs[at : at + _BATCH]
            counters = [self._counter_key(counter.id) for counter, _ in some]
            keys = [self._key(f"adopted:{write_back_id}:{at}"), self._key("counters"), *counters]
            args = [part for counter, log in some for part in (str(counter.window_us), counter.label, compact(log))]
            self._run("adopt", keys, *args)

    def reset(self, labels: Sequence[str]) -> int:
        """See `Store`."""
        gone = 0
        for at in range(0, len(labels), _BATCH):
            ids = [counter_id(label) for label in labels[at : at + _BATCH]]
            keys = [self._counter_key(key, window_us) for key in ids for window_us in (1, 0)]
            *_, (count, _) = self._ask(("MULTI",), ("DEL", *keys), ("HDEL", self._key("counters"), *ids), ("EXEC",))
            gone += count
            self._seen.forget(ids)
        return gone

    def take_notes(self, namespace: str, keys: Sequence[str]) -> dict[str, str]:
        """See `Store`."""
        if not keys:
            return {}
        wall_us = self._wall()
        found = [*notes.read(keys, self._ask(notes.reading(namespace, keys))[0], wall_us=wall_us)]
        return notes.read(found, self._ask(*notes.taking(namespace, found)), wall_us=wall_us) if found else {}

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
            self._leases.renew_due(self._renew_aside, self._ticks)
        self.warnings = (*self._server_warnings, *self._leases.take_loss())
        with contextlib.suppress(StoreUnavailable):
            self._upkeep.tend()

    @property
    def needs_tending(self) -> bool:
        """See `CallStore`. While calls are in flight, their leases are renewed."""
        return self._leases.has_work or self._upkeep.is_unfinished

    def close(self) -> None:
        """See `Store`."""
        self._upkeep.close()
        self._link.close()
