"""Events: what the relay tells the core. `machine` describes what the core does about each.

Events are not changed after they are made. They are plain classes because each `NamedTuple` would add 60 µs to the start.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # messages pass before these are loaded
    from mcpguard.errors import PolicyError, Unauthenticated
    from mcpguard.identity.caller import Identity
    from mcpguard.policy.model import Policy
    from mcpguard.session.verdict import Verdict
    from mcpguard.wire.answers import Line
    from mcpguard.wire.frames import Frame, Refusal


class Started:
    """The policy was loaded. Until then there are only messages that need no verdict.

    Attributes:
        policy: The policy in force from now on, or why there is none; None for the one that the session was made with.
    """

    __slots__ = ("policy",)

    def __init__(self, policy: "Policy | PolicyError | None" = None) -> None:
        self.policy = policy


class PolicyChanged:
    """The policy file has changed. `found` is the new policy, or the fault of the file."""

    __slots__ = ("found",)

    def __init__(self, found: "Policy | PolicyError") -> None:
        self.found = found


class IdentityChanged:
    """The token has changed. `found` is the new identity, or the reason why no user is verified."""

    __slots__ = ("found",)

    def __init__(self, found: "Identity | Unauthenticated") -> None:
        self.found = found


class ClientWrote:
    """The client has written messages.

    Args:
        messages: As `frames.read` returns them.
        now_us: A monotone clock's reading.
    """

    __slots__ = ("messages", "now_us")

    def __init__(self, messages: "Sequence[Frame | Refusal]", now_us: int) -> None:
        self.messages = messages
        self.now_us = now_us


class LookedUp:
    """The answer to `LookUp`.

    Args:
        agents: The noted agents, by the keys of the notes.
    """

    __slots__ = ("agents",)

    def __init__(self, agents: Mapping[str, str]) -> None:
        self.agents = agents


class Decided:
    """The store has decided the requests of the last `Decide`.

    Args:
        verdicts: One for each request, in order.
    """

    __slots__ = ("verdicts",)

    def __init__(self, verdicts: "Sequence[Verdict]") -> None:
        self.verdicts = verdicts


class StoreFailed:
    """The store could not decide the requests of the last `Decide`; the message says why."""

    __slots__ = ("message",)

    def __init__(self, message: str) -> None:
        self.message = message


class Unjudged:
    """A bug has stopped the exchange, and kept these lines from the client from being judged.

    Args:
        lines: As `LineSplitter` returns them; empty if those of the exchange are handed over again, one by one.
        now_us: A monotone clock's reading.
    """

    __slots__ = ("lines", "now_us")

    def __init__(self, lines: "Sequence[bytes | Refusal]", now_us: int) -> None:
        self.lines = lines
        self.now_us = now_us


class Undelivered:
    """The server closed its input before it took these frames.

    Args:
        data: Whole lines. The server may have taken a part of the first.
        now_us: A monotone clock's reading.
    """

    __slots__ = ("data", "now_us")

    def __init__(self, data: bytes, now_us: int) -> None:
        self.data = data
        self.now_us = now_us


class ServerWrote:
    """The server has written lines.

    Args:
        lines: The lines that may be answers.
        now_us: A monotone clock's reading, taken when mcpguard read them.
    """

    __slots__ = ("lines", "now_us")

    def __init__(self, lines: "Sequence[Line]", now_us: int) -> None:
        self.lines = lines
        self.now_us = now_us


class InputClosed:
    """The server receives nothing more. `why` is a clause for the client: `the server has closed its input`."""

    __slots__ = ("why",)

    def __init__(self, why: str) -> None:
        self.why = why


class ClientLeft:
    """The client has closed its side, or mcpguard was told to end.

    Args:
        now_us: A monotone clock's reading.
    """

    __slots__ = ("now_us",)

    def __init__(self, now_us: int) -> None:
        self.now_us = now_us


class ServerExited:
    """The server is gone, and all that it wrote has been passed on.

    Args:
        how: What became of it, as a clause: `server exited with status 7`.
        now_us: A monotone clock's reading.
    """

    __slots__ = ("how", "now_us")

    def __init__(self, how: str, now_us: int) -> None:
        self.how = how
        self.now_us = now_us


class HeldCallsDue:
    """It is time to decide held calls anew, or to tell the client that they wait.

    Args:
        now_us: A monotone clock's reading.
        alone: Whether only the first call that is due is decided: a bug has stopped an exchange with all of them.
    """

    __slots__ = ("alone", "now_us")

    def __init__(self, now_us: int, *, alone: bool = False) -> None:
        self.now_us = now_us
        self.alone = alone


class RecordingDue:
    """It is time to record outcomes, and rows that sum up denials.

    Args:
        wall_us: Wall-clock time.
        everything: Whether the session ends, so that every denial must be in a row now.
    """

    __slots__ = ("everything", "wall_us")

    def __init__(self, wall_us: int, *, everything: bool = False) -> None:
        self.wall_us = wall_us
        self.everything = everything


class Recorded:
    """The store has written what the last `Record` holds."""

    __slots__ = ()


class RecordingFailed:
    """The store could not write what the last `Record` holds."""

    __slots__ = ()


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
    | HeldCallsDue
    | RecordingDue
    | Recorded
    | RecordingFailed
)
