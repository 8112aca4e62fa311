"""Assembles the scripts that run in the server from the Lua files beside this module."""

from pathlib import Path
from typing import Final

PARTS: Final = {
    "charge": ("log", "audit"),
    "adopt": ("log",),
    "append": ("audit",),
    "record": (),
    "prune": ("audit",),
}
"""The scripts, each with the files that go before its own."""

_SERVERS_TIME: Final = """
local EXPIRY_OPTION = 'PXAT'
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end
local function expiry_ms(end_us)
  return math.ceil(end_us / 1000)
end
"""

_GIVEN_TIME: Final = """
local EXPIRY_OPTION = 'PX'
local function clock()
  return tonumber(ARGV[#ARGV])
end
local function expiry_ms(end_us, now_us)
  return math.ceil((end_us - now_us) / 1000) + 3600000
end
"""


def script(name: str, *, is_time_given: bool = False) -> str:
    """The text of a script.

    Args:
        name: One of `PARTS`.
        is_time_given: Whether the last argument is the time, for tests. Otherwise the script asks the server for the time, and
            no argument can change that.
    """
    here = Path(__file__).parent
    clock = _GIVEN_TIME if is_time_given else _SERVERS_TIME
    return "".join([clock, *((here / f"{part}.lua").read_text(encoding="utf-8") for part in (*PARTS[name], name))])
