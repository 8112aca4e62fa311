"""Fetching small documents from servers and proxies that misbehave."""

import contextlib
import datetime
import gzip
import ipaddress
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from io import BufferedIOBase
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mcpguard.https import FetchError, get
from mcpguard.identity.keys import ProviderKeys
from tests.build import raising
from tests.provider import KeyServer, key
from tests.web_server import reply

TIMEOUT_S = 0.3
AT_MOST_S = 5.0
"""Far above the timeout, and far below the time that the server would take."""

REFUSED = ("connection refused", "no connection could be made because the target machine actively refused it")
"""The words of POSIX and of Windows."""


def fails(url: str, timeout_s: float = 30) -> str:
    with pytest.raises(FetchError) as caught:
        get(url, timeout_s, 1 << 20)
    return str(caught.value)


@contextlib.contextmanager
def silent(host: str, port: int = 0) -> Iterator[int]:
    """A port whose queue of connections is full: the next client waits."""
    with socket.create_server((host, port), backlog=0) as full, contextlib.ExitStack() as held:
        for _ in range(4):
            client = held.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        yield full.getsockname()[1]


def resolve_to(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Let every name have these addresses."""

    def found(_: object, port: int, *__: object, **___: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", found)


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return int(closed.getsockname()[1])


@pytest.fixture(autouse=True)
def _without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def times_out(url: str) -> None:
    began_s = time.monotonic()
    assert fails(url, TIMEOUT_S) == "no answer in 0.3 s"
    assert time.monotonic() - began_s < AT_MOST_S


def gives_up(url: str, folder: Path) -> None:
    """Check that nobody waits longer than the timeout for keys, although their thread may wait for ever."""
    keys = ProviderKeys(url, folder, fetch_s=TIMEOUT_S)
    began_s = time.monotonic()
    keys.wait(30)
    assert time.monotonic() - began_s < AT_MOST_S
    assert (keys.is_fetching, keys.problem, len(keys)) == (False, "no answer in 0.3 s", 0)
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "mcpguard-keys")


def drip(sending: BufferedIOBase, beginning: bytes, ended: threading.Event) -> None:
    """Send some bytes, and then one byte at a time."""
    with contextlib.suppress(OSError):
        sending.write(beginning)
        while not ended.wait(0.02):
            sending.write(b"H")
            sending.flush()


def test_get_returns_the_bytes_that_the_server_sends(keys: KeyServer) -> None:
    assert get(keys.url, 30, 1 << 20) == keys.body


@pytest.mark.parametrize("status", [204, 401, 404, 500, 503])
def test_a_status_other_than_200_is_an_error_that_names_it(keys: KeyServer, status: int) -> None:
    keys.status = status
    keys.body = b""
    assert fails(keys.url) == f"it answers with HTTP status {status}"


def test_reading_stops_when_a_document_exceeds_the_size_limit(keys: KeyServer) -> None:
    keys.body = b"x" * (10 << 20)
    assert fails(keys.url) == f"its answer is longer than {1 << 20} bytes"

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
        while not keys.ended.is_set():
            handler.wfile.write(b"x" * 65536)

    keys.behaviour = endless
    assert fails(keys.url) == f"its answer is longer than {1 << 20} bytes"


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip", "br", "x"])
def test_a_compressed_document_is_refused_and_never_expanded(keys: KeyServer, encoding: str) -> None:
    keys.headers = {"Content-Encoding": encoding}
    keys.body = gzip.compress(gzip.compress(b"\0" * (10 << 20)))
    assert fails(keys.url) == "its answer is compressed, although it was asked for an uncompressed one"


@pytest.mark.parametrize("answer", [b"\x00\xff" * 99, b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"])
def test_garbage_and_a_truncated_document_are_an_error(keys: KeyServer, answer: bytes) -> None:
    keys.behaviour = lambda handler: handler.wfile.write(answer)
    assert fails(keys.url) == "it does not speak HTTP"


@pytest.mark.parametrize(
    "beginning", [b"", b"HTTP/1.1 200 OK\r\nX-Long: ", b"HTTP/1.1 200 OK\r\n\r\n"], ids=["status", "header", "body"]
)
def test_nobody_waits_for_a_server_that_sends_byte_by_byte(keys: KeyServer, tmp_path: Path, beginning: bytes) -> None:
    keys.behaviour = lambda handler: drip(handler.wfile, beginning, keys.ended)
    gives_up(keys.url, tmp_path)


def test_a_server_that_sends_byte_by_byte_or_nothing_or_accepts_no_connection_times_out(keys: KeyServer) -> None:
    keys.behaviour = lambda handler: drip(handler.wfile, b"HTTP/1.1 200 OK\r\n\r\n", keys.ended)
    times_out(keys.url)
    keys.behaviour = lambda _: keys.pause()
    times_out(keys.url)
    with silent("127.0.0.1") as port:
        times_out(f"http://127.0.0.1:{port}/")


def test_a_refused_connection_is_a_one_line_error(closed_port: int) -> None:
    assert fails(f"http://127.0.0.1:{closed_port}/") in REFUSED


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for this machine, with its key."""
    private, name = key("ES256", 0), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    machine = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(x509.SubjectAlternativeName([machine]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "certificate.pem"
    file.write_bytes(made.public_bytes(Encoding.PEM) + private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return file


@pytest.fixture
def secure(keys: KeyServer, certificate: Path) -> KeyServer:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    keys.server.socket = context.wrap_socket(keys.server.socket, server_side=True)
    keys.url = keys.url.replace("http:", "https:")
    return keys


def test_a_certificate_must_be_trusted(secure: KeyServer, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fails(secure.url).startswith("its certificate is not trusted: self")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert get(secure.url, 30, 1 << 20) == secure.body


def test_a_certificate_for_another_name_is_an_error_without_a_full_stop(
    secure: KeyServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    resolve_to(monkeypatch, "127.0.0.1")
    error = fails(secure.url.replace("127.0.0.1", "idp.test"))
    assert error.startswith("its certificate is not trusted: ")
    assert error.endswith("certificate is not valid for 'idp.test'")


def test_a_server_without_tls_at_an_https_url_is_a_one_line_error(keys: KeyServer) -> None:
    assert fails(keys.url.replace("http:", "https:")).startswith("the TLS handshake fails: ")


def test_certificates_that_cannot_be_read_are_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    why = "the certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read"
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing"))
    assert fails("https://127.0.0.1:1/") == why
    (tmp_path / "missing").write_text("no certificate")
    assert fails("https://127.0.0.1:1/") == why


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address of this machine on Linux only")
def test_the_next_address_is_tried_in_time_if_the_first_one_is_silent(keys: KeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    port = keys.server.server_port
    with silent("127.0.0.2", port):
        resolve_to(monkeypatch, "127.0.0.2", "127.0.0.1")
        assert get(f"http://localhost:{port}/", 1.0, 1 << 20) == keys.body


@pytest.mark.parametrize("what", ["socket.getaddrinfo", "mcpguard.https.proxy_bypass"])
def test_nobody_waits_for_names_or_proxy_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str) -> None:
    ended = threading.Event()

    def hang(*_: object, **__: object) -> object:
        ended.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "too late")

    monkeypatch.setattr(what, hang)
    gives_up("https://idp.acme.com/keys", tmp_path)
    ended.set()


@pytest.mark.parametrize("host", ["idp.acme.com", "a" * 64 + ".com"])
def test_a_name_that_cannot_be_resolved_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", raising(socket.gaierror(socket.EAI_NONAME, "Name or service not known")))
    assert fails(f"https://{host}/keys") == "its name cannot be resolved"


def test_https_goes_through_the_proxy_that_https_proxy_names(keys: KeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def refuse(handler: BaseHTTPRequestHandler) -> None:
        asked.append((handler.requestline, handler.headers["Proxy-Authorization"]))
        reply(handler, 407, {})

    keys.behaviour = refuse
    monkeypatch.setenv("https_proxy", f"http://user:p%40ss@127.0.0.1:{keys.server.server_port}")
    assert fails("https://idp.acme.com/keys") == "the proxy refuses the connection"
    assert asked == [("CONNECT idp.acme.com:443 HTTP/1.1", "Basic dXNlcjpwQHNz")]


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "ftp://127.0.0.1:1", "http://[::1"])
def test_an_https_proxy_that_is_not_an_http_proxy_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    assert fails("https://idp.acme.com/keys") == "the proxy that https_proxy names is not an HTTP proxy"


def test_no_proxy_exempts_a_host(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "acme.com")
    resolve_to(monkeypatch, "127.0.0.1")
    assert fails(f"https://idp.acme.com:{closed_port}/keys") in REFUSED


def test_this_machine_is_reached_without_any_proxy(keys: KeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "socks5://127.0.0.1:1")
    assert get(keys.url, 30, 1 << 20) == keys.body


# What is sent


def test_no_cookie_or_password_is_sent_and_no_redirect_followed(
    keys: KeyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("default login alice password s3cret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    received: list[dict[str, str]] = []

    def redirect(handler: BaseHTTPRequestHandler) -> None:
        received.append({name.lower(): value for name, value in handler.headers.items()})
        reply(handler, 302, {"Set-Cookie": "session=s3cret; Path=/", "Location": "/again?s3cret"})

    keys.behaviour = redirect
    for asked in (1, 2):
        assert fails(keys.url) == "it redirects to another address: configure that one"
        assert len(received) == asked
    assert not any({"cookie", "authorization"} & set(headers) for headers in received)
    assert {headers["accept-encoding"] for headers in received} == {"identity"}
