"""The call log: a ring of records, each of which is there completely or not at all, even if its writer
is killed; and the notes that hooks leave in it."""

import contextlib
import json
import os
import stat
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpguard.errors import StoreUnavailable
from mcpguard.files import pwrite
from mcpguard.identity.client_agents import NOTE_KEPT_US, AgentNote
from mcpguard.stores.sqlite import call_log
from mcpguard.stores.sqlite.call_log import START, CallLog, Lost, Position, create, leave_note, note_line, pack
from mcpguard.stores.sqlite.follower import Follower
from mcpguard.stores.sqlite.memory import Memory
from tests.build import WALL_US, Session
from tests.stores.conftest import around_next, open_descriptors
from tests.stores.sqlite.conftest import Open, Times, ask, locked, overwrite, rows

KEY = bytes(32)
SMALL = 128 * 1024


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.db-calls"


@contextlib.contextmanager
def small_log(path: Path) -> Iterator[CallLog]:
    create(path, KEY, ring_bytes=SMALL)
    with contextlib.closing(CallLog(path)) as log:
        yield log


@pytest.fixture
def log(path: Path) -> Iterator[CallLog]:
    with small_log(path) as log:
        yield log


def put(log: CallLog, at: Position, *records: str) -> Position:
    data, after = pack(at, records)
    log.append(at, data)
    return after


def texts(log: CallLog, at: Position = START) -> list[str]:
    return [text for text, _ in log.records(at)]


@pytest.mark.posix
def test_a_new_log_is_empty_fully_allocated_and_private(log: CallLog, path: Path) -> None:
    assert texts(log) == []
    assert log.key == KEY
    assert log.drained() == START
    assert path.stat().st_size == path.stat().st_blocks * 512 == 4096 + SMALL
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_record_has_the_documented_form() -> None:
    text = b"=\tcounter\n+\trow"
    numbers = [(START.end, 8), (START.row, 8), (1, 4), (len(text), 4)]
    body = b"".join([*(value.to_bytes(size, "little") for value, size in numbers), bytes(8), b"\xff" * 4, text])
    checksum = zlib.adler32(START.checksum + body, 0).to_bytes(4, "little")
    data, after = pack(START, [text.decode()])
    assert data == body + checksum
    assert after == Position(START.end + len(data), START.row + 1, checksum)


@pytest.mark.posix
@pytest.mark.parametrize("length", [0, 1, 20, 100, 70_000])
def test_an_unfinished_record_is_ignored_and_overwritten(log: CallLog, length: int) -> None:
    at = put(log, START, "before")
    whole = put(log, at, "x" * 100_000)
    os.pwrite(log.fd, bytes(whole.end - at.end - length), 4096 + at.end + length)  # killed after so many bytes
    assert texts(log) == ["before"]
    put(log, at, "after")
    assert texts(log) == ["before", "after"]


@given(st.lists(st.tuples(st.integers(0, 40_000), st.booleans()), max_size=40))
@settings(max_examples=50, deadline=None)
def test_a_ring_returns_every_record_through_any_number_of_rounds_or_says_that_it_is_full(
    steps: list[tuple[int, bool]],
) -> None:
    with tempfile.TemporaryDirectory() as folder, small_log(Path(folder) / "log") as log:
        at, waiting = START, list[str]()
        for number, (length, drains) in enumerate(steps):
            some = [f"{number} " + "ä" * (length // 2), f"{number}, too"]
            try:
                at = put(log, at, *some)  # all of them or none
                waiting += some
            except StoreUnavailable:
                assert at.end + length + 300 > log.drained().end + SMALL
            assert texts(log, log.drained()) == waiting
            if drains:
                log.set_drained(at)
                waiting.clear()


def test_a_reader_whose_position_was_overwritten_is_lost(log: CallLog) -> None:
    sleeper = at = put(log, START, "x")
    for _ in range(300):
        at = put(log, at, "y" * 1000)
        log.set_drained(at)
    with pytest.raises(Lost):
        log.some(sleeper)


def test_the_end_of_a_log_is_known_wherever_it_is_in_the_ring(log: CallLog) -> None:
    at = START
    for beyond in range(-16, 17, 2):
        before = put(log, at, "x" * (SMALL // 2))
        log.set_drained(before)
        at = put(log, before, "x" * (SMALL - before.end % SMALL + beyond - len(pack(before, [""])[0])))
        log.set_drained(at)
        assert [log.ends_at(before), log.ends_at(at)] == [False, True]


def test_a_new_log_is_forced_to_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new.db-calls"
    has_name: list[bool] = []
    monkeypatch.setattr(call_log, "force_data", lambda _: has_name.append(path.exists()))
    create(path, KEY)
    assert (has_name, path.exists()) == ([False], True)


CUT = json.dumps({"key": KEY.hex(), "format": call_log.FORMAT, "ring_bytes": 2 * SMALL}).encode().ljust(4096 + SMALL, b"\0")


@pytest.mark.parametrize(
    "content", [b"", b"not a log", b"[" * 5000, b"{}".ljust(4096 + SMALL, b"\0"), b"\xff" * (4096 + SMALL), CUT]
)
def test_a_file_that_is_not_a_call_log_is_refused_and_stays_unchanged_and_closed(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    before = open_descriptors()
    with pytest.raises(StoreUnavailable, match="damaged") as raised:
        CallLog(path)
    assert "move it away" in raised.value.hint
    assert (path.read_bytes(), open_descriptors()) == (content, before)


@pytest.mark.posix
def test_a_pipe_in_place_of_a_log_is_refused_at_once(tmp_path: Path, path: Path) -> None:
    os.mkfifo(path)
    for writable in (True, False):
        with pytest.raises(StoreUnavailable, match="is damaged: it is not a file"):
            CallLog(path, writable=writable)


def test_no_record_of_an_append_that_fails_in_the_middle_is_left(log: CallLog, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    def fail_in_the_middle(fd: int, data: bytes, at: int) -> int:
        done.append(at)
        if len(done) == 1:
            return pwrite(fd, data[:-3], at)
        if len(done) == 2:
            raise OSError(5, "Input/output error")
        return pwrite(fd, data, at)

    with monkeypatch.context() as patch:
        patch.setattr(call_log, "pwrite", fail_in_the_middle)
        with pytest.raises(OSError, match="Input/output"):
            put(log, START, "+ one", "+ two")
    assert log.ends_at(START)
    assert log.end(START) == START


def test_what_the_file_takes_in_parts_is_written_as_a_whole(log: CallLog, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_log, "pwrite", lambda fd, data, at: pwrite(fd, data[:9], at))
    after = put(log, START, "+ one")
    log.set_drained(after)
    log.write_header({**log.header, "time_base": "a boot"})
    assert log.drained() == after
    with contextlib.closing(CallLog(path)) as reopened:
        assert reopened.header["time_base"] == "a boot"


def test_a_record_longer_than_readers_can_read_is_refused(path: Path) -> None:
    create(path, KEY)
    longest = "ä" * (call_log.MAX_TEXT_BYTES // 2)
    with contextlib.closing(CallLog(path)) as log:
        at = put(log, START, longest)
        with pytest.raises(StoreUnavailable, match="takes no record of 2097153 bytes"):
            put(log, at, "before", f"{longest}x")
        assert texts(log) == [longest]
        assert log.end(START) == at


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=12), st.integers(0), st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_a_reader_takes_the_records_before_a_damaged_one_and_none_after_it(lengths: list[int], where: int, damage: int) -> None:
    with tempfile.TemporaryDirectory() as folder, small_log(Path(folder) / "log") as log:
        at, ends = START, list[int]()
        for number, length in enumerate(lengths):
            at = put(log, at, f"{number} {'x' * length}")
            ends.append(at.end)
        damaged = START.end + where % (at.end - START.end)
        byte = Path(log.path).read_bytes()[4096 + damaged]
        overwrite(log.path, 4096 + damaged, bytes([byte ^ damage]))
        whole = sum(end <= damaged for end in ends)
        assert [int(text.split()[0]) for text in texts(log)] == list(range(whole))


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
