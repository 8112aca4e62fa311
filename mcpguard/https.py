"""Small exchanges over HTTPS: fetches a document, or posts one. Its size is bounded, and so is each wait."""

import os
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from mcpguard.light_typing import Final
from mcpguard.urls import is_loopback

_HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": "identity"}
"""No compression: a few kilobytes could expand to gigabytes."""


class FetchError(ValueError):
    """Why a document could not be fetched. The text never repeats the server's own words, which can hold anything."""


def get(url: str, timeout_s: float, max_bytes: int) -> bytes:
    """Fetch the document at a URL. A redirect is not followed.

    HTTPS goes through the proxy that the environment names, except to this machine. No password or certificate of the user's
    is sent.

    Args:
        url: https, or http on this machine.
        timeout_s: For each wait, and for the whole once the document comes. A name server that does not answer, and a header
            that comes byte by byte, can take longer: call this in a thread that nobody must wait for.
        max_bytes: The longest document that is accepted.

    Raises:
        FetchError: There is no such document, it is too long, or the time is over.
    """
    return _exchange("GET", url, timeout_s, max_bytes)


def post(url: str, message: Mapping[str, object], timeout_s: float) -> None:
    """Post a message as JSON to a URL; see `get`. What is answered is not read.

    Raises:
        FetchError: It was not taken.
    """
    _exchange("POST", url, timeout_s, 0, message)


def _exchange(method: str, url: str, timeout_s: float, max_bytes: int, message: Mapping[str, object] | None = None) -> bytes:
    until_s = time.monotonic() + timeout_s
    late = FetchError(f"no answer in {timeout_s:g} s")
    try:
        with _client(urlsplit(url).hostname or "", timeout_s) as client, client.stream(method, url, json=message) as response:
            if response.has_redirect_location:
                raise FetchError("it redirects to another address: configure that one")
            if not (response.is_success if message else response.status_code == httpx2.codes.OK):
                raise FetchError(f"it answers with HTTP status {response.status_code}")
            if message:
                return b""
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise FetchError("its answer is compressed, although it was asked for an uncompressed one")
            data = bytearray()
            for chunk in response.iter_raw():
                data += chunk
                if len(data) > max_bytes:
                    raise FetchError(f"its answer is longer than {max_bytes} bytes")
                if time.monotonic() >= until_s:
                    raise late
            return bytes(data)
    except httpx2.TimeoutException as error:
        raise late from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise FetchError(_reason(error)) from error


def _client(host: str, timeout_s: float) -> httpx2.Client:
    """A client for one host. It reads certificates and the system's proxy settings, which may resolve names: this can block."""
    try:
        context = httpx2.create_ssl_context()
    except OSError as error:
        raise FetchError("the certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read") from error
    proxy = None if is_loopback(host) or proxy_bypass(host) else getproxies().get("https")
    proxy = f"http://{proxy}" if proxy and "://" not in proxy else proxy
    timeout = httpx2.Timeout(timeout_s, connect=timeout_s / 2)  # if a host's first address is silent, the next one has time
    try:
        # `trust_env` would send http on this machine through a proxy, and fail if any of the proxies is unusable
        return httpx2.Client(proxy=proxy, trust_env=False, verify=context, timeout=timeout, headers=_HEADERS)
    except (ImportError, ValueError, httpx2.InvalidURL) as error:
        raise FetchError("the proxy that https_proxy names is not an HTTP proxy") from error


def _reason(error: Exception) -> str:
    if isinstance(error, httpx2.ProxyError):  # its text is the proxy's
        return "the proxy refuses the connection"
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {cause.verify_message.rstrip('.')}"
        if isinstance(cause, ssl.SSLError):
            return f"the TLS handshake fails: {(cause.reason or type(cause).__name__).replace('_', ' ').lower()}"
        if isinstance(cause, socket.gaierror | UnicodeError):
            return "its name cannot be resolved"
        if isinstance(cause, OSError) and cause.errno:
            return (cause.strerror or os.strerror(cause.errno)).lower()
    return "the connection breaks off" if isinstance(error, httpx2.NetworkError) else "it does not speak HTTP"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__ or error.__context__
