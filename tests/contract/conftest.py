"""Makes each kind of store, for tests that open several handles on one store."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from mcpguard.identity.client_agents import AgentNote
from mcpguard.stores.address import SqliteAddress
from mcpguard.stores.api import Options, Readable, Store
from mcpguard.stores.memory import MemoryStore, SharedMemory
from mcpguard.stores.redis.address import RedisAddress
from mcpguard.stores.redis.store import RedisStore
from mcpguard.stores.sqlite.reader import SqliteReader
from mcpguard.stores.sqlite.store import SqliteStore
from tests.build import WALL_US, Time
from tests.redis_servers import SERVERS, Server, running

FOREVER_US = 100 * 365 * 86400 * 1_000_000
"""A lease that does not end while a test runs. Tests of the contract renew none."""


class Kind(NamedTuple):
    """One kind of store, in one place.

    Attributes:
        open: Opens it, with the store's time and wall-clock time.
        read: Opens it to be read, with the store's time.
        leave_note: Notes an agent in a namespace, at a wall-clock time, as a hook does. The store exists.
    """

    open: Callable[[Time, Time], Store]
    read: Callable[[Time], Readable]
    leave_note: Callable[[str, AgentNote, int], object]


class Place:
    """One store, on which a test can open several handles. Its time stands still until the test moves it."""

    def __init__(self, kind: Kind, namespace: str) -> None:
        self.namespace = namespace
        self.time = Time()
        self.wall = Time(WALL_US)
        self._kind = kind
        self._opened: list[Store | Readable] = []

    def open(self) -> Store:
        store = self._kind.open(self.time, self.wall)
        self._opened.append(store)
        return store

    def read(self) -> Readable:
        reader = self._kind.read(self.time)
        self._opened.append(reader)
        return reader

    def note(self, namespace: str, call_id: str, agent: str) -> None:
        self._kind.leave_note(namespace, AgentNote(call_id, agent), self.wall())

    def pass_ms(self, ms: int) -> None:
        self.time.pass_ms(ms)
        self.wall.pass_ms(ms)

    def pass_us(self, us: int) -> None:
        self.time.now_us += us
        self.wall.now_us += us

    def close(self) -> None:
        while self._opened:
            self._opened.pop().close()


def _memory(_: Path) -> Kind:
    memory = SharedMemory()
    return Kind(
        lambda time, wall: MemoryStore(memory, clock=time, wall=wall),
        lambda time: MemoryStore(memory, clock=time),
        lambda namespace, note, wall_us: memory.leave_note(namespace, note, wall_us=wall_us),
    )


def _sqlite(folder: Path) -> Kind:
    path = folder / "state" / "mcpguard.db"

    def read(time: Time) -> Readable:
        reader = SqliteReader(path)
        reader.clock = time
        return reader

    return Kind(
        lambda time, wall: SqliteStore(path, clock=time, wall=wall),
        read,
        lambda namespace, note, wall_us: SqliteAddress(str(path)).leave_note(namespace, note, wall_us=wall_us, timeout_s=20),
    )


def _on_server(server: Server) -> Callable[[Path], Kind]:
    """A store on a server, by a user with the rights that the manual shows."""
    user = server.user("*")

    def in_namespace(folder: Path) -> Kind:
        options = Options(namespace=str(folder), timeout_ms=20_000)
        address = RedisAddress(user)
        return Kind(
            lambda time, wall: RedisStore(user, options, clock=time, wall=wall, lease_us=FOREVER_US),
            lambda time: RedisStore(user, options, clock=time),
            lambda namespace, note, wall_us: address.leave_note(namespace, note, wall_us=wall_us, timeout_s=20),
        )

    return in_namespace


Make = Callable[[Path], Kind]
"""Makes one kind of store in an empty folder."""

STORES: dict[str, Make] = {"memory": _memory, "sqlite": _sqlite}
"""The kinds that need no server."""


def _on_servers() -> Iterator[object]:
    """The kinds that need a server. They cover no line of the core that the others do not cover."""
    for name in SERVERS:
        yield pytest.param(name, marks=pytest.mark.no_cover)


@pytest.fixture(params=[*sorted(STORES), *_on_servers()])
def kind(request: pytest.FixtureRequest) -> Make:
    name = str(request.param)
    return STORES[name] if name in STORES else _on_server(request.getfixturevalue(name.replace("-", "_")))


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("valkey"), kind="valkey-server") as server:
        yield server


@pytest.fixture
def new_place(kind: Make, tmp_path: Path) -> Iterator[Callable[[], Place]]:
    """Makes empty stores of one kind."""
    places: list[Place] = []

    def make() -> Place:
        folder = tmp_path / str(len(places))
        folder.mkdir()
        places.append(Place(kind(folder), str(folder)))
        return places[-1]

    yield make
    for place in places:
        place.close()


@pytest.fixture
def place(new_place: Callable[[], Place]) -> Place:
    return new_place()
