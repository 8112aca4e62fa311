"""A process at the call log: it follows what others append, and decides calls at the position up to which it has read."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from mcpguard.errors import StoreUnavailable
from mcpguard.light_typing import Final
from mcpguard.limiter.plan import Counter, Plan
from mcpguard.limiter.sliding import EMPTY, Decision, State
from mcpguard.locks import FileLock
from mcpguard.session.decision import admit, decide_one
from mcpguard.session.journal import Journal
from mcpguard.session.verdict import DecisionRequest, Verdict
from mcpguard.stores.api import Clock
from mcpguard.stores.sqlite import log_lines
from mcpguard.stores.sqlite.call_log import CallLog, Lost, Position, damaged, pack
from mcpguard.stores.sqlite.memory import Memory
from mcpguard.stores.sqlite.places import Owner, Place, Places, calls_of

MOST_COUNTERS: Final = 65_536
"""The most counters that a store has. A usual one takes about 300 bytes, and 1.5 µs when a store is opened. Beyond it calls
that need another one are refused: counters that are in use are never forgotten."""

_CROWDED_SHARE: Final = 7 / 8
"""From this share of the most counters on, expired counters are looked for."""

_LOOKED_AT: Final = 256
"""Among how many counters, each time: a call may wait for that. So all are looked at before the store is full."""

TURN_SHARE: Final = 0.8
"""The share of its timeout that a call may wait for its turn."""

CHUNKS_IN_TURN: Final = 8
"""How much of the log is read in a turn, in chunks of about 15 records. Who has more to read lets others take turns."""

_TRIES: Final = 5
"""How often to start over if the log moves on while the database is read."""

TOO_MANY: Final = "too_many_counters"
"""The reason in the row of a call that is refused because the store has no room for its counter."""

_WHY: Final = (
    "{:,} counters are in use, the most that a store keeps, and this call needs another one. "
    "There is room when the window of one of them has passed."
)
_NOTHING: Final = Decision(False, (), (), ())


class Follower:
    """One process at the call log. It reads the records that others have appended, and appends its own in its turn.

    Args:
        log: The log.
        turn_lock: The lock on it; not held.
        memory: The counters.
        at: The position up to which `memory` has all records.
        clock: The store's time.
        load: Reads counters and position from the database.
        timeout_s: How long a decision may take. It waits for its turn for a part of that.

    Attributes:
        memory: The counters that the process has read.
        at: The position up to which it has read the log.
        most_counters: See `MOST_COUNTERS`.
    """

    def __init__(
        self,
        log: CallLog,
        turn_lock: FileLock,
        memory: Memory,
        at: Position,
        *,
        clock: Clock,
        load: Callable[[], tuple[Memory, Position]],
        timeout_s: float,
    ) -> None:
        self.memory = memory
        self.at = at
        self.turn_lock = turn_lock
        self.clock = clock
        self.most_counters = MOST_COUNTERS
        self._log = log
        self._load = load
        self._timeout_s = timeout_s
        self._prepared_at = at
        self._has_company = False  # whether others have appended something before the last turn

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the lock on the call log, with every record read that others have appended.

        Raises:
            OSError, sqlite3.Error: The log or the database cannot be read.
            StoreUnavailable: The lock did not come free in time, or the log is damaged.
        """
        self.prepare()
        self.take_turn()
        try:
            yield
        finally:
            self.turn_lock.release()

    def prepare(self) -> None:
        """Do what can be done before a turn, so that others do not wait for it: drop expired counters, and read the log.

        The log is read if others have appended something before the last turn; and if there are places, so that no dead process
        is examined whose places others have freed.
        """
        if len(self.memory.states) > self.most_counters * _CROWDED_SHARE:
            self.make_room()
        self._prepared_at = self.at
        if self._has_company or self.memory.places:
            self.follow()

    def take_turn(self) -> None:
        """Hold the lock on the call log as `turn` does. The caller releases `turn_lock`: so a call pays for no generator."""
        for tries_left in range(_TRIES, -1, -1):
            if not self.turn_lock.acquire(self._timeout_s * TURN_SHARE):
                raise StoreUnavailable(
                    f"{self._log.path} did not come free in time", "look for a stopped process that holds its lock"
                )
            try:
                if self._log.folder.may_have_changed():
                    self._log.check()
                if not tries_left:
                    self.follow()  # others always have appended much
                if not tries_left or self._log.ends_at(self.at) or self._reads_all():
                    self._has_company = self.at is not self._prepared_at
                    return
            except BaseException as error:
                self.turn_lock.release()
                if not isinstance(error, Lost) or not tries_left:
                    raise
            else:
                self.turn_lock.release()
            self.follow()  # it is long, or needs the database: others must not wait for that

    def _reads_all(self) -> bool:
        """Read what others have appended, unless it is so much that others must not wait. Returns whether all of it is read."""
        return any(not self._read_some() or self._log.ends_at(self.at) for _ in range(CHUNKS_IN_TURN))

    def follow(self) -> None:
        """Read the records that others have appended."""
        for _ in range(_TRIES):
            try:
                while self._read_some():
                    pass
            except Lost:
                self._log.check()
                self._reload()
            else:
                return
        raise Lost(self._log.path)

    def follow_some(self) -> bool:
        """Read some of the records that others have appended, for less than a millisecond; returns whether there are more."""
        self.make_room()
        try:
            return self._read_some() and not self._log.ends_at(self.at)
        except Lost:
            self.follow()
            return False

    def _read_some(self) -> bool:
        found = self._log.some(self.at)
        self.memory.apply([text for text, _ in found])
        if found:
            self.at = found[-1][1]
        return bool(found)

    def _reload(self) -> None:
        """Read the counters from the database again, because records that this process had not read yet were overwritten."""
        if self._log.drained().end <= self.at.end:
            raise damaged(self._log.path, "records that were not yet in the database were overwritten") from None
        self.memory, self.at = self._load()

    def append(self, texts: Sequence[str]) -> None:
        """Append a record for each text, or none, also into the room that calls leave. The caller has the turn."""
        data, after = pack(self.at, texts)
        self._log.append(self.at, data, uses_reserve=True)
        self.memory.apply(texts)
        self.at = after

    @property
    def is_full(self) -> bool:
        """Whether there must be no other counter."""
        return len(self.memory.states) >= self.most_counters

    def make_room(self) -> None:
        """Drop the counters that have expired among some: next time among others."""
        states, windows = self.memory.states, self.memory.windows
        now_us, excess = self.clock(), max(0, len(states) - self.most_counters)
        for key in list(itertools.islice(states, _LOOKED_AT + 2 * excess)):  # those that were looked at longest ago
            log = states.pop(key)
            if log and log[-2] > now_us - windows[key]:
                states[key] = log
            else:
                del windows[key]


class Decider:
    """Decides requests in order, by what this process has read of the log. It is made for each decision.

    Nothing counts before `data` is appended to the log, and `charge` is called. If that fails, put back the journal's state.

    Args:
        follower: This process, which follows the log.
        owner: This process as an owner of places.
        requests: The requests.
        journal: Says which of them have rows.
        wall: Wall-clock time.

    Attributes:
        at: The position of the log by which the requests were decided. The verdicts hold as long as the log ends there.
        verdicts: The verdicts.
        data: The records to append; may be empty.
    """

    def __init__(
        self, follower: Follower, owner: Owner, requests: Sequence[DecisionRequest], journal: Journal, wall: Clock
    ) -> None:
        self._follower, self._owner, self._journal = follower, owner, journal
        self.at, states = follower.at, follower.memory.states
        self._now_us = now_us = follower.clock()
        self._wall_us = wall_us = wall()
        self.verdicts: list[Verdict] = []
        self._records: list[str] = []
        self._logs: dict[int, State] = {}  # of the counters that were charged
        self._windows: dict[int, int] = {}  # of counters that may be new
        self._alive: set[str] = set()  # the processes that were found alive
        self._places = follower.memory.places  # a copy, once a call takes or frees one
        row_id = self.at.row
        for request in requests:
            plan = request.plan
            admitted = admit(plan, self._logs_of(plan.counters) if self._logs else states, now_us) if plan.is_plain else None
            if admitted is None:
                verdict, record = self._decide(request, row_id)
            else:
                verdict, after = admitted
                self._logs |= after
                row = journal.row(request, verdict, wall_us)
                record = row and log_lines.row_line(row, now_us, log_lines.all_charges(plan))
            self.verdicts.append(verdict)
            if record is not None:
                self._records.append(record)
                verdict.row_id = row_id
                row_id += 1
        self.data, self._after = pack(self.at, self._records)

    def charge(self) -> None:
        """Charge the counters in memory."""
        memory = self._follower.memory
        memory.states.update(self._logs)
        memory.windows.update(self._windows)
        memory.places = self._places
        self._follower.at = self._after

    def _logs_of(self, counters: Sequence[Counter]) -> Mapping[int, State]:
        states, charged = self._follower.memory.states, self._logs
        return {one.id: charged.get(one.id) or states.get(one.id, EMPTY) for one in counters}

    def _decide(self, request: DecisionRequest, row_id: int) -> tuple[Verdict, str | None]:
        """Decide a request that is not a usual call. Returns the verdict and the text of its record, unless there is none."""
        counters = request.plan.counters
        verdict, decision = self._decide_by_limits(request, row_id)
        if verdict.forwards and self._follower.is_full and self._needs_counter(request.plan):
            request.explain(TOO_MANY, _WHY.format(self._follower.most_counters))
            verdict, decision = Verdict("unavailable", request.plan), _NOTHING
        owner = ""
        for limit in decision.charged:
            counter = counters[limit.counter]
            if limit.window_us:
                self._logs[counter.id], self._windows[counter.id] = decision.states[limit.counter], limit.window_us
            else:
                owner = self._owner.prepare()
                self._own_places()[counter.id, row_id] = Place(counter.id, row_id, owner, counter.label)
        row = self._journal.row(request, verdict, self._wall_us)
        return verdict, row and log_lines.decision_lines(row, counters, decision, row_id, owner)

    def _needs_counter(self, plan: Plan) -> bool:
        """Whether a limit's counter is not there yet. A mark, of which each counter has at most one, is no reason to refuse."""
        states = self._follower.memory.states
        counters = [plan.counters[limit.counter] for limit in plan.limits if limit.n]
        return any(one.window_us and one.id not in states and one.id not in self._logs for one in counters)

    def _decide_by_limits(self, request: DecisionRequest, row_id: int) -> tuple[Verdict, Decision]:
        """Decide a call. If a cap has no room, free the places of processes that have ended."""
        limits = request.plan.limits
        verdict, decision = decide_one(request, self._states(request), self._now_us, row_id)
        if any(limits[one.limit].counts == "concurrent" for one in verdict.exceeded) and self._free_dead(request.plan.counters):
            verdict, decision = decide_one(request, self._states(request), self._now_us, row_id)
        return verdict, decision

    def _states(self, request: DecisionRequest) -> list[State]:
        counters = request.plan.counters
        logs = self._logs_of(counters)
        return [logs.get(one.id, EMPTY) if one.window_us else calls_of(self._places, one.id) for one in counters]

    def _own_places(self) -> Places:
        """The places, to be changed."""
        if self._places is self._follower.memory.places:
            self._places = dict(self._places)
        return self._places

    def _free_dead(self, counters: Sequence[Counter]) -> bool:
        """Free all places of the processes that have places of these counters and have ended; returns whether there are any."""
        ids, places = {one.id for one in counters}, self._places.values()
        holders = {place.owner for place in places if place.counter_id in ids} - {self._owner.name, *self._alive}
        ended = self._owner.dead(holders)
        self._alive |= holders - ended
        freed = [place for place in places if place.owner in ended]
        for place in freed:
            del self._own_places()[place[:2]]
        if freed:
            self._records.append("\n".join([log_lines.freed_line(place.counter_id, place.call_id) for place in freed]))
        return bool(freed)
