"""Stores in a new folder, at a time that stands still until the test moves it."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mcpguard.stores.sqlite import upkeep
from mcpguard.stores.sqlite.store import SqliteStore
from tests.core.build import WALL_US, Time

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
        clocks = {"clock": times[0], "wall": times[1]}
        yield lambda **options: opened.enter_context(contextlib.closing(SqliteStore(path, **{**clocks, **options})))
