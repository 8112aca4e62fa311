"""A store in files, a database and the call log that continues it, counts as a store in memory does."""

import sys
import tempfile
from pathlib import Path
from secrets import token_hex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpguard.errors import StoreUnavailable
from mcpguard.limiter.plan import Counter
from mcpguard.limiter.sliding import Limit, live
from mcpguard.session.verdict import Ending
from mcpguard.stores.memory import MemoryStore, SharedMemory
from mcpguard.stores.sqlite import log_lines, upkeep
from mcpguard.stores.sqlite.call_log import log_path
from mcpguard.stores.sqlite.store import SqliteStore
from tests.build import WALL_US, Time
from tests.callers import Caller
from tests.end_to_end.host import rule
from tests.stores.sqlite.conftest import make_log

PLAIN = (
    '[[rule]]\ntool = "x"\nlimit = ["3/1s", "70/1m"]\n'
    + rule("5/2s", user="*")
    + rule("4/3s", user="*", agent="*::*::*", mode="observe")
    + rule("2/1s", user="*", tool="y", per=["user"])
    + rule("deny", tool="z")
)
MIXED = (
    '[[rule]]\ntool = "x"\nlimit = ["9/1s", "100/1m"]\ncount = "cost"\nwait = "1s"\nwarn = "50%"\n'
    + '[[cost]]\ntool = "x"\ncost = 3\n'
    + rule("2/2s", user="*", count="errors", concurrent=3, warn="50%")
    + rule("5/2s", user="*", tool="y", per=[], concurrent=2, wait="2s")
    + rule("", agent="*::*::*", per=[], concurrent=1, mode="observe")
    + rule("12/1s", user="*", agent="*::*::*", count="cost", mode="observe", warn="90%")
)


WIDE = rule("65/1m", tool="x") + rule("200/2m", user="*", mode="observe") + rule("64/1m", user="*", tool="y", count="errors")
"""Limits so wide that logs are coalesced."""

which = st.integers(0, 2)
waits = st.sampled_from([None, None, 0, 600_000, 1_500_000])
tools = st.one_of(st.lists(st.sampled_from("xxyyzf"), min_size=1, max_size=4), st.just([*"xxxy"] * 10))
calls = st.tuples(st.just("call"), which, tools, waits, st.booleans(), st.booleans())
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
        how = {} if self.policy is not MIXED else {"waited_us": waited_us, "is_behind": is_behind, "rounds": int(is_retry)}
        found, expected = [caller.decide(*tools, **how) for caller in self.pair(at)]  # type: ignore[arg-type]
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
                one, other = (caller.flying.pop(place % count) for caller in self.pair(at))
                pairs.append((Ending(*one, failed), Ending(*other, failed)))
        self._settle(at, pairs)
        self.ended += [(one._replace(failed=False), other._replace(failed=False)) for one, other in pairs]

    def pair(self, at: int) -> tuple[Caller, Caller]:
        """A wrapper on the store in files, and the same one on that in memory."""
        return self.stores[at], self.references[at]

    def settle_again(self, at: int) -> None:
        self._settle(at, self.ended[-2:])

    def _settle(self, at: int, pairs: list[tuple[Ending, Ending]]) -> None:
        for caller, endings in zip(self.pair(at), zip(*pairs, strict=True), strict=False):
            caller.store.settle(endings)

    def pause(self, us: int) -> None:
        self.time.now_us += us
        self.wall.now_us += max(us, 0)

    def tend(self, at: int) -> None:
        self.pause(upkeep.PRUNE_EVERY_US // 3)
        for caller in self.pair(at):
            caller.store.tend()

    def reset(self, at: int) -> None:
        label = max((held.label for held in self.references[at].store.counters()), default="none")
        one, other = [caller.store.reset([label]) for caller in self.pair(at)]
        assert one == other

    def hold(self, at: int) -> None:
        self.held -= 1
        for caller in self.pair(at):
            plan = caller.charges("y")[0].plan
            caller.store.give_places({self.held: [counter for counter in plan.counters if not counter.window_us]})
            caller.flying.append((self.held, plan))

    def adopt(self, at: int) -> None:
        for caller in self.pair(at):
            counters = [counter for counter in caller.charges("x")[0].plan.counters if counter.window_us]
            caller.store.adopt([(counter, (-5, -9, 1, -5, 2)) for counter in counters], token_hex())

    def append(self, at: int) -> None:
        for caller in self.pair(at):
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
    st.sampled_from([PLAIN, MIXED, WIDE]),
    st.lists(st.one_of(calls, calls, endings, pauses, others), max_size=30),
)
def test_wrappers_decide_count_and_write_as_in_memory(policy: str, steps: list[tuple[str, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mcpguard.db"
        make_log(path, 64)
        twins = Twins(path, policy)
        try:
            for what, *values in steps:
                getattr(twins, what)(*values)
            twins.compare()
        finally:
            twins.close()


def test_the_charges_of_a_usual_call_have_the_text_that_they_always_had() -> None:
    counters = (Counter(11, "a", 60), Counter(12, "b", 70), Counter(13, "c", 0))
    calls, cost, cap = Limit(5, 60, 0), Limit(9, 70, 1, counts="cost", cost=4), Limit(2, 0, 2, counts="concurrent")
    assert log_lines.charges(counters, (calls, cost._replace(cost=1), cap)) == "[[11,60,5],[12,70,9]]"
    assert log_lines.charges(counters, (calls, cost, cap)) == "[[11,60,5],[12,70,9,4]]"
    assert log_lines.charges(counters, (cap,)) == ""
