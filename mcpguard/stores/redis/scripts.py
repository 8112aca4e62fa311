"""Assembles the scripts that run in the server from the Lua files beside this module."""

import re
from pathlib import Path

from mcpguard.light_typing import Final

LEASE_US: Final = 30_000_000
"""How long a call in flight keeps its place after its wrapper has died or lost the server. Leases are renewed after a third of
that."""

PARTS: Final = {
    "charge": ("values", "usual", "log", "places", "audit"),
    "settle": ("values", "log"),
    "give_places": ("places",),
    "renew": ("places",),
    "adopt": ("values", "log", "merge"),
    "append": ("values", "audit"),
    "record": (),
    "prune": ("values", "audit"),
}
"""The scripts, each with the files that go before its own."""

_INSERT: Final = re.compile(r"^ *-- INSERT (\w+\.lua)\n", re.MULTILINE)
"""A line that is replaced by a file. A function would cost each run more than the same statements in two places."""

_LUA: Final = {file.name: file.read_text(encoding="utf-8") for file in Path(__file__).parent.glob("*.lua")}
"""The files. They are read only once: an upgrade of mcpguard may replace them while a wrapper runs, which may connect again."""

_SERVERS_TIME: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local EXPIRY_OPTION, EXPIRY_ORIGIN_US, EXPIRY_SLACK_MS = 'PXAT', 0, 0
"""

_GIVEN_TIME: Final = """
local now = tonumber(ARGV[#ARGV])
local EXPIRY_OPTION, EXPIRY_ORIGIN_US, EXPIRY_SLACK_MS = 'PX', now, 3600000
"""


def script(name: str, *, is_time_given: bool = False, lease_us: int = LEASE_US) -> str:
    """The text of a script.

    Args:
        name: One of `PARTS`.
        is_time_given: Whether the last argument is the time, for tests. Otherwise the script asks the server for the time, and
            no argument can change that.
        lease_us: How long a place of a call in flight is kept without being renewed.
    """
    clock = _GIVEN_TIME if is_time_given else _SERVERS_TIME
    lease = f"local LEASE_US = {lease_us}\n" if "places" in PARTS[name] else ""
    parts = [_LUA[f"{part}.lua"] for part in (*PARTS[name], name)]
    return _INSERT.sub(lambda one: _LUA[one[1]], "".join([clock, lease, *parts]))
