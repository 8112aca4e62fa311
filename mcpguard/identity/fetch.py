"""Fetches a small document over HTTPS. The time and the size are bounded, however the server behaves."""

import asyncio
import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from mcpguard.identity.jwt_settings import is_loopback, url_problem

MAX_REDIRECTS: Final = 3

_HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": "identity"}
"""No compression: a few kilobytes could expand to gigabytes."""


class FetchError(ValueError):
    """Why a document could not be fetched. The text never repeats the server's own words, which can hold anything."""


def get(url: str, timeout_s: float, max_bytes: int) -> bytes:
    """Fetch the document at a URL.

    A redirect must lead to https. It may lead to http on this machine only from http on this machine. HTTPS goes through the
    proxy that the environment names, except to this machine. No cookie, password or certificate of the user's is sent.

    Args:
        url: https, or http on this machine.
        timeout_s: For everything: name resolution, redirects and the last byte included.
        max_bytes: The longest document that is accepted.

    Raises:
        FetchError: There is no such document, or it is too long.
        TimeoutError: The time is over.
    """
    try:
        return asyncio.run(_get(url, timeout_s, max_bytes))
    except FetchError:
        raise
    except httpx2.TimeoutException as error:  # the system gave up before us
        raise TimeoutError from error
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        raise FetchError(_reason(error)) from error


async def _get(url: str, timeout_s: float, max_bytes: int) -> bytes:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(_DaemonThreads())
    loop.set_exception_handler(lambda *_: None)  # the default one writes a traceback to stderr
    async with asyncio.timeout(timeout_s):
        for _ in range(1 + MAX_REDIRECTS):
            answer = await _request(url, max_bytes)
            if isinstance(answer, bytes):
                return answer
            target = urljoin(url, answer)
            if url_problem(target) or (urlsplit(target).scheme == "http" and urlsplit(url).scheme != "http"):
                raise FetchError("it redirects to an address that is not trusted: only https is")
            url = target
    raise FetchError("it redirects too often")


async def _request(url: str, max_bytes: int) -> bytes | str:
    """The document at a URL, or where it redirects to. A client serves one request, so that no cookie reaches the next."""
    host = urlsplit(url).hostname or ""
    async with contextlib.AsyncExitStack() as opened, await asyncio.to_thread(_client, host) as client:

        async def trace(event: str, details: dict[str, Any]) -> None:
            if event == "connection.connect_tcp.complete":  # the client would not close it if its TLS handshake is cancelled
                opened.push_async_callback(details["return_value"].aclose)

        async with client.stream("GET", url, extensions={"trace": trace}) as response:
            if response.has_redirect_location:
                return response.headers["Location"]
            return await _body(response, max_bytes)


def _client(host: str) -> httpx2.AsyncClient:
    """A client for one host. It reads certificates and the system's proxy settings, which may resolve names: this can block."""
    try:
        context = httpx2.create_ssl_context()
    except OSError as error:
        raise FetchError("the certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read") from error
    try:
        # `trust_env` would send http on this machine through a proxy, and fail if any of the proxies is unusable
        return httpx2.AsyncClient(proxy=_proxy(host), trust_env=False, verify=context, timeout=None, headers=_HEADERS)
    except (ImportError, ValueError, httpx2.InvalidURL) as error:
        raise FetchError("the proxy that https_proxy names is not an HTTP proxy") from error


def _proxy(host: str) -> str | None:
    proxy = None if is_loopback(host) or proxy_bypass(host) else getproxies().get("https")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


async def _body(response: httpx2.Response, max_bytes: int) -> bytes:
    if response.status_code != httpx2.codes.OK:
        raise FetchError(f"it answers with HTTP status {response.status_code}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise FetchError("its answer is compressed, although it was asked for an uncompressed one")
    data = bytearray()
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) > max_bytes:
            raise FetchError(f"its answer is longer than {max_bytes} bytes")
    return bytes(data)


class _DaemonThreads(ThreadPoolExecutor):
    """Runs blocking calls in daemon threads. They cannot be interrupted, so neither the fetch nor the process joins them."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except Exception as error:  # for whoever awaits it
                    future.set_exception(error)

        threading.Thread(target=run, name="mcpguard-fetch", daemon=True).start()
        return future


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
            return os.strerror(cause.errno).lower()
    return "the connection breaks off" if isinstance(error, httpx2.NetworkError) else "it does not speak HTTP"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.exceptions[0] if isinstance(error, ExceptionGroup) else error.__cause__ or error.__context__
