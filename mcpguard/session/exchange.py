"""One exchange: the messages of one read from the client, while they are judged."""

from collections.abc import Sequence
from typing import Final

from mcpguard.session.commands import Decide, ToClient, ToServer
from mcpguard.session.held_calls import HeldCall
from mcpguard.session.verdict import DecisionRequest, Verdict
from mcpguard.wire.frames import Frame, Refusal

MAX_PORTION: Final = 256
MAX_PORTION_BYTES: Final = 256 * 1024
"""How many requests are decided in one transaction, and how long their frames may be, because rows may hold the arguments. This
takes a few milliseconds, so that other wrappers get their turn."""


class Exchange:
    """The messages of one read, with a step for each that is forwarded, answered or decided, and the verdicts so far.

    Args:
        messages: The messages.
        now_us: When they were read, by a monotone clock.

    Attributes:
        has_retry: Whether a call claims to be a retry that the server has asked for.
        steps: In order, commands that need no decision, requests for one, and cancellations of calls among these requests.
        requests: The requests among the steps.
        asked: The requests of the last `Decide`.
        verdicts: The verdicts so far, in the order of the requests.
        withdrawn: Requests that a later message of the exchange cancels.
        ids: The `id_key` of each request among the messages; of calls with the request for a decision.
        noted: The agents that hooks noted for the calls, by their requests.
        due: The held calls that are decided anew.
    """

    def __init__(self, messages: Sequence[Frame | Refusal], now_us: int) -> None:
        self.messages = messages
        self.now_us = now_us
        self.has_retry = False
        self.steps: list[DecisionRequest | ToServer | ToClient | Frame] = []
        self.requests: list[DecisionRequest] = []
        self.asked: Sequence[DecisionRequest] = ()
        self.verdicts: list[Verdict] = []
        self.withdrawn: set[DecisionRequest] = set()
        self.ids: dict[str, DecisionRequest | None] = {}
        self.noted: dict[DecisionRequest, str] = {}
        self.due: Sequence[HeldCall] = ()

    def request(self, request: DecisionRequest) -> None:
        """Add a step that needs a decision."""
        self.steps.append(request)
        self.requests.append(request)

    def ask(self) -> Decide:
        """Ask for the next portion of verdicts. A call that may be held is decided alone: others may have to wait for it."""
        requests, start = self.requests, len(self.verdicts)
        if len(requests) == 1:
            self.asked = requests
            return Decide(requests)
        end, size_bytes = start + 1, _frame_bytes(requests[start])
        most = 1 if requests[start].waited_us is not None else MAX_PORTION
        while end < len(requests) and end - start < most and requests[end].waited_us is None:
            size_bytes += _frame_bytes(requests[end])
            if size_bytes > MAX_PORTION_BYTES:
                break
            end += 1
        self.asked = requests[start:end]
        return Decide(self.asked)


def _frame_bytes(request: DecisionRequest) -> int:
    return len(request.frame.raw) if request.frame else 0
