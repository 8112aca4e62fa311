"""A store in memory that fails when it is told to, behind a breaker, with a wrapper that uses it."""

import threading
from collections.abc import Callable, Sequence

from mcpguard.core.audit import Outcome, Row
from mcpguard.core.journal import Journal
from mcpguard.core.limiter import State
from mcpguard.core.policy import Counter
from mcpguard.core.verdict import Charge, Verdict
from mcpguard.errors import StoreUnavailable
from mcpguard.stores.base import Memory, MemoryStore
from mcpguard.stores.failover import PROBE_US, FailoverStore
from tests.core.build import WALL_US, Session, Time

LIMIT_3 = '[[rule]]\nuser = "*"\nlimit = "3/1h"\n'


class Moody(MemoryStore):
    """What it does is in `place.failing`; what happens just before it does something, in `place.before`."""

    def __init__(self, place: "Place") -> None:
        super().__init__(place.memory, clock=place.time, wall=Time(WALL_US))
        self._place = place
        self.closed_by: str | None = None

    def decide(self, charges: Sequence[Charge], journal: Journal) -> list[Verdict]:
        self._place.reach("decide")
        return super().decide(charges, journal)

    def append(self, rows: Sequence[Row]) -> list[int]:
        self._place.reach("append")
        return super().append(rows)

    def record(self, outcomes: Sequence[Outcome]) -> None:
        self._place.reach("record")
        super().record(outcomes)

    def adopt(self, logs: Sequence[tuple[Counter, State]], once: str = "") -> None:
        self._place.reach("adopt")
        super().adopt(logs, once)

    def tend(self) -> None:
        self._place.reach("tend")
        super().tend()

    def close(self) -> None:
        self.closed_by = threading.current_thread().name


class Place:
    """Where a moody store is."""

    def __init__(self, mode: str = "local", policy: str = LIMIT_3, *, timeout_ms: int = 30_000) -> None:
        self.time = Time()
        self.memory = Memory()
        self.failing: dict[str, Exception] = {}
        self.before: dict[str, Callable[[], object]] = {}
        self.opened: list[Moody] = []
        self.said: list[str] = []
        self.store = FailoverStore(
            self.open, mode=mode, notify=self.said.append, timeout_ms=timeout_ms, clock=self.time, wall=Time(WALL_US)
        )
        self.session = Session(self.store, policy, args_key=lambda: self.store.args_key)
        assert self.store.args_key  # it has been opened

    def reach(self, what: str) -> None:
        self.before.pop(what, lambda: None)()
        if what in self.failing:
            raise self.failing[what]

    def open(self) -> Moody:
        self.reach("open")
        self.opened.append(Moody(self))
        return self.opened[-1]

    def fail(self, *what: str) -> None:
        self.failing = {one: StoreUnavailable("it is gone", "bring it back") for one in what}

    def break_down(self) -> None:
        self.fail("open", "decide", "append", "record", "adopt", "tend")

    def mend(self) -> None:
        """It works again, and is probed and taken up."""
        self.failing.clear()
        self.probe()
        assert self.store._store is not None

    def probe(self) -> None:
        self.time.now_us += PROBE_US[1]
        self.store.tend()

    def call(self, times: int = 1, tool: str = "search") -> list[str]:
        return [self.one(tool).decision for _ in range(times)]

    def one(self, tool: str = "search") -> Verdict:
        return self.session.one(tool)

    def ends(self, verdict: Verdict, outcome: str = "ok") -> None:
        assert verdict.row is not None
        self.store.record([Outcome(verdict.row, outcome, 1000)])

    def used(self) -> list[int]:
        return [held.used for held in MemoryStore(self.memory, clock=self.time).held()]

    def records(self) -> list[dict[str, object]]:
        return [entry.record for entry in MemoryStore(self.memory, clock=self.time).entries()]

    def outcomes(self) -> list[object]:
        return [record.get("outcome") for record in self.records()]
