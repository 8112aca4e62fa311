"""Whether a server will do, and what its owner should know of its set-up."""

import re
from collections.abc import Sequence
from typing import Final

from mcpguard.errors import StoreUnavailable
from mcpguard.stores.redis.link import Command

LEAST: Final = {"redis": 7, "valkey": 8}
"""The least major version."""

QUESTIONS: Final[tuple[Command, ...]] = (
    ("INFO", "server"),
    ("INFO", "memory"),
    ("INFO", "persistence"),
    ("CONFIG", "GET", "save"),
)
"""What a server is asked. Managed ones answer only the first three."""


def judged(shown: str, replies: Sequence[object]) -> tuple[str, ...]:
    """Look at the answers to `QUESTIONS`.

    Args:
        shown: How an error names the server.
        replies: The answers. What a server does not tell, or not us, is taken to be well.

    Returns:
        Warnings: it may throw counters away, or forget them when it restarts.

    Raises:
        StoreUnavailable: It is too old.
    """
    found: dict[str, str] = {}
    for reply in replies[:3]:
        if isinstance(reply, bytes):
            found |= dict(re.findall(r"^(\w+):(.*?)\r?$", reply.decode(errors="replace"), re.MULTILINE))
    kind = "valkey" if "valkey_version" in found else "redis"
    version = found.get(f"{kind}_version", "")
    if version.split(".")[0].isdigit() and int(version.split(".")[0]) < LEAST[kind]:
        raise StoreUnavailable(f"{shown} is {kind.title()} {version}, which is too old", "Redis 7 or Valkey 8, or later")
    warnings = []
    policy = found.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and found.get("maxmemory", "0") != "0":
        warnings.append(f"{shown} may throw counters away when its memory is full ({policy}): set maxmemory-policy noeviction")
    saves = replies[3]
    if found.get("aof_enabled") == "0" and isinstance(saves, list) and saves[1:] == [b""]:
        warnings.append(f"{shown} keeps nothing on disk: a restart forgets counters and audit; set appendonly yes")
    return tuple(warnings)
