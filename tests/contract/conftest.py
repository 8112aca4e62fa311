"""Each kind of store, as something of which one can open several handles."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mcpguard.stores.api import Options, Store
from mcpguard.stores.redis.store import RedisStore
from mcpguard.stores.sqlite.store import SqliteStore
from tests.core.build import WALL_US, Time
from tests.memory_store import Memory, MemoryStore
from tests.redis_servers import SERVERS, Server, running


class Place:
    """Where a store is: every handle that is opened here shares it. Its time stands still until it is moved."""

    def __init__(self, make: Callable[[Time, Time], Store], namespace: str) -> None:
        self.namespace = namespace
        self.time = Time()
        self.wall = Time(WALL_US)
        self._make = make
        self._opened: list[Store] = []

    def open(self) -> Store:
        store = self._make(self.time, self.wall)
        self._opened.append(store)
        return store

    def pass_ms(self, ms: int) -> None:
        self.time.pass_ms(ms)
        self.wall.pass_ms(ms)

    def pass_us(self, us: int) -> None:
        self.time.now_us += us
        self.wall.now_us += us

    def close(self) -> None:
        for store in self._opened:
            store.close()


def _memory(_: Path) -> Callable[[Time, Time], Store]:
    memory = Memory()
    return lambda time, wall: MemoryStore(memory, clock=time, wall=wall)


def _sqlite(folder: Path) -> Callable[[Time, Time], Store]:
    return lambda time, wall: SqliteStore(folder / "state" / "mcpguard.db", clock=time, wall=wall)


def _on_server(server: Server) -> Callable[[Path], Callable[[Time, Time], Store]]:
    def in_namespace(folder: Path) -> Callable[[Time, Time], Store]:
        options = Options(namespace=str(folder), timeout_ms=20_000)
        return lambda time, wall: RedisStore(server.address, options, clock=time, wall=wall)

    return in_namespace


Make = Callable[[Path], Callable[[Time, Time], Store]]
"""Makes one kind of store in an empty folder."""

STORES: dict[str, Make] = {"memory": _memory, "sqlite": _sqlite}
"""The kinds that need no server."""


@pytest.fixture(params=[*sorted(STORES), *SERVERS])
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
