"""Calls that a hook has decided before they reach the wrapper: nothing counts them twice, and all other limits still hold."""

from typing import Any

import pytest

from mcpguard.identity.caller import Identity
from mcpguard.identity.client_agents import AgentNote
from mcpguard.policy.model import Call
from mcpguard.policy.parse import parse
from tests.build import Talk, call_line

WHO = Identity("alice", "os", "crm", claude_session="s")
LIMITED = '[[rule]]\nuser = "*"\nlimit = "1/1m"\n'
EXPLORE = "Claude Code::subagent::Explore"


def decided(policy: str, *, agent: str = "", user: str = "alice") -> dict[str, str]:
    """The note of a hook that has decided a call `t1` by a policy."""
    plan = parse(policy).plan(Call(user, agent, "crm", "search"))
    note = AgentNote("s t1", agent).after_decision([(plan.counters[one.counter].id, one.n) for one in plan.limits])
    return {note.key: note.text}


def called(name: str, **params: Any) -> bytes:
    return call_line("search", name, _meta={"claudecode/toolUseId": "t1"}, **params)


def test_a_decided_call_is_forwarded_though_its_limit_is_full_and_charges_nothing() -> None:
    talk = Talk(LIMITED, who=WHO)
    assert talk.client_calls("search", "a") == ["forwarded a"]
    assert talk.client(called("b"), noted=decided(LIMITED)) == ["forwarded b"]
    assert talk.client(called("c")) == ["answered c: 429"]
    assert [record["decision"] for record in talk.records] == ["allowed", "continued", "rate_limited"]


def test_a_limit_that_the_hook_did_not_decide_by_counts_the_call() -> None:
    policy = LIMITED + '[[rule]]\ntool = "search"\nlimit = "1/1m"\n'
    talk = Talk(policy, who=WHO)
    assert talk.client(called("a"), noted=decided(LIMITED)) == ["forwarded a"]
    assert talk.client(called("b"), noted=decided(LIMITED)) == ["answered b: 429"]
    assert [(record["decision"], record["axis"]) for record in talk.records] == [("allowed", "tool"), ("rate_limited", "tool")]


def test_the_limits_of_another_user_than_the_hooks_count_the_call() -> None:
    talk = Talk(LIMITED, who=WHO)
    assert talk.client(called("a"), noted=decided(LIMITED, user="bob")) == ["forwarded a"]
    assert talk.client(called("b"), noted=decided(LIMITED, user="bob")) == ["answered b: 429"]


@pytest.mark.parametrize("closed", ['limit = "deny"', 'limit = "deny"\nmode = "observe"'])
def test_a_closed_tool_stays_closed(closed: str) -> None:
    talk = Talk(f'[[rule]]\ntool = "search"\n{closed}\n', who=WHO)
    is_open = "observe" in closed
    assert talk.client(called("a"), noted=decided(LIMITED)) == ["forwarded a" if is_open else "answered a: 403"]


def test_a_decided_call_takes_a_place_in_flight_and_its_failure_counts() -> None:
    policy = LIMITED + '[[rule]]\ntool = "*"\nconcurrent = 1\n[[rule]]\nuser = "*"\ncount = "errors"\nlimit = "9/1m"\n'
    talk = Talk(policy, who=WHO)
    assert talk.client(called("a"), noted=decided(LIMITED)) == ["forwarded a"]
    assert talk.client(called("b"), noted=decided(LIMITED)) == ["answered b: 429"]
    assert [record["decision"] for record in talk.records] == ["continued", "rate_limited"]


def test_a_call_that_the_hook_has_counted_warns_of_no_limit_that_it_has_passed() -> None:
    policy = LIMITED + 'warn = "100%"\n[[rule]]\ntool = "search"\nlimit = "1/1m"\nwarn = "100%"\n'
    talk = Talk(policy, who=WHO)
    assert talk.client(called("b"), noted=decided(LIMITED)) == ["forwarded b"]
    limit = {"axis": "tool", "rule": "tool=search", "limit": 1, "window": "1m", "count": 1}
    assert [record["warned"] for record in talk.records] == [[limit]]
    found = [log.text for log in talk.logs if log.text.startswith("warned")]
    assert found == ["warned axis=tool user=alice agent=unknown::interactive::default tool=search limit=1/1m count=1"]


def test_a_row_says_that_a_hook_decided_its_call() -> None:
    talk = Talk(LIMITED, who=WHO._replace(via="hook"))
    talk.client_calls("search", "a")
    assert [record["via"] for record in talk.records] == ["hook"]


def test_what_charged_a_call_is_known_by_counter_and_n_without_observed_limits_that_had_no_room() -> None:
    watched = '[[rule]]\ntool = "search"\nlimit = "1/1h"\nmode = "observe"\n'
    talk = Talk('[[rule]]\nuser = "*"\nlimit = "5/1m"\n' + watched, who=WHO)
    for name in ("a", "b"):
        talk.client_calls("search", name)
    first, second = talk.verdicts
    assert [n for _, n in first.charged] == [5, 1]
    assert second.charged == first.charged[:1]
    assert first.charged[0][0] == first.plan.counters[0].id
