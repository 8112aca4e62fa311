"""Commands: what the core tells the relay to do. `machine` describes which event leads to which command.

`LookUp`, `Decide` and `Record` ask for something. Such a command is the last in its list, and the relay answers it with the
event that its docstring names. Commands are not changed after they are made.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # messages pass before these are loaded
    from mcpguard.session.audit import Outcome, Row
    from mcpguard.session.verdict import DecisionRequest, Ending


class ToServer:
    """Write these frames to the server."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class ToClient:
    """Write these frames to the client, between two frames from the server."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class LookUp:
    """Look up what the verdicts depend on, then answer with `LookedUp`.

    Args:
        notes: The keys of the notes that hooks may have left in the store for the calls, each once.
        answers: Whether to first hand over everything that the server has written, as `ServerWrote`. It is needed if a call
            claims to be a retry that the server has asked for, or if a request has the id of one in flight, or a cancellation
            names one, which the server may have answered.
    """

    __slots__ = ("answers", "notes")

    def __init__(self, notes: Sequence[str], *, answers: bool) -> None:
        self.notes = notes
        self.answers = answers


class Decide:
    """Have the store decide these requests in one transaction, then answer with `Decided` or `StoreFailed`."""

    __slots__ = ("requests",)

    def __init__(self, requests: "Sequence[DecisionRequest]") -> None:
        self.requests = requests


class Record:
    """Have the store write these outcomes and rows, then answer with `Recorded` or `RecordingFailed`."""

    __slots__ = ("outcomes", "rows")

    def __init__(self, outcomes: "Sequence[Outcome]", rows: "Sequence[Row]") -> None:
        self.outcomes = outcomes
        self.rows = rows


class Settle:
    """Tell the store that these calls have ended, before the client gets their answers."""

    __slots__ = ("endings",)

    def __init__(self, endings: "Sequence[Ending]") -> None:
        self.endings = endings


class Log:
    """Write a line to stderr.

    Args:
        text: The line.
        kind: The kind by which lines are rationed; empty for a line that a client cannot cause any number of times.
        is_error: Whether somebody has to act on it. Then it is written even with `--quiet`.
    """

    __slots__ = ("is_error", "kind", "text")

    def __init__(self, text: str, *, kind: str = "", is_error: bool = False) -> None:
        self.text = text
        self.kind = kind
        self.is_error = is_error


Command = ToServer | ToClient | LookUp | Decide | Record | Settle | Log
