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
from mcpguard.limiter.sliding import EMPTY, Limit, State, live
from mcpguard.session import audit
from mcpguard.session.verdict import Ending, Verdict
from mcpguard.stores.memory import MemoryStore, SharedMemory, release
from mcpguard.stores.sqlite import call_log, log_lines, memory, upkeep
from mcpguard.stores.sqlite.call_log import log_path
from mcpguard.stores.sqlite.store import SqliteStore
from mcpguard.text.printing import compact
from tests.build import START_US, WALL_US, Time
from tests.callers import Caller

PLAIN = """
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
tool = "z"
limit = "deny"
"""
MIXED = """
[[rule]]
tool = "x"
limit = ["9/1s", "100/1m"]
count = "cost"
wait = "1s"
warn = "50%"
[[cost]]
tool = "x"
cost = 3
[[rule]]
user = "*"
limit = "2/2s"
count = "errors"
concurrent = 3
warn = "50%"
[[rule]]
user = "*"
tool = "y"
per = []
concurrent = 2
limit = "5/2s"
wait = "2s"
[[rule]]
agent = "*::*::*"
per = []
concurrent = 1
mode = "observe"
[[rule]]
user = "*"
agent = "*::*::*"
limit = "12/1s"
count = "cost"
mode = "observe"
warn = "90%"
"""

which = st.integers(0, 2)
waits = st.sampled_from([None, None, 0, 600_000, 1_500_000])
calls = st.tuples(
    st.just("call"), which, st.lists(st.sampled_from("xxyyzf"), min_size=1, max_size=4), waits, st.booleans(), st.booleans()
)
endings = st.tuples(st.just("end"), which, st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=3))
pauses = st.tuples(st.just("pause"), st.sampled_from([0, 1, 15_625, 400_000, 999_999, 1_000_000, 2_500_000, -300_000]))
others = st.tuples(st.sampled_from(["tend", "reset", "hold", "adopt", "append", "reopen", "fail", "settle_again"]), which)


class Twins:
    """The same wrappers on a store in files and on one in memory, at the same times."""

    def __init__(self, path: Path, policy: str) -> None:
        self.path = path
        self.policy = policy
        self.time, self.wall = Time(), Time(WALL_US)
        self.memory = SharedMemory()
        self.opened: list[SqliteStore] = []
        self.stores = [Caller(self.open(), policy, session=f"{at:016x}") for at in range(3)]
        self.references = [
            Caller(MemoryStore(self.memory, clock=self.time, wall=self.wall), policy, session=f"{at:016x}") for at in range(3)
        ]
        self.ended: list[tuple[Ending, Ending]] = []
        self.held = 0

    def open(self) -> SqliteStore:
        self.opened.append(SqliteStore(self.path, clock=self.time, wall=self.wall))
        return self.opened[-1]

    def call(self, at: int, tools: list[str], waited_us: int | None, is_behind: bool, is_retry: bool) -> None:
        def decide(caller: Caller) -> list[Verdict]:
            if self.policy is PLAIN:
                return caller.decide(*tools)
            return caller.decide(*tools, waited_us=waited_us, is_behind=is_behind, rounds=int(is_retry))

        found, expected = decide(self.stores[at]), decide(self.references[at])
        for plan, *pair in zip(self.stores[at].plans, found, expected, strict=True):
            for one in pair:
                one.row_id = None
                if one.states:  # logs may have entries that have left the window; calls in flight are in any order
                    one.states = [
                        live(state, counter.window_us, one.now_us) if counter.window_us else tuple(sorted(state))
                        for counter, state in zip(plan.counters, one.states, strict=True)
                    ]
        told, wanted = ([vars(one) | {"plan": vars(one.plan)} for one in verdicts] for verdicts in (found, expected))
        assert told == wanted

    def end(self, at: int, which: list[tuple[int, bool]]) -> None:
        pairs: list[tuple[Ending, Ending]] = []
        for place, failed in which:
            if count := len(self.stores[at].flying):
                one, other = (callers[at].flying.pop(place % count) for callers in (self.stores, self.references))
                pairs.append((Ending(*one, failed), Ending(*other, failed)))
        self._settle(at, pairs)
        self.ended += [(one._replace(failed=False), other._replace(failed=False)) for one, other in pairs]

    def settle_again(self, at: int) -> None:
        self._settle(at, self.ended[-2:])

    def _settle(self, at: int, pairs: list[tuple[Ending, Ending]]) -> None:
        self.stores[at].store.settle([one for one, _ in pairs])
        self.references[at].store.settle([other for _, other in pairs])

    def pause(self, us: int) -> None:
        self.time.now_us += us
        self.wall.now_us += max(us, 0)

    def tend(self, at: int) -> None:
        self.pause(upkeep.PRUNE_EVERY_US // 3)
        self.stores[at].store.tend()
        self.references[at].store.tend()

    def reset(self, at: int) -> None:
        label = max((held.label for held in self.references[at].store.counters()), default="none")
        assert self.stores[at].store.reset([label]) == self.references[at].store.reset([label])

    def hold(self, at: int) -> None:
        self.held -= 1
        for callers in (self.stores, self.references):
            plan = callers[at].charges("y")[0].plan
            counters = [counter for counter in plan.counters if not counter.window_us]
            callers[at].store.give_places({self.held: counters})
            callers[at].flying.append((self.held, plan))

    def adopt(self, at: int) -> None:
        counters = [counter for counter in self.references[at].charges("x")[0].plan.counters if counter.window_us]
        self.stores[at].charges("x")
        logs: list[tuple[Counter, State]] = [(counter, (-5, -9, 1, -5, 2)) for counter in counters]
        self.stores[at].store.adopt(logs, token_hex())
        self.references[at].store.adopt(logs, token_hex())

    def append(self, at: int) -> None:
        for caller in (self.stores[at], self.references[at]):
            caller.store.append(caller.journal.flush(self.wall(), all_of_them=True))

    def reopen(self, at: int) -> None:
        if not self.stores[at].flying:  # else its calls might lose their places
            self.stores[at].store.close()
        self.stores[at].store = self.open()

    def fail(self, at: int) -> None:
        """A decision that fails, of a wrapper whose audit rows are not compared."""
        if sys.platform == "win32":
            return  # there nobody renames an open file
        bystander = Caller(self.stores[at].store, self.policy, session=f"{9:016x}")
        log = Path(log_path(self.path))
        log.rename(log.with_name("away"))
        with pytest.raises(StoreUnavailable):
            bystander.call("x")
        log.with_name("away").rename(log)

    def compare(self) -> None:
        store, reference = self.stores[0].store, self.references[0].store
        assert sorted(store.counters()) == sorted(reference.counters())
        shown, expected = ([entry.record for entry in one.entries()] for one in (store, reference))
        assert shown == expected
        assert [entry.record for entry in store.newest()] == expected[::-1]

    def close(self) -> None:
        for store in self.opened:
            store.close()


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([PLAIN, MIXED]),
    st.lists(st.one_of(calls, calls, endings, pauses, others), max_size=30),
    st.sampled_from([1, upkeep.DRAIN_BYTES]),
)
def test_many_wrappers_of_a_store_decide_count_and_write_as_those_of_the_store_in_memory_do(
    policy: str, steps: list[tuple[str, ...]], drain_bytes: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(upkeep, "DRAIN_BYTES", drain_bytes)
        patch.setattr(call_log, "RING_BYTES", 64 * 1024)
        twins = Twins(Path(folder) / "mcpguard.db", policy)
        try:
            for what, *values in steps:
                getattr(twins, what)(*values)
            twins.compare()
        finally:
            twins.close()


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
    texts: list[str] = []
    now_us = START_US
    for call_id, (pause_us, times, fails) in enumerate(steps):
        now_us += pause_us
        for _ in range(times):
            decision = sliding.decide(limits, states, now_us, call_id)
            states = list(decision.states)
            if decision.charged:
                row = audit.Row(WALL_US, 1, "allowed", '{"namespace":"x"}')
                texts.append(log_lines.decision_lines(row, named, decision, call_id, "me"))
        if fails:
            texts.append(log_lines.ending_lines(Ending(call_id, plan, True), states, now_us))
            states = list(sliding.fail(limits, states, now_us)[0])
            states[4] = release(states[4], call_id)
    drained_at %= len(texts) + 1
    drained = memory.Memory()
    drained.apply(texts[:drained_at])
    stored = {key: memory.unpack_log(memory.pack_log(log)) for key, log in drained.states.items()}
    followed = memory.Memory((key, 60_000_000, log) for key, log in stored.items())
    followed.apply(texts[drained_at:])
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
