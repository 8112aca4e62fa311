"""Stores counters and audit log on a server that many machines share.

The server decides by its own clock. One script reads the counters of all calls, and admits calls, charges them and writes their
rows, until one has no room. That call is decided here, by what the counters held: it charges nothing. So the script is a second
implementation of `limiter/sliding.py` only as far as calls are admitted, and is tested against that step by step. All keys of a
namespace are in one slot, `{mcpguard:NAMESPACE}:…`. The script that writes a row also makes room for it.
"""

import contextlib
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any, Final, NamedTuple

from redis.exceptions import ResponseError

from mcpguard.errors import StoreUnavailable
from mcpguard.identity.client_agents import NOTE_KEPT_US
from mcpguard.limiter.plan import Counter, Plan, counter_id
from mcpguard.limiter.sliding import State
from mcpguard.session.audit import Outcome, Row, session_of
from mcpguard.session.decision import decide_one
from mcpguard.session.journal import Journal
from mcpguard.session.verdict import DecisionRequest, Ending, Verdict
from mcpguard.stores.api import Clock, Options
from mcpguard.stores.clock import boot_us, wall_us
from mcpguard.stores.losses import Losses
from mcpguard.stores.redis import layout
from mcpguard.stores.redis.checks import QUESTIONS, check
from mcpguard.stores.redis.leases import Leases
from mcpguard.stores.redis.link import Command, Link, pack
from mcpguard.stores.redis.reader import Reader
from mcpguard.stores.redis.request import Commands, admitted, counters_of, errors_of, states_in
from mcpguard.stores.redis.scripts import LEASE_US, script
from mcpguard.stores.redis.seen import Seen
from mcpguard.stores.redis.upkeep import Upkeep
from mcpguard.stores.redis.url import RedisUrl
from mcpguard.text.printing import compact

SCHEMA: Final = 1
"""The version of the keys' layout. A layout that was released only gets additions."""

OPEN_TIMEOUT_S: Final = 2.0
"""How long opening may take. No call waits for it."""

NEARBY_US: Final = 1_000_000
"""How much earlier than it seems a row may have been written whose reply was lost, since clocks differ."""

_BATCH: Final = 500
_TRIES: Final = 3

_pack_head: Final = struct.Struct("<qq").pack
"""Packs the first argument of `append.lua` and `settle.lua`."""


class _Observed(NamedTuple):
    """A call that only observed rules refuse: its verdict, the limits that it is charged on, and the end of its row."""

    verdict: Verdict
    charged: Plan
    row_end: bytes


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
        self._prefix = layout.prefix(options.namespace)
        self._audit = layout.audit_keys(self._prefix)
        self._ticks = clock or boot_us
        self._leases = Leases(lease_us, self._ticks)
        names = ("charge", "settle", "give_places", "renew", "adopt", "append", "record")
        self._scripts = {name: script(name, is_time_given=clock is not None, lease_us=lease_us) for name in names}
        self._shas: dict[str, bytes] = {}
        self._ahead_us = 0
        self._seen = Seen()
        self._sessions: set[str] = set()  # of which the server has no rows that this store does not know of
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

    # the connection

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _keys_of(self, counters: Sequence[Counter]) -> list[str]:
        return [layout.counter_key(self._prefix, one.id, window_us=one.window_us) for one in counters]

    def _begin(self, deadline_s: float) -> None:
        """Check the server, create what is missing in the namespace, and load the scripts. Each connection begins with this."""
        *answers, server_time = self._link.ask([*QUESTIONS, ("TIME",)], deadline_s=deadline_s)
        self._note_time(layout.parse_time_us(self._link.checked(server_time)))
        self._server_warnings = self.warnings = check(self._shown, answers)
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

    def _connect(self, deadline_s: float) -> None:
        """Replace the connection if it is lost."""
        if self._link.is_lost():
            self._link.renew(deadline_s)
            self._begin(deadline_s)

    def _ask(self, *commands: Command, deadline_s: float | None = None) -> list[Any]:
        """Send commands, on a new connection if the server has closed the last one. Returns their replies.

        Raises:
            StoreUnavailable: There is no reply in time, or one of them is an error.
        """
        deadline_s = deadline_s or monotonic() + self._timeout_s
        self._connect(deadline_s)
        return [self._link.checked(reply) for reply in self._link.ask(commands, deadline_s=deadline_s)]

    def _run(self, name: str, keys: Sequence[str], *args: bytes | str) -> Any:
        """Run a script and return its reply."""
        end_s = monotonic() + self._timeout_s
        self._connect(end_s)
        return self._send(name, self._packed(name, keys, *args), end_s)

    def _packed(self, name: str, keys: Sequence[str], *args: bytes | str) -> bytes:
        return pack(("EVALSHA", self._shas[name], *self._arguments(keys, *args)))

    def _arguments(self, keys: Sequence[str], *args: bytes | str) -> Command:
        """What follows the script in the command that runs it."""
        return len(keys), *keys, *args, *(() if self._clock is None else (self._clock(),))

    def _send(self, name: str, packed: bytes, deadline_s: float) -> Any:
        """Run a script by a command that is packed already. If the server has forgotten the script, load it again."""
        reply = self._link.exchange(packed, deadline_s=deadline_s)
        if isinstance(reply, ResponseError):
            if not str(reply).startswith("NOSCRIPT"):
                self._link.checked(reply)
            self._ask(("SCRIPT", "LOAD", self._scripts[name]), deadline_s=deadline_s)
            reply = self._link.checked(self._link.exchange(packed, deadline_s=deadline_s))
        return reply

    def _run_in_time(self, name: str, packed: Callable[[int], bytes]) -> Sequence[Any]:
        """Run a script that has a deadline, and return its reply.

        If it begins too late, it does nothing, and is run again: the server's clock was further ahead than we knew, or the
        command was sent too late, because this machine is busy.

        Args:
            name: The script.
            packed: Returns the command with a deadline in the server's time.
        """
        for _ in range(_TRIES):
            end_s, end_us = monotonic() + self._timeout_s, boot_us() + self._timeout_us
            self._connect(end_s)
            reply = self._send(name, packed(end_us + self._ahead_us), end_s)
            if not isinstance(reply, int):
                self._note_time(reply[0])
                return reply  # type: ignore[no-any-return]
            self._note_time(reply)
        raise StoreUnavailable(f"{self._shown} starts scripts too late", "check the load and the clock of its machine")

    # calls

    def decide(self, requests: Sequence[DecisionRequest], journal: Journal) -> list[Verdict]:
        """See `Store`. The script writes the rows of calls that are forwarded. Those of others are appended after them."""
        journal.begin()
        verdicts: list[Verdict] = []
        try:
            self._decide(requests, journal, verdicts)
        except StoreUnavailable:  # the calls are decided without this store, so none of them keeps a place or its row
            journal.take_back()
            self._sessions.discard(journal.session)
            for one in verdicts:
                self._leases.end(one.row_id or 0)
            raise
        self._sessions.add(journal.session)
        return verdicts

    def _decide(self, requests: Sequence[DecisionRequest], journal: Journal, verdicts: list[Verdict]) -> None:
        """Decide requests in order, and write their rows. `verdicts` gets the verdicts."""
        time_us = self._wall()
        denials: list[tuple[Verdict, Row]] = []
        observed: _Observed | None = None
        fruitless, end_s = 0, monotonic() + self._timeout_s
        while len(verdicts) < len(requests):
            if fruitless > _TRIES or (verdicts and monotonic() > end_s):
                raise StoreUnavailable(f"{self._shown} decides calls that came together too slowly", "check its load")
            fruitless += 1
            rest = requests[len(verdicts) :]
            counters = counters_of(rest)
            found, reply = self._admit(rest, counters, observed, seq=journal.seq, time_us=time_us)
            for one in found:
                journal.written(one)
            verdicts += found
            fruitless = 0 if found else fruitless
            states = states_in(reply, counters) if len(found) < len(rest) else {}
            observed = None
            for request in rest[len(found) :]:
                one, decision = decide_one(request, [states[key] for key in request.plan.keys], reply[0])
                if decision.admitted:
                    observed = self._observed(request, one, journal, time_us) if one.exceeded else None
                    break
                if row := journal.row(request, one, time_us):
                    denials.append((one, row))
                verdicts.append(one)
                fruitless = 0
        for (one, _), row_id in zip(denials, self._append([row for _, row in denials]), strict=True):
            one.row_id = row_id

    def _observed(self, request: DecisionRequest, one: Verdict, journal: Journal, time_us: int) -> _Observed:
        without_room = one.rules_without_room
        charged = request.plan.only(lambda limit: limit.rule not in without_room)
        return _Observed(one, charged, layout.packed(journal.draft(request, one, time_us))[1])

    def _admit(
        self,
        requests: Sequence[DecisionRequest],
        counters: Sequence[Counter],
        observed: _Observed | None,
        *,
        seq: int,
        time_us: int,
    ) -> tuple[list[Verdict], Sequence[Any]]:
        """Have the server admit calls until one has no room. Returns their verdicts, and the reply of `charge.lua`."""
        as_observed = observed and (observed.charged, observed.row_end)
        for _ in range(_TRIES):
            sent_us = self._ticks()
            reply = self._run_in_time("charge", partial(self._commands.command, requests, as_observed, seq, time_us))
            self._seen.note(counters, reply[1 : 1 + len(counters)], reply[0])
            found = admitted(requests, counters, reply)
            if found and observed:
                observed.verdict.row_id = found[0].row_id
                found[0] = observed.verdict
            places = [(one.row_id or 0, self._keys_of(one.taken_caps)) for one in found if one.plan.caps]
            if not places or not self._leases.is_late(sent_us):
                for call_id, keys in places:
                    self._leases.add(call_id, keys, sent_us)
                return found, reply
            self._withdraw(found)
        raise StoreUnavailable(
            f"{self._shown} answers after the leases of calls each time", "check whether this process is often stopped"
        )

    def _withdraw(self, found: Sequence[Verdict]) -> None:
        """Delete the rows of admitted calls, which are decided anew: their leases have ended, or will soon.

        This process was stopped before it read the reply, so that other calls may have got the places.
        """
        gone = [part for one in found for part in (str(layout.stream("allowed")), layout.stream_id(one.row_id or 0))]
        self._run("append", self._audit, _pack_head(self._max_bytes, len(found)), *gone)

    def settle(self, endings: Sequence[Ending]) -> None:
        """See `Store`. If it fails, the places become free when their leases end."""
        places: list[tuple[int, str]] = []
        errors: list[tuple[Counter, int]] = []
        for ending in endings:
            self._leases.end(ending.row_id)
            caps = [counter for counter in ending.plan.counters if not counter.window_us]
            places += [(ending.row_id, key) for key in self._keys_of(caps)]
            errors += errors_of(ending.plan) if ending.failed else []
        if not (places or errors):
            return
        failed = [counter for counter, _ in errors]
        keys = [self._key("counters"), *(key for _, key in places), *self._keys_of(failed)]
        args = [layout.member(call_id) for call_id, _ in places]
        args += [part for counter, grain_us in errors for part in (str(grain_us), str(counter.window_us), counter.label)]
        now_us, *values = self._run_in_time(
            "settle", lambda deadline_us: self._packed("settle", keys, _pack_head(deadline_us, len(places)), *args)
        )
        self._seen.note(failed, values, now_us)

    def give_places(self, calls: Mapping[int, Sequence[Counter]]) -> None:
        """See `Recoverable`."""
        for at in range(0, len(calls), _BATCH):
            some = list(calls.items())[at : at + _BATCH]
            sent_us = self._ticks()
            keys = [key for _, counters in some for key in self._keys_of(counters)]
            args = [part for call_id, counters in some for one in counters for part in (one.label, layout.member(call_id))]
            self._run("give_places", [self._key("counters"), *keys], *args)
            for call_id, counters in some:
                self._leases.add(call_id, self._keys_of(counters), sent_us)

    # rows

    def append(self, rows: Sequence[Row]) -> list[int]:
        """See `Store`. The rows replace those that a decision without a reply may have written of the same calls."""
        if not rows:
            return []
        first = rows[0]
        session = session_of(first)
        replaced: list[tuple[int, bytes]] = []
        if session not in self._sessions:
            made_us = self._now_us() - max(0, self._wall() - first.time_us)  # the reply did not come before that
            until_s = monotonic() + self._timeout_s / 2
            replaced = self._reader.rows_from(first, made_us - self._timeout_us - NEARBY_US, until_s)
        row_ids = self._append(rows, replaced)
        self._sessions.add(session)
        return row_ids

    def _append(self, rows: Sequence[Row], replaced: Sequence[tuple[int, bytes]] = ()) -> list[int]:
        row_ids: list[int] = []
        for at in range(0, len(rows), _BATCH):
            args: list[bytes | str] = [part for stream, stream_id in replaced for part in (str(stream), stream_id)]
            for row in rows[at : at + _BATCH]:
                args += (str(layout.stream(row.decision)), *layout.packed(row))
            head = _pack_head(self._max_bytes, len(replaced))
            row_ids += map(layout.row_id, self._run("append", self._audit, head, *args))
            replaced = ()
        return row_ids

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """See `Store`."""
        for at in range(0, len(outcomes), _BATCH):
            some = outcomes[at : at + _BATCH]
            args = [part for row_id, outcome, us in some for part in (layout.stream_id(row_id), f"{outcome} {us}")]
            self._run("record", (self._key("audit"), self._key("outcomes")), *args)

    # outages, and all else

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
            counters = self._keys_of([counter for counter, _ in some])
            keys = [self._key(f"adopted:{write_back_id}:{at}"), self._key("counters"), *counters]
            args = [part for counter, log in some for part in (str(counter.window_us), counter.label, compact(log))]
            self._run("adopt", keys, *args)

    def reset(self, labels: Sequence[str]) -> int:
        """See `Store`."""
        gone = 0
        for at in range(0, len(labels), _BATCH):
            ids = [counter_id(label) for label in labels[at : at + _BATCH]]
            keys = [layout.counter_key(self._prefix, key, window_us=window_us) for key in ids for window_us in (1, 0)]
            *_, (count, _) = self._ask(("MULTI",), ("DEL", *keys), ("HDEL", self._key("counters"), *ids), ("EXEC",))
            gone += count
            self._seen.forget(ids)
        return gone

    def take_notes(self, namespace: str, keys: Sequence[str]) -> dict[str, str]:
        """See `Store`."""
        names = [layout.note_key(layout.prefix(namespace), key) for key in keys]
        values = self._ask(("MGET", *names))[0] if keys else []
        noted = [at for at, value in enumerate(values) if value]
        if noted:  # `GETDEL` would do the same, but is not among the rights that the manual has always asked for
            taken = self._ask(*[("SET", names[at], "", "XX", "GET", "PX", 1) for at in noted])
            return {keys[at]: agent for at, value in zip(noted, taken, strict=True) if (agent := self._agent_in(value))}
        return {}

    def _agent_in(self, note: bytes | None) -> str:
        """The agent in a note; empty if the note has expired, or another wrapper has taken it."""
        noted_us, _, agent = (note or b"").decode().partition(" ")
        return agent if agent and abs(self._wall() - int(noted_us)) <= NOTE_KEPT_US else ""

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
            self._leases.renew_due(self._renew)
        self.warnings = (*self._server_warnings, *self._leases.take_loss())
        with contextlib.suppress(StoreUnavailable):
            self._upkeep.tend()

    def _renew(self, keys: Sequence[str], members: Sequence[str]) -> Sequence[int]:
        """Renew leases, on a connection of its own, because calls use the other one meanwhile."""
        return self._upkeep.run(self._scripts["renew"], *self._arguments(keys, *members))  # type: ignore[no-any-return]

    @property
    def needs_tending(self) -> bool:
        """See `CallStore`. While calls are in flight, their leases are renewed."""
        return self._leases.has_work or self._upkeep.is_unfinished

    def close(self) -> None:
        """See `Store`."""
        self._upkeep.close()
        self._link.close()
