"""Compares the scripts with the pure functions: same logs and same rows after each step."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpguard.limiter import sliding
from mcpguard.limiter.plan import Counter, Plan, Reported
from mcpguard.limiter.sliding import EMPTY, Counts, Limit, State
from mcpguard.policy.model import Call
from mcpguard.session import audit
from mcpguard.session.audit import Row
from mcpguard.session.journal import Journal
from mcpguard.session.verdict import DecisionRequest, Ending, Verdict
from mcpguard.stores.api import Options
from mcpguard.stores.memory import MemoryStore, SharedMemory
from mcpguard.stores.redis.server import PARTS, script
from mcpguard.stores.redis.store import RedisStore
from tests.build import WALL_US, Time
from tests.redis_servers import Server
from tests.stores.conftest import broken

NOW_US = WALL_US
"""The size of a server's time: numbers of 16 digits, which a careless conversion would round."""


def test_scripts_are_assembled_from_the_files_that_came_with_the_module() -> None:
    """An upgrade of mcpguard may replace them while a wrapper runs, which may connect again."""
    before = [script(name) for name in PARTS]
    with broken(Path, "read_text", FileNotFoundError()):
        assert [script(name) for name in PARTS] == before


WINDOWS_US = (1_000_000, 60_000_000, 1_000_001, 3_600_000_000, 3650 * 86400 * 1_000_000)
SIZES = (1, 2, 3, 5, 63, 64, 65, 66, 67, 100, 130, 1_000_000_000)


COUNTS: tuple[Counts, ...] = ("calls", "calls", "cost", "errors", "concurrent")
WAITS_US = (0, 0, 1_000_000, 60_000_000)
FOREVER_US = 2 * WINDOWS_US[-1]
"""A lease that does not end while a test runs, as in the reference store."""


@st.composite
def plans(draw: st.DrawFn, *, are_usual: bool = False) -> list[Plan]:
    """Plans that share some of their counters; of usual calls, if told. Each counter has one window, and counts one thing."""

    def drawn(*choices: int) -> int:
        """One of these; the first one for usual calls."""
        return choices[0] if are_usual else draw(st.sampled_from(choices))

    kinds = draw(
        st.lists(
            st.tuples(st.sampled_from(WINDOWS_US), st.sampled_from(COUNTS[: 1 if are_usual else None])), min_size=1, max_size=4
        )
    )
    windows = [0 if counts == "concurrent" else window_us for window_us, counts in kinds]
    counters = [Counter(at + 1, f'["é",{{}},{{"at":{at}}},{window}]', window) for at, window in enumerate(windows)]
    found = []
    for _ in range(draw(st.integers(1, 3))):
        used = draw(st.lists(st.sampled_from(range(len(counters))), min_size=int(are_usual), max_size=4, unique=True))
        limits = []
        marks: dict[Counter, int] = {}
        for at, counter in enumerate(used):
            counts = kinds[counter][1]
            mark = -1
            if counts != "concurrent" and drawn(0, 1):
                mark = len(used) + marks.setdefault(counters[counter].mark, len(marks))
            limits += [
                Limit(
                    draw(st.sampled_from(SIZES)),
                    windows[counter],
                    at,
                    draw(st.integers(0, 3)),
                    bool(drawn(0, 1)),
                    counts,
                    drawn(1, 2, 3, 60, 1_000_000_000) if counts == "cost" else 1,
                    drawn(*WAITS_US),
                    drawn(1, 2, 3, 60) if mark >= 0 else 0,
                    mark,
                )
                for _ in range(drawn(1, 2))
            ]
        if drawn(1, 1, 1, 1, 1, 0) == 0:
            limits.insert(draw(st.integers(0, len(limits))), Limit(0, 0, -1, 9, draw(st.booleans())))
        told = [(one.n or None, f"{one.window_us}us" if one.window_us else None, one.counts) for one in limits]
        reported = [
            Reported("tool", f'rule "{at}" é', n, window, counts if counts != "calls" else None)
            for at, (n, window, counts) in enumerate(told)
        ]
        found.append(Plan(tuple(limits), tuple(reported), (*[counters[counter] for counter in used], *marks)))
        assert found[-1].is_plain or not are_usual
    return found


class Made(NamedTuple):
    """One call of a step."""

    which: int = 0  # the number of its plan
    detailed: bool = False
    name: int = 0
    choices: tuple[int | None, bool, int] = (None, False, 0)
    """How long it has waited, whether it is behind another call, and its number among free retries."""


@dataclass(slots=True)
class Step:
    """A time that passes, and calls that are then decided together. Then some calls end: which, and whether they fail."""

    pass_us: int
    calls: list[Made]
    flushes: bool = False
    endings: list[tuple[int, bool]] = field(default_factory=list)
    holds: int | None = None


def steps(plan_count: int) -> st.SearchStrategy[list[Step]]:
    """Times that pass: none, little, grains, whole windows, and negative ones."""
    passing = st.one_of(
        st.sampled_from([0, 1, 999, 15_625, 15_626, 1_000_000, 1_000_001, 60_000_000, -1, -5_000_000]),
        st.integers(0, 70_000_000),
    )
    waited = st.sampled_from([None, None, 0, 1, 999_999, 1_000_000, 59_000_000])
    choices = st.tuples(waited, st.booleans(), st.integers(0, 1))
    rounds = st.sampled_from([(None, False, 0)] * 3 + [(None, False, 1)])
    usual = st.builds(Made, st.integers(0, plan_count - 1), st.booleans(), st.just(0), rounds)
    calls = st.one_of(
        st.lists(usual, min_size=1, max_size=4),
        st.builds(lambda one, chosen: [one._replace(choices=chosen)], usual, choices),  # a call that may be held is alone
        usual.map(lambda one: [one] * 33),
        st.builds(lambda one, first: [one._replace(name=first + at) for at in range(33)], usual, st.integers(0, 100)),
    )
    endings = st.lists(st.tuples(st.integers(0, 10), st.booleans()), max_size=5)
    holds = st.sampled_from([None] * 5 + [*range(plan_count)])
    return st.lists(st.builds(Step, passing, calls, st.booleans(), endings, holds), min_size=1, max_size=40)


def request_of(call: Made, plans: Sequence[Plan]) -> DecisionRequest:
    which, detailed, name, choices = call
    request = DecisionRequest(
        Call("u", "a::b::c", "s", "t"),
        plans[which],
        f'{{"namespace":"n","session":"00000000000000aa","tool":"t{which} {name} {"x" * 1500 if name else ""}"}}',
        request_id='"é"',
        detail={"arguments": {"text": "x" * (4000 if which else 1)}} if detailed else {},
    )
    if detailed:
        request.args_hash, request.trace_id = b"\x00\xff\r\n\r\n", "ab" * 16
    request.waited_us, request.is_behind, request.rounds = choices
    return request


def told(verdict: Verdict) -> dict[str, object]:
    """The members of a verdict that do not depend on the store."""
    return vars(verdict) | {"row_id": None, "states": list(verdict.states)}


class Reference(MemoryStore):
    """The store in memory, which numbers the rows of forwarded calls first, as they are written."""

    def decide(self, requests: Sequence[DecisionRequest], journal: Journal) -> list[Verdict]:
        memory, first, seq = self._memory, len(self._memory.rows) + 1, journal.seq + 1
        verdicts: list[Verdict] = []
        for request in requests:
            row_id = first + sum(one.forwards for one in verdicts)
            one, *_ = self._decide_one(request, row_id)
            one.row_id = row_id if one.forwards else None
            verdicts.append(one)
        denials = journal.rows(requests, verdicts, self._wall(), are_forwarded_written=True)
        forwarded = [one for one in zip(requests, verdicts, strict=True) if one[1].forwards]
        memory.rows += [audit.row(*one, self._wall(), seq + at) for at, one in enumerate(forwarded)]
        own = [one for one in verdicts if one.has_own_row and not one.forwards]
        for one, row_id in zip(own, self.append(denials), strict=True):
            one.row_id = row_id
        return verdicts


class Pair:
    """Makes the same calls on the server and on the reference store."""

    def __init__(self, server: Server) -> None:
        self.time = Time(NOW_US)
        self.wall = Time(WALL_US)
        options = Options(namespace=os.urandom(8).hex(), timeout_ms=20_000)
        self.store = RedisStore(server.address, options, clock=self.time, wall=self.wall, lease_us=FOREVER_US)
        self.memory = SharedMemory()
        self.reference = Reference(self.memory, clock=self.time, wall=self.wall)
        self.journals = Journal("00000000000000aa"), Journal("00000000000000aa")
        self.forwarded: list[tuple[int, Plan]] = []
        self.theirs: dict[int, int] = {}  # the reference store's row ids by the server's

    def take(self, step: Step, plans: Sequence[Plan]) -> None:
        self.time.now_us += step.pass_us
        self.wall.now_us += abs(step.pass_us)
        mine, theirs = self.journals
        requests = [request_of(call, plans) for call in step.calls]
        verdicts = self.store.decide(requests, mine)
        wanted = self.reference.decide([request_of(call, plans) for call in step.calls], theirs)
        for request, one, want in zip(requests, verdicts, wanted, strict=True):
            if one.row_id is not None and want.row_id is not None:
                self.theirs[one.row_id] = want.row_id
                self.forwarded += [(one.row_id, request.plan)] if one.forwards else []
        for request, one, want in zip(requests, verdicts, wanted, strict=True):
            if one.decision == want.decision == "held":  # the script returns the states after all its requests
                counters = request.plan.counters
                one.states = [self.known(*each) for each in zip(one.states, counters, strict=True)]
                want.states = self.wanted(counters)
        assert list(map(told, verdicts)) == list(map(told, wanted))
        if step.flushes:
            self.store.append(mine.flush(self.wall()))
            self.reference.append(theirs.flush(self.wall()))
        assert mine.state == theirs.state
        if step.holds is not None:
            self.hold([counter for counter in plans[step.holds].counters if not counter.window_us])
        if self.forwarded:
            self.settle([(*self.forwarded[which % len(self.forwarded)], failed) for which, failed in step.endings])

    def hold(self, caps: Sequence[Counter]) -> None:
        call_id = -1 - len(self.theirs)
        self.theirs[call_id] = call_id
        for store in (self.store, self.reference):
            store.give_places({call_id: caps})

    def settle(self, endings: Sequence[tuple[int, Plan, bool]]) -> None:
        """End calls. A call may end twice: then nothing is freed, but an error is counted again."""
        self.store.settle([Ending(*one) for one in endings])
        self.reference.settle([Ending(self.theirs[row_id], plan, failed) for row_id, plan, failed in endings])

    def known(self, state: State, counter: Counter) -> State:
        """A state on the server, with the reference store's ids of calls in flight."""
        return state if counter.window_us else tuple(sorted(self.theirs[one] for one in state))

    def wanted(self, counters: Sequence[Counter]) -> list[State]:
        """The states in the reference store."""
        found = [self.memory.states.get(counter.id, EMPTY) for counter in counters]
        return [state if one.window_us else tuple(sorted(state)) for one, state in zip(counters, found, strict=True)]

    def check(self, counters: Sequence[Counter]) -> None:
        """Check that the states are the same."""
        found, now_us = self.store.peek(counters)
        assert now_us == self.time()
        assert [self.known(*one) for one in zip(found, counters, strict=True)] == self.wanted(counters)
        held = [(one.label, one.used, one.log) for one in self.store.counters()]
        assert sorted(held) == sorted((one.label, one.used, one.log) for one in self.reference.counters())

    def take_all(self, plans: Sequence[Plan], steps: Sequence[Step]) -> Iterator[None]:
        """Take steps, and compare the counters after each."""
        counters = list({counter.id: counter for plan in plans for counter in plan.counters}.values())
        for step in steps:
            self.take(step, plans)
            self.check(counters)
            yield

    def rows(self) -> list[Row]:
        """The audit rows on the server."""
        return [one.row for page in self.store.rows() for one in page]


@given(plans().flatmap(lambda found: st.tuples(st.just(found), steps(len(found)))))
@settings(max_examples=400)  # changed operators in the scripts are found within 150, or not within 1000
def test_the_script_makes_the_logs_and_rows_of_the_pure_functions(shared: Server, world: tuple[list[Plan], list[Step]]) -> None:
    pair = Pair(shared)
    for _ in pair.take_all(*world):
        pass
    assert pair.rows() == pair.memory.rows
    assert [entry.record for entry in pair.store.entries()] == [entry.record for entry in pair.reference.entries()]
    pair.store.close()
    shared.command("FLUSHALL")


def usual_steps(plan_count: int) -> st.SearchStrategy[list[Step]]:
    """Usual calls, some of which hardly differ in time."""
    passing = st.sampled_from([0, 1, 15_624, 15_625, 15_626, 15_627, 100_000, 999_999, 1_000_000, 1_000_001, 60_000_000, -1])
    calls = st.integers(0, plan_count - 1).map(lambda which: [Made(which)])
    many = st.builds(lambda one, times: [one] * times, st.builds(Step, passing, calls), st.sampled_from([1, 1, 2, 4, 70]))
    return st.lists(many, min_size=1, max_size=12).map(lambda found: [step for steps in found for step in steps])


@given(plans(are_usual=True).flatmap(lambda found: st.tuples(st.just(found), usual_steps(len(found)))))
@settings(max_examples=200)
def test_usual_calls_make_the_logs_and_rows_of_the_pure_functions(shared: Server, world: tuple[list[Plan], list[Step]]) -> None:
    pair = Pair(shared)
    for _ in pair.take_all(*world):
        seen, _ = pair.store.last_seen()
        assert seen == {key: pair.memory.states.get(key, EMPTY) for key in seen}
    assert pair.rows() == pair.memory.rows
    pair.store.close()
    shared.command("FLUSHALL")


@pytest.fixture
def pair(server: Server) -> Iterator[Pair]:
    pair = Pair(server)
    yield pair
    pair.store.close()


SECOND = Counter(1, '["n",{},{},1000000]', 1_000_000)


def limited(n: int, **more: int) -> Plan:
    """A plan with one limit per second."""
    return Plan((Limit(n, 1_000_000, 0, **more),), (Reported("tool", "r", n, "1s"),), (SECOND,))  # type: ignore[arg-type]


def test_a_log_of_single_entries_is_coalesced_when_the_limit_is_raised(pair: Pair) -> None:
    grain_us = 1_000_000 // sliding.EXACT
    for n, pass_us, times in ((sliding.EXACT, 100, sliding.EXACT), (1000, grain_us + 1, 20)):
        for _ in range(times):
            pair.take(Step(pass_us, [Made()]), [limited(n)])
            pair.check([SECOND])


@pytest.mark.parametrize(
    ("entries", "apart_us"),
    [
        *((sliding.EXACT + more, 1) for more in (-1, 0, 1)),
        *((sliding.EXACT + 1, 1_000_000 // sliding.EXACT - less) for less in (0, 1)),
    ],
)
def test_a_merged_log_longer_than_an_exact_one_is_coalesced_by_grains(pair: Pair, entries: int, apart_us: int) -> None:
    log = (-1, *[part for at in range(-entries, 0) for part in (at * apart_us, 1)])
    for store in (pair.store, pair.reference):
        store.adopt([(SECOND, log)], token_hex())
    assert pair.store.peek([SECOND])[0] == [pair.memory.states[1]]


LOGS = st.lists(st.tuples(st.integers(-70_000_000, 0), st.integers(1, 9)), max_size=140).map(sorted)


@given(st.sampled_from(WINDOWS_US[:3]), LOGS, LOGS)
@settings(max_examples=200)
def test_adopted_logs_are_merged_as_the_pure_functions_merge_them(
    shared: Server, window_us: int, first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    pair = Pair(shared)
    counter = Counter(7, f'["n",{{}},{{}},{window_us}]', window_us)
    for pairs in filter(None, (first, second)):
        log = sliding.merge(EMPTY, (pairs[-1][0], *[part for one in pairs for part in one]), window_us)
        for store in (pair.store, pair.reference):
            store.adopt([(counter, log)], token_hex())
        logs = pair.store.peek([counter])[0][0], pair.memory.states[counter.id]
        mine, theirs = (sliding.live(one, window_us, NOW_US) for one in logs)
        assert mine == theirs
    pair.store.close()
    shared.command("FLUSHALL")


def test_a_denial_of_a_closed_tool_does_not_change_the_count_of_other_denials(pair: Pair) -> None:
    one = limited(1)
    closed = Plan((*one.limits, Limit(0, 0, -1, 1)), (*one.reported, Reported("tool", "closed", None, None)), one.counters)
    pair.take(Step(0, [Made(which) for which in (0, 0, 1, 2)]), [one, closed, one])
    assert [row.counted for row in pair.rows()] == [1, 2, None, 3]


@pytest.mark.parametrize(("waited_us", "decision"), [(0, "held"), (1, "rate_limited")])
def test_a_call_is_held_if_there_is_room_at_the_very_end_of_its_wait(pair: Pair, waited_us: int, decision: str) -> None:
    plan = limited(1, wait_us=1_000_000)
    pair.take(Step(0, [Made()]), [plan])
    request = request_of(Made(choices=(waited_us, False, 0)), [plan])
    (verdict,) = pair.store.decide([request], pair.journals[0])
    assert (verdict.decision, verdict.retry_after_us) == (decision, 1_000_000)


def test_of_two_caps_with_equal_room_the_calls_on_the_first_are_told(pair: Pair) -> None:
    first, second = Counter(1, '["a",0]', 0), Counter(2, '["b",0]', 0)
    two, three = Limit(2, 0, 0, counts="concurrent"), Limit(3, 0, 0, 1, counts="concurrent")
    reported = [Reported("tool", rule, n, None, "concurrent") for rule, n in (("a", 2), ("b", 3))]
    plans = [
        Plan((three,), (reported[1],), (second,)),
        Plan((two, three._replace(counter=1)), tuple(reported), (first, second)),
    ]
    for which in (0, 1):
        pair.take(Step(0, [Made(which)]), plans)
    assert [entry.record["in_flight"] for entry in pair.store.entries()] == [1, 1]
