"""The protocols of a store: one for `run`, one for commands that read, and one for outages; and how a store is addressed."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from mcpguard.light_typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:  # `run` reads its settings before it starts the server, and loads nothing of a store for that
    from mcpguard.identity.client_agents import AgentNote
    from mcpguard.limiter.plan import Counter
    from mcpguard.limiter.sliding import State
    from mcpguard.session.audit import Outcome, Row
    from mcpguard.session.journal import Journal
    from mcpguard.session.verdict import DecisionRequest, Ending, Verdict

Clock = Callable[[], int]
"""Returns microseconds."""

DISORDER_US: Final = 3600 * 1_000_000
"""How much later a row's time may be than that of rows written after it, because wall clocks differ and step. A filter by time
misses rows with larger differences."""


class AuditEntry(NamedTuple):
    """An audit row as it is read.

    Attributes:
        row_id: Its id in this store. A later row has a larger id.
        record: The row's members.
    """

    row_id: int
    record: dict[str, object]


class StoredRow(NamedTuple):
    """An audit row in the form in which stores keep it, with its outcome. `session.audit.record` makes a record of it.

    Attributes:
        row_id: See `AuditEntry`.
        row: The row.
        outcome: One of `OUTCOMES`; None if there is none, or none yet.
        duration_us: From the call to its answer; None without an outcome.
    """

    row_id: int
    row: "Row"
    outcome: str | None
    duration_us: int | None

    @property
    def entry(self) -> AuditEntry:
        """The row as it is read."""
        from mcpguard.session.audit import record

        return AuditEntry(self.row_id, record(self.row, outcome=self.outcome, duration_us=self.duration_us))


class Group(NamedTuple):
    """What all rows of a group have in common.

    Attributes:
        context: The caller and the tool, see `Row.context`.
        axis: The axis of the limit that decided; None if there is none.
        decision: One of `Decided`.
        outcome: One of `OUTCOMES`; None if there is none.
        hour: The hour of the row's time, since 1970 in UTC.
    """

    context: str
    axis: str | None
    decision: str
    outcome: str | None
    hour: int


class Tally(NamedTuple):
    """Some rows, counted.

    Attributes:
        last_id: The id of the last row that was looked at.
        calls: The number of calls by group, and in a group by duration in µs, see `rows.rounded_us`; None for calls without
            an outcome. A row with `repeats` stands for that many calls.
    """

    last_id: int
    calls: Mapping[Group, Mapping[int | None, int]]


class CounterUse(NamedTuple):
    """A counter that is not empty.

    Attributes:
        label: The counter's label, see `policy.Counter`.
        used: How many calls, units or errors it counts now; or how many calls are in flight.
        log: Its log, without entries that have left the window; empty for a counter of calls in flight.
    """

    label: str
    used: int
    log: "State"


class Wanted(NamedTuple):
    """A filter for audit rows, which a store applies while it reads.

    Attributes:
        context: Returns whether a row with these members (user, agent, server, tool …) is wanted; None for any.
        decisions: The wanted decisions; None for any.
        axis: Returns whether the axis of the limit that decided is wanted; None for any.
        outcomes: The wanted outcomes; None for any, and for rows without an outcome.
        since_us: The earliest wanted time of a row; None for any.
        until_us: The earliest time of a row that is no longer wanted; None for any.
    """

    context: Callable[[Mapping[str, object]], bool] | None
    decisions: frozenset[str] | None = None
    axis: Callable[[str], bool] | None = None
    outcomes: frozenset[str] | None = None
    since_us: int | None = None
    until_us: int | None = None

    def admits(self, record: Mapping[str, object]) -> bool:
        """Whether a record passes the filter."""
        time_us = int(record["time_us"])  # type: ignore[call-overload]
        return (
            (self.since_us is None or time_us >= self.since_us)
            and (self.until_us is None or time_us < self.until_us)
            and (self.decisions is None or record["decision"] in self.decisions)
            and (self.outcomes is None or record.get("outcome") in self.outcomes)
            and (self.axis is None or ("axis" in record and self.axis(str(record["axis"]))))
            and (self.context is None or self.context(record))
        )

    def admits_row(self, row: "Row", outcome: str | None) -> bool:
        """Whether a row passes the filter."""
        from mcpguard.session.audit import axis_of, members

        found = {"time_us": row.time_us, "decision": row.decision, "outcome": outcome}
        axis = axis_of(row.decision, row.reported, row.detail)
        return self.admits(members(row.context) | found | ({} if axis is None else {"axis": axis}))

    @property
    def written_since_us(self) -> int:
        """The time from which on the wanted rows were written; 0 if they can be of any time."""
        return 0 if self.since_us is None else max(0, self.since_us - DISORDER_US)


class CallStore(Protocol):
    """What `run` needs of a store.

    One thread at a time calls it; only `tend` and `keep_pace` may run beside the other methods. A method that cannot do its
    work raises `StoreUnavailable`. It has then changed nothing in the store or in the journal.
    """

    @property
    def args_key(self) -> bytes:
        """The key of the arguments' hashes. All users of a store have the same key; two stores have different keys."""

    def decide(self, requests: Sequence["DecisionRequest"], journal: "Journal") -> list["Verdict"]:
        """Decide requests in order, in one transaction with their audit rows.

        When this returns, the admitted calls are counted for all users of the store, and the rows are in the store.
        """

    def append(self, rows: Sequence["Row"]) -> list[int]:
        """Write audit rows that need no decision. Returns their row ids, for `record`."""

    def record(self, outcomes: Sequence["Outcome"]) -> None:
        """Join outcomes to their rows."""

    def settle(self, endings: Sequence["Ending"]) -> None:
        """Free the places of calls in flight that have ended, and count those that failed as errors.

        When this returns, all users of the store see it. A call that holds no place is ignored; an error is counted each
        time. The client gets the call's answer after this, so it takes no longer than a decision.
        """

    def take_note(self, namespace: str, key: str) -> str:
        """Remove the note that a hook has left under a key. Of all users of the store, one gets it.

        A call waits for this. Without a note, as for most calls, it is one read that takes no lock and changes nothing.

        Returns:
            The note's text; empty if there is none, or if it has expired.
        """

    def tend(self) -> None:
        """Keep the store small and fast. Call it regularly, while no call waits for it.

        Raises:
            StoreUnavailable: Calls cannot use the store either.
        """

    def keep_pace(self, hurry: Callable[[], None]) -> None:
        """If much was written that upkeep has not processed, wait a little, at most for the store's timeout, so that it can.

        Call it after calls were forwarded and before more are read: then the client waits, and no call does.

        Args:
            hurry: Called before the wait. It lets another thread call `tend` at once.
        """

    def catch_up(self) -> bool:
        """Take in some of what other users have written since the last call, so that the next call finds less of it.

        Call it now and then while there are no calls. It takes a fraction of a millisecond.

        Returns:
            Whether there is more.
        """

    @property
    def needs_tending(self) -> bool:
        """Whether `tend` has to be called soon even if no call comes."""

    def close(self) -> None:
        """Release all resources.

        Calls in flight keep their places while the process lives: after a failure the store is opened again.
        """


class AuditReader(Protocol):
    """Reads audit rows. A method that cannot read raises `StoreUnavailable`."""

    def entries(self, *, after: int = 0, wanted: Wanted | None = None) -> Iterator[AuditEntry]:
        """The audit rows, oldest first.

        Args:
            after: Only rows after the row with this id.
            wanted: Which rows; None for all.
        """

    def newest(self, *, wanted: Wanted | None = None) -> Iterator[AuditEntry]:
        """The audit rows, newest first; see `entries`."""

    def outcomes_of(self, row_ids: Sequence[int]) -> list["Outcome"]:
        """The outcomes of these rows, as far as they have one."""


class Readable(AuditReader, Protocol):
    """What commands need that read a store. A method that cannot read raises `StoreUnavailable`."""

    @property
    def args_key(self) -> bytes:
        """The key of the arguments' hashes; empty if the store is still being created."""

    def counters(self) -> list[CounterUse]:
        """The counters that are not empty."""

    def peek(self, counters: Sequence["Counter"]) -> tuple[list["State"], int]:
        """The current logs of these counters, in order, and the store's time. Changes nothing."""

    def rows(self, *, after: int = 0, wanted: Wanted | None = None) -> Iterator[Sequence[StoredRow]]:
        """The audit rows in the form in which they are kept, oldest first, some at a time; see `entries`."""

    def tally(self, *, after: int = 0, wanted: Wanted | None = None) -> Iterator[Tally]:
        """The audit rows, counted, some at a time; see `entries`. The store makes no record of a row."""

    def close(self) -> None:
        """Release all resources."""


class Recoverable(CallStore, AuditReader, Protocol):
    """What the outage store needs of the store that it wraps: all that `run` needs, and more."""

    warnings: tuple[str, ...]
    """Problems that the store's owner should fix, a line each. `tend` may change them."""

    def last_seen(self) -> tuple[dict[int, "State"], int]:
        """The logs that this store read or wrote last, by counter id, and the store's time. Does no I/O and does not fail.

        Counters of calls in flight are not among them.

        A counter may be absent. If it is present, its log is the one after this store's last decision, and after the errors
        that it has counted since.
        """

    @property
    def forgotten_until_us(self) -> int:
        """Until when a counter that `last_seen` leaves out may hold something that this store has read or written.

        In the store's time; 0 if `last_seen` leaves out none.
        """

    def give_places(self, calls: Mapping[int, Sequence["Counter"]]) -> None:
        """Give places to calls in flight, whether there is room or not, of which this store may not know.

        A caller that does not know whether a call has got its place asks again, with the same id. The call has it once.

        Args:
            calls: By an id of each call, its counters of calls in flight. `settle` frees the places with this id as the row id.
                It is the id of the call's row, if this store has admitted the call. Else it is negative, and no other call has
                the same.
        """

    def adopt(self, logs: Sequence[tuple["Counter", "State"]], write_back_id: str) -> None:
        """Count charges that were made without this store.

        Args:
            logs: The charges by counter. Their times are relative to now, and not positive.
            write_back_id: An id of these logs (an idempotency key). A caller that does not know whether they were counted sends
                them again with the same id, perhaps from another process. The store counts each id once, and remembers it for
                at least a week.
        """


class Store(Recoverable, Protocol):
    """What opening a store for writing returns: what the command `reset` needs, too."""

    def counters(self) -> list[CounterUse]:
        """The counters that are not empty."""

    def reset(self, labels: Sequence[str]) -> int:
        """Empty these counters for all users of the store. Returns how many of them were not empty."""


class Options(NamedTuple):
    """How a store is used.

    Attributes:
        namespace: Each namespace has its own counters and audit log.
        timeout_ms: How long a decision waits.
        durability: `full` or `normal`, see `[store]` in `config.toml`. A server has its own setting.
        keep_us: How long audit rows are kept.
        max_bytes: The size of the audit log above which the oldest rows are deleted.
    """

    namespace: str = "default"
    timeout_ms: int = 250
    durability: str = "normal"
    keep_us: int = 30 * 86400 * 1_000_000
    max_bytes: int = 256 * 1024 * 1024


class Address(Protocol):
    """Where a store is, as its URL says."""

    @property
    def shown(self) -> str:
        """The address without secrets, for messages."""

    def exists(self) -> bool:
        """Whether the store has been created. The first wrapper creates it."""

    def load(self) -> None:
        """Import the modules that `open` needs, which takes time even if the store answers at once."""

    def open(self, options: Options) -> Store:
        """Open the store, and create it if it is missing.

        Raises:
            StoreUnavailable: It cannot be used.
        """

    def read(self, options: Options, notify: Callable[[str], None]) -> Readable:
        """Open a store that exists for reading: if possible, without a lock and without the right to write.

        Args:
            options: How it is used.
            notify: Is told what cannot be read while all else is, a line each.

        Raises:
            StoreUnavailable: It cannot be read.
        """

    def prune(self, options: Options, before_us: int) -> Iterator[int]:
        """Delete the audit rows from before a time in a store that exists, in small portions. No call waits for one.

        The newest row of the store may stay. A server deletes the rows that were written before that time by its own clock.

        Args:
            options: They name the namespace.
            before_us: The time, in wall-clock time.

        Yields:
            How many rows a portion had, after they were deleted.

        Raises:
            StoreUnavailable: Rows cannot be deleted.
        """

    def leave_note(self, namespace: str, note: "AgentNote", *, wall_us: int, timeout_s: float) -> None:
        """Leave a note of a call, for all wrappers of the namespace, as a hook does. Does not open the whole store.

        A second note with the same key replaces the first; a note without a text removes it. Notes expire after
        `NOTE_KEPT_US`. A note that cannot be written in time may be dropped without an error, because a hook has nobody to
        report it to.

        Raises:
            Exception: It could not be written.
        """
