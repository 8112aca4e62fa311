"""Processes that use one store together, and a Redis server that the tests of a module share."""

import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, TypeVar

import pytest

from tests.build import TESTS
from tests.redis_servers import Server, running

Worker = subprocess.Popen[str]
Do = Callable[[], object]
Seen = TypeVar("Seen")

ENOUGH_S = 60
"""No step takes so long. A test that waits so long has failed."""


@pytest.fixture
def start() -> Iterator[Callable[[str, Path], Worker]]:
    """Starts workers. Those that still run at the end of the test are killed."""
    workers: list[Worker] = []

    def begin(what: str, path: Path) -> Worker:
        command = [sys.executable, "-m", "tests.stores.worker", what, str(path)]
        pipe = subprocess.PIPE
        workers.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1, cwd=TESTS.parent))
        return workers[-1]

    yield begin
    for worker in workers:
        worker.kill()
        worker.communicate(timeout=ENOUGH_S)


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


def raising(error: BaseException | int) -> Callable[..., NoReturn]:
    """A function that raises an error, or the system's error with a number, whatever it is called with."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(error, os.strerror(error)) if isinstance(error, int) else error

    return fail


@contextlib.contextmanager
def broken(owner: object, name: str, error: BaseException | int) -> Iterator[None]:
    """A time in which a function fails, see `raising`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, raising(error))
        yield


def before_each(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, look: Callable[[], Seen]) -> list[Seen]:
    """What is seen before each call of a function."""
    found: list[Seen] = []
    do = getattr(owner, name)

    def noted(*args: Any, **more: Any) -> Any:
        found.append(look())
        return do(*args, **more)

    monkeypatch.setattr(owner, name, noted)
    return found


def around_next(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, *, before: Do = lambda: None, after: Do = lambda: None
) -> None:
    """Let something happen before or after the next call of a function."""
    do = getattr(owner, name)

    def once(*args: Any, **more: Any) -> Any:
        monkeypatch.setattr(owner, name, do)
        before()
        done = do(*args, **more)
        after()
        return done

    monkeypatch.setattr(owner, name, once)


class FakeClock:
    """A clock that only sleep moves on: too far, as on a busy machine, if it is late."""

    def __init__(self, late: float = 1) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []
        self._late = late

    def monotonic(self) -> float:
        return self.now_s

    perf_counter = monotonic

    def sleep(self, s: float) -> None:
        self.slept.append(s)
        self.now_s += self._late * s


def open_descriptors() -> list[int]:
    """This process' open files."""
    found = []
    for fd in range(1024):
        with contextlib.suppress(OSError):
            os.fstat(fd)
            found.append(fd)
    return found


def tell(worker: Worker, what: str = "") -> None:
    """Let a worker continue, or tell it what to do."""
    assert worker.stdin is not None
    worker.stdin.write(f"{what}\n")
    worker.stdin.flush()


def kill(*workers: Worker) -> None:
    """Kill processes, and wait until their files are closed."""
    for worker in workers:
        worker.kill()
        worker.wait(ENOUGH_S)


def as_on(platform: str, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A copy of a module as another system loads it. Until the end of the test `sys.platform` is that system's."""
    monkeypatch.setattr(sys, "platform", platform)
    assert module.__file__
    spec = importlib.util.spec_from_file_location(module.__name__, module.__file__)
    assert spec
    assert spec.loader
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy
