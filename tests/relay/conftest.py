import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.identity.caller import Identity
from mcpguard.policy.parse import parse
from mcpguard.relay.console import Console
from mcpguard.relay.dispatch import Dispatcher
from mcpguard.relay.process import ServerProcess, spawn
from mcpguard.session.audit import Outcome
from mcpguard.session.journal import Journal
from mcpguard.session.machine import Session
from mcpguard.stores.memory import MemoryStore
from mcpguard.wire.frames import read
from tests.end_to_end.host import release, until


class Store(MemoryStore):
    """A store that notes how many outcomes it records at once, and fails to record and to take a note if it has a failure."""

    def __init__(self) -> None:
        super().__init__()
        self.failure: StoreUnavailable | None = None
        self.handfuls: list[int] = []

    def take_note(self, namespace: str, key: str) -> str:
        if self.failure:
            raise self.failure
        return super().take_note(namespace, key)

    def record(self, outcomes: Sequence[Outcome]) -> None:
        if self.failure:
            raise self.failure
        self.handfuls.append(len(outcomes))
        super().record(outcomes)


class Scene:
    """A dispatcher with a session and a store, what it replies, and what it says on a quiet console."""

    def __init__(self) -> None:
        self.stderr, self.write = os.pipe()
        self.store = Store()
        self.replies: list[bytes] = []
        self.session = Session(Identity("alice", "os", "crm"), parse("mode = 'enforce'"), Journal("0" * 16))
        self.console = Console(self.write, quiet=True)
        self.dispatcher = Dispatcher(self.replies.append, self.console)
        self.unread = self.dispatcher.unread
        self.dispatcher.begin(self.session, self.store)

    def client(self, *lines: bytes) -> bytes:
        return self.dispatcher.judge(read(lines), 0)

    def close(self) -> None:
        os.close(self.stderr)
        os.close(self.write)


def made(fixture: str, **options: object) -> pytest.MarkDecorator:
    """Make what a fixture gives with these options."""
    return pytest.mark.parametrize(fixture, [options], indirect=True, ids=["made"])


Start = Callable[..., ServerProcess]


def ended(child: ServerProcess) -> int:
    """Wait for the exit of a server; returns its status."""
    until(lambda: child.poll() is not None, "the server has exited")
    assert child.status is not None
    return child.status


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers, and ends them with the test."""
    children: list[ServerProcess] = []

    def start(*argv: str, environ: Mapping[str, str] | None = None) -> ServerProcess:
        child = spawn(argv, os.environ if environ is None else environ)
        children.append(child)
        child.confirm()
        return child

    yield start
    for child in children:
        if child.status is None:
            child.kill()
            ended(child)
        child.reap()
        release(child.stdin)
        os.close(child.stdout)
