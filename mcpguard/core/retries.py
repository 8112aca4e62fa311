"""Free retries: calls that go on with one that was charged, because the server asked something before it could answer.

A server asks by a result of type `input_required`; the client calls once more, with what was asked for. Such a retry is free
only if this session has seen the server ask for it, of this user and tool, and once for each time that it asked. All else pays.
"""

from typing import Final

from mcpguard.core.answers import Asks
from mcpguard.core.digest import blake2b
from mcpguard.core.text import compact

MAX_ROUNDS: Final = 10
"""Retries that one charge pays for; SDK clients do up to ten on their own."""

_MAX_WAITING: Final = 1024
"""Retries that are remembered. Beyond it the oldest is forgotten: some are never made at all."""


class FreeRetries:
    """The retries that the server has asked for and that nobody has made yet."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, list[int]] = {}

    def grant(self, user: str, tool: str, asks: Asks, rounds: int) -> None:
        """Note that the server asks for a retry.

        Args:
            user: Who called.
            tool: The tool that was called.
            asks: What the retry has to carry.
            rounds: The retry's number, from 1, among those of one charge. Beyond `MAX_ROUNDS` it is not free.
        """
        if rounds > MAX_ROUNDS:
            return
        if len(self._waiting) >= _MAX_WAITING:
            self._waiting.pop(next(iter(self._waiting)))
        waiting = self._waiting.setdefault(_ticket(user, tool, asks), [])
        waiting.append(rounds)
        del waiting[:-_MAX_WAITING]

    def redeem(self, user: str, tool: str, params: dict[str, object]) -> int:
        """Use up the retry that a call is.

        Args:
            user: Who calls.
            tool: The tool that is called.
            params: The call's.

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
        """Undo `redeem`: the call was not forwarded, so that it may be made again."""
        state = params.get("requestState")
        assert state is None or isinstance(state, str)  # noqa: S101 - else it was not redeemed
        self._waiting.setdefault(_ticket(user, tool, _given(state, params)), []).append(rounds)


def _given(state: str | None, params: dict[str, object]) -> Asks:
    """What a call brings of what may have been asked for."""
    inputs = params.get("inputResponses")
    return Asks(state, frozenset(inputs) if isinstance(inputs, dict) else frozenset())


def _ticket(user: str, tool: str, asks: Asks) -> bytes:
    """What a retry has in common with what was asked for: the state, or without one the inputs. A digest: they may be long."""
    what = (user, tool, sorted(asks.inputs) if asks.state is None else asks.state)
    return blake2b(compact(what).encode()).digest()
