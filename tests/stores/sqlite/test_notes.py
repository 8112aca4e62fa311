"""Agent notes: how a hook writes them into an SQLite store, and how long they are found."""

from pathlib import Path

import pytest

from mcpguard.identity.client_agents import NOTE_KEPT_US, AgentNote
from mcpguard.stores.sqlite.call_log import leave_note, note_line
from mcpguard.stores.sqlite.follower import Follower
from mcpguard.stores.sqlite.memory import Memory
from tests.build import WALL_US, Session
from tests.stores.conftest import around_next
from tests.stores.sqlite.conftest import Open, Times, ask, locked, rows

NOTE = AgentNote("t1", "Claude Code::subagent::Explore")


def leave(path: Path, note: AgentNote = NOTE, *, wall: int = WALL_US, timeout_s: float = 5.0) -> bool:
    return leave_note(path, "default", note, wall_us=wall, timeout_s=timeout_s)


def test_a_note_creates_no_store(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        leave(tmp_path / "none.db")
    assert list(tmp_path.iterdir()) == []


def test_the_wait_for_the_lock_is_bounded(path: Path, open_store: Open) -> None:
    open_store().close()
    with locked(path, "-calls"):
        assert not leave(path, timeout_s=0.1)
    assert leave(path)


def test_old_notes_and_notes_from_the_future_are_ignored_and_deleted(path: Path, open_store: Open, times: Times) -> None:
    store, (clock, wall) = open_store(), times
    leave(path, AgentNote("old", "a::b::c"), wall=WALL_US - NOTE_KEPT_US - 1)
    leave(path, AgentNote("late", "a::b::c"), wall=WALL_US + 100 * NOTE_KEPT_US)
    leave(path, AgentNote("new", "a::b::c"), wall=WALL_US)
    assert [store.take_note("default", key) for key in ("old", "late")] == ["", ""]
    store.tend()
    assert (rows(path, "agent_note"), ask(path, "SELECT tool_use_id FROM agent_note")) == (1, "new")
    wall.now_us += NOTE_KEPT_US + 1
    clock.pass_s(120)
    Session(store, "mode = 'enforce'").call("x")
    store.tend()
    assert rows(path, "agent_note") == 0


def test_of_many_notes_only_those_that_have_expired_are_dropped_from_memory() -> None:
    known = Memory()
    for name, noted_us in (("old", WALL_US), ("new", WALL_US + 1), ("later", WALL_US + NOTE_KEPT_US + 1)):
        known.apply([note_line("default", AgentNote(f"{name}{at}", "a"), noted_us) for at in range(10)])
    assert sorted({key.rstrip("0123456789") for _, key in known.notes}) == ["later", "new"]
    assert len(known.notes) == 20


def test_a_note_that_two_processes_take_is_taken_once(path: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = open_store(), open_store()
    leave(path)
    taken: list[str] = []
    around_next(monkeypatch, Follower, "turn", before=lambda: taken.append(one.take_note("default", "t1")))
    assert other.take_note("default", "t1") == ""
    assert taken == [NOTE.text]
