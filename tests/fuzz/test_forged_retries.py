"""A retry is free only if the server asked for just that one, and nobody gave it before."""

import json
from typing import NamedTuple

import pytest

from tests.fuzz.grammar import Draw
from tests.fuzz.oracle import Wire, check_far_side

LONG = "7" * 5000
STATES = (None, None, "s1", "s2", LONG)
KEYS = (frozenset[str](), frozenset("a"), frozenset("ab"))


class Ask(NamedTuple):
    """What a server wants to have with the next call."""

    tool: str
    state: str | None
    inputs: frozenset[str]

    def is_met_by(self, tool: str, params: dict[str, object]) -> bool:
        state, inputs = params.get("requestState"), params.get("inputResponses", {})
        assert isinstance(inputs, dict)
        return self.tool == tool and self.state == state and (self.state is not None or self.inputs == inputs.keys())


def _params(draw: Draw, tool: str) -> dict[str, object]:
    params: dict[str, object] = {"name": tool}
    state: object = draw.choice(STATES) if draw.often(4) else draw.choice(({}, 7, None, ["s1"], True, "S1", "s1\0"))
    if state is not None or draw.seldom(5):
        params["requestState"] = state
    if draw.often(3):
        params["inputResponses"] = {key: {} for key in draw.choice(KEYS)}
    return params


@pytest.mark.parametrize("seed", range(40))
def test_every_call_pays_unless_the_server_asked_for_it_and_ten_free_ones_follow_a_paid_one_at_most(seed: int) -> None:
    draw = Draw(seed)
    wire = Wire()
    asks: list[Ask] = []
    for request_id in range(60):
        tool = draw.choice(("ask", "other"))
        params = _params(draw, tool)
        line = json.dumps({"id": request_id, "method": "tools/call", "params": params})
        if params.get("requestState") == LONG and draw.seldom(2):
            line = line.replace(f'"{LONG}"', LONG)
            params["requestState"] = int
        free = len(wire.continued)
        wire.write(line.encode() + b"\n")
        if len(wire.continued) > free:
            asks.remove(next(ask for ask in asks if ask.is_met_by(tool, params)))
        if draw.often(4):
            ask = Ask(tool, draw.choice(STATES), draw.choice(KEYS))
            asks.append(ask)
            result: dict[str, object] = {"requestState": ask.state} if ask.state is not None else {}
            result |= {"resultType": "input_required", "inputRequests": {key: {} for key in ask.inputs}}
            wire.answer(json.dumps({"jsonrpc": "2.0", "id": request_id, "result": result}).encode() + b"\n")
    check_far_side(wire)
    assert wire.continued
    for tool in ("ask", "other"):
        assert wire.continued.count(tool) <= 10 * wire.charged[tool]
