"""Gets a small document over HTTPS, within a time and a size, however its server behaves."""

import base64
import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from typing import Final
from urllib.parse import SplitResult, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from mcpguard.auth.settings import is_loopback, url_problem

MAX_REDIRECTS: Final = 3

_MOVED: Final = frozenset({301, 302, 303, 307, 308})


class FetchError(ValueError):
    """Why a document could not be had, in our words: the server's own may hold anything."""


def get(url: str, timeout_s: float, max_bytes: int) -> bytes:
    """The document at a URL.

    A redirect is followed to https only; to http on this machine only from there. HTTPS goes through the proxy that the
    environment names. Name servers are asked by the system, in its own time; all the rest ends in time.

    Args:
        url: https, or http on this machine.
        timeout_s: For all of it, redirects and the last byte included.
        max_bytes: The longest document that is taken.

    Raises:
        FetchError: There is none, or it is too long.
        TimeoutError: The time is over.
    """
    deadline_s = time.monotonic() + timeout_s
    try:
        for _ in range(1 + MAX_REDIRECTS):
            answer = _ask(urlsplit(url), deadline_s, max_bytes)
            if isinstance(answer, bytes):
                return answer
            target = urljoin(url, answer)
            if url_problem(target) or (urlsplit(target).scheme == "http" and urlsplit(url).scheme != "http"):
                raise FetchError("it redirects to where nothing is trusted: only https is")
            url = target
    except FetchError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        _left(deadline_s)  # an answer that was cut looks like any other that is broken
        raise FetchError(_reason(error)) from error
    raise FetchError("it redirects too often")


def _ask(url: SplitResult, deadline_s: float, max_bytes: int) -> bytes | str:
    """What the server answers: a document, or the address of another."""
    connection = _connection(url, _left(deadline_s))
    socks: list[socket.socket] = []

    def dial(address: tuple[str, int], *_: object) -> socket.socket:
        socks.append(_dial(*address, deadline_s))
        return socks[0]

    connection._create_connection = dial  # type: ignore[attr-defined]  # the usual one gives each address all of the timeout
    # A timeout is for one byte, and a server may send them one by one; so may a proxy
    cut = threading.Timer(_left(deadline_s), _cut, (socks,))
    cut.daemon = True
    cut.start()
    try:
        connection.connect()
        socks.append(connection.sock)  # TLS took over the other
        _left(deadline_s)
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        connection.request("GET", path, headers={"Accept": "application/json", "Connection": "close"})
        with connection.getresponse() as response:
            if response.status in _MOVED:
                return response.headers.get("Location", "")
            if response.status != http.client.OK:
                raise FetchError(f"it answers with HTTP status {response.status}")
            data = bytearray()
            while chunk := response.read1(1 << 16):
                data += chunk
                if len(data) > max_bytes:
                    raise FetchError(f"its answer is longer than {max_bytes} bytes")
        _left(deadline_s)  # what was cut is not the whole
        return bytes(data)
    finally:
        cut.cancel()
        connection.close()


def _left(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _dial(host: str, port: int, deadline_s: float) -> socket.socket:
    """Connect to the first of a host's addresses that lets us. Each may take its share of the time that is left."""
    places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    problem = OSError()
    for left, (family, kind, protocol, _, place) in zip(range(len(places), 0, -1), places, strict=True):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(_left(deadline_s) / left)
            sock.connect(place)
            sock.settimeout(_left(deadline_s))
            return sock
        except OSError as error:
            sock.close()
            problem = error
    raise problem


def _cut(socks: Iterable[socket.socket]) -> None:
    """Let whoever waits for more bytes have none."""
    for sock in socks:
        with contextlib.suppress(OSError):  # it was closed in this moment
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # the plain one's: a TLS goodbye could wait, too


def _connection(url: SplitResult, timeout_s: float) -> http.client.HTTPConnection:
    host = url.hostname or ""
    if url.scheme == "http":
        return http.client.HTTPConnection(host, url.port or 80, timeout=timeout_s)
    context = ssl.create_default_context()
    proxy = None if is_loopback(host) or proxy_bypass(host) else getproxies().get("https")
    if not proxy:
        return http.client.HTTPSConnection(host, url.port or 443, timeout=timeout_s, context=context)
    via = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    connection = http.client.HTTPSConnection(via.hostname or "", via.port or 80, timeout=timeout_s, context=context)
    headers = {}
    if via.username is not None:
        who = f"{unquote(via.username)}:{unquote(via.password or '')}"
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(who.encode()).decode()}"
    connection.set_tunnel(host, url.port or 443, headers)
    return connection


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, socket.gaierror):
        return "its name is not known"
    if type(error) is OSError and error.errno is None:  # of http.client, and with the proxy's words in it
        return "the proxy does not let us through"
    if isinstance(error, OSError):
        return (error.strerror or type(error).__name__).lower()
    return "it does not speak HTTP"
