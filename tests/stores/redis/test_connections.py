"""Connections to a server: with a password, with few rights, over TLS, over a socket, to a cluster."""

import importlib.util
import os
import re
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from types import SimpleNamespace

import pytest

from mcpguard.errors import ConfigError, StoreUnavailable, installing
from mcpguard.session.audit import Outcome
from mcpguard.stores.address import RedisAddress, address
from mcpguard.stores.api import Store
from mcpguard.stores.clock import wall_us
from mcpguard.stores.redis import link
from tests.build import Session
from tests.redis_servers import Server, certificates, cluster, running
from tests.stores.redis.conftest import PATIENT, POLICY


def opened(url: str, password: str = "", namespace: str = "default", timeout_ms: int = 20_000) -> Store:
    return address(url, password).open(PATIENT._replace(timeout_ms=timeout_ms, namespace=namespace))


def works(store: Store) -> bool:
    """Whether a wrapper and the commands can use the store."""
    session = Session(store, POLICY)
    verdicts = session.call("report", 6)
    store.record([Outcome(verdicts[0].row_id or 0, "ok", 1)])
    store.append(session.journal.flush(wall_us(), all_of_them=True))
    store.adopt([(session.charges("report")[0].plan.counters[0], (-1, -1, 1))], token_hex())
    store.tend()
    entries = list(store.entries())
    held = store.counters()
    gone = store.reset([one.label for one in held])
    store.close()
    return (len(entries), [one.used for one in held], gone, entries[0].record["outcome"]) == (6, [6], 1, "ok")


def refusal(url: str, password: str = "", timeout_ms: int = 20_000) -> str:
    with pytest.raises(StoreUnavailable) as caught:
        opened(url, password, timeout_ms=timeout_ms)
    assert "\n" not in caught.value.message
    return f"{caught.value.message}; {caught.value.hint}"


def test_a_server_is_reached_by_its_unix_socket_and_in_the_database_of_the_url(tmp_path: Path) -> None:
    with running(tmp_path / "redis") as server:
        assert works(RedisAddress(server.address).open(PATIENT))
        server.command("FLUSHALL")
        assert works(opened(server.url.replace("/0", "/3")))
        assert b"db3:" in server.command("INFO", "keyspace")
        assert b"db0:" not in server.command("INFO", "keyspace")
        assert "end the URL with the number of a database that it has" in refusal(server.url.replace("/0", "/99"))
        assert "leave out the password: this server has none" in refusal(server.url, "pa55")


def test_a_password_comes_from_the_url_an_argument_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("p@ss/w:rd#?\n")
    quoted = "p%40ss%2Fw%3Ard%23%3F"
    with running(tmp_path / "redis", "--requirepass", "p@ss/w:rd#?") as server:
        assert works(opened(f"redis://:{quoted}@127.0.0.1:{server.port}", namespace="a"))
        assert works(opened(f"redis://default:{quoted}@127.0.0.1:{server.port}", namespace="b"))
        assert works(opened(server.url, "p@ss/w:rd#?", namespace="c"))
        assert works(opened(f"{server.url}?password_file={file}", namespace="d"))
        assert "NOAUTH" in refusal(server.url) or "Authentication required" in refusal(server.url)
        wrong = refusal(server.url, "wr0ng")
        assert "invalid username-password pair" in wrong
        assert "wr0ng" not in wrong
        assert "check the user and the password" in wrong


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tls")
    certificates(folder)
    files = ["--tls-ca-cert-file", "ca.pem", "--tls-cert-file", "server.pem", "--tls-key-file", "server.key"]
    with running(folder, *files, "--tls-auth-clients", "yes", tls=True) as server:
        yield server


def tls_url(server: Server, host: str = "localhost", *files: str) -> str:
    named = "&".join(f"{kind}_file={server.folder / name}" for kind, name in (one.split("=") for one in files))
    return f"rediss://{host}:{server.port}/0?{named}"


OURS = ("cert=client.pem", "key=client.key")


def test_a_connection_is_encrypted_with_an_authority_and_a_certificate_of_its_own(encrypted: Server) -> None:
    assert works(opened(tls_url(encrypted, "localhost", "ca=ca.pem", *OURS)))


@pytest.mark.parametrize(
    ("host", "files", "word"),
    [
        ("localhost", OURS, "certificate verify failed"),
        ("127.0.0.2", ("ca=ca.pem", *OURS), "certificate verify failed"),
        ("localhost", ("ca=ca.pem",), "rediss://localhost"),
    ],
)
def test_an_untrusted_certificate_is_refused(encrypted: Server, host: str, files: tuple[str, ...], word: str) -> None:
    with pytest.raises(StoreUnavailable, match=word) as caught:
        opened(tls_url(encrypted, host, *files))
    assert caught.value.hint == "check that it runs and that the address, ca_file, cert_file and key_file are right"


def test_a_python_without_ca_certificates_is_named_as_the_cause(encrypted: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = ssl.get_default_verify_paths()._replace(cafile=None, capath=None)  # type: ignore[arg-type]  # its stub knows no None
    monkeypatch.setattr("ssl.get_default_verify_paths", lambda: nowhere)
    monkeypatch.setattr(link, "sys", SimpleNamespace(platform="darwin"))
    told = refusal(tls_url(encrypted, "localhost", *OURS))
    assert "certificate verify failed" in told
    assert "Install Certificates.command" in told
    assert "Install Certificates.command" not in refusal(tls_url(encrypted, "127.0.0.2", "ca=ca.pem", *OURS))


def test_a_tls_url_never_falls_back_to_plain_text(tmp_path: Path) -> None:
    with running(tmp_path / "redis") as server:
        words = refusal(server.url.replace("redis:", "rediss:"), "s3cret", timeout_ms=1000)
    assert "does not answer" in words
    assert "check that it uses TLS; if not, write redis://" in words


def test_in_a_cluster_any_node_leads_to_the_one_that_owns_the_namespace(tmp_path: Path) -> None:
    with cluster(tmp_path) as nodes:
        for at, node in enumerate(nodes):
            assert works(opened(f"redis+cluster://127.0.0.1:{node.port}", namespace=str(at)))
        nodes[0].kill()
        seeds = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        for namespace in "abc":  # the owner of two of three namespaces still runs
            try:
                assert works(opened(f"redis+cluster://{seeds}", namespace=namespace))
            except StoreUnavailable as error:
                assert seeds in error.message  # noqa: PT017 - which of them fail depends on the hash of their slots


def test_a_slot_that_moves_away_is_reported_and_followed_by_the_next_connection(tmp_path: Path) -> None:
    with cluster(tmp_path) as nodes:
        slot = int(nodes[0].command("CLUSTER", "KEYSLOT", "{mcpguard:default}")[1:])
        owner = next(node for at, node in enumerate(nodes) if at * 5461 <= slot < (at + 1) * 5461)
        other = nodes[(nodes.index(owner) + 1) % 3]
        session = Session(opened(f"redis+cluster://127.0.0.1:{owner.port}"), POLICY)
        session.one("report")
        name = other.command("CLUSTER", "MYID").split(b"\r\n")[1]
        owner.command("FLUSHALL")
        for node in (other, owner):
            node.command("CLUSTER", "SETSLOT", str(slot), "NODE", name)
        with pytest.raises(StoreUnavailable, match="has moved our keys to another node"):
            session.one("report")
        assert works(opened(f"redis+cluster://127.0.0.1:{owner.port}"))


@pytest.mark.parametrize(
    "url",
    """
    redis:// redis://:s3cret@ redis://host:99999 redis://host:s3cret redis://host/s3cret redis://:s3#cret@host/0
    redis://:s3?cret@host/0 redis://:s3/cret@host/0 redis://host?s3cret=1 redis://[::1:s3cret unix:// unix://host/path?s3cret=1
    redis+cluster://one,two/3 redis://one:1,,two s3cret://host
    """.split(),
)
def test_a_malformed_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        address(url)
    assert "s3" not in caught.value.message.replace("s3cret:// is not", "")
    assert "cret" not in caught.value.hint


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host", "redis://host:6379/0"),
        ("redis://u:p@host:1/2", "redis://host:1/2"),
        ("rediss://[::1]:6380", "rediss://[::1]:6380/0"),
        pytest.param("unix:///run/a%20b.sock", "unix:///run/a b.sock", marks=pytest.mark.posix),
        pytest.param("unix:///run/s?db=2", "unix:///run/s/2", marks=pytest.mark.posix),
        ("redis+cluster://u:p@a,b:2", "redis+cluster://a:6379,b:2"),
    ],
)
def test_an_address_is_shown_as_scheme_host_and_database(url: str, shown: str) -> None:
    assert address(url, "s3cret").shown == shown
    assert "s3cret" not in repr(address(url, "s3cret"))


@pytest.mark.parametrize("setting", ["password_file", "ca_file", "cert_file"])
def test_files_that_cannot_be_read_are_named(tmp_path: Path, setting: str) -> None:
    is_windows = sys.platform == "win32"  # it has a folder for each name, and no pipes
    files = {
        f"{tmp_path}/none": re.escape(f"{tmp_path}/none"),
        "~nosuchuser/x": "nosuchuser" if is_windows else "the home or working folder for ~nosuchuser/x does not exist",
        "%00": f"{setting}: .* is not a path: it has a NUL character",
    }
    if not is_windows:
        os.mkfifo(tmp_path / "pipe")
        files[f"{tmp_path}/pipe"] = "cannot be read: a pipe, not a file"
    for file, words in files.items():
        with pytest.raises(ConfigError, match=words):
            address(f"rediss://host?{setting}={file}")


@pytest.mark.parametrize("url", ["redis://host", "redis+cluster://host", "unix:///run/s"])
def test_files_for_tls_beside_an_address_without_it_are_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        address(f"{url}?ca_file=/etc/ssl/ca.pem")
    assert caught.value.message == "store: ca_file, cert_file and key_file are for TLS"


@pytest.mark.parametrize("missing", ["redis", "hiredis"])
def test_without_the_client_library_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else there(name))
    with pytest.raises(ConfigError) as caught:
        address("redis://host")
    assert caught.value.hint == installing("redis")


def test_a_socket_is_refused_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(ConfigError, match="unix:// is not for Windows"):
        address("unix:///run/s")
