"""Writes and reads the notes of which agent makes a call. The server deletes them when they expire."""

import contextlib
import time
from collections.abc import Sequence

from mcpguard.core.client_agents import NOTE_KEPT_US, AgentNote
from mcpguard.stores.redis.link import Command, Link
from mcpguard.stores.redis.states import prefix
from mcpguard.stores.redis.url import RedisUrl


def leave(address: RedisUrl, namespace: str, note: AgentNote, *, wall_us: int, timeout_s: float) -> None:
    """Write a note, on a connection of its own.

    Args:
        address: The server.
        namespace: Only wrappers of this namespace see the note.
        note: The note.
        wall_us: Wall-clock time.
        timeout_s: How long connecting and writing may take together.

    Raises:
        StoreUnavailable: It could not be written.
    """
    deadline_s = time.monotonic() + timeout_s
    key = _key(namespace, note.call_id)
    command = ("SET", key, f"{wall_us} {note.agent}", "PX", NOTE_KEPT_US // 1000)
    with contextlib.closing(Link(address, timeout_s=timeout_s, key=key, deadline_s=deadline_s)) as link:
        link.checked(link.ask([command], deadline_s=deadline_s)[0])


def reading(namespace: str, call_ids: Sequence[str]) -> Command:
    """The command that reads the notes of one call or more."""
    return ("MGET", *(_key(namespace, one) for one in call_ids))


def read(call_ids: Sequence[str], values: Sequence[bytes | None], *, wall_us: int) -> dict[str, str]:
    """The agents in the reply to `reading`, by id. Expired notes are left out."""
    found: dict[str, str] = {}
    for one, value in zip(call_ids, values, strict=True):
        noted_us, _, agent = (value or b"").decode().partition(" ")
        if agent and abs(wall_us - int(noted_us)) <= NOTE_KEPT_US:
            found[one] = agent
    return found


def _key(namespace: str, call_id: str) -> str:
    return f"{prefix(namespace)}note:{call_id}"
