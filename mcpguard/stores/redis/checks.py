"""Checks a server's version and settings."""

import re
from collections.abc import Sequence

from mcpguard.errors import StoreUnavailable
from mcpguard.light_typing import Final
from mcpguard.stores.redis.link import Command

LEAST: Final = {"redis": 7, "valkey": 8}
"""The lowest major versions that work."""

QUESTIONS: Final[tuple[Command, ...]] = (
    ("INFO", "server"),
    ("INFO", "memory"),
    ("INFO", "persistence"),
    ("CONFIG", "GET", "save"),
)
"""The commands whose replies are checked. Managed servers answer only the first three."""


def check(shown: str, replies: Sequence[object]) -> tuple[str, ...]:
    """Check the replies to `QUESTIONS`.

    Args:
        shown: The server's address, for messages.
        replies: The replies. A setting that the server does not report is assumed to be right.

    Returns:
        A warning for each setting by which counters can be lost.

    Raises:
        StoreUnavailable: The server is too old.
    """
    found: dict[str, str] = {}
    for reply in replies[:3]:
        if isinstance(reply, bytes):
            found |= dict(re.findall(r"^(\w+):(.*?)\r?$", reply.decode(errors="replace"), re.MULTILINE))
    kind = "valkey" if "valkey_version" in found else "redis"
    version = found.get(f"{kind}_version", "")
    if version.split(".")[0].isdigit() and int(version.split(".")[0]) < LEAST[kind]:
        raise StoreUnavailable(f"{shown} is {kind.title()} {version}, which is too old", "use Redis 7 or Valkey 8, or later")
    warnings = []
    policy = found.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and found.get("maxmemory", "0") != "0":
        warnings.append(f"{shown} evicts counters when its memory is full ({policy}): set maxmemory-policy noeviction")
    saves = replies[3]
    if found.get("aof_enabled") == "0" and isinstance(saves, list) and saves[1:] == [b""]:
        warnings.append(f"{shown} keeps nothing on disk: a restart loses counters and audit log; set appendonly yes")
    return tuple(warnings)
