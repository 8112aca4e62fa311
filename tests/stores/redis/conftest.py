"""Stores on a server of the module, which are closed at the end of the test."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mcpguard.session.audit import Outcome
from mcpguard.session.journal import Journal
from mcpguard.stores.api import Options
from mcpguard.stores.clock import wall_us
from mcpguard.stores.redis.link import Link
from mcpguard.stores.redis.store import RedisStore
from tests.build import Session, Time
from tests.redis_servers import Server

POLICY = '[[rule]]\ntool = "report"\nlimit = "5/1h"\n'
PATIENT = Options(timeout_ms=20_000)
AUDIT, REFUSED, OUTCOMES, SIZE, LABELS = (
    "{mcpguard:default}:" + name for name in ("audit", "refused", "outcomes", "size", "counters")
)
"""Keys of the namespace."""

Opened = Callable[..., RedisStore]


class OnServer(Session):
    """A wrapper's session on a store of its own."""

    store: RedisStore


Begin = Callable[..., OnServer]


@pytest.fixture
def opened(server: Server) -> Iterator[Opened]:
    """Opens a store with these options, and the rights that the manual shows; with a store's and a wall clock, if told."""
    user = server.user("*")
    with contextlib.ExitStack() as stack:

        def make(clocks: tuple[Time, Time] | None = None, **options: object) -> RedisStore:
            own = dict(zip(("clock", "wall"), clocks or (), strict=False))
            store = RedisStore(user, PATIENT._replace(**options), **own)  # type: ignore[arg-type]
            return stack.enter_context(contextlib.closing(store))

        yield make


@pytest.fixture
def begin(opened: Opened) -> Begin:
    """Begins a wrapper's session on a store of its own; by clocks that are some hours behind the server's, if told."""

    def start(policy: str = POLICY, session: str = "00000000000000aa", hours_ago: int = 0, **options: object) -> OnServer:
        past = Time(wall_us() - hours_ago * 3600 * 1_000_000)
        return OnServer(opened(clocks=(past, past) if hours_ago else None, **options), policy, session=session)

    return start


def keys(server: Server, kind: str = "") -> list[str]:
    """The keys of all namespaces, or those of a kind."""
    words = server.command("KEYS", "*").decode().split("\r\n")
    return sorted(word for word in words if word.startswith("{") and (not kind or f":{kind}:" in word))


def ask(server: Server, *command: bytes | str) -> Any:
    """The whole reply to a command."""
    with contextlib.closing(Link(server.address, timeout_s=20, key="")) as link:
        return link.reply(*command)


def length(server: Server, key: str = AUDIT) -> int:
    """How many rows a stream has."""
    return int(server.command("XLEN", key)[1:])


def call_with_outcomes(session: Session, times: int) -> None:
    """Calls that nothing limits, and that end well."""
    session.store.record([Outcome(one.row_id or 0, "ok", 1) for one in session.call("free", times)])


def refuse(session: Session, name: str) -> None:
    """Refuse 100 requests as new wrappers do, each for another server with a long name, so that no two share a row."""
    for part in range(4):
        seq, session.journal = session.journal.seq, Journal(session.journal.session)
        session.journal.state, session.machine.journal = (seq, {}, {}), session.journal
        session.requests(*[b'{"jsonrpc":"2.0","id":%d,"method":7}' % at for at in range(25)])
        refused = session.machine.unwritten.copy()
        for at, (one, _) in enumerate(refused):
            one.context = one.context.replace('"crm"', f'"{name} {part} {at:<200}"')
        session.write_rows()
        assert all(verdict.has_own_row for _, verdict in refused)
