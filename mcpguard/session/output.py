"""What the session tells the relay."""

from collections.abc import Sequence
from typing import NamedTuple


class LookUp(NamedTuple):
    """What the relay has to look up before it hands over messages.

    Attributes:
        notes: The keys of the notes that hooks may have left in the store for the calls, each once.
        answers: Whether the session first has to read everything that the server has written. It has to if a call claims to be
            a retry that the server has asked for, or if a request has the id of one in flight, or a cancellation names one,
            which the server may have answered.
    """

    notes: Sequence[str]
    answers: bool


class Log(NamedTuple):
    """A line for stderr.

    Attributes:
        text: The line.
        kind: The kind by which lines are rationed; empty for a line that a client cannot cause any number of times.
        is_error: Whether somebody has to act on it. Then it is written even with `--quiet`.
    """

    text: str
    kind: str = ""
    is_error: bool = False
