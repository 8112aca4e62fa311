"""One exchange: the messages of one read from the client, while they are judged."""

from collections.abc import Sequence
from typing import Final

from mcpguard.core.jsonrpc.frames import Frame, Refusal
from mcpguard.core.session.commands import Decide, ToClient, ToServer
from mcpguard.core.verdict import DecisionRequest, Verdict

MAX_PORTION: Final = 256
MAX_PORTION_BYTES: Final = 256 * 1024
"""How many requests are decided in one transaction, and how long their frames may be: some milliseconds, so that other wrappers
get their turn. Rows may hold the calls' arguments."""


class Exchange:
    """What becomes of each message, in order, and how far the store has decided.

    Args:
        messages: The messages.
        now_us: When they were read, by a monotone clock.

    Attributes:
        has_retry: Whether a call claims to continue one that the server has asked a question about.
        steps: What becomes of each message: a command, or what the store decides about the request.
        requests: The requests among the steps.
        asked: The requests of the last `Decide`.
        verdicts: The verdicts so far, in the order of the requests.
        withdrawn: Requests that the client has cancelled in a later message.
    """

    def __init__(self, messages: Sequence[Frame | Refusal], now_us: int) -> None:
        self.messages = messages
        self.now_us = now_us
        self.has_retry = False
        self.steps: list[DecisionRequest | ToServer | ToClient] = []
        self.requests: list[DecisionRequest] = []
        self.asked: Sequence[DecisionRequest] = ()
        self.verdicts: list[Verdict] = []
        self.withdrawn: set[DecisionRequest] = set()

    def request(self, request: DecisionRequest) -> None:
        """Add a step that the store decides about."""
        self.steps.append(request)
        self.requests.append(request)

    def ask(self) -> Decide:
        """The next portion of requests that the store has not decided."""
        requests, start = self.requests, len(self.verdicts)
        end, size = start + 1, _length(requests[start])
        while end < len(requests) and end - start < MAX_PORTION:
            size += _length(requests[end])
            if size > MAX_PORTION_BYTES:
                break
            end += 1
        self.asked = requests[start:end]
        return Decide(self.asked)


def _length(request: DecisionRequest) -> int:
    return len(request.frame.raw) if request.frame else 0
