"""Agent notes: how a hook writes them into an SQLite store, and how long they are found."""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.identity.client_agents import NOTE_KEPT_US, AgentNote
from mcpguard.stores.clock import wall_us
from mcpguard.stores.memory import MemoryStore
from mcpguard.stores.outage.store import OutageStore
from mcpguard.stores.sqlite.call_log import log_path
from mcpguard.stores.sqlite.memory import Memory
from mcpguard.stores.sqlite.notes import note_line
from mcpguard.stores.sqlite.store import SqliteStore
from tests.build import WALL_US, Session, Time, Wrapper
from tests.stores.conftest import Worker, heard, tell
from tests.stores.sqlite.conftest import leave as leave_at

NOTE = AgentNote("t1", "Claude Code::subagent::Explore")


def leave(path: Path, note: AgentNote = NOTE, *, wall: int = WALL_US, timeout_s: float = 5.0) -> bool:
    return leave_at(path, "default", note, wall_us=wall, timeout_s=timeout_s)


def rows(path: Path) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT tool_use_id FROM agent_note ORDER BY tool_use_id").fetchall()


def test_a_note_can_be_written_while_others_decide(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    session = Session(SqliteStore(path, wall=Time(WALL_US)), '[[rule]]\ntool = "x"\nlimit = "2/1m"\n')
    assert session.decisions("x") == ["allowed"]
    assert leave(path)
    assert session.decisions("x", 2) == ["allowed", "rate_limited"]
    session.store.close()


def test_a_note_creates_no_store(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        leave(tmp_path / "none.db")
    assert list(tmp_path.iterdir()) == []


def test_the_wait_for_the_lock_is_bounded(tmp_path: Path, start: Callable[[str, Path], Worker]) -> None:
    path = tmp_path / "a.db"
    SqliteStore(path).close()
    worker = start("hold", Path(log_path(path)))
    assert heard(worker) == "True"
    begin = time.monotonic()
    assert not leave(path, timeout_s=0.1)
    assert time.monotonic() - begin < 5
    tell(worker)
    assert heard(worker) == "released"
    assert leave(path)


def test_old_notes_and_notes_from_the_future_are_ignored_and_deleted(tmp_path: Path) -> None:
    path, wall, clock = tmp_path / "a.db", Time(WALL_US), Time()
    store = SqliteStore(path, wall=wall, clock=clock)
    leave(path, AgentNote("old", "a::b::c"), wall=WALL_US - NOTE_KEPT_US - 1)
    leave(path, AgentNote("late", "a::b::c"), wall=WALL_US + 100 * NOTE_KEPT_US)
    leave(path, AgentNote("new", "a::b::c"), wall=WALL_US)
    assert store.take_notes("default", ["old", "late"]) == {}
    store.take_notes("default", [])
    store.tend()
    assert rows(path) == [("new",)]
    wall.now_us += NOTE_KEPT_US + 1
    clock.pass_s(120)
    Session(store, "mode = 'enforce'").call("x")
    store.tend()
    assert rows(path) == []
    store.close()


def test_of_many_notes_only_those_that_have_expired_are_dropped_from_memory() -> None:
    known = Memory()
    for name, noted_us in (("old", WALL_US), ("new", WALL_US + 1), ("later", WALL_US + NOTE_KEPT_US + 1)):
        known.apply([note_line("default", AgentNote(f"{name}{at}", "a"), noted_us) for at in range(10)])
    assert sorted({key.rstrip("0123456789") for _, key in known.notes}) == ["later", "new"]
    assert len(known.notes) == 20


def test_a_note_that_another_process_takes_before_this_ones_turn_is_not_taken_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.db"
    one, other = SqliteStore(path, wall=Time(WALL_US)), SqliteStore(path, wall=Time(WALL_US))
    leave(path)
    publish = other._publish

    def late(lines: Callable[[], Sequence[str]]) -> int:
        assert one.take_notes("default", ["t1"]) == {"t1": NOTE.text}
        return publish(lines)

    monkeypatch.setattr(other, "_publish", late)
    assert other.take_notes("default", ["t1"]) == {}
    one.close()
    other.close()


def test_a_note_is_found_as_soon_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = SqliteStore(path)
    assert leave(path, wall=wall_us())
    assert store.take_notes("default", ["t1"]) == {"t1": NOTE.text}
    store.close()


class Gone(MemoryStore):
    """A store that does not answer."""

    asked = 0

    def take_notes(self, namespace: str, call_ids: Sequence[str]) -> dict[str, str]:
        self.asked += 1
        raise StoreUnavailable("it is gone")


def test_in_an_outage_there_are_no_notes_and_only_the_first_request_reaches_the_store() -> None:
    gone, said = Gone(), list[str]()
    store = OutageStore(lambda: gone, mode="local", notify=said.append, timeout_ms=30_000)
    for _ in range(3):
        assert store.take_notes("default", ["t1"]) == {}
    assert gone.asked == 1
    assert len(said) == 1
    assert Wrapper(store, '[[rule]]\ntool = "x"\nlimit = "1/1m"\n').decisions("x", 2) == ["allowed", "rate_limited"]
