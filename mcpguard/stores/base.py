"""What every store does, and the reference that does it in memory."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Final, NamedTuple, Protocol

from mcpguard.core import limiter
from mcpguard.core.audit import Outcome, Row, record
from mcpguard.core.claude_code import NOTE_KEPT_US, AgentNote
from mcpguard.core.journal import Journal
from mcpguard.core.limiter import EMPTY, Decision, State
from mcpguard.core.policy import Counter
from mcpguard.core.verdict import Charge, Verdict, verdict

Clock = Callable[[], int]
"""Reads microseconds."""


class Entry(NamedTuple):
    """A row of the audit as it is read: its place, which only grows, and its record."""

    place: int
    record: dict[str, object]


class Held(NamedTuple):
    """A counter that holds something.

    Attributes:
        label: As `policy.Counter` has it.
        used: What it holds now.
    """

    label: str
    used: int


class Wanted(NamedTuple):
    """Which rows of the audit are wanted, as far as a store can tell without reading them all. It may give others, too.

    Attributes:
        context: Says so of a record's members that tell who called what.
        decisions: Only these; None for any.
        axis: Says so of the axis of the limit that decided; None for any.
    """

    context: Callable[[Mapping[str, object]], bool]
    decisions: frozenset[str] | None = None
    axis: Callable[[str], bool] | None = None

    def admits(self, record: Mapping[str, object]) -> bool:
        """Whether a record may be wanted."""
        return (
            self.context(record)
            and (self.decisions is None or record["decision"] in self.decisions)
            and (self.axis is None or self.axis(str(record.get("axis"))))
        )


class Readable(Protocol):
    """A store as commands read it. Every method raises `StoreUnavailable` where it cannot."""

    def entries(self, *, after: int = 0, wanted: Wanted | None = None) -> Iterator[Entry]:
        """The audit's rows after a place, oldest first.

        Args:
            after: The place.
            wanted: Which rows; None for all.
        """

    def newest(self, *, wanted: Wanted | None = None) -> Iterator[Entry]:
        """The audit's rows, newest first; see `entries`."""

    def held(self) -> list[Held]:
        """The counters that hold something."""

    def peek(self, counters: Sequence[Counter]) -> tuple[list[State], int]:
        """The logs of these counters as they are now for everybody, in order, and the store's time. Changes nothing."""

    def close(self) -> None:
        """Let go of everything."""


class Store(Readable, Protocol):
    """Counters and audit. One thread at a time, but for `tend`, which may run beside the others.

    Every method raises `StoreUnavailable` where it cannot do what it promises. Then it has changed nothing, and the
    journal is as it was.
    """

    warnings: tuple[str, ...]
    """What is amiss with the store, for whoever is in charge of it: a line each. They may change with `tend`."""

    @property
    def args_key(self) -> bytes:
        """The key of the hash of arguments, the store's own: the same for all who use it, and another for another store."""

    def decide(self, charges: Sequence[Charge], journal: Journal) -> list[Verdict]:
        """Decide charges in order, in one transaction with their audit rows.

        When this returns, the admitted calls are counted for every user of the store, and their rows are in it.
        """

    def append(self, rows: Sequence[Row]) -> list[int]:
        """Write audit rows that no decision is made for; the store's handles on them, for their outcomes."""

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """Join outcomes to their rows."""

    def tend(self) -> None:
        """Do what keeps the store small and quick. To be called now and then, away from a call's path.

        It raises only for what makes the store unusable for calls, too.
        """

    @property
    def restless(self) -> bool:
        """Whether `tend` has to be called soon though nothing happens."""

    def last_seen(self) -> tuple[dict[int, State], int]:
        """The logs that were read or written last, by counter, and the store's time. Asks nobody, and does not fail.

        A counter may be left out; one that is named has the very log that it had when this store decided on it last.
        """

    def adopt(self, logs: Sequence[tuple[Counter, State]], once: str) -> None:
        """Count what was admitted elsewhere. The logs' times are relative to now, and not positive.

        Args:
            logs: By counter.
            once: A name for them, the same if they are told again, perhaps by another process, since nobody knows whether they
                were counted. What has this name is counted once; the store knows it for a week.
        """

    def reset(self, labels: Sequence[str]) -> int:
        """Empty these counters, for everybody who uses the store, from the next decision on; how many there were."""

    def note_agent(self, namespace: str, note: AgentNote) -> None:
        """Note which agent makes a call, for every wrapper of the namespace, from now on and for `NOTE_KEPT_US`.

        A second note of the same call takes the place of the first. Notes that are too old go by themselves.
        """

    def noted_agents(self, namespace: str, tool_use_ids: Sequence[str]) -> dict[str, str]:
        """The agents noted in the namespace for these calls, by id; those without a note, or with an old one, are left out.

        On a call's path: one reading, which waits for no lock and changes nothing. A note can be read any number of times.
        """


def decide_all(
    charges: Sequence[Charge], states: MutableMapping[int, State], now_us: int
) -> tuple[list[Verdict], dict[int, Counter]]:
    """Decide charges in order against the logs in `states`, which is kept up.

    Args:
        charges: What is asked.
        states: The logs by counter id; one that is missing is empty.
        now_us: The store's time.

    Returns:
        The verdicts, and the counters whose logs have changed.
    """
    verdicts: list[Verdict] = []
    changed: dict[int, Counter] = {}
    for charge in charges:
        counters = charge.plan.counters
        one, decision = decide_one(charge, [states.get(counter.id, EMPTY) for counter in counters], now_us)
        verdicts.append(one)
        for limit in decision.charged:
            counter = counters[limit.counter]
            states[counter.id] = decision.states[limit.counter]
            changed[counter.id] = counter
    return verdicts, changed


def decide_one(charge: Charge, states: Sequence[State], now_us: int) -> tuple[Verdict, Decision]:
    """Decide one charge against its counters' logs, in the plan's order.

    Returns:
        What becomes of the call, and what that does to the logs.
    """
    if charge.decided is not None:
        return Verdict(charge.decided), _NOTHING
    decision = limiter.decide(charge.plan.limits, states, now_us)
    return verdict(charge.plan, decision), decision


_NOTHING: Final = Decision(False, (), (), ())


def wall_us() -> int:
    """Wall-clock time."""
    return time.time_ns() // 1000


def monotonic_us() -> int:
    """A monotone clock, for one process."""
    return time.monotonic_ns() // 1000


class Memory:
    """What the memory stores of one process share."""

    def __init__(self) -> None:
        self.args_key = os.urandom(32)
        self.states: dict[int, State] = {}
        self.counters: dict[int, Counter] = {}
        self.rows: list[Row] = []
        self.outcomes: dict[int, Outcome] = {}
        self.notes: dict[tuple[str, str], tuple[str, int]] = {}
        self.adopted: set[str] = set()


class MemoryStore:
    """The reference: counters and audit of one process, gone with it.

    Args:
        memory: What it shares with other stores.
        clock: The store's time.
        wall: Wall-clock time, for the audit.
    """

    restless = False
    warnings: tuple[str, ...] = ()

    def __init__(self, memory: Memory | None = None, *, clock: Clock = monotonic_us, wall: Clock = wall_us) -> None:
        self._memory = memory or Memory()
        self._clock = clock
        self._wall = wall
        self.args_key = self._memory.args_key

    def decide(self, charges: Sequence[Charge], journal: Journal) -> list[Verdict]:
        """See `Store`."""
        verdicts, changed = decide_all(charges, self._memory.states, self._clock())
        self._memory.counters.update(changed)
        rows = iter(journal.rows(charges, verdicts, self._wall()))
        for one in verdicts:
            if one.news:
                one.row = len(self._memory.rows)
                self._memory.rows.append(next(rows))
        return verdicts

    def append(self, rows: Sequence[Row]) -> list[int]:
        """See `Store`."""
        first = len(self._memory.rows)
        self._memory.rows.extend(rows)
        return list(range(first, len(self._memory.rows)))

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """See `Store`."""
        for outcome in outcomes:
            self._memory.outcomes.setdefault(outcome.row, outcome)

    def tend(self) -> None:
        """See `Store`. Forgets the counters whose windows have passed, and old notes."""
        self._drop_old_notes()
        now_us = self._clock()
        for key, state in list(self._memory.states.items()):
            if not limiter.live(state, self._memory.counters[key].window_us, now_us):
                del self._memory.states[key]

    def last_seen(self) -> tuple[dict[int, State], int]:
        """See `Store`."""
        return dict(self._memory.states), self._clock()

    def adopt(self, logs: Sequence[tuple[Counter, State]], once: str) -> None:
        """See `Store`."""
        if once in self._memory.adopted:
            return
        self._memory.adopted.add(once)
        now_us = self._clock()
        for counter, log in logs:
            self._memory.counters[counter.id] = counter
            before = self._memory.states.get(counter.id, EMPTY)
            self._memory.states[counter.id] = limiter.merge(before, limiter.shift(log, now_us), counter.window_us)

    def entries(self, *, after: int = 0, wanted: Wanted | None = None) -> Iterator[Entry]:
        """See `Store`."""
        found = (self._entry(place) for place in range(after, len(self._memory.rows)))
        return (entry for entry in found if wanted is None or wanted.admits(entry.record))

    def newest(self, *, wanted: Wanted | None = None) -> Iterator[Entry]:
        """See `Store`."""
        return reversed(list(self.entries(wanted=wanted)))

    def _entry(self, place: int) -> Entry:
        _, outcome, duration_us = self._memory.outcomes.get(place, (place, None, None))
        return Entry(place + 1, record(self._memory.rows[place], outcome=outcome, duration_us=duration_us))

    def held(self) -> list[Held]:
        """See `Store`."""
        now_us = self._clock()
        held = [
            Held(counter.label, limiter.used(limiter.live(self._memory.states[key], counter.window_us, now_us)))
            for key, counter in self._memory.counters.items()
            if key in self._memory.states
        ]
        return [one for one in held if one.used]

    def reset(self, labels: Sequence[str]) -> int:
        """See `Store`."""
        keys = [key for key, counter in self._memory.counters.items() if counter.label in set(labels)]
        return sum(self._memory.states.pop(key, None) is not None for key in keys)

    def peek(self, counters: Sequence[Counter]) -> tuple[list[State], int]:
        """See `Store`."""
        return [self._memory.states.get(counter.id, EMPTY) for counter in counters], self._clock()

    def note_agent(self, namespace: str, note: AgentNote) -> None:
        """See `Store`."""
        self._drop_old_notes()
        self._memory.notes[namespace, note.tool_use_id] = (note.agent, self._wall())

    def noted_agents(self, namespace: str, tool_use_ids: Sequence[str]) -> dict[str, str]:
        """See `Store`."""
        self._drop_old_notes()
        notes = self._memory.notes
        return {one: notes[namespace, one][0] for one in tool_use_ids if (namespace, one) in notes}

    def _drop_old_notes(self) -> None:
        wall_us = self._wall()
        for key, (_, noted_us) in list(self._memory.notes.items()):
            if abs(wall_us - noted_us) > NOTE_KEPT_US:
                del self._memory.notes[key]

    def close(self) -> None:
        """See `Store`."""
