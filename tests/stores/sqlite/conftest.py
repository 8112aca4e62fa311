"""Stores in a new folder, at a time that stands still until the test moves it."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mcpguard.files import StrPath
from mcpguard.identity.client_agents import AgentNote
from mcpguard.stores.api import Clock, Options
from mcpguard.stores.sqlite import upkeep
from mcpguard.stores.sqlite.call_log import CallLog, log_path
from mcpguard.stores.sqlite.notes import note_line
from mcpguard.stores.sqlite.store import SqliteStore
from tests.build import WALL_US, Time

Open = Callable[..., SqliteStore]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "mcpguard.db"


@pytest.fixture
def times() -> tuple[Time, Time]:
    return Time(), Time(WALL_US)


@pytest.fixture(autouse=True)
def patient_upkeep() -> Iterator[None]:
    """A busy machine interrupts no drain: what it leaves would never be due, because the store's time stands still."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(upkeep, "HOLD_S", 600)
        yield


@pytest.fixture
def open_store(path: Path, times: tuple[Time, Time]) -> Iterator[Open]:
    with contextlib.ExitStack() as opened:

        def open_one(*, clock: Clock = times[0], wall: Clock = times[1], **options: Any) -> SqliteStore:
            return opened.enter_context(contextlib.closing(SqliteStore(path, Options(**options), clock=clock, wall=wall)))

        yield open_one


def leave(path: StrPath, namespace: str, note: AgentNote, *, wall_us: int, timeout_s: float) -> bool:
    """Leave a note as a hook does. Returns whether the log's lock came free in time."""
    with contextlib.closing(CallLog(log_path(path))) as log:
        return log.append_alone(note_line(namespace, note, wall_us), timeout_s)
