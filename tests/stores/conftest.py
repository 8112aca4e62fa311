"""Processes that use one store together, and a Redis server that the tests of a module share."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.build import TESTS
from tests.redis_servers import Server, running

Worker = subprocess.Popen[str]

ENOUGH_S = 60
"""No step takes so long. A test that waits so long has failed."""


@pytest.fixture
def start_module() -> Iterator[Callable[..., Worker]]:
    """Starts workers, each by a module and its arguments. Those that still run at the end of the test are killed."""
    workers: list[Worker] = []

    def begin(module: str, *argv: str) -> Worker:
        command = [sys.executable, "-m", module, *argv]
        pipe = subprocess.PIPE
        workers.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1, cwd=TESTS.parent))
        return workers[-1]

    yield begin
    for worker in workers:
        worker.kill()
        worker.communicate(timeout=ENOUGH_S)


@pytest.fixture
def start(start_module: Callable[..., Worker]) -> Callable[[str, Path], Worker]:
    return lambda what, path: start_module("tests.stores.worker", what, str(path))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(shared: Server) -> Server:
    shared.command("FLUSHALL")
    return shared


def heard(worker: Worker) -> str:
    """The next line that a worker prints."""
    assert worker.stdout is not None
    return worker.stdout.readline().rstrip("\n")


def tell(worker: Worker) -> None:
    """Let a worker continue."""
    assert worker.stdin is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
