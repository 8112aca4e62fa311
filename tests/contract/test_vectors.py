"""The policies, calls and verdicts of `vectors/`, through every store.

A step is a call that is made several times; a new policy; or the end of the oldest calls in flight: `end` has their outcomes.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from mcpguard.policy.parse import parse
from mcpguard.session.audit import ERRORS
from mcpguard.session.verdict import Ending, Verdict
from tests.build import START_US, TESTS, Session, identity
from tests.contract.conftest import Place

VECTORS: list[dict[str, Any]] = [
    vector
    for name in ("policy", "any_agent", "beyond_counting", "sessions")
    for vector in json.loads((TESTS / "vectors" / f"{name}.json").read_text("utf-8"))
]


def expected(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in step["expect"]:
        for _ in range(group["times"]):
            yield {key: value for key, value in group.items() if key != "times"}


def told(verdict: Verdict) -> dict[str, Any]:
    """A verdict in the form of the vectors."""
    if verdict.decision == "allowed":
        return {"decision": "allowed"}
    reported = verdict.reported
    assert reported is not None
    members: dict[str, Any] = {"decision": verdict.decision, **reported.members(), "exceeded": len(verdict.exceeded)}
    members |= {"reason": verdict.reason, "in_flight": verdict.in_flight}
    if verdict.retry_after_us is not None:
        members["retry_after_ms"] = -(-verdict.retry_after_us // 1000)
    return members


def check(verdicts: list[Verdict], step: dict[str, Any]) -> None:
    wanted = list(expected(step))
    assert len(wanted) == len(verdicts) == step["times"]
    for nth, (one, want) in enumerate(zip(verdicts, wanted, strict=True)):
        got = told(one)
        assert {key: got.get(key) for key in want} == want, f"call {nth + 1} at {step['at']} s"
        assert "retry_after_ms" not in got or got["decision"] != "denied"


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_a_store_decides_as_the_vector_says(vector: dict[str, Any], place: Place) -> None:
    policy = parse(vector["policy"])
    in_flight: list[Ending] = []
    for number, step in enumerate(vector["calls"]):
        if "policy" in step:
            policy = parse(step["policy"])
            continue
        place.time.now_us = START_US + round(step["at"] * 1_000_000)
        if "end" in step:
            ended = [in_flight.pop(0)._replace(failed=outcome in ERRORS) for outcome in step["end"]]
            place.open().settle([ending for ending in ended if ending.plan.settles])
            continue
        who = identity(step["user"], step["agent"], step["server"], tuple(step.get("roles", ())), tuple(step.get("scopes", ())))
        who = who._replace(session=step.get("session", ""))  # without one, each step is a run of its own
        store = place.open()
        session = Session(store, policy, session=f"{number:016x}", who=who, args_key=lambda store=store: store.args_key)
        requests = session.charges(step["tool"], step["times"], **arguments_of(step))
        size = 1 if requests[0].waited_us is not None else len(requests)  # as a session asks for them
        verdicts = []
        for at in range(0, len(requests), size):
            verdicts += store.decide(requests[at : at + size], session.journal)
        check(verdicts, step)
        for request, found in zip(requests, verdicts, strict=True):
            if found.forwards and found.row_id is not None:
                in_flight.append(Ending(found.row_id, request.plan, failed=False))


def arguments_of(step: dict[str, Any]) -> dict[str, Any]:
    """The member of `params` that has a step's arguments."""
    return {key: step[key] for key in ("arguments",) if key in step}
