"""Starts real Redis and Valkey servers for tests, each in its own folder."""

import contextlib
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mcpguard.stores.redis.url import RedisUrl, parse
from tests.missing import missing
from tests.pages import DOCS, block

ENOUGH_S = 60
"""Longer than a server takes to start or stop. A test that waits so long fails."""

PASSWORD = "s3cret"
"""Of the user that the manual shows."""

SERVERS = ("redis-server", "valkey-server")


def free_port() -> int:
    """A free port below the range that the system hands out, so that it stays free until the server starts."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def program(name: str) -> str:
    """The path of a server's program. The test is skipped if the program is missing, and fails under `.ci/run`."""
    found = shutil.which(name)
    if not found:
        missing(f"{name} is not installed", required="MCPGUARD_REQUIRE_REDIS" if name == "redis-server" else "")
    return found


class Server:
    """One server, on a port, which with `tls` accepts only TLS, and on a socket in a folder."""

    def __init__(self, folder: Path, *arguments: str, kind: str = "redis-server", tls: bool = False) -> None:
        self._program = program(kind)
        self.folder = folder
        self.port = free_port()
        self.bus = free_port()
        self._socket = folder / "s"
        ports = ["--port", "0", "--tls-port", str(self.port)] if tls else ["--port", str(self.port)]
        self._arguments = [*ports, "--unixsocket", str(self._socket), "--dir", str(folder), "--save", "", *arguments]
        if "--cluster-enabled" in arguments:
            self._arguments += ["--cluster-port", str(self.bus)]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def address(self) -> RedisUrl:
        return parse(f"unix://{self._socket}")

    def user(self, namespace: str) -> RedisUrl:
        """The address with the user that the manual shows, for a namespace or a pattern of some. Gives it the rights there."""
        set_user = block("acl", DOCS["stores-and-fleets.md"]).replace("PASSWORD", PASSWORD).replace(":crm}", f":{namespace}}}")
        assert self.command(*set_user.split()) == b"+OK\r\n"
        return parse(f"unix://mcpguard@{self._socket}", PASSWORD)

    def start(self, *more: str) -> "Server":
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([self._program, *self._arguments, *more], stdout=log, stderr=log)
        wait_for(lambda: self._answers, f"{self._program} does not start: {self.folder / 'log'}")
        return self

    @property
    def _answers(self) -> bool:
        return self.command("PING").startswith((b"+PONG", b"-NOAUTH", b"-LOADING"))

    def command(self, *words: str | bytes, timeout_s: float = ENOUGH_S) -> bytes:
        """Send a command, and return the first part of the reply; empty without a reply."""
        parts = [word.encode() if isinstance(word, str) else word for word in words]
        packed = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as link:
            link.settimeout(timeout_s)
            link.connect(str(self._socket))
            link.sendall(packed)
            return link.recv(1 << 20)
        return b""

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(ENOUGH_S)
            self.process = None


def wait_for(done: Callable[[], bool], what: str) -> None:
    """Poll a condition until it is true."""
    end = time.monotonic() + ENOUGH_S
    while not done():
        assert time.monotonic() < end, what
        time.sleep(0.01)


@contextlib.contextmanager
def running(folder: Path, *arguments: str, kind: str = "redis-server", tls: bool = False) -> Iterator[Server]:
    """A server that runs until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    server = Server(folder, *arguments, kind=kind, tls=tls)
    try:
        yield server.start()
    finally:
        server.kill()


def certificates(folder: Path) -> None:
    """Create a test authority in `folder`, with certificates for the server on this machine and for a client."""

    def openssl(*arguments: str) -> None:
        subprocess.run([program("openssl"), *arguments], cwd=folder, check=True, capture_output=True, timeout=ENOUGH_S)

    folder.mkdir(parents=True, exist_ok=True)
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "2")
    may_sign = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")  # Python 3.13 requires this extension and the next
    may_not = ("-addext", "basicConstraints=critical,CA:FALSE", "-addext", "keyUsage=critical,digitalSignature")
    openssl("req", "-x509", *key, *may_sign, "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem")
    for name in ("server", "client"):
        names = ("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1") if name == "server" else ()
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", f"{name}.key", "-out", f"{name}.pem")
        openssl("req", "-x509", *key, *may_not, "-subj", f"/CN={name}", *names, *signed)


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[list[Server]]:
    """A cluster of three nodes, each with a third of the slots."""
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(running(folder / str(at), "--cluster-enabled", "yes")) for at in range(3)]
        for at, node in enumerate(nodes):
            node.command("CLUSTER", "ADDSLOTSRANGE", str(at * 5461), str(16383 if at == 2 else at * 5461 + 5460))
            node.command("CLUSTER", "SET-CONFIG-EPOCH", str(at + 1))
        for node in nodes[1:]:
            node.command("CLUSTER", "MEET", "127.0.0.1", str(nodes[0].port), str(nodes[0].bus))
        for node in nodes:
            wait_for(lambda node=node: b"cluster_state:ok" in node.command("CLUSTER", "INFO"), "no cluster")  # type: ignore[misc]
        yield nodes
