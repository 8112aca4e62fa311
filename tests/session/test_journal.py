"""A session's journal: floods of denials have few rows, and a failed transaction leaves no trace."""

import pickle
from collections import Counter
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpguard.limiter.plan import Plan, Reported
from mcpguard.policy.model import Call
from mcpguard.session.audit import Row, record
from mcpguard.session.journal import KIND_STORMS, Journal
from mcpguard.session.verdict import Decided, DecisionRequest, Verdict
from mcpguard.text.printing import compact
from tests.build import WALL_US, Talk, exceeding

POLICY = '[[rule]]\ntool = "*"\nlimit = "2/1m"\n[[rule]]\nuser = "*"\ntool = "closed"\nlimit = "deny"\n'


def test_the_state_before_a_failed_transaction_has_nothing_of_what_it_did_to_the_journal() -> None:
    talk, twin = Talk(POLICY), Journal("00000000000000aa")
    for at, (tool, times) in enumerate([("a", 4), ("closed", 2), ("a", 1), ("closed", 3), ("b", 1), ("a", 2), ("closed", 1)]):
        requests, time_us = talk.charges(tool, times), WALL_US + at * 300_000
        verdicts = talk.store.decide(requests, Journal("elsewhere"))
        others = [*map(copied, verdicts)]
        rows = twin.rows(requests, others, time_us)
        before = talk.journal.state
        assert talk.journal.rows(requests, [*map(copied, verdicts)], time_us) == rows
        talk.journal.state = before
        assert talk.journal.rows(requests, verdicts, time_us) == rows
        assert [(one.audit_id, one.count) for one in verdicts] == [(one.audit_id, one.count) for one in others]
    assert talk.journal.flush(WALL_US, all_of_them=True) == twin.flush(WALL_US, all_of_them=True)


def memory(journal: Journal) -> int:
    """About how many bytes the journal takes."""
    return len(pickle.dumps(journal))


def copied(verdict: Verdict) -> Verdict:
    twin = copy(verdict)
    twin.audit_id, twin.has_own_row = "", False
    return twin


# Floods


BY_USER, BY_TOOL = Reported("user", "user=*", 5, "1h"), Reported("tool", "tool=*", None, None)
KINDS: list[tuple[Decided, Reported | None]] = [
    ("rate_limited", BY_USER),
    ("denied", BY_USER),
    ("denied", BY_TOOL),
    ("unauthenticated", None),
    ("invalid", None),
    ("unavailable", None),
    ("allowed", BY_USER),
    ("would_deny", BY_TOOL),
    ("continued", None),
    ("policy", None),
]


def charge(name: str, decided: Decided, reported: Reported | None, request_id: int = 1) -> tuple[DecisionRequest, Verdict]:
    context = compact({"session": "s", "user": "alice", "tool": name})
    detail: dict[str, object] = {} if reported else {"reason": "x"}
    one = DecisionRequest(Call("alice", "a::b::c", "crm", name), Plan(), context, request_id=str(request_id), detail=detail)
    return one, exceeding(decided, (reported, None)) if reported else Verdict(decided)


@cache
def id_of(row: Row) -> str:
    return str(record(row)["id"])


@dataclass
class Step:
    """Time passes, calls are decided together, perhaps after a transaction that fails, and rows are flushed."""

    pass_us: int
    calls: list[tuple[int, int]]
    fails: bool = False
    flushes: bool = False


@dataclass
class Flood:
    """A journal, with all its rows and verdicts."""

    journal: Journal = field(default_factory=lambda: Journal("s"))
    time_us: int = WALL_US
    rows: list[Row] = field(default_factory=list)
    written_us: dict[str, int] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)

    def take(self, step: Step, pad: str = "") -> None:
        self.time_us += step.pass_us
        asked = [charge(f"{name} {pad}", *KINDS[kind], len(self.verdicts)) for kind, name in step.calls]
        requests, verdicts = [one for one, _ in asked], [one for _, one in asked]
        if step.fails:
            before = self.journal.state
            self.journal.rows(requests, [*map(copied, verdicts)], self.time_us)
            self.journal.state = before
        rows = self.journal.rows(requests, verdicts, self.time_us)
        assert [id_of(one) for one in rows] == [one.audit_id for one in verdicts if one.has_own_row]
        assert all(one.has_own_row for one in verdicts if one.forwards)
        self.add(rows)
        self.verdicts += verdicts
        if step.flushes:
            self.flush()

    def flush(self, *, all_of_them: bool = False) -> None:
        self.add(self.journal.flush(self.time_us, all_of_them=all_of_them))

    def add(self, rows: list[Row]) -> None:
        self.rows += rows
        self.written_us |= {id_of(one): self.time_us for one in rows}


CALLS = st.one_of(
    st.lists(st.tuples(st.integers(0, len(KINDS) - 1), st.integers(0, 300)), max_size=6),
    st.tuples(st.integers(0, 5), st.integers(0, 300)).map(lambda one: [(one[0], one[1] + at) for at in range(40)]),
)
PASSING = st.one_of(st.sampled_from([0, 200_000, 999_999, 1_000_000, 5_000_000, 3_600_000_000]), st.integers(0, 3_000_000))


def steps(passing: st.SearchStrategy[int]) -> st.SearchStrategy[list[Step]]:
    return st.lists(st.builds(Step, passing, CALLS, st.booleans(), st.booleans()), max_size=25)


@given(steps(PASSING | st.sampled_from([-1, -5_000_000])), st.sampled_from(["", "x" * 200, "x" * 1500]))
@settings(max_examples=150)
def test_every_denial_is_counted_in_exactly_one_row_which_it_names(steps: list[Step], pad: str) -> None:
    flood, without_failures = Flood(), Flood()
    for step in steps:
        flood.take(step, pad)
        without_failures.take(replace(step, fails=False), pad)
    kinds = {(one.decision, one.reported) for one in flood.verdicts}
    assert memory(flood.journal) <= 2000 + len(kinds) * (KIND_STORMS + 1) * (300 + 2 * len(pad))
    flood.flush(all_of_them=True)
    without_failures.flush(all_of_them=True)
    assert flood.rows == without_failures.rows
    assert [one.seq for one in flood.rows] == list(range(1, len(flood.rows) + 1))
    told: Counter[str] = Counter()
    for one in flood.rows:
        told[one.decision] += one.repeats or 1
    assert told == Counter(one.decision for one in flood.verdicts)
    assert Counter(one.audit_id for one in flood.verdicts) == {id_of(one): one.repeats or 1 for one in flood.rows}


@pytest.mark.no_cover
def test_a_flood_of_new_names_has_few_rows_a_second_and_bounded_memory() -> None:
    flood = Flood()
    for at in range(2000):
        flood.take(Step(35_000, [(4, 10 * at + one) for one in range(10)], flushes=at % 6 == 0), "x" * 200)
    assert len(flood.rows) / 70 <= KIND_STORMS + 1
    sums = [one for one in flood.rows if one.repeats]
    assert {one.context for one in sums} == {'{"session":"s","user":"alice"}'}
    assert memory(flood.journal) <= (KIND_STORMS + 1) * 1000


def test_a_flood_of_one_kind_does_not_sum_up_another() -> None:
    flood = Flood()
    flood.take(Step(0, [(2, name) for name in range(500)]))
    before = len(flood.rows)
    flood.take(Step(0, [(kind, name) for kind in (0, 1, 3, 4, 5) for name in range(3)]))
    assert len(flood.rows) - before == 15


@pytest.mark.no_cover
def test_three_loops_at_once_keep_their_row_a_second_all_day() -> None:
    flood = Flood()
    for _ in range(1200):
        flood.take(Step(200_000, [(0, name) for name in range(3) for _ in range(5)], flushes=True), "search_customers")
    assert 3 * 239 <= len(flood.rows) <= 3 * 241
    found = {one.context for one in flood.rows}
    assert found == {charge(f"{name} search_customers", *KINDS[0])[0].context for name in range(3)}


def test_loops_beyond_the_bound_are_summed_up_without_losing_a_denial() -> None:
    flood = Flood()
    for _ in range(50):
        calls = [(0, name) for name in range(80) for _ in range(2)]
        flood.take(Step(200_000, calls, flushes=True), "x" * 300)
    flood.flush(all_of_them=True)
    assert len([one for one in flood.rows if '"tool"' not in one.context]) >= 5
    assert len(flood.rows) <= 11 * (KIND_STORMS + 1)
    assert sum(one.repeats or 1 for one in flood.rows) == 50 * 160


def test_a_flood_is_forgotten_when_it_is_over() -> None:
    flood = Flood()
    flood.take(Step(0, [(1, name) for name in range(1000)]))
    assert len(flood.rows) == KIND_STORMS + 1
    for waits in (True, False):
        flood.time_us += 1_000_000
        flood.flush()
        assert flood.journal.is_waiting is waits
