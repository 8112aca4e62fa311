"""Writes, reads and removes the notes that hooks leave. The server deletes them when they expire."""

import contextlib
import time
from collections.abc import Sequence

from mcpguard.identity.client_agents import NOTE_KEPT_US, AgentNote
from mcpguard.stores.redis.link import Command, Link
from mcpguard.stores.redis.states import prefix
from mcpguard.stores.redis.url import RedisUrl


def leave(address: RedisUrl, namespace: str, note: AgentNote, *, wall_us: int, timeout_s: float) -> None:
    """Write a note, on a connection of its own.

    Args:
        address: The server.
        namespace: Only wrappers of this namespace see the note.
        note: The note; without a text it removes the one that is there.
        wall_us: Wall-clock time.
        timeout_s: How long connecting and writing may take together.

    Raises:
        StoreUnavailable: It could not be written.
    """
    deadline_s = time.monotonic() + timeout_s
    key = _key(namespace, note.key)
    command: Command = ("SET", key, f"{wall_us} {note.text}", "PX", NOTE_KEPT_US // 1000) if note.text else ("DEL", key)
    with contextlib.closing(Link(address, timeout_s=timeout_s, key=key, deadline_s=deadline_s)) as link:
        link.checked(link.ask([command], deadline_s=deadline_s)[0])


def reading(namespace: str, keys: Sequence[str]) -> Command:
    """The command that reads one note or more. Its reply is a list of values."""
    return ("MGET", *(_key(namespace, one) for one in keys))


def taking(namespace: str, keys: Sequence[str]) -> list[Command]:
    """The commands that remove notes, one for each. Their replies are the values.

    `GETDEL` would do the same, but is not among the rights that the manual has always asked for.
    """
    return [("SET", _key(namespace, one), "", "XX", "GET", "PX", 1) for one in keys]


def read(keys: Sequence[str], values: Sequence[bytes | None], *, wall_us: int) -> dict[str, str]:
    """The texts in these values of notes, by key. Expired notes are left out."""
    found: dict[str, str] = {}
    for one, value in zip(keys, values, strict=True):
        noted_us, _, agent = (value or b"").decode().partition(" ")
        if agent and abs(wall_us - int(noted_us)) <= NOTE_KEPT_US:
            found[one] = agent
    return found


def _key(namespace: str, key: str) -> str:
    return f"{prefix(namespace)}note:{key}"
