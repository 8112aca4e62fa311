"""Free retries: calls that continue a charged call, because the server needs input before it can answer.

The server's result then has the type `input_required`, and the client calls again with the input. Such a retry is free only if
the server has asked for it in this session, in an answer to the same user and tool. Each such answer makes one retry free. All
other calls are charged.
"""

from mcpguard.light_typing import TYPE_CHECKING, Final
from mcpguard.session.verdict import DecisionRequest
from mcpguard.text.digest import blake2b
from mcpguard.text.printing import compact

if TYPE_CHECKING:  # loaded with the first answer
    from mcpguard.wire.answers import RetryInput

MAX_ROUNDS: Final = 10
"""Retries that one charge pays for. SDK clients make up to ten by themselves."""

_MAX_WAITING: Final = 1024
"""How many retries are remembered. Beyond that the oldest is forgotten, because some are never made."""


class FreeRetries:
    """The retries that the server has asked for and that the client has not made yet."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, list[int]] = {}

    def grant(self, user: str, tool: str, wanted: "RetryInput", rounds: int) -> None:
        """Make a retry free, because the server has asked for it.

        Args:
            user: The user who called.
            tool: The tool that was called.
            wanted: What the retry has to carry.
            rounds: The retry's number, from 1, among the retries of one charge. Beyond `MAX_ROUNDS` it is not free.
        """
        if rounds > MAX_ROUNDS:
            return
        ticket = _ticket(user, tool, wanted)
        if ticket not in self._waiting and len(self._waiting) >= _MAX_WAITING:
            self._waiting.pop(next(iter(self._waiting)))
        waiting = self._waiting.setdefault(ticket, [])
        waiting.append(rounds)
        del waiting[:-_MAX_WAITING]

    def redeem(self, user: str, tool: str, params: dict[str, object]) -> int:
        """Use up the free retry that a call makes.

        Args:
            user: The user who calls.
            tool: The tool that is called.
            params: The call's `params`.

        Returns:
            The retry's number among those of one charge; 0 if the call is not a free retry.
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

    def give_back(self, request: DecisionRequest) -> None:
        """Undo `redeem` for a call that was not forwarded. Nothing if it is not a free retry."""
        if not request.rounds:
            return
        params = request.frame.params
        state = params.get("requestState")
        assert state is None or isinstance(state, str)  # noqa: S101 - `redeem` refuses other states
        ticket = _ticket(request.call.user, request.call.tool, _given(state, params))
        self._waiting.setdefault(ticket, []).append(request.rounds)


def _given(state: str | None, params: dict[str, object]) -> "RetryInput":
    """What a call carries."""
    from mcpguard.wire.answers import RetryInput

    inputs = params.get("inputResponses")
    return RetryInput(state, frozenset(inputs) if isinstance(inputs, dict) else frozenset())


def _ticket(user: str, tool: str, carried: "RetryInput") -> bytes:
    """A digest by which a retry is recognised: of user, tool and state, or the keys of the input if there is no state."""
    text = compact((user, tool, sorted(carried.keys) if carried.state is None else carried.state))
    return blake2b(text.encode()).digest()
