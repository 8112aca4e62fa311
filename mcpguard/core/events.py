"""Events: what the relay tells the core. `session` says what the core does about each."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mcpguard.core.answers import Line
from mcpguard.core.frames import Frame, Refusal
from mcpguard.core.identity import Identity
from mcpguard.core.policy import Policy
from mcpguard.core.verdict import Verdict
from mcpguard.errors import PolicyError, Unauthenticated


class Started(NamedTuple):
    """The session has begun."""


class PolicyChanged(NamedTuple):
    """The policy file has a new version, or one that is broken."""

    found: Policy | PolicyError


class IdentityChanged(NamedTuple):
    """The token names another caller, or none; then `found` says why."""

    found: Identity | Unauthenticated


class ClientWrote(NamedTuple):
    """The client has written messages.

    Attributes:
        messages: As `frames.read` returns them.
        now_us: A monotone clock's reading.
    """

    messages: Sequence[Frame | Refusal]
    now_us: int


class LookedUp(NamedTuple):
    """`LookUp` is done.

    Attributes:
        agents: The noted agents by `tool_use_id`; calls without a note are left out.
    """

    agents: Mapping[str, str]


class Decided(NamedTuple):
    """The store has decided the requests of the last `Decide`.

    Attributes:
        verdicts: One for each request, in order.
    """

    verdicts: Sequence[Verdict]


class StoreFailed(NamedTuple):
    """The store could not decide the requests of the last `Decide`; the message says why."""

    message: str


class Unjudged(NamedTuple):
    """A bug kept these lines of the client's from being judged.

    Attributes:
        lines: As `LineSplitter` returns them.
        now_us: A monotone clock's reading.
    """

    lines: Sequence[bytes | Refusal]
    now_us: int


class Undelivered(NamedTuple):
    """The server closed its input before it took these frames.

    Attributes:
        data: Whole lines, from the first one that it did not take completely.
        now_us: A monotone clock's reading.
    """

    data: bytes
    now_us: int


class ServerWrote(NamedTuple):
    """The server has written lines, and the client has received them.

    Attributes:
        lines: The lines that may be answers.
        now_us: A monotone clock's reading from when they came.
    """

    lines: Sequence[Line]
    now_us: int


class InputClosed(NamedTuple):
    """The server receives nothing more; `why` is a clause for the client."""

    why: str


class ClientLeft(NamedTuple):
    """The client has closed its side, or mcpguard was told to end."""


class ServerExited(NamedTuple):
    """The server is gone, and all that it wrote has been passed on.

    Attributes:
        how: What became of it, as a clause: `server exited with status 7`.
        now_us: A monotone clock's reading.
    """

    how: str
    now_us: int


class RecordingDue(NamedTuple):
    """It is time to write what no call waits for.

    Attributes:
        wall_us: Wall-clock time.
        everything: Whether the session ends, so that no denial may wait for a later row.
    """

    wall_us: int
    everything: bool = False


class Recorded(NamedTuple):
    """The store has written what the last `Record` holds."""


class RecordingFailed(NamedTuple):
    """The store could not write what the last `Record` holds."""


Event = (
    Started
    | PolicyChanged
    | IdentityChanged
    | ClientWrote
    | LookedUp
    | Decided
    | StoreFailed
    | Unjudged
    | Undelivered
    | ServerWrote
    | InputClosed
    | ClientLeft
    | ServerExited
    | RecordingDue
    | Recorded
    | RecordingFailed
)
