"""What every store promises: to wrappers, and to commands; and how one is reached and used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:  # settings are read before the server is started: nothing of a store is loaded for that
    from mcpguard.core.audit import Outcome, Row
    from mcpguard.core.claude_code import AgentNote
    from mcpguard.core.journal import Journal
    from mcpguard.core.limiter import State
    from mcpguard.core.policy import Counter
    from mcpguard.core.verdict import DecisionRequest, Verdict

Clock = Callable[[], int]
"""Reads microseconds."""


class Entry(NamedTuple):
    """A row of the audit as it is read: its id in this store, which only grows, and its record."""

    row_id: int
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
        """The audit's rows after a row, oldest first.

        Args:
            after: The id of that row.
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

    def decide(self, requests: Sequence[DecisionRequest], journal: Journal) -> list[Verdict]:
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

    def keep_pace(self, hurry: Callable[[], None]) -> None:
        """Wait until upkeep has caught up with what this process wrote, if that is much; at most for the store's timeout.

        To be called after calls were forwarded and before more are read, so that the client waits, and no call does.

        Args:
            hurry: Called before it waits: has another thread call `tend` at once.
        """

    @property
    def needs_tending(self) -> bool:
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


class Options(NamedTuple):
    """How a store is used.

    Attributes:
        namespace: Counters and audit are per namespace.
        timeout_ms: How long a decision waits.
        durability: `full` or `normal`; a server has its own.
        keep_us: How long audit rows are kept.
        max_bytes: How large the audit may grow before the oldest rows go.
    """

    namespace: str = "default"
    timeout_ms: int = 250
    durability: str = "normal"
    keep_us: int = 30 * 86400 * 1_000_000
    max_bytes: int = 256 * 1024 * 1024


class Address(Protocol):
    """What a store's URL names."""

    @property
    def shown(self) -> str:
        """The address as it may be printed: without anything secret."""

    def exists(self) -> bool:
        """Whether there is a store yet: the first wrapper makes it."""

    def load(self) -> None:
        """Import what opening needs: that takes its time however well the store is."""

    def open(self, options: Options) -> Store:
        """The store; it is made if it is missing.

        Raises:
            StoreUnavailable: It cannot be used.
        """

    def read(self, options: Options) -> Readable:
        """The store, which exists, to be read only: where that is possible without a lock or the right to write.

        Raises:
            StoreUnavailable: It cannot be read.
        """

    def leave_note(self, namespace: str, note: AgentNote, *, wall_us: int, timeout_s: float) -> None:
        """Note which agent makes a call, for the store's users, without opening the whole of it.

        A note that cannot be written in time may be dropped without an error: a hook has nobody to tell.

        Raises:
            Exception: It could not be written.
        """
