"""Commands: what the core tells the relay to do. `session` says which event leads to which.

A command that asks for something is the last in its list. The relay answers it with the event that the command names.
"""

from collections.abc import Sequence
from typing import NamedTuple

from mcpguard.core.audit import Outcome, Row
from mcpguard.core.verdict import DecisionRequest


class ToServer(NamedTuple):
    """Write these frames to the server."""

    data: bytes


class ToClient(NamedTuple):
    """Write these frames to the client, between two frames of the server's."""

    data: bytes


class LookUp(NamedTuple):
    """Find out what the client's messages depend on, then answer with `LookedUp`.

    Attributes:
        tool_use_ids: The calls whose agents a hook may have noted in the store, each once.
        answers: Whether a call claims to continue one that the server has asked a question about. If so, first pass on as
            `ServerWrote` everything that the server has written.
    """

    tool_use_ids: Sequence[str]
    answers: bool


class Decide(NamedTuple):
    """Have the store decide these requests in one transaction, then answer with `Decided` or `StoreFailed`."""

    requests: Sequence[DecisionRequest]


class Record(NamedTuple):
    """Have the store write these outcomes and rows, then answer with `Recorded` or `RecordingFailed`."""

    outcomes: Sequence[Outcome]
    rows: Sequence[Row]


class Log(NamedTuple):
    """Write a line to stderr.

    Attributes:
        text: The line.
        kind: Lines of the same kind are rationed if a client can cause any number of them; empty if it cannot.
        is_error: Whether somebody has to act on it, so that it is written even with `--quiet`.
    """

    text: str
    kind: str = ""
    is_error: bool = False


Command = ToServer | ToClient | LookUp | Decide | Record | Log
