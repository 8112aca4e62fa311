"""A store in files, a database and the call log that continues it, counts as a store in memory does."""

import sys
import tempfile
from pathlib import Path
from secrets import token_hex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpguard.errors import StoreUnavailable
from mcpguard.limiter import sliding
from mcpguard.limiter.plan import Counter, Plan, Reported
from mcpguard.limiter.sliding import EMPTY, Limit, State
from mcpguard.session import audit
from mcpguard.session.verdict import Ending
from mcpguard.stores.api import Store
from mcpguard.stores.memory import Memory, MemoryStore, release
from mcpguard.stores.sqlite import call_log, log_lines, memory, upkeep
from mcpguard.stores.sqlite.call_log import log_path
from mcpguard.stores.sqlite.store import SqliteStore
from mcpguard.text.printing import compact
from tests.build import START_US, WALL_US, Session, Time

MIXED = """
[[rule]]
tool = "x"
limit = ["3/1s", "70/1m"]
[[rule]]
user = "*"
limit = "5/2s"
[[rule]]
user = "*"
agent = "*::*::*"
limit = "4/3s"
mode = "observe"
[[rule]]
user = "*"
tool = "y"
per = ["user"]
limit = "2/1s"
[[rule]]
tool = "closed"
limit = "deny"
"""

calls = st.tuples(st.just("call"), st.integers(0, 2), st.sampled_from(["x", "x", "y", "z", "closed"]), st.integers(1, 4))
pauses = st.tuples(st.just("pause"), st.sampled_from([0, 1, 15_625, 400_000, 999_999, 1_000_000, 2_500_000, -300_000]))
one_offs = st.tuples(st.sampled_from(["tend", "reset", "adopt", "append", "reopen", "fail"]), st.integers(0, 2))


class Pair:
    """The same wrappers on a file and in memory, at the same times."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.time, self.wall = Time(), Time(WALL_US)
        self.memory = Memory()
        self.files: list[Session] = [self.session(self.file(), at) for at in range(3)]
        self.references = [self.session(MemoryStore(self.memory, clock=self.time, wall=self.wall), at) for at in range(3)]

    def file(self) -> SqliteStore:
        return SqliteStore(self.path, clock=self.time, wall=self.wall)

    def session(self, store: Store, at: int) -> Session:
        return Session(store, MIXED, session=f"{at:016x}")

    def pause(self, us: int) -> None:
        self.time.now_us += us
        self.wall.now_us += max(us, 0)

    def call(self, at: int, tool: str, times: int) -> None:
        one, other = self.files[at].call(tool, times), self.references[at].call(tool, times)
        for verdict in (*one, *other):
            verdict.row_id = None
        assert [vars(each) | {"plan": None} for each in one] == [vars(each) | {"plan": None} for each in other]

    def tend(self, at: int) -> None:
        self.pause(upkeep.PRUNE_EVERY_US // 3)
        self.files[at].store.tend()
        self.references[at].store.tend()

    def reset(self, at: int) -> None:
        label = max((held.label for held in self.references[at].store.held()), default="none")
        self.files[at].store.reset([label])
        self.references[at].store.reset([label])

    def adopt(self, at: int) -> None:
        logs: list[tuple[Counter, State]] = [
            (counter, (-5, -9, 1, -5, 2)) for counter in self.references[at].charges("x")[0].plan.counters
        ]
        self.files[at].charges("x")
        self.files[at].store.adopt(logs, token_hex())
        self.references[at].store.adopt(logs, token_hex())

    def append(self, at: int) -> None:
        for session in (self.files[at], self.references[at]):
            session.store.append(session.journal.flush(self.wall(), all_of_them=True))

    def reopen(self, at: int) -> None:
        self.files[at].store.close()
        self.files[at].store = self.file()

    def fail(self, at: int) -> None:
        """A decision that fails, of a wrapper whose audit rows are not compared."""
        if sys.platform == "win32":
            return  # there nobody renames an open file
        bystander = self.session(self.files[at].store, 9)
        log = Path(log_path(self.path))
        log.rename(log.with_name("away"))
        with pytest.raises(StoreUnavailable):
            bystander.call("x")
        log.with_name("away").rename(log)

    def compare(self) -> None:
        store = self.files[0].store
        assert sorted(store.held()) == sorted(self.references[0].store.held())
        shown = [[entry.record for entry in session.store.entries()] for session in (self.files[0], self.references[0])]
        assert shown[0] == shown[1]
        assert [entry.record for entry in store.newest()] == shown[0][::-1]

    def close(self) -> None:
        for session in self.files:
            session.store.close()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(calls, calls, pauses, one_offs), max_size=30), st.sampled_from([1, upkeep.DRAIN_BYTES]))
def test_many_wrappers_of_a_store_decide_count_and_write_as_the_store_in_memory_does(
    steps: list[tuple[str, ...]], drain_bytes: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(upkeep, "DRAIN_BYTES", drain_bytes)
        patch.setattr(call_log, "RING_BYTES", 64 * 1024)
        pair = Pair(Path(folder) / "mcpguard.db")
        try:
            for what, *values in steps:
                getattr(pair, what)(*values)
            pair.compare()
        finally:
            pair.close()


pauses_us = st.sampled_from([-7, 0, 1, 1000, 900_000, 1_000_000, 5_000_000, 61_000_000])


sizes = st.sampled_from([1, 3, 64, 65, 200])


@given(st.lists(st.tuples(pauses_us, st.integers(1, 40), st.booleans()), min_size=1), sizes, st.integers(0), st.integers(1, 4))
def test_replayed_lines_give_the_same_logs_as_the_decisions(
    steps: list[tuple[int, int, bool]], n: int, drained_at: int, cost: int
) -> None:
    named = tuple(Counter(at, f"counter {at}", 60_000_000 if at < 4 else 0) for at in range(5))
    limits = (
        Limit(n, 60_000_000, 0),
        Limit(70, 60_000_000, 1, rule=1, observe=True),
        Limit(n + 1, 60_000_000, 0, rule=2),
        Limit(3 * n, 60_000_000, 2, rule=3, observe=True, counts="cost", cost=cost),
        Limit(n, 60_000_000, 3, rule=4, observe=True, counts="errors"),
        Limit(9, 0, 4, rule=5, observe=True, counts="concurrent"),
    )
    plan = Plan(limits, (Reported("tool", "tool=x", 1, "1m"),) * len(limits), named)
    states: list[State] = [EMPTY] * len(named)
    rows: list[str] = []
    now_us = START_US
    for call_id, (pause_us, times, fails) in enumerate(steps):
        now_us += pause_us
        for _ in range(times):
            decision = sliding.decide(limits, states, now_us, call_id)
            states = list(decision.states)
            if decision.charged:
                row = audit.Row(WALL_US, 1, "allowed", '{"namespace":"x"}')
                rows.append(log_lines.decision_record(row, named, decision, call_id, "me")[0])
        if fails:
            rows.append(log_lines.ending_lines(Ending(call_id, plan, True), states, now_us))
            states = list(sliding.fail(limits, states, now_us)[0])
            states[4] = release(states[4], call_id)
    drained_at %= len(rows) + 1
    drained = memory.Memory()
    drained.apply(rows[:drained_at])
    followed = memory.Memory([(key, 60_000_000, memory.unpack(memory.pack(log))) for key, log in drained.states.items()])
    followed.apply(rows[drained_at:])
    assert [followed.states.get(at, EMPTY) for at in range(4)] == states[:4]


def test_the_charges_of_a_usual_call_have_the_text_that_they_always_had() -> None:
    counters = (Counter(11, "a", 60), Counter(12, "b", 70), Counter(13, "c", 0))
    calls, cost, cap = Limit(5, 60, 0), Limit(9, 70, 1, counts="cost", cost=4), Limit(2, 0, 2, counts="concurrent")
    assert log_lines.charges(counters, (calls, cost._replace(cost=1), cap)) == "[[11,60,5],[12,70,9]]"
    assert log_lines.charges(counters, (calls, cost, cap)) == "[[11,60,5],[12,70,9,4]]"
    assert log_lines.charges(counters, (cap,)) == ""


@given(
    st.builds(
        audit.Row,
        st.integers(0, 1 << 62),
        st.integers(1, 1 << 62),
        st.sampled_from(["allowed", "rate_limited"]),
        st.builds(lambda text: compact({"user": text}), st.text()),
        st.none() | st.just('{"axis":"user"}'),
        st.none() | st.builds(compact, st.text() | st.integers()),
        st.none() | st.binary(min_size=1, max_size=12),
        st.none() | st.just("ab" * 16),
        *[st.none() | st.integers(0, 1 << 62)] * 4,
        st.none() | st.builds(lambda text: compact({"reason": text}), st.text()),
    )
)
def test_a_row_is_read_from_its_line_as_it_was_written(row: audit.Row) -> None:
    line = log_lines.row_line(row, 7, "[[1,2,3]]")
    assert "\n" not in line
    assert log_lines.read_row(line.split("\t")) == row
