"""Finds the address of a store from its URL."""

import re
from urllib.parse import unquote

from mcpguard.errors import ConfigError
from mcpguard.files import absolute
from mcpguard.light_typing import Final
from mcpguard.stores.api import Address
from mcpguard.stores.sqlite.address import SqliteAddress

_EXAMPLE: Final = "sqlite:///absolute/path.db"


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
    match = re.fullmatch(r"sqlite://(/.+)", url)
    if match and "\0" not in (path := unquote(match[1])):
        path = path[1:] if re.match(r"/([A-Za-z]:|~)", path) else path
        return SqliteAddress(absolute(path, where="store") if path.startswith("~") else path.rstrip("/") or "/")
    scheme = url.partition("://")[0]
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://.*", url, re.DOTALL):
        raise ConfigError("store: this is not a URL", _EXAMPLE)
    from mcpguard.stores.redis.address import RedisAddress
    from mcpguard.stores.redis.url import SCHEMES, parse

    if scheme in SCHEMES:
        return RedisAddress(parse(url, password))
    if scheme == "sqlite":
        raise ConfigError("store: this is not the URL of a file", _EXAMPLE)
    known = " ".join(f"{one}://" for one in ("sqlite", *SCHEMES))
    raise ConfigError(f"store: {scheme}:// is not the URL of a store", f"use one of: {known}")
