"""Makes each kind of store, for tests that open several handles on one store."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import pytest

from mcpguard.identity.client_agents import AgentNote
from mcpguard.stores.address import RedisAddress, SqliteAddress
from mcpguard.stores.api import Options, Readable, Store
from mcpguard.stores.memory import MemoryStore, SharedMemory
from mcpguard.stores.redis.store import RedisStore
from mcpguard.stores.sqlite.reader import SqliteReader
from mcpguard.stores.sqlite.store import SqliteStore
from tests.build import WALL_US, Time
from tests.redis_servers import SERVERS, Server, running

FOREVER_US = 100 * 365 * 86400 * 1_000_000
"""A lease that does not end while a test runs. Tests of the contract renew none."""


class Place:
    """One store, on which a test can open several handles. Its time stands still until the test moves it.

    This one is in memory.
    """

    def __init__(self, folder: Path) -> None:
        self.namespace = str(folder)
        self.time = Time()
        self.wall = Time(WALL_US)
        self._memory = SharedMemory()
        self._opened = contextlib.ExitStack()

    def open(self) -> Store:
        return self._opened.enter_context(contextlib.closing(self._new_store()))

    def read(self) -> Readable:
        return self._opened.enter_context(contextlib.closing(self._new_reader()))

    def note(self, namespace: str, call_id: str, agent: str) -> None:
        """Note the agent of a call, as a hook does. The store exists."""
        self._leave(namespace, AgentNote(call_id, agent))

    def pass_ms(self, ms: int) -> None:
        self.pass_us(1000 * ms)

    def pass_us(self, us: int) -> None:
        self.time.now_us += us
        self.wall.now_us += us

    def tend(self) -> None:
        """Do all upkeep that is due."""
        store = self.open()
        while store.needs_tending:
            store.tend()
            self.time.pass_ms(1000)  # after upkeep that took long, a store rests

    def close(self) -> None:
        self._opened.close()

    def _new_store(self) -> Store:
        return MemoryStore(self._memory, clock=self.time, wall=self.wall)

    def _new_reader(self) -> Readable:
        return MemoryStore(self._memory, clock=self.time)

    def _leave(self, namespace: str, note: AgentNote) -> None:
        self._memory.leave_note(namespace, note, wall_us=self.wall())


class OnFile(Place):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._path = folder / "state" / "mcpguard.db"

    def _new_store(self) -> Store:
        return SqliteStore(self._path, clock=self.time, wall=self.wall)

    def _new_reader(self) -> Readable:
        reader = SqliteReader(self._path)
        reader.clock = self.time
        return reader

    def _leave(self, namespace: str, note: AgentNote) -> None:
        SqliteAddress(str(self._path)).leave_note(namespace, note, wall_us=self.wall(), timeout_s=20)


class OnServer(Place):
    """A store on a server, by a user with the rights that the manual shows."""

    def __init__(self, server: Server, folder: Path) -> None:
        super().__init__(folder)
        self._user = server.user("*")

    def _new_store(self) -> RedisStore:
        options = Options(namespace=self.namespace, timeout_ms=20_000)
        return RedisStore(self._user, options, clock=self.time, wall=self.wall, lease_us=FOREVER_US)

    def _new_reader(self) -> RedisStore:
        return self._new_store()

    def _leave(self, namespace: str, note: AgentNote) -> None:
        RedisAddress(self._user).leave_note(namespace, note, wall_us=self.wall(), timeout_s=20)


Make = Callable[[Path], Place]
"""Makes one kind of store in an empty folder."""

STORES: dict[str, Make] = {"memory": Place, "sqlite": OnFile}
"""The kinds that need no server. The others cover no line of the core that these do not cover."""


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """Starts each kind of server once."""
    with contextlib.ExitStack() as servers:
        yield cache(lambda name: servers.enter_context(running(tmp_path_factory.mktemp(name), kind=name)))


@pytest.fixture(params=[*STORES, *(pytest.param(name, marks=pytest.mark.no_cover) for name in SERVERS)])
def kind(request: pytest.FixtureRequest, started: Callable[[str], Server]) -> Make:
    return STORES.get(request.param) or partial(OnServer, started(request.param))


@pytest.fixture
def new_place(kind: Make, tmp_path: Path) -> Iterator[Callable[[], Place]]:
    """Makes empty stores of one kind."""
    with contextlib.ExitStack() as places:

        def make() -> Place:
            return places.enter_context(contextlib.closing(kind(Path(tempfile.mkdtemp(dir=tmp_path)))))

        yield make


@pytest.fixture
def place(new_place: Callable[[], Place]) -> Place:
    return new_place()
