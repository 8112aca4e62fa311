"""Compares the scripts with the pure functions: same logs and same rows after each step."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from secrets import token_hex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpguard.core import limiter
from mcpguard.core.audit import Row
from mcpguard.core.journal import Journal
from mcpguard.core.limiter import EMPTY, Limit, State
from mcpguard.core.policy.model import Call, Counter, Plan, Reported
from mcpguard.core.verdict import DecisionRequest
from mcpguard.stores.api import Options
from mcpguard.stores.redis import rows, states
from mcpguard.stores.redis.store import RedisStore
from tests.core.build import WALL_US, Time
from tests.memory_store import Memory, MemoryStore
from tests.redis_servers import Server, running

NOW_US = WALL_US
"""The size of a server's time: numbers of 16 digits, which a careless conversion would round."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("script")) as server:
        yield server


WINDOWS_US = (1_000_000, 60_000_000, 1_000_001, 3_600_000_000, 3650 * 86400 * 1_000_000)
SIZES = (1, 2, 3, 5, 63, 64, 65, 66, 67, 100, 130, 1_000_000_000)


@st.composite
def plans(draw: st.DrawFn) -> list[Plan]:
    """Plans that share some of their counters. Each counter has its own window."""
    windows = draw(st.lists(st.sampled_from(WINDOWS_US), min_size=1, max_size=4))
    counters = [Counter(at + 1, f'["é",{at},{window}]', window) for at, window in enumerate(windows)]
    found = []
    for _ in range(draw(st.integers(1, 3))):
        used = draw(st.lists(st.sampled_from(range(len(counters))), max_size=4, unique=True))
        limits = [
            Limit(draw(st.sampled_from(SIZES)), windows[counter], at, draw(st.integers(0, 3)), draw(st.booleans()))
            for at, counter in enumerate(used)
            for _ in range(draw(st.integers(1, 2)))
        ]
        if draw(st.integers(0, 5)) == 0:
            limits.insert(draw(st.integers(0, len(limits))), Limit(0, 0, -1, 9, draw(st.booleans())))
        reported = [
            Reported("tool", f'rule "{at}" é', limit.n or None, f"{limit.window_us}us" if limit.n else None)
            for at, limit in enumerate(limits)
        ]
        found.append(Plan(tuple(limits), tuple(reported), tuple(counters[counter] for counter in used)))
    return found


@dataclass(slots=True)
class Step:
    """A time that passes, and calls that are then decided together: plan, whether with detail, decision, number of a name."""

    pass_us: int
    calls: list[tuple[int, bool, str | None, int]]
    flushes: bool = False


def steps(plan_count: int) -> st.SearchStrategy[list[Step]]:
    """Times that pass: none, little, grains, whole windows, and negative ones."""
    passing = st.one_of(
        st.sampled_from([0, 1, 999, 15_625, 15_626, 1_000_000, 1_000_001, 60_000_000, -1, -5_000_000]),
        st.integers(0, 70_000_000),
    )
    decided = st.sampled_from([None] * 8 + ["continued", "invalid", "policy"])
    call = st.tuples(st.integers(0, plan_count - 1), st.booleans(), decided, st.just(0))
    calls = st.one_of(
        st.lists(call, min_size=1, max_size=4),
        call.map(lambda one: [one] * 33),
        st.builds(lambda one, first: [(*one[:3], first + at) for at in range(33)], call, st.integers(0, 100)),
    )
    return st.lists(st.builds(Step, passing, calls, st.booleans()), min_size=1, max_size=40)


def charges_of(step: Step, plans: Sequence[Plan]) -> list[DecisionRequest]:
    return [
        DecisionRequest(
            Call("u", "a::b::c", "s", "t"),
            Plan() if decided == "policy" else plans[which],
            f'{{"session":"00000000000000aa","tool":"t{which} {name} {"x" * 1500 if name else ""}"}}',
            request_id='"é"',
            args_hash=b"\x00\xff\r\n\r\n" if detailed else None,
            trace_id="ab" * 16 if detailed else None,
            detail={"arguments": {"text": "x" * (4000 if which else 1)}} if detailed else {},
            decided=decided,  # type: ignore[arg-type]
        )
        for which, detailed, decided, name in step.calls
    ]


def logs_in(store: RedisStore, counters: Sequence[Counter]) -> list[State]:
    values = store._ask(("MGET", *(store._counter_key(counter.id) for counter in counters)))[0]
    return [states.log(value) for value in values]


class Pair:
    """Makes the same calls on the server and on the reference store."""

    def __init__(self, server: Server) -> None:
        self.time = Time(NOW_US)
        self.wall = Time(WALL_US)
        options = Options(namespace=os.urandom(8).hex(), timeout_ms=20_000)
        self.store = RedisStore(server.address, options, clock=self.time, wall=self.wall)
        self.memory = Memory()
        self.reference = MemoryStore(self.memory, clock=self.time, wall=self.wall)
        self.journals = Journal("00000000000000aa"), Journal("00000000000000aa")

    def take(self, step: Step, plans: Sequence[Plan]) -> None:
        self.time.now_us += step.pass_us
        self.wall.now_us += abs(step.pass_us)
        mine, theirs = self.journals
        verdicts = self.store.decide(charges_of(step, plans), mine)
        wanted = self.reference.decide(charges_of(step, plans), theirs)
        for one, want in zip(verdicts, wanted, strict=True):
            one.row_id = want.row_id = None
        assert list(map(vars, verdicts)) == list(map(vars, wanted))
        if step.flushes:
            self.store.append(mine.flush(self.wall()))
            self.reference.append(theirs.flush(self.wall()))
        assert vars(mine) == vars(theirs)

    def rows(self) -> list[Row]:
        """The audit rows on the server."""
        found = [one for key in self.store._audit[:2] for one in self.store._ask(("XRANGE", key, "-", "+"))[0]]
        return [rows.row(fields) for _, fields in sorted(found, key=lambda one: rows.row_id(one[0]))]


@given(plans().flatmap(lambda found: st.tuples(st.just(found), steps(len(found)))))
@settings(max_examples=1000)
def test_the_script_makes_the_same_logs_and_rows_as_the_pure_functions(
    server: Server, world: tuple[list[Plan], list[Step]]
) -> None:
    plans, steps = world
    pair = Pair(server)
    counters = list({counter.id: counter for plan in plans for counter in plan.counters}.values())
    for step in steps:
        pair.take(step, plans)
        if counters:
            kept = logs_in(pair.store, counters)
            assert kept == [pair.memory.states.get(counter.id, EMPTY) for counter in counters]
    assert pair.rows() == pair.memory.rows
    assert [entry.record for entry in pair.store.entries()] == [entry.record for entry in pair.reference.entries()]
    pair.store.close()
    server.command("FLUSHALL")


def test_a_log_of_single_entries_is_coalesced_when_the_limit_is_raised(server: Server) -> None:
    pair = Pair(server)
    counter = Counter(1, "[1000000]", 1_000_000)
    small, large = (
        Plan((Limit(n, 1_000_000, 0),), (Reported("tool", "r", n, "1s"),), (counter,)) for n in (limiter.EXACT, 1000)
    )
    grain_us = 1_000_000 // limiter.EXACT
    for plan, pass_us, times in ((small, 100, limiter.EXACT), (large, grain_us + 1, 20)):
        for _ in range(times):
            pair.take(Step(pass_us, [(0, False, None, 0)]), [plan])
            assert logs_in(pair.store, [counter]) == [pair.memory.states[1]]
    pair.store.close()


@pytest.mark.parametrize("entries", [limiter.EXACT - 1, limiter.EXACT, limiter.EXACT + 1])
def test_a_merged_log_is_coalesced_only_if_it_is_longer_than_an_exact_one(server: Server, entries: int) -> None:
    pair = Pair(server)
    counter = Counter(1, "[1000000]", 1_000_000)
    log = (-1, *[part for at in range(-entries, 0) for part in (at, 1)])
    for store in (pair.store, pair.reference):
        store.adopt([(counter, log)], token_hex())
    assert logs_in(pair.store, [counter]) == [pair.memory.states[1]]
    pair.store.close()


LOGS = st.lists(st.tuples(st.integers(-70_000_000, 0), st.integers(1, 9)), max_size=140).map(sorted)


@given(st.sampled_from(WINDOWS_US[:3]), LOGS, LOGS)
@settings(max_examples=200)
def test_adopted_logs_are_merged_as_the_pure_functions_merge_them(
    server: Server, window_us: int, first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    pair = Pair(server)
    counter = Counter(7, f"[{window_us}]", window_us)
    for pairs in (first, second):
        if not pairs:
            continue
        log = limiter.merge(EMPTY, (pairs[-1][0], *[part for one in pairs for part in one]), window_us)
        for store in (pair.store, pair.reference):
            store.adopt([(counter, log)], token_hex())
        alive = [
            limiter.live(one, window_us, NOW_US) for one in (logs_in(pair.store, [counter])[0], pair.memory.states[counter.id])
        ]
        assert alive[0] == alive[1]
    pair.store.close()
    server.command("FLUSHALL")


def test_entries_a_grain_apart_stay_separate_and_closer_ones_are_merged(server: Server) -> None:
    pair = Pair(server)
    counter = Counter(1, "[1000000]", 1_000_000)
    grain_us = 1_000_000 // limiter.EXACT
    for entries, apart_us in ((limiter.EXACT + 1, grain_us), (limiter.EXACT + 1, grain_us - 1)):
        log = (-1, *[part for at in range(-entries, 0) for part in (at * apart_us, 1)])
        for store in (pair.store, pair.reference):
            store.adopt([(counter, log)], token_hex())
        assert logs_in(pair.store, [counter]) == [pair.memory.states[1]]
    pair.store.close()


def test_each_entry_counts_for_exactly_its_window(server: Server) -> None:
    pair = Pair(server)
    counter = Counter(1, "[1000000]", 1_000_000)
    plan = Plan((Limit(2, 1_000_000, 0),), (Reported("tool", "r", 2, "1s"),), (counter,))
    for pass_us in (0, 400_000, 599_999, 1, 399_999, 1):
        pair.take(Step(pass_us, [(0, False, None, 0)]), [plan])
    assert [entry.record["decision"] for entry in pair.store.entries()].count("allowed") == 4
    assert logs_in(pair.store, [counter]) == [pair.memory.states[1]]
    pair.store.close()


def test_a_denial_of_a_closed_tool_does_not_change_the_count_of_other_denials(server: Server) -> None:
    pair = Pair(server)
    counter = Counter(1, "[1000000]", 1_000_000)
    one = Limit(1, 1_000_000, 0)
    reported, closed = Reported("tool", "r", 1, "1s"), Reported("tool", "closed", None, None)
    plans = [
        Plan((one,), (reported,), (counter,)),
        Plan((one, Limit(0, 0, -1, 1)), (reported, closed), (counter,)),
        Plan((one,), (reported,), (counter,)),
    ]
    pair.take(Step(0, [(which, False, None, 0) for which in (0, 0, 1, 2)]), plans)
    found = [entry.record for entry in pair.store.entries()]
    assert found == [entry.record for entry in pair.reference.entries()]
    assert [row.get("count") for row in found] == [1, 2, None, 3]
    pair.store.close()


def test_the_log_that_was_last_seen_of_a_counter_is_the_servers(server: Server) -> None:
    pair = Pair(server)
    counter = Counter(1, "[1000000]", 1_000_000)
    plan = Plan((Limit(2, 1_000_000, 0),), (Reported("tool", "r", 2, "1s"),), (counter,))
    for _ in range(3):
        pair.take(Step(1, [(0, False, None, 0)]), [plan])
        assert pair.store.last_seen() == ({1: pair.memory.states[1]}, pair.time())
    pair.store.close()
