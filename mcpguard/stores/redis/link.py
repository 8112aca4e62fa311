"""A connection to a server: commands in, replies out, each wait bounded, and every failure one line for people.

Of the client library only the connection is used, which knows sockets, TLS and authentication: its commands cost a call
several times what the bytes do, and its retries would charge twice.
"""

import time
from collections.abc import Sequence
from typing import Any, Final, Protocol

from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import AuthenticationError, MovedError, NoPermissionError, RedisError, ResponseError
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import TimeoutError as TimedOut
from redis.retry import Retry

from mcpguard.errors import StoreUnavailable
from mcpguard.stores.redis.address import RedisAddress

Command = Sequence[bytes | str | int]

_MAX_MOVES: Final = 3
"""Nodes of a cluster that may send us on to another one."""

_HINTS: Final = (
    ("LOADING", "it reads its data back after a start"),
    ("OOM", "its memory is full: raise maxmemory, or lower [audit] max_mb"),
    ("READONLY", "this is a replica: name the primary"),
    ("MISCONF", "it cannot write its data to disk"),
    ("NOAUTH", "it wants a password: MCPGUARD_STORE_PASSWORD, or ?password_file= in the URL"),
    ("WRONGPASS", "check the user and the password"),
    ("NOPERM", "the README lists what its user needs"),
    ("CLUSTERDOWN", "a part of the cluster is down"),
)


class _Connection(Protocol):
    """What is used of the library's connection, which it leaves without types."""

    is_connected: bool

    def connect(self) -> None: ...
    def disconnect(self) -> None: ...
    def pack_commands(self, commands: Sequence[Command]) -> list[bytes]: ...
    def send_packed_command(self, command: list[bytes], check_health: bool) -> None: ...
    def read_response(self, *, disable_decoding: bool, timeout: float) -> Any: ...
    def can_read(self, timeout: float) -> bool: ...


class Link:
    """One connection. It is made at once, and again by `renew`.

    Args:
        address: The server.
        timeout_s: How long any wait may be: for a connection, and for a reply.
        key: A key that the server is to own: the nodes of a cluster send us on to the one that does.
        deadline_s: When to give up connecting, by `time.monotonic`.

    Raises:
        StoreUnavailable: No server answers, or it refuses us.
    """

    def __init__(self, address: RedisAddress, *, timeout_s: float, key: str, deadline_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._key = key
        self._connection = self._connected(deadline_s)

    def _connected(self, deadline_s: float) -> _Connection:
        if self._address.path:
            return self._entered(UnixDomainSocketConnection, deadline_s, path=self._address.path)
        failure: StoreUnavailable | None = None
        for host, port in self._address.hosts:
            try:
                return self._owner(host, port, deadline_s)
            except StoreUnavailable as error:
                failure = failure or error
        raise failure or StoreUnavailable("no server is named")

    def _owner(self, host: str, port: int, deadline_s: float) -> _Connection:
        """A connection to the node that owns our keys."""
        for _ in range(_MAX_MOVES):
            kind = SSLConnection if self._address.is_tls else Connection
            connection = self._entered(kind, deadline_s, host=host, port=port)
            try:
                self._ask_on(connection, [("EXISTS", self._key)], self._left_s(deadline_s))
            except MovedError as moved:
                connection.disconnect()
                host, port = moved.host or host, moved.port
            except RedisError as error:
                connection.disconnect()
                raise self._unavailable(error) from error
            else:
                return connection
        raise StoreUnavailable(f"{self._address.shown}: no node owns our keys", "is the cluster being moved?")

    def _left_s(self, deadline_s: float) -> float:
        return min(self._timeout_s, deadline_s - time.monotonic())

    def _options(self, timeout_s: float) -> dict[str, object]:
        address = self._address
        tls = {"ca_file": "ssl_ca_certs", "cert_file": "ssl_certfile", "key_file": "ssl_keyfile"}
        return {
            "db": address.database,
            "username": address.username or None,
            "password": address.password or None,
            "protocol": 2,
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "retry": Retry(NoBackoff(), 0),
            "driver_info": None,
            **{tls[name]: path for name, path in address.files.items()},
        }

    def _entered(self, kind: Any, deadline_s: float, **where: object) -> _Connection:
        timeout_s = self._left_s(deadline_s)
        try:
            if timeout_s <= 0:
                raise TimedOut("no time is left")
            connection: _Connection = kind(**where, **self._options(timeout_s))
            connection.connect()
        except (RedisError, OSError, UnicodeError) as error:  # the last for what can be no host
            raise self._unavailable(error) from error
        return connection

    def ask(self, commands: Sequence[Command], *, deadline_s: float) -> list[object]:
        """Send commands in one packet, and read their replies. Nothing is sent twice.

        Args:
            commands: Each with its arguments.
            deadline_s: When to give up, by `time.monotonic`; after `timeout_s` at the latest.

        Returns:
            The replies, bytes as bytes. An error reply is returned as a `ResponseError`: the commands after it have run.

        Raises:
            StoreUnavailable: There is no connection, or no reply in time.
        """
        try:
            return self._ask_on(self._connection, commands, self._left_s(deadline_s), returns_errors=True)
        except RedisError as error:
            raise self._unavailable(error) from error

    def _ask_on(
        self,
        connection: _Connection,
        commands: Sequence[Command],
        timeout_s: float,
        *,
        returns_errors: bool = False,
    ) -> list[object]:
        if timeout_s <= 0:
            raise TimedOut("no time is left")
        packed = connection.pack_commands(commands)
        end_s = time.monotonic() + timeout_s
        connection.send_packed_command(packed, check_health=False)
        replies: list[object] = []
        for _ in commands:
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                connection.disconnect()  # what comes now answers a question that nobody asks any more
                raise TimedOut(f"no reply in {round(timeout_s * 1000)} ms")
            try:
                replies.append(connection.read_response(disable_decoding=True, timeout=left_s))
            except ResponseError as error:
                if not returns_errors:
                    raise
                replies.append(error)
        return replies

    @property
    def is_lost(self) -> bool:
        """Whether the server has closed the connection, or says what nobody asked."""
        try:
            return not self._connection.is_connected or self._connection.can_read(timeout=0)
        except RedisError:
            return True

    def renew(self, deadline_s: float) -> None:
        """Connect anew.

        Args:
            deadline_s: When to give up, by `time.monotonic`.

        Raises:
            StoreUnavailable: As when it was made.
        """
        self._connection.disconnect()
        self._connection = self._connected(deadline_s)

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()

    def checked(self, reply: Any) -> Any:
        """The reply, if it is no error.

        Raises:
            StoreUnavailable: It is one.
        """
        if isinstance(reply, ResponseError):
            raise self._unavailable(reply) from reply
        return reply

    def _unavailable(self, error: Exception) -> StoreUnavailable:
        """A failure as one line, without the password that the server may have repeated."""
        words = " ".join(str(error).split())
        code = getattr(error, "status_code", None) or words.partition(" ")[0]
        hint = next((hint for prefix, hint in _HINTS if code == prefix), "")
        what = f"refuses: {words}" if isinstance(error, ResponseError | AuthenticationError) else f"does not answer: {words}"
        if isinstance(error, MovedError):
            what, hint = "has moved our keys to another node", ""
        elif isinstance(error, NoPermissionError):
            what = f"refuses: {words}"
        elif isinstance(error, TimedOut):
            what, hint = f"does not answer within {round(self._timeout_s * 1000)} ms", ""
        elif isinstance(error, ConnectionLost | OSError) and not hint:
            hint = "is it running, and the address right?"
        if self._address.password:
            what = what.replace(self._address.password, "***")
        return StoreUnavailable(f"{self._address.shown} {what}", hint)
