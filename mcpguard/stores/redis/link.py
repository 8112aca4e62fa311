"""Sends commands to a server and reads replies. Each wait is bounded, and each failure is one line for people.

The client library opens the connection: it knows sockets, TLS and authentication. This module writes to the socket and reads
from it, because the library takes several times as long for that, and its retries would charge a call twice.
"""

import contextlib
import select
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import monotonic

from hiredis import ProtocolError, Reader, pack_command
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import TimeoutError as TimedOut
from redis.retry import Retry

from mcpguard.errors import LOOK_AT_LIMITS, StoreUnavailable
from mcpguard.light_typing import Any, Final
from mcpguard.stores.redis.url import RedisUrl

RedisCommand = tuple[bytes | str | int, ...]

_SCANNED: Final = 500

_MAX_MOVES: Final = 3
"""How many nodes of a cluster are tried, each of which may name another one."""

_LATE: Final = "check that it runs, or raise store.timeout_ms"

_HINTS: Final = {
    "LOADING": "wait until it has read its data",
    "OOM": "raise maxmemory, or lower [audit] max_mb: its memory is full",
    "READONLY": "name the primary: this is a replica",
    "MISCONF": "check its disk: it cannot write its data",
    "NOAUTH": "give a password: MCPGUARD_STORE_PASSWORD, or ?password_file= in the URL",
    "WRONGPASS": "check the user and the password",
    "NOPERM": "give its user the rights that docs/stores-and-fleets.md lists",
    "CLUSTERDOWN": "check the cluster: a part of it is down",
}
"""By the code of an error."""

_HINTS_BY_WORDS: Final = {
    "DB index": "end the URL with the number of a database that it has, such as /0",
    "without any password configured": "leave out the password: this server has none",
}
"""By a part of an error whose code is only `ERR`."""

_NO_CERTIFICATES: Final = (
    "this Python has no CA certificates: run Install Certificates.command in its folder, or set SSL_CERT_FILE"
)
"""The hint for Python from python.org on macOS, which comes without them."""

_MOVED: Final = "MOVED"
"""The beginning of an error that names the node that owns a key."""

_INCOMPLETE: Final = object()
_READ_BYTES: Final = 32 * 1024
_TIMEVAL: Final = struct.Struct("ll")
_NEGLIGIBLE_S: Final = 0.001

LEAST_WAITED: Final = 0.25
"""The share of its timeout that a link waits for a reply at least. On a busy machine the time may be over before the command is
sent, or while the reply waits to be read: then the server is not to blame."""


def scan(ask: Callable[[RedisCommand], Any], key: str, cursor: bytes = b"0") -> Iterator[tuple[bytes, dict[bytes, bytes]]]:
    """Read a hash in pieces, so that no decision waits for all of it. A field may come twice.

    Yields each piece and, before it, the cursor with which another scan goes on after it; `0` after the last one.
    """
    while True:
        cursor, fields = ask(("HSCAN", key, cursor, "COUNT", _SCANNED))
        yield cursor, dict(zip(fields[::2], fields[1::2], strict=True))
        if cursor == b"0":
            return


def _timeout_setter(connected: socket.socket) -> Callable[[float], None]:
    """A function that sets how long a socket waits. The kernel's own timeouts save a `poll` before each wait.

    An SSL socket would wait again after them, and on Windows they have another form.
    """
    if sys.platform == "win32" or isinstance(connected, ssl.SSLSocket):
        return connected.settimeout
    connected.settimeout(None)

    def set_timeout(seconds: float) -> None:
        timeval = _TIMEVAL.pack(int(seconds), max(1, int(seconds % 1 * 1_000_000)))  # zero is no timeout
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connected.setsockopt(socket.SOL_SOCKET, option, timeval)

    return set_timeout


def _readable(connected: socket.socket) -> Callable[[], object]:
    """A function that tells whether a socket has bytes, or its end, to read. It runs before each call, so it is built once."""
    if sys.platform == "win32":
        return lambda: select.select([connected], [], [], 0)[0]
    poll = select.poll()
    poll.register(connected, select.POLLIN)
    return partial(poll.poll, 0)


class Link:
    """A connection to a server, or to the node of a cluster that owns a key. It is opened at once.

    Args:
        address: The address.
        timeout_s: How long each wait may take, for a connection or a reply.
        key: The key.
        deadline_s: When to give up connecting, by `time.monotonic`; None for `timeout_s` from now.

    Raises:
        StoreUnavailable: No server answers, or it refuses us.
    """

    def __init__(self, address: RedisUrl, *, timeout_s: float, key: str, deadline_s: float | None = None) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._key = key
        self._connect(monotonic() + timeout_s if deadline_s is None else deadline_s)

    def _connect(self, deadline_s: float) -> None:
        if self._address.path:
            self._open(UnixDomainSocketConnection, deadline_s, path=self._address.path)
            return
        failures: list[StoreUnavailable] = []
        for host, port in self._address.hosts:
            try:
                self._open_owner(host, port, deadline_s)
            except StoreUnavailable as error:
                failures.append(error)
            else:
                return
        raise failures[0]

    def _open_owner(self, host: str, port: int, deadline_s: float) -> None:
        """Connect to the node that owns our key, beginning with this one."""
        for _ in range(_MAX_MOVES):
            self._open(SSLConnection if self._address.is_tls else Connection, deadline_s, host=host, port=port)
            (reply,) = self.ask([("EXISTS", self._key)], deadline_s=deadline_s)
            if not isinstance(reply, ResponseError):
                return
            self.close()
            code, _, rest = str(reply).partition(" ")
            if code != _MOVED:
                raise self._unavailable(reply)
            named, _, told_port = rest.partition(" ")[2].rpartition(":")
            host, port = named or host, int(told_port)
        raise StoreUnavailable(f"{self._address.shown}: no node owns our keys", "check whether the cluster is being moved")

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

    def _open(self, kind: Any, deadline_s: float, **where: object) -> None:
        timeout_s = min(self._timeout_s, deadline_s - monotonic())
        try:
            if timeout_s <= 0 or ("host" in where and not _resolves(str(where["host"]), timeout_s)):
                raise TimeoutError
            connection = kind(**where, **self._options(timeout_s))
            connection.connect()
        except (RedisError, OSError, UnicodeError) as error:  # UnicodeError for a malformed host
            late_hint = "check that it uses TLS; if not, write redis://" if kind is SSLConnection else _LATE
            raise self._unavailable(error, late_hint) from error
        self._connection: Any = connection
        self._socket: socket.socket = connection._sock
        self._waits_s = -1.0  # for ever
        self._readable = _readable(self._socket)
        self._set_timeout = _timeout_setter(self._socket)
        self._reader = Reader(replyError=ResponseError, notEnoughData=_INCOMPLETE)

    def ask(self, commands: Sequence[RedisCommand], *, deadline_s: float | None = None) -> list[Any]:
        """Send commands in one packet and read their replies. Nothing is sent twice.

        Args:
            commands: The commands with their arguments.
            deadline_s: When to give up, by `time.monotonic`; but see `LEAST_WAITED`. After `timeout_s` it gives up in any case.

        Returns:
            The replies, with strings as bytes. An error reply is a `ResponseError` in its place; the commands after it have
            run.

        Raises:
            StoreUnavailable: There is no connection, or no reply in time.
        """
        packed = b"".join([pack_command(command) for command in commands])  # type: ignore[arg-type]  # its stub knows one only
        end_s = monotonic() + self._timeout_s
        return self.exchange(packed, len(commands), deadline_s=end_s if deadline_s is None else min(deadline_s, end_s))

    def reply(self, *command: bytes | str | int) -> Any:
        """The reply to one command.

        Raises:
            StoreUnavailable: There is no reply in time, or it is an error.
        """
        return self.checked(self.ask([command])[0])

    def exchange(self, packed: bytes, count: int = 1, *, deadline_s: float) -> list[Any]:
        """Send commands that are packed already, and return their replies.

        A failure closes the connection, because a late reply would be taken for that of a later command.

        Args:
            packed: The commands.
            count: How many they are.
            deadline_s: When to give up, by `time.monotonic`; but see `LEAST_WAITED`.

        Raises:
            StoreUnavailable: There is no connection, or no reply in time.
        """
        try:
            sent = 0
            while sent < len(packed):
                self._wait_until(deadline_s)
                sent += self._socket.send(packed[sent:] if sent else packed)
            replies: list[Any] = []
            while len(replies) < count:
                self._wait_until(deadline_s)
                data = self._socket.recv(_READ_BYTES)
                if not data:
                    raise ConnectionResetError("the server closed the connection")
                self._reader.feed(data)
                while len(replies) < count and (reply := self._reader.gets()) is not _INCOMPLETE:
                    replies.append(reply)
                if len(replies) < count and monotonic() > deadline_s:
                    raise TimeoutError
            return replies
        except BaseException as error:
            self.close()
            if isinstance(error, RedisError | OSError | ProtocolError):
                raise self._unavailable(error) from error
            raise

    def _wait_until(self, deadline_s: float) -> None:
        """Set how long the next wait may take. That is a system call, so a negligible difference is ignored."""
        left_s = deadline_s - monotonic()
        if abs(left_s - self._waits_s) > _NEGLIGIBLE_S:
            self._waits_s = max(self._timeout_s * LEAST_WAITED, left_s)
            self._set_timeout(self._waits_s)

    def is_lost(self) -> bool:
        """Whether the server has closed the connection or sent something unasked."""
        return self._socket.fileno() < 0 or self._reader.has_data() or bool(self._readable())

    def renew(self, deadline_s: float) -> None:
        """Replace the connection by a new one.

        Args:
            deadline_s: When to give up, by `time.monotonic`.

        Raises:
            StoreUnavailable: No server answers, or it refuses us.
        """
        self.close()
        self._connect(deadline_s)

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()

    def checked(self, reply: Any) -> Any:
        """Return a reply.

        Raises:
            StoreUnavailable: The reply is an error.
        """
        if isinstance(reply, ResponseError):
            raise self._unavailable(reply) from reply
        return reply

    def _unavailable(self, error: Exception, late_hint: str = _LATE) -> StoreUnavailable:
        """A failure as one line. The password is masked, because the server may repeat it.

        Args:
            error: The failure.
            late_hint: The hint if it is a timeout.
        """
        words = " ".join(str(error).split())
        code = getattr(error, "status_code", None) or words.partition(" ")[0]
        if words.startswith("ERR ACL failure in script"):
            code = "NOPERM"
        hint = _HINTS.get(code) or next((hint for part, hint in _HINTS_BY_WORDS.items() if part in words), "")
        what = f"refuses: {words}" if isinstance(error, ResponseError | AuthenticationError) else f"does not answer: {words}"
        if code == _MOVED:
            what, hint = "has moved our keys to another node", ""
        elif isinstance(error, TimedOut | TimeoutError | BlockingIOError):
            what, hint = f"does not answer within {round(self._timeout_s * 1000)} ms", late_hint
        elif isinstance(error, ConnectionLost | OSError | ProtocolError) and not hint:
            hint = "check that it runs and that the address is right"
            if self._address.is_tls:  # OpenSSL's message seldom names the cause
                hint = "check that it runs and that the address, ca_file, cert_file and key_file are right"
                has_ca = "ca_file" in self._address.files or any(ssl.get_default_verify_paths()[:2])
                if sys.platform == "darwin" and "certificate verify failed" in words and not has_ca:
                    hint = _NO_CERTIFICATES
        if self._address.password:
            what = what.replace(self._address.password, "***")
        return StoreUnavailable(f"{self._address.shown} {what}", hint)


def _resolves(host: str, timeout_s: float) -> bool:
    """Whether the system's resolver answers in time, even with an error. The resolver itself takes no timeout.

    Raises:
        StoreUnavailable: The system has no thread left.
    """
    resolver = threading.Thread(target=_resolve, args=(host,), daemon=True)
    try:
        resolver.start()
    except RuntimeError as error:
        raise StoreUnavailable(f"{host} cannot be looked up: {error}", LOOK_AT_LIMITS) from error
    resolver.join(timeout_s)
    return not resolver.is_alive()


def _resolve(host: str) -> None:
    with contextlib.suppress(OSError, UnicodeError):  # connecting reports it
        socket.getaddrinfo(host, None)
