"""Stores counters and audit log on one machine: a call log that calls share, and an SQLite database that follows it.

To decide, a process takes the lock on the call log (its turn), reads the records that others have appended, decides by the
counters in its memory, and appends one record: the audit row, and the counters that the call was charged on. Outcomes, agent
notes and resets are records too, so all processes that follow the log have the same counters. Upkeep moves records into the
database.

Files beside the database: `-calls` is the call log; `-lock` is locked while a process creates or repairs the store, or does
upkeep; `-open` is locked, shared, by every process that has the store open; each `-owner-…` is locked by a process that caps
calls in flight.
"""

import _sqlite3 as sqlite3
import contextlib
import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence

from mcpguard.errors import StoreDamaged, StoreUnavailable
from mcpguard.files import StrPath
from mcpguard.identity.client_agents import NOTE_KEPT_US, AgentNote
from mcpguard.light_typing import TYPE_CHECKING, Final
from mcpguard.limiter import sliding
from mcpguard.limiter.plan import Counter, counter_id
from mcpguard.limiter.sliding import State
from mcpguard.session.audit import Outcome, Row
from mcpguard.session.journal import Journal
from mcpguard.session.verdict import DecisionRequest, Ending, Verdict
from mcpguard.stores.api import Clock, Options
from mcpguard.stores.clock import wall_us
from mcpguard.stores.sqlite import call_log, database, log_lines
from mcpguard.stores.sqlite.call_log import LogFull
from mcpguard.stores.sqlite.follower import MOST_COUNTERS, Decider
from mcpguard.stores.sqlite.opening import open_files
from mcpguard.stores.sqlite.places import Owner

if TYPE_CHECKING:
    from mcpguard.stores.sqlite.upkeep import SqliteUpkeep

ROOM_BYTES: Final = 256 * 1024
"""A call that has no room in a full log is decided again when there is this much more than it needs: others wait, too."""

DRAIN_AT_CLOSE_S: Final = 0.5
"""After this long a drain at the end stops. The next wrapper drains the rest."""


class SqliteStore:
    """A store for the processes of one machine.

    Args:
        path: The database. It and its folder are created if they are missing, with modes 0600 and 0700.
        options: How the store is used. With the durability `full`, each decision is forced to the disk before the call is
            forwarded. `normal` leaves that to the system, so a power cut can lose the last ones.
        clock: The store's time, instead of the machine's clock.
        wall: Wall-clock time, for the audit log.
        most_counters: See `MOST_COUNTERS`.

    Raises:
        StoreUnavailable: The files cannot be created, are damaged, lie on a network file system, were written by a later
            version, or are in use by another machine.
    """

    forgotten_until_us = 0  # see `Recoverable`: it forgets no counter

    def __init__(
        self,
        path: StrPath,
        options: Options | None = None,
        *,
        clock: Clock | None = None,
        wall: Clock = wall_us,
        most_counters: int = MOST_COUNTERS,
    ) -> None:
        options = options or Options()
        self.path = path = os.fspath(path)
        self._wall = wall
        self._timeout_s = options.timeout_ms / 1000
        self._durable = options.durability == "full"
        self._files = open_files(path, timeout_s=self._timeout_s, own_clock=clock, wall=wall)
        self._log = self._files.log
        self._reader = reader = self._files.reader
        self.entries, self.newest = reader.entries, reader.newest
        self.outcomes_of, self.counters = reader.outcomes_of, reader.counters
        self._clock = reader.clock
        self._follower = follower = self._files.follower
        follower.most_counters = most_counters
        self._options = options
        self._decided_s = 0.0
        self._forced_bytes = 0
        self.args_key = self._log.key
        self.warnings = self._warnings = self._files.warnings
        try:
            with database.reported(path), follower.turn():  # a store that no call could use counts as not opened
                pass
        except BaseException:
            self._files.close()
            raise
        self._owner = Owner.of(path, self)

    @functools.cached_property
    def _upkeep(self) -> "SqliteUpkeep":
        from mcpguard.stores.sqlite.upkeep import SqliteUpkeep  # a hook seldom needs it

        made = SqliteUpkeep(self._files, self._options, decided_s=lambda: self._decided_s)
        found: SqliteUpkeep = self.__dict__.setdefault("_upkeep", made)  # two threads may be here at once, from Python 3.12 on
        return found

    # calls

    def decide(self, requests: Sequence[DecisionRequest], journal: Journal) -> list[Verdict]:
        """See `Store`. It waits for room in a full log, once.

        With `durability = "full"`, a call whose record cannot be forced to the disk stays counted, although this raises.
        """
        try:
            try:
                verdicts = self._decide(requests, journal)
            except LogFull as full:
                with contextlib.suppress(StoreUnavailable):
                    self._upkeep.await_drained(full.drained_end + ROOM_BYTES, self._timeout_s)
                verdicts = self._decide(requests, journal)
        except (sqlite3.Error, OSError) as error:  # not `database.reported`: it is on the path of calls
            raise database.unavailable(self.path, error) from error
        if self._durable:
            self._force(requests, verdicts)
        return verdicts

    def _decide(self, requests: Sequence[DecisionRequest], journal: Journal) -> list[Verdict]:
        follower, before = self._follower, journal.state
        follower.prepare()
        try:
            # Before the turn, because others wait while it lasts
            made = Decider(follower, self._owner, requests, journal, self._wall)
            follower.take_turn()
            try:
                if follower.at is not made.at:  # others have decided calls meanwhile
                    journal.state = before
                    made = Decider(follower, self._owner, requests, journal, self._wall)
                if made.data:
                    self._log.append(made.at, made.data)
            finally:
                follower.turn_lock.release()
                self._decided_s = time.monotonic()
        except BaseException:
            journal.state = before
            raise
        made.charge()
        return made.verdicts

    def _force(self, requests: Sequence[DecisionRequest], verdicts: Sequence[Verdict]) -> None:
        """Force the calls that were decided to the disk, after the turn: others do not wait for this, and use the same disk.

        If that fails, they are decided without this store, so nobody would free the places that they have got here.
        """
        if self._forced_bytes < (appended_bytes := self._log.appended_bytes):
            try:
                with database.reported(self.path):
                    self._log.force()
            except StoreUnavailable:
                rows = [(one.row_id, request.plan) for request, one in zip(requests, verdicts, strict=True)]
                with contextlib.suppress(StoreUnavailable):
                    self.settle([Ending(row_id, plan, failed=False) for row_id, plan in rows if row_id is not None])
                raise
            self._forced_bytes = appended_bytes

    def append(self, rows: Sequence[Row]) -> list[int]:
        """See `Store`."""
        first = self._publish([log_lines.row_line(row) for row in rows])
        return list(range(first, first + len(rows)))

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """See `Store`."""
        self._publish(["\n".join(map(log_lines.outcome_line, some)) for some in database.batches(outcomes)])

    def settle(self, endings: Sequence[Ending]) -> None:
        """See `Store`."""

        def lines() -> list[str]:
            now_us = self._clock()
            found = [log_lines.ending_lines(one, self._follower.memory.states_of(one.plan.counters), now_us) for one in endings]
            return [one for one in found if one]

        if any(ending.failed or ending.plan.caps for ending in endings):
            self._publish(lines)

    def give_places(self, calls: Mapping[int, Sequence[Counter]]) -> None:
        """See `Store`."""
        with database.reported(self.path):
            owner = self._owner.prepare()
        lines = [[log_lines.taken_line(counter, call_id, owner) for counter in counters] for call_id, counters in calls.items()]
        self._publish(["\n".join(one) for one in lines if one])

    def last_seen(self) -> tuple[dict[int, State], int]:
        """See `Store`."""
        return dict(self._follower.memory.states), self._clock()

    def adopt(self, logs: Sequence[tuple[Counter, State]], write_back_id: str) -> None:
        """See `Store`."""

        def lines() -> list[str]:
            if write_back_id in self._follower.memory.write_back_ids:
                return []
            now_us = self._clock()
            lines = [log_lines.counter_line(counter) for counter, _ in logs]
            lines += [log_lines.merged_line(counter, sliding.shift(log, now_us), now_us) for counter, log in logs]
            return ["\n".join([*lines, log_lines.written_back_line(write_back_id, self._wall())])]

        self._publish(lines)

    def reset(self, labels: Sequence[str]) -> int:
        """See `Store`."""
        used = {one.label for one in self.counters()}
        lines = [log_lines.emptied_line(counter_id(label)) for label in labels]
        try:
            self._publish(lines)
        except LogFull as full:
            with contextlib.suppress(StoreUnavailable), database.reported(self.path):
                if not self._upkeep.drain(self._timeout_s):  # another process may be draining it
                    self._upkeep.await_drained(full.drained_end, self._timeout_s)
            self._publish(lines)
        return len(used & set(labels))

    def take_note(self, namespace: str, key: str) -> str:
        """See `Store`."""
        with database.reported(self.path):
            self._follower.follow()
        if not self._noted(namespace, key):
            return ""
        with database.reported(self.path), self._follower.turn():
            if found := self._noted(namespace, key):  # another process may have taken it
                self._follower.append([call_log.note_line(namespace, AgentNote(key, ""), self._wall())])
            return found

    def _noted(self, namespace: str, key: str) -> str:
        """The text of a note, as far as this process has read the log; empty if there is none."""
        text, noted_us = self._follower.memory.notes.get((namespace, key), ("", 0))
        return text if abs(self._wall() - noted_us) <= NOTE_KEPT_US else ""

    # the call log

    def keep_pace(self, hurry: Callable[[], None]) -> None:
        """See `Store`."""
        if self._log.appended_bytes > self._upkeep.next_check_bytes:
            with contextlib.suppress(StoreUnavailable), database.reported(self.path):  # the next call or `tend` reports it
                self._upkeep.keep_pace(self._follower.at.end, self._timeout_s, hurry)

    def catch_up(self) -> bool:
        """See `CallStore`."""
        with database.reported(self.path):
            self._check_owner()
            return self._follower.follow_some()

    def _publish(self, texts: Sequence[str] | Callable[[], Sequence[str]]) -> int:
        """Append records in a turn of their own, and apply them to this process's memory.

        A call may wait for the caller, so this does not wait for room in the log: calls leave some.

        Args:
            texts: Their texts, or a function that makes them in the turn.

        Returns:
            The id of the first audit row among them.
        """
        follower = self._follower
        with database.reported(self.path), follower.turn():
            first_row = follower.at.row
            follower.append(texts() if callable(texts) else texts)
            return first_row

    # upkeep

    @property
    def needs_tending(self) -> bool:
        """See `Store`."""
        try:
            return self._log.drained().end < self._follower.at.end or self._upkeep.has_more_to_do
        except (OSError, StoreUnavailable):
            return False  # the store is closed, or the next call will report the error

    def tend(self) -> None:
        """See `Store`. One process at a time does upkeep for all. That slows it down, so a long drain is left to the next.

        Damage is an error. If the database cannot be written for another reason, calls go on until the log is full: that is
        only a warning.
        """
        with database.reported(self.path):
            self._log.check()
            self._reader.check()
            self._check_owner()
            if self._follower.is_full:
                self._warn_of(
                    f"{self._follower.most_counters:,} counters are in use, the most that {self.path} keeps: calls that need "
                    "another one are refused; name fewer values in `per`, or shorten windows"
                )
            end = self._follower.at.end
            is_due = self._upkeep.is_due(end)
        if not is_due:
            return
        try:
            with database.reported(self.path):
                self._upkeep.tend(end, wall_us=self._wall())
        except StoreDamaged:
            raise
        except StoreUnavailable as error:
            trouble = f"{error.message} ({error.hint}); calls continue as long as {os.path.basename(self._log.path)} has room"
            self.warnings = (*self._warnings, trouble)
        else:
            self.warnings = self._warnings

    def _check_owner(self) -> None:
        """Make the file by which others see that this process lives again, if somebody has removed it."""
        self._owner.check()
        if removed := self._owner.removed:
            self._warn_of(
                f"{removed} was removed: other wrappers may have given places of calls that are in flight here to others"
            )

    def _warn_of(self, trouble: str) -> None:
        """Warn of something once, and go on warning of it."""
        if trouble not in self._warnings:
            self._warnings += (trouble,)
            self.warnings += (trouble,)

    def close(self) -> None:
        """See `Store`. Drains the log first, if the database can be written, or some of it, if that takes long."""
        with contextlib.suppress(Exception):  # whoever opens the store next drains the rest, or reports what is wrong
            self._log.check()
            self._reader.check()
            if self._log.drained().end < self._follower.at.end:
                self._upkeep.drain(DRAIN_AT_CLOSE_S)
        name = self._owner.name
        self._owner.close(self, has_places=any(place.owner == name for place in self._follower.memory.places.values()))
        self._files.close()
