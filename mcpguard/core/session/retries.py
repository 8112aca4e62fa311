"""Free retries: calls that continue a charged call, because the server asked for something before it could answer.

A server asks with a result of type `input_required`. The client calls again, with what was asked for. Such a retry is free only
if this session has seen the server ask this user for it, for this tool, and only once for each time that it asked. All other
calls pay.
"""

from typing import Final

from mcpguard.core.digest import blake2b
from mcpguard.core.jsonrpc.answers import Asks
from mcpguard.core.text import compact

MAX_ROUNDS: Final = 10
"""Retries that one charge pays for. SDK clients make up to ten by themselves."""

_MAX_WAITING: Final = 1024
"""How many retries are remembered. Beyond that the oldest is forgotten, because some are never made."""


class FreeRetries:
    """The retries that the server has asked for and that the client has not made yet."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, list[int]] = {}

    def grant(self, user: str, tool: str, asks: Asks, rounds: int) -> None:
        """Remember that the server asks for a retry.

        Args:
            user: The user who called.
            tool: The tool that was called.
            asks: What the retry has to carry.
            rounds: The retry's number, from 1, among the retries of one charge. Beyond `MAX_ROUNDS` it is not free.
        """
        if rounds > MAX_ROUNDS:
            return
        if len(self._waiting) >= _MAX_WAITING:
            self._waiting.pop(next(iter(self._waiting)))
        waiting = self._waiting.setdefault(_ticket(user, tool, asks), [])
        waiting.append(rounds)
        del waiting[:-_MAX_WAITING]

    def redeem(self, user: str, tool: str, params: dict[str, object]) -> int:
        """Use up the retry that a call makes.

        Args:
            user: The user who calls.
            tool: The tool that is called.
            params: The call's `params`.

        Returns:
            The retry's number; 0 if the server has not asked for it, or it was made already.
        """
        state = params.get("requestState")
        if not (state is None or type(state) is str):  # a long integer is not the text of its digits
            return 0
        ticket = _ticket(user, tool, _given(state, params))
        waiting = self._waiting.get(ticket)
        if not waiting:
            return 0
        rounds = waiting.pop()
        if not waiting:
            del self._waiting[ticket]
        return rounds

    def give_back(self, user: str, tool: str, params: dict[str, object], rounds: int) -> None:
        """Undo `redeem`: the call was not forwarded, so it may be made again."""
        state = params.get("requestState")
        assert state is None or isinstance(state, str)  # noqa: S101 - `redeem` refuses other states
        self._waiting.setdefault(_ticket(user, tool, _given(state, params)), []).append(rounds)


def _given(state: str | None, params: dict[str, object]) -> Asks:
    """The state and the inputs that a call carries."""
    inputs = params.get("inputResponses")
    return Asks(state, frozenset(inputs) if isinstance(inputs, dict) else frozenset())


def _ticket(user: str, tool: str, asks: Asks) -> bytes:
    """What a retry and its question have in common: the state, or the inputs if there is none. A digest: both may be long."""
    what = (user, tool, sorted(asks.inputs) if asks.state is None else asks.state)
    return blake2b(compact(what).encode()).digest()
