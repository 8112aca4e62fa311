"""A wrapper with an outage store around a store in memory that fails on demand."""

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mcpguard.errors import StoreUnavailable
from mcpguard.limiter.sliding import State
from mcpguard.locks import LifeSign
from mcpguard.session.audit import Outcome
from mcpguard.session.verdict import Ending, Verdict
from mcpguard.stores.memory import MemoryStore, SharedMemory
from mcpguard.stores.outage.breaker import PROBE_US
from mcpguard.stores.outage.log import Bounds, OutageFolder
from mcpguard.stores.outage.store import OutageStore
from tests.build import WALL_US, Time, Wrapper

OPERATIONS = ("decide", "append", "record", "adopt", "settle", "give_places", "tend")
LIMIT_3 = '[[rule]]\nuser = "*"\nlimit = "3/1h"\n'


class Moody(MemoryStore):
    """A store whose operations fail as `place.failing` says. Hooks in `place.before` and `place.after` run around them."""

    def __init__(self, place: "Place") -> None:
        super().__init__(place.memory, clock=place.time, wall=place.wall)
        self._place = place
        self.closed_by: str | None = None

    def last_seen(self) -> tuple[dict[int, State], int]:
        logs, now_us = super().last_seen()
        return {key: log for key, log in logs.items() if key not in self._place.forgotten | self._place.unread}, now_us

    @property
    def forgotten_until_us(self) -> int:
        states, counters = self._place.memory.states, self._place.memory.counters
        gone = [key for key in self._place.forgotten if states.get(key) and counters[key].window_us]
        return max([states[key][-2] + counters[key].window_us for key in gone], default=0)

    def close(self) -> None:
        self.closed_by = threading.current_thread().name


def _moody(name: str) -> Callable[..., object]:
    """An operation that fails if it is to, with the hooks around it."""

    def operation(self: Moody, *args: object) -> object:
        self._place.asked.append((name, args))
        self._place.reach(name)
        done = getattr(MemoryStore, name)(self, *args)
        self._place.has_done(name)
        return done

    return operation


for _name in (*OPERATIONS, "take_note"):
    setattr(Moody, _name, _moody(_name))


class KeptFolder(OutageFolder):
    """The outage logs of a wrapper that can be killed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.locked: list[LifeSign] = []  # the files that the wrapper has locked

    def create(self) -> LifeSign:
        self.locked.append(super().create())
        return self.locked[-1]

    def left_behind(self) -> Iterator[LifeSign]:
        for file in super().left_behind():
            self.locked.append(file)
            yield file


class Killed(BaseException):
    """The process is killed here."""


class Place:
    """Where a moody store is, and one wrapper that uses it. With another place, both have one store and its clocks."""

    def __init__(
        self,
        mode: str = "local",
        policy: str = LIMIT_3,
        *,
        folder: Path | None = None,
        other: "Place | None" = None,
        session: str = "00000000000000aa",
        bounds: Bounds | None = None,
    ) -> None:
        self.time: Time = other.time if other else Time()
        self.wall: Time = other.wall if other else Time(WALL_US)
        self.memory: SharedMemory = other.memory if other else SharedMemory()
        self.base = "this boot"
        self.failing: dict[str, BaseException] = {}
        self.before: dict[str, Callable[[], object]] = {}
        self.after: dict[str, Callable[[], object]] = {}
        self.forgotten: set[int] = set()  # counters that the store has forgotten, for want of room
        self.unread: set[int] = set()  # counters that it has neither read nor written
        self.opened: list[Moody] = []
        self.asked: list[tuple[str, tuple[Any, ...]]] = []  # what the store was asked to do
        self.said: list[str] = []
        self.told: list[Mapping[str, str]] = []
        self.folder = KeptFolder(folder, "db-outage-", base=lambda: self.base) if folder else None
        self.store = OutageStore(
            self.open,
            mode=mode,
            notify=self.said.append,
            outage=self.told.append,
            folder=self.folder,
            timeout_ms=30_000,
            clock=self.time,
            wall=self.wall,
            bounds=bounds,
        )
        self.session = Wrapper(self.store, policy, session=session, args_key=lambda: self.store.args_key)
        assert self.store.args_key  # it has been opened

    def reach(self, what: str) -> None:
        self.before.pop(what, lambda: None)()
        if what in self.failing:
            raise self.failing[what]

    def has_done(self, what: str) -> None:
        self.after.pop(what, lambda: None)()

    def open(self) -> Moody:
        self.reach("open")
        self.opened.append(Moody(self))
        return self.opened[-1]

    def fail(self, *what: str) -> None:
        self.failing = {one: StoreUnavailable("it is gone", "bring it back") for one in what}

    def break_down(self) -> None:
        self.fail("open", *OPERATIONS)

    def kill(self) -> None:
        """Release the locks on outage logs, as the system does when the process is killed."""
        for file in self.folder.locked if self.folder else ():
            file.close()

    @property
    def is_cut_off(self) -> bool:
        """Whether calls do without the store, as the user was told last."""
        return bool(self.told) and self.told[-1]["decision"] == "store_lost"

    def mend(self) -> None:
        """Let the store work again, and let a probe close the breaker."""
        self.failing = {}
        self.probe()
        assert not self.is_cut_off

    def probe(self) -> None:
        self.time.now_us += PROBE_US[1]
        self.store.tend()

    def lose_data(self) -> None:
        """The server comes back without its data, and the store connects to it without a failure."""
        self.memory = self.opened[-1]._memory = SharedMemory()
        self.opened[-1].args_key = self.memory.args_key

    def call(self, times: int = 1, tool: str = "search") -> list[str]:
        return [self.one(tool).decision for _ in range(times)]

    def one(self, tool: str = "search") -> Verdict:
        return self.session.one(tool)

    def refusal(self, tool: str = "search") -> Verdict:
        """The verdict on a call that is not admitted."""
        verdict = self.one(tool)
        assert not verdict.forwards
        return verdict

    def starts(self, tool: str = "search") -> Ending:
        """A call that is forwarded. Returns how it will end."""
        (request,) = self.session.charges(tool)
        (verdict,) = self.store.decide([request], self.session.journal)
        assert verdict.forwards
        assert verdict.row_id is not None
        return Ending(verdict.row_id, request.plan, failed=False)

    def stops(self, *calls: Ending, failed: bool = False) -> None:
        """The server answers calls."""
        self.store.settle([call._replace(failed=failed) for call in calls])

    def ends(self, verdict: Verdict, outcome: str = "ok") -> None:
        assert verdict.row_id is not None
        self.store.record([Outcome(verdict.row_id, outcome, 1000)])

    def used(self) -> list[int]:
        return [held.used for held in MemoryStore(self.memory, clock=self.time).counters()]

    def records(self) -> list[dict[str, object]]:
        return [entry.record for entry in MemoryStore(self.memory, clock=self.time).entries()]

    def outcomes(self) -> list[object]:
        return [record.get("outcome") for record in self.records()]


def in_outage(mode: str = "local", policy: str = LIMIT_3, **options: Any) -> Place:
    """A wrapper whose store has failed."""
    place = Place(mode, policy, **options)
    place.break_down()
    return place
