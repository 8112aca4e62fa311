"""Small documents from servers that behave in every way."""

import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mcpguard.auth.fetch import FetchError, get
from tests import provider
from tests.provider import KeyServer, key

TIMEOUT_S = 0.3
AT_MOST_S = 5.0
"""What is far beyond the timeout, and far below what the server would take."""


@pytest.fixture
def server() -> Iterator[KeyServer]:
    with provider.serving() as serving:
        yield serving


def fails(url: str, timeout_s: float = 30) -> str:
    with pytest.raises(FetchError) as caught:
        get(url, timeout_s, 1 << 20)
    return str(caught.value)


def times_out(url: str) -> None:
    began_s = time.monotonic()
    with pytest.raises(TimeoutError):
        get(url, TIMEOUT_S, 1 << 20)
    assert time.monotonic() - began_s < AT_MOST_S


def test_a_document_is_what_the_server_sends(server: KeyServer) -> None:
    assert get(server.url, 30, 1 << 20) == server.body


@pytest.mark.parametrize("status", [204, 401, 404, 500, 503])
def test_anything_but_a_document_is_a_word_about_it(server: KeyServer, status: int) -> None:
    server.status = status
    server.body = b""
    assert fails(server.url) == f"it answers with HTTP status {status}"


def test_a_document_that_is_too_long_is_not_read_to_its_end(server: KeyServer) -> None:
    server.body = b"x" * (10 << 20)
    assert fails(server.url) == f"its answer is longer than {1 << 20} bytes"

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
        while not server.ended.is_set():
            handler.wfile.write(b"x" * 65536)

    server.behaviour = endless
    assert fails(server.url) == f"its answer is longer than {1 << 20} bytes"


@pytest.mark.parametrize(
    "beginning", [b"", b"HTTP/1.1 200 OK\r\nX-Long: ", b"HTTP/1.1 200 OK\r\n\r\n"], ids=["status", "header", "body"]
)
def test_a_server_that_sends_byte_by_byte_is_cut_off_in_time(server: KeyServer, beginning: bytes) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(beginning)
        while not server.ended.wait(0.02):
            handler.wfile.write(b"H")

    server.behaviour = drip
    times_out(server.url)


def test_a_server_that_says_nothing_is_left_in_time(server: KeyServer) -> None:
    server.behaviour = lambda _: server.pause()
    times_out(server.url)


def test_a_server_that_does_not_accept_is_left_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        held = [socket.socket() for _ in range(4)]
        for one in held:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        times_out(f"http://127.0.0.1:{port}/")
        for one in held:
            one.close()


def test_garbage_and_a_closed_door_are_words(server: KeyServer) -> None:
    server.behaviour = lambda handler: handler.wfile.write(b"\x00\xff" * 99)
    assert fails(server.url) == "it does not speak HTTP"
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert fails(f"http://127.0.0.1:{port}/") == "connection refused"


def test_a_redirect_on_this_machine_is_followed_and_a_ring_of_them_is_left(server: KeyServer) -> None:
    with provider.serving() as other:
        other.status, other.headers, other.body = 302, {"Location": server.url}, b""
        assert get(other.url, 30, 1 << 20) == server.body
        other.headers = {"Location": "/again"}
        assert fails(other.url) == "it redirects too often"
        assert other.asked == 5


@pytest.mark.parametrize(
    "target",
    [
        "http://idp.acme.com/keys",
        "http://127.0.0.1.acme.com/",
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "https://a:b@acme.com/",
    ],
)
def test_a_redirect_to_where_nothing_is_trusted_is_not_followed(server: KeyServer, target: str) -> None:
    server.status, server.headers, server.body = 301, {"Location": target}, b""
    assert fails(server.url) == "it redirects to where nothing is trusted: only https is"


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of this machine, which nobody but who is told trusts, with its key."""
    private = key("ES256", 0)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "certificate.pem"
    file.write_bytes(made.public_bytes(Encoding.PEM) + private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return file


@pytest.fixture
def secure(server: KeyServer, certificate: Path) -> KeyServer:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.server.socket = context.wrap_socket(server.server.socket, server_side=True)
    server.url = server.url.replace("http:", "https:")
    return server


def test_a_certificate_must_be_trusted(secure: KeyServer, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fails(secure.url).startswith("its certificate is not trusted: self")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert get(secure.url, 30, 1 << 20) == secure.body


def test_a_redirect_does_not_lead_from_https_to_http(
    secure: KeyServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with provider.serving() as plain:
        secure.status, secure.headers, secure.body = 302, {"Location": plain.url}, b""
        assert fails(secure.url) == "it redirects to where nothing is trusted: only https is"
        assert plain.asked == 0


def test_a_server_that_never_shakes_hands_is_left_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        times_out(f"https://127.0.0.1:{silent.getsockname()[1]}/")


def test_a_proxy_that_sends_byte_by_byte_is_cut_off_in_time(server: KeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:

        def drip() -> None:
            client, _ = proxy.accept()
            with client, contextlib.suppress(OSError):
                client.recv(65536)
                client.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
                while not server.ended.wait(0.02):
                    client.sendall(b"x")

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        times_out("https://idp.acme.com/keys")
        thread.join(30)
        assert not thread.is_alive()


def test_a_handshake_that_comes_byte_by_byte_is_cut_off_in_time(server: KeyServer) -> None:
    server.behaviour = lambda _: None
    with socket.create_server(("127.0.0.1", 0)) as slow:

        def drip() -> None:
            client, _ = slow.accept()
            with client, contextlib.suppress(OSError):
                client.recv(65536)
                client.sendall(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc")
                while not server.ended.wait(0.02):
                    client.sendall(b"\0")

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        times_out(f"https://127.0.0.1:{slow.getsockname()[1]}/")
        thread.join(30)
        assert not thread.is_alive()


def test_a_host_of_many_addresses_that_say_nothing_has_the_time_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        place = full.getsockname()
        held = [socket.socket() for _ in range(4)]
        for one in held:
            one.setblocking(False)
            one.connect_ex(place)
        address = (socket.AF_INET, socket.SOCK_STREAM, 6, "", place)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [address] * 40)
        times_out(f"http://localhost:{place[1]}/")
        for one in held:
            one.close()


def test_a_host_is_asked_at_its_next_address_if_one_says_nothing(server: KeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        gone = closed.getsockname()
    places = [gone, server.server.server_address]
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert get(server.url, 30, 1 << 20) == server.body


def test_a_redirect_leads_from_this_machine_to_https_and_within_it(server: KeyServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    server.status, server.headers, server.body = 307, {"Location": f"https://127.0.0.1:{port}/"}, b""
    assert fails(server.url) == "connection refused"
    server.headers = {}
    assert fails(server.url) == "it redirects too often"
    server.headers = {"Location": "http://[::1"}
    assert fails(server.url) == "it does not speak HTTP"


def test_https_goes_through_the_proxy_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        asked: list[bytes] = []

        def answer() -> None:
            client, _ = proxy.accept()
            with client:
                asked.append(client.recv(65536))
                client.sendall(b"HTTP/1.1 407 s3cret\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        monkeypatch.setenv("https_proxy", f"http://user:p%40ss@127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        said = fails("https://idp.acme.com/keys")
        thread.join(30)
    assert asked[0].startswith(b"CONNECT idp.acme.com:443 HTTP/1.")
    assert b"Proxy-Authorization: Basic dXNlcjpwQHNz\r\n" in asked[0]
    assert said == "the proxy does not let us through"
