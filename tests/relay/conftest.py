import os
from collections.abc import Callable, Iterator, Mapping

import pytest

from mcpguard.relay.process import ServerProcess, spawn
from tests.end_to_end.host import release, until

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
