"""Real stores, for tests of their outages."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mcpguard.stores.api import Options, Store
from mcpguard.stores.redis.store import RedisStore
from mcpguard.stores.sqlite.store import SqliteStore
from tests.redis_servers import running

Opens = Callable[[], Store]


@pytest.fixture(params=["file", "server"])
def opens(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opens]:
    """Opens a store."""
    if request.param == "file":
        yield lambda: SqliteStore(tmp_path / "mcpguard.db")
    else:
        with running(tmp_path / "redis") as server:
            yield lambda: RedisStore(server.address, Options(timeout_ms=5000))
