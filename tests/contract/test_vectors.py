"""The policies, calls and verdicts of `vectors/`, by the core alone and through every store."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from mcpguard.core import limiter
from mcpguard.core.limiter import EMPTY, State
from mcpguard.core.policy.model import Call
from mcpguard.core.policy.parse import parse
from mcpguard.core.verdict import Verdict, verdict
from tests.contract.conftest import Place
from tests.core.build import START_US, TESTS, Session, identity

VECTORS: list[dict[str, Any]] = [
    vector for name in ("policy", "any_agent") for vector in json.loads((TESTS / "vectors" / f"{name}.json").read_text())
]

each_vector = pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])


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


@each_vector
def test_the_core_alone_decides_as_the_vector_says(vector: dict[str, Any]) -> None:
    policy = parse(vector["policy"])
    states: dict[int, State] = {}
    for step in vector["calls"]:
        if "policy" in step:
            policy = parse(step["policy"])
            continue
        now_us = START_US + round(step["at"] * 1_000_000)
        roles, scopes = tuple(step.get("roles", ())), tuple(step.get("scopes", ()))
        plan = policy.plan(Call(step["user"], step["agent"], step["server"], step["tool"], roles, scopes))
        verdicts = []
        for _ in range(step["times"]):
            held = [states.get(counter.id, EMPTY) for counter in plan.counters]
            decision = limiter.decide(plan.limits, held, now_us)
            states.update(zip([counter.id for counter in plan.counters], decision.states, strict=True))
            verdicts.append(verdict(plan, decision))
        check(verdicts, step)


@each_vector
def test_a_store_decides_as_the_vector_says(vector: dict[str, Any], place: Place) -> None:
    policy = parse(vector["policy"])
    for number, step in enumerate(vector["calls"]):
        if "policy" in step:
            policy = parse(step["policy"])
            continue
        place.time.now_us = START_US + round(step["at"] * 1_000_000)
        who = identity(step["user"], step["agent"], step["server"], tuple(step.get("roles", ())), tuple(step.get("scopes", ())))
        session = Session(place.open(), policy, session=f"{number:016x}", who=who)
        check(session.call(step["tool"], step["times"]), step)
