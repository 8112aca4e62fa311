"""Where a store is: the file of an SQLite store, or what a URL names. It is read before the server is started."""

import os
import re
from collections.abc import Callable, Iterator

from mcpguard.errors import ConfigError
from mcpguard.files import absolute, is_there
from mcpguard.light_typing import TYPE_CHECKING, Final, NamedTuple
from mcpguard.stores.api import Address, Options, Readable, Store

if TYPE_CHECKING:
    from mcpguard.identity.client_agents import AgentNote
    from mcpguard.stores.redis.store import RedisStore
    from mcpguard.stores.redis.url import RedisUrl

_EXAMPLE: Final = "sqlite:///absolute/path.db"


class SqliteAddress(NamedTuple):
    """The path of a database."""

    path: str

    @property
    def shown(self) -> str:
        """See `Address`."""
        return self.path

    def exists(self) -> bool:
        """See `Address`."""
        from mcpguard.stores.sqlite.call_log import log_path

        try:
            return (is_there(self.path) and os.stat(self.path).st_size > 0) or is_there(log_path(self.path))
        except OSError:
            return True  # opening it will report the error

    def load(self) -> None:
        """See `Address`."""
        import mcpguard.stores.sqlite.store
        import mcpguard.stores.sqlite.upkeep  # noqa: F401

    def open(self, options: Options) -> Store:
        """See `Address`."""
        from mcpguard.stores.sqlite.store import SqliteStore

        return SqliteStore(self.path, options)

    def read(self, options: Options, notify: Callable[[str], None]) -> Readable:
        """See `Address`."""
        from mcpguard.stores.sqlite.reader import SqliteReader

        return SqliteReader(self.path, notify=notify)

    def prune(self, options: Options, before_us: int) -> Iterator[int]:
        """See `Address`."""
        from mcpguard.stores.sqlite.upkeep import prune

        return prune(self.path, options, before_us)

    def leave_note(self, namespace: str, note: "AgentNote", *, wall_us: int, timeout_s: float) -> None:
        """See `Address`."""
        from mcpguard.stores.sqlite.call_log import leave_note

        leave_note(self.path, namespace, note, wall_us=wall_us, timeout_s=timeout_s)


class RedisAddress(NamedTuple):
    """The address of a store on a server."""

    url: "RedisUrl"

    @property
    def shown(self) -> str:
        """See `Address`."""
        return self.url.shown

    def exists(self) -> bool:
        """Always true: only connecting shows what the server has."""
        return True

    def load(self) -> None:
        """See `Address`."""
        import mcpguard.stores.redis.store  # noqa: F401

    def open(self, options: Options) -> "RedisStore":
        """See `Address`."""
        from mcpguard.stores.redis.store import RedisStore

        return RedisStore(self.url, options)

    def read(self, options: Options, notify: Callable[[str], None]) -> "RedisStore":
        """See `Address`."""
        from mcpguard.stores.redis.store import RedisStore

        return RedisStore(self.url, options, notify=notify)

    def prune(self, options: Options, before_us: int) -> Iterator[int]:
        """See `Address`."""
        from mcpguard.stores.redis import upkeep

        return upkeep.prune(self.url, options.namespace, before_us)

    def leave_note(self, namespace: str, note: "AgentNote", *, wall_us: int, timeout_s: float) -> None:
        """See `Address`. The server deletes notes that expire."""
        import contextlib
        from time import monotonic

        from mcpguard.identity.client_agents import NOTE_KEPT_US
        from mcpguard.stores.redis.layout import RedisKeys
        from mcpguard.stores.redis.link import Link, RedisCommand

        deadline_s = monotonic() + timeout_s
        key = RedisKeys(namespace).note(note.key)
        command: RedisCommand = (
            ("SET", key, f"{wall_us} {note.text}", "PX", NOTE_KEPT_US // 1000) if note.text else ("DEL", key)
        )
        with contextlib.closing(Link(self.url, timeout_s=timeout_s, key=key, deadline_s=deadline_s)) as link:
            link.checked(link.ask([command], deadline_s=deadline_s)[0])


def has_password(url: str) -> bool:
    """Whether a URL contains a password."""
    return re.match(r"[^:/?#]+://[^/?#]*:[^/?#]+@", url) is not None


def address(url: str, password: str = "") -> Address:
    """The address that a URL names.

    Args:
        url: `sqlite:///absolute/path.db`, where `~` may begin the path, or the URL of a server, see `stores.redis.url`.
        password: The server's password, if the URL has none.

    Raises:
        ConfigError: The URL names no store. The message does not repeat the URL, because that may contain a password.
    """
    from urllib.parse import unquote  # a store without a URL needs no more of this

    match = re.fullmatch(r"sqlite://(/.+)", url)
    if match and "?" in match[1]:
        raise ConfigError("store: the URL of a file has no options", "write %3F for a question mark in its name")
    if match and "\0" not in (path := unquote(match[1])):
        path = path[1:] if re.match(r"/([A-Za-z]:|~)", path) else path
        return SqliteAddress(absolute(path, where="store") if path.startswith("~") else path.rstrip("/") or "/")
    scheme = url.partition("://")[0]
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://.*", url, re.DOTALL):
        raise ConfigError("store: this is not a URL", _EXAMPLE)
    from mcpguard.stores.redis.url import SCHEMES, parse

    if scheme in SCHEMES:
        return RedisAddress(parse(url, password))
    if scheme == "sqlite":
        raise ConfigError("store: this is not the URL of a file", _EXAMPLE)
    known = " ".join(f"{one}://" for one in ("sqlite", *SCHEMES))
    raise ConfigError(f"store: {scheme}:// is not the URL of a store", f"use one of: {known}")
