"""Parses the URL of a Redis or Valkey server. Does not load the client that connects."""

import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from mcpguard.errors import ConfigError, installing
from mcpguard.files import named_path, read_at_once
from mcpguard.light_typing import Final

SCHEMES: Final = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster")
"""`rediss` means TLS. A cluster's URL may name several nodes, of which one has to answer."""

EXAMPLE: Final = "redis://cache.acme.com:6379/0"

_PORT: Final = 6379
_FILES: Final = ("ca_file", "cert_file", "key_file")


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """The parts of a URL.

    Attributes:
        scheme: One of `SCHEMES`.
        hosts: Hosts and ports, in the order in which they are tried; none with `unix`.
        path: The socket's file, with `unix`.
        database: The number of the database.
        username: The user; empty for the server's default user.
        password: The password; empty for none.
        files: Paths by `ca_file`, `cert_file` and `key_file`: the authorities that TLS trusts instead of the system's, and the
            client certificate.
    """

    scheme: str
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    database: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_tls(self) -> bool:
        """Whether the connection uses TLS. The server's certificate is then checked."""
        return self.scheme.startswith("rediss")

    @property
    def shown(self) -> str:
        """The URL without user, password and files, for messages."""
        where = self.path or ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        cluster = self.scheme.endswith("cluster")
        return f"{self.scheme}://{where}" + ("" if cluster or (self.path and not self.database) else f"/{self.database}")


def parse(url: str, password: str = "") -> RedisUrl:
    """Parse a URL.

    Args:
        url: Such as `redis://user:password@host:6379/0`, `unix:///run/redis.sock?db=0` or
            `redis+cluster://one:6379,two:6379`. Its query may have `ca_file`, `cert_file`, `key_file` and `password_file`.
        password: The password, if the URL has none.

    Raises:
        ConfigError: The URL is malformed, a file that it names cannot be read, or the client for Redis is not installed. The
            message does not repeat the URL, because that may contain a password.
    """
    scheme = url.partition("://")[0]
    try:
        split = urlsplit(url)
        names = dict(parse_qsl(split.query, keep_blank_values=True, strict_parsing=bool(split.query)))
    except ValueError:
        raise _wrong("this is not a URL", EXAMPLE) from None
    who, _, where = split.netloc.rpartition("@")
    username, _, given = who.partition(":")
    known = {"password_file", *({"db"} if scheme == "unix" else _FILES if scheme.startswith("rediss") else ())}
    if names.keys() & {*_FILES} and not known & {*_FILES}:
        raise _wrong("ca_file, cert_file and key_file are for TLS", "use rediss://, or rediss+cluster:// for a cluster")
    if split.fragment or not names.keys() <= known:  # the message does not repeat it: it may be the rest of a password
        raise _wrong(
            "the URL has a setting that is unknown", f"use one of: {' '.join(sorted(known))}; write %23 and %3F for # and ?"
        )
    database = names.get("db", "0") if scheme == "unix" else split.path.strip("/") or "0"
    if not re.fullmatch(r"[0-9]{1,4}", database) or (scheme.endswith("cluster") and database != "0"):
        raise _wrong("the database is not a number" if not database.isdigit() else "a cluster has only database 0", EXAMPLE)
    if (scheme == "unix") != (not where) or (scheme == "unix" and not split.path.strip("/")):
        raise _wrong(
            "no server" if scheme != "unix" else "a unix:// URL is a path", "write unix:///run/redis.sock or " + EXAMPLE
        )
    if scheme == "unix" and sys.platform == "win32":
        raise _wrong("unix:// is not for Windows", EXAMPLE)
    if any(importlib.util.find_spec(name) is None for name in ("redis", "hiredis")):
        raise ConfigError("the store is a Redis server, and its client is not installed", installing("redis"))
    return RedisUrl(
        scheme,
        hosts=tuple(_host(one, cluster=scheme.endswith("cluster")) for one in where.split(",")) if where else (),
        path=unquote(split.path) if scheme == "unix" else "",
        database=int(database),
        username=unquote(username),
        password=unquote(given) or (_content(names["password_file"]) if "password_file" in names else password),
        files={setting: _readable(names[setting], setting) for setting in _FILES if setting in names},
    )


def _host(text: str, *, cluster: bool) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^:\[\]/]+))(?::([0-9]{1,5}))?", text)
    if not match or int(match[3] or _PORT) > 0xFFFF:
        raise _wrong("not a host and a port", "redis+cluster://one:6379,two:6379" if cluster else EXAMPLE)
    return unquote(match[1] or match[2]), int(match[3] or _PORT)


def _content(name: str) -> str:
    try:
        return read_at_once(named_path(name, where="store: password_file")).decode().strip("\r\n")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise _wrong(f"password_file {name} cannot be read: {why}", "write the password and nothing else into it") from error


def _readable(name: str, setting: str) -> str:
    path = named_path(name, where=f"store: {setting}")
    try:
        read_at_once(path, 1)
    except OSError as error:
        raise _wrong(f"{setting} {name} cannot be read: {error.strerror}", "name a file in PEM format") from error
    return str(path)


def _wrong(what: str, hint: str) -> ConfigError:
    return ConfigError(f"store: {what}", hint)
