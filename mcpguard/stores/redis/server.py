"""A namespace on a server: its connection, the scripts that run there, and the server's clock.

The scripts are assembled from the Lua files beside this module.
"""

import os
import re
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from time import monotonic

from hiredis import pack_command
from redis.exceptions import ResponseError

from mcpguard.errors import StoreUnavailable
from mcpguard.light_typing import Any, Final
from mcpguard.stores.api import Clock, Options
from mcpguard.stores.clock import boot_us
from mcpguard.stores.redis.layout import SCHEMA, RedisKeys
from mcpguard.stores.redis.link import Link, RedisCommand
from mcpguard.stores.redis.url import RedisUrl

OPEN_TIMEOUT_S: Final = 2.0
"""How long opening may take. No call waits for it."""

ASIDE_S: Final = 2.0
"""How long a command may take on a connection of its own. No call waits for it."""

TRIES: Final = 3
"""How many times a decision is tried that the server did not refuse, but made too late."""

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


_LEAST: Final = {"redis": 7, "valkey": 8}
"""The lowest major versions that work."""


def check(shown: str, info: object, saves: object) -> tuple[str, ...]:
    """Check a server's version and settings. What the server does not report is assumed to be right.

    Args:
        shown: The server's address, for messages.
        info: The reply to `INFO`.
        saves: The reply to `CONFIG GET save`. Managed servers give none.

    Returns:
        A warning for each setting by which counters can be lost.

    Raises:
        StoreUnavailable: The server is too old.
    """
    text = info.decode(errors="replace") if isinstance(info, bytes) else ""
    found = dict(re.findall(r"^(\w+):(.*?)\r?$", text, re.MULTILINE))
    kind = "valkey" if "valkey_version" in found else "redis"
    version = found.get(f"{kind}_version", "")
    if version.split(".")[0].isdigit() and int(version.split(".")[0]) < _LEAST[kind]:
        raise StoreUnavailable(f"{shown} is {kind.title()} {version}, which is too old", "use Redis 7 or Valkey 8, or later")
    warnings = []
    policy = found.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and found.get("maxmemory", "0") != "0":
        warnings.append(f"{shown} evicts counters when its memory is full ({policy}): set maxmemory-policy noeviction")
    if found.get("aof_enabled") == "0" and isinstance(saves, list) and saves[1:] == [b""]:
        warnings.append(f"{shown} keeps nothing on disk: a restart loses counters and audit log; set appendonly yes")
    return tuple(warnings)


class RedisServer:
    """A namespace on a server. Each connection begins with checks of the server, and with the scripts.

    Each script that charges has a deadline in the server's time, and refuses after it without charging.

    Args:
        address: The server's address.
        options: How the store is used.
        clock: The store's time instead of the server's, for tests.
        lease_us: How long a call in flight keeps its place if this process dies or loses the server.

    Attributes:
        keys: The keys of the namespace.
        args_key: See `CallStore`.
        warnings: The settings of the server by which counters can be lost, a line each.
        shas: The hash of each script, by which a command names it.

    Raises:
        StoreUnavailable: The server does not answer, refuses us, or is too old.
    """

    args_key: bytes

    def __init__(self, address: RedisUrl, options: Options, *, clock: Clock | None, lease_us: int) -> None:
        self.keys = RedisKeys(options.namespace)
        self.clock = clock
        self.timeout_s = options.timeout_ms / 1000
        self.shas: dict[str, bytes] = {}
        self._address = address
        self._timeout_us = options.timeout_ms * 1000
        self._ahead_us = 0
        self._scripts = {name: script(name, is_time_given=clock is not None, lease_us=lease_us) for name in PARTS}
        deadline_s = monotonic() + max(OPEN_TIMEOUT_S, self.timeout_s)
        self._link = Link(address, timeout_s=self.timeout_s, key=self.keys.meta, deadline_s=deadline_s)
        self._begin(deadline_s)

    @property
    def shown(self) -> str:
        """The address, for messages."""
        return self._address.shown

    def _begin(self, deadline_s: float) -> None:
        """Check the server, create what is missing in the namespace, and load the scripts."""
        try:
            info, saves, time = self._link.ask([("INFO",), ("CONFIG", "GET", "save"), ("TIME",)], deadline_s=deadline_s)
            self._note_time(parse_time_us(self._link.checked(time)))
            self.warnings = check(self.shown, info, saves)
            self._prepare(deadline_s)
        except BaseException:
            self._link.close()
            raise

    def _prepare(self, deadline_s: float) -> None:
        meta = self.keys.meta
        commands: list[RedisCommand] = [
            ("HSETNX", meta, "schema", SCHEMA),
            ("HSETNX", meta, "args_key", os.urandom(32)),
            ("HMGET", meta, "schema", "args_key"),
            ("XDEL", self.keys.audit[1], "0-0"),  # does nothing: shows now whether we have the rights to delete rows
            ("HDEL", self.keys.audit[2], ""),
            *(("SCRIPT", "LOAD", text) for text in self._scripts.values()),
        ]
        schema_set, key_set, found, *others = self._link.ask(commands, deadline_s=deadline_s)
        if None in self._link.checked(found):  # a server whose memory is full refuses to set even what is set
            self._link.checked(schema_set)
            self._link.checked(key_set)
        schema, self.args_key = found
        _, _, *shas = map(self._link.checked, others)
        if int(schema) > SCHEMA:
            raise StoreUnavailable(
                f"{self.shown} has schema {int(schema)}, and this mcpguard knows schemas up to {SCHEMA}",
                "use the mcpguard that wrote it, or another namespace",
            )
        self.shas = dict(zip(self._scripts, shas, strict=True))

    def _note_time(self, server_us: int) -> None:
        """Note how far the server's clock is ahead of ours, at least: the reply has taken some time. Ours counts sleep, too."""
        self._ahead_us = server_us - boot_us()

    def now_us(self) -> int:
        """The server's time. Does not ask the server."""
        return self.clock() if self.clock else boot_us() + self._ahead_us

    def ask(self, *commands: RedisCommand) -> list[Any]:
        """Send commands, on a new connection if the server has closed the last one. Returns their replies.

        Raises:
            StoreUnavailable: There is no reply in time, or one of them is an error.
        """
        end_s = monotonic() + self.timeout_s
        self._connect_again(end_s)
        return [self._link.checked(reply) for reply in self._link.ask(commands, deadline_s=end_s)]

    def ask_together(self, *commands: RedisCommand) -> list[Any]:
        """As `ask`, but the server runs no other command in between."""
        *_, replies = self.ask(("MULTI",), *commands, ("EXEC",))
        return [self._link.checked(reply) for reply in replies]

    def _connect_again(self, end_s: float) -> None:
        """Replace the connection, if the server has closed it."""
        if self._link.is_lost():
            self._link.renew(end_s)
            self._begin(end_s)

    def _arguments(self, keys: Sequence[str], *args: bytes | str) -> RedisCommand:
        """What follows the script in the command that runs it."""
        return len(keys), *keys, *args, *(() if self.clock is None else (self.clock(),))

    def packed(self, name: str, keys: Sequence[str], *args: bytes | str) -> bytes:
        """The command that runs a script."""
        return pack_command(("EVALSHA", self.shas[name], *self._arguments(keys, *args)))  # type: ignore[arg-type, no-any-return]  # see `Link.ask`

    def run(self, name: str, keys: Sequence[str], *args: bytes | str) -> Any:
        """Run a script, and return its reply."""
        end_s = monotonic() + self.timeout_s
        self._connect_again(end_s)
        return self._run(name, self.packed(name, keys, *args), end_s)

    def run_aside(self, name: str, keys: Sequence[str], *args: bytes | str) -> Any:
        """As `run`, on a connection of its own, because a call may use this one meanwhile."""
        with self.aside() as link:
            return link.reply("EVAL", self._scripts[name], *self._arguments(keys, *args))

    def run_in_time(self, name: str, pack: Callable[[int], bytes]) -> Sequence[Any]:
        """Run a script that has a deadline, and return its reply: the server's time, then at least one value.

        Args:
            name: The script.
            pack: Returns the command that runs it, by the deadline in the server's time.
        """
        for _ in range(TRIES):
            end_s, end_us = monotonic() + self.timeout_s, boot_us() + self._timeout_us
            self._connect_again(end_s)
            reply: Sequence[Any] = self._run(name, pack(end_us + self._ahead_us), end_s)
            self._note_time(reply[0])
            if len(reply) > 1:
                return reply
            # The server's clock is further ahead than we knew, or the command was sent too late, because this machine is busy.
            # It has charged nothing, and now we know its time
        raise StoreUnavailable(f"{self.shown} starts scripts too late", "check the load and the clock of its machine")

    def _run(self, name: str, packed: bytes, end_s: float) -> Any:
        """Run a script. If the server has forgotten it, load it again."""
        (reply,) = self._link.exchange(packed, deadline_s=end_s)
        if isinstance(reply, ResponseError) and str(reply).startswith("NOSCRIPT"):
            self._link.checked(self._link.ask([("SCRIPT", "LOAD", self._scripts[name])], deadline_s=end_s)[0])
            (reply,) = self._link.exchange(packed, deadline_s=end_s)
        return self._link.checked(reply)

    def aside(self) -> closing[Link]:
        """A connection of its own, for what no call waits for."""
        return closing(Link(self._address, timeout_s=ASIDE_S, key=self.keys.meta))

    def close(self) -> None:
        """Close the connection."""
        self._link.close()


def parse_time_us(reply: Sequence[bytes]) -> int:
    """The reply to `TIME` in microseconds."""
    seconds, us = reply
    return int(seconds) * 1_000_000 + int(us)
