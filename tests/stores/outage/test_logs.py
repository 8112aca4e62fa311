"""Outage logs: what a wrapper that ends in an outage leaves on disk, and how others read it into the store."""

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcpguard import locks as file_locks
from mcpguard.errors import StoreUnavailable
from mcpguard.stores.memory import SharedMemory
from mcpguard.stores.outage.log import Bounds, OutageFolder, OutageLog
from mcpguard.stores.outage.recovery import LOOK_EVERY_US
from mcpguard.stores.sqlite.call_log import START, pack
from tests.build import START_US
from tests.stores.conftest import before_each, broken, open_descriptors
from tests.stores.outage import moody
from tests.stores.outage.conftest import Locks
from tests.stores.outage.moody import LIMIT_3, Killed, Moody, Place

MANY = '[[rule]]\nuser = "*"\nlimit = "100000/1h"\n'
UNLIMITED = '[[rule]]\ntool = "other"\nlimit = "1/1h"\n'
MIXED = MANY + '[[rule]]\ntool = "drop"\nlimit = "deny"\n'


def left(folder: Path) -> list[Path]:
    return sorted(folder.glob("db-outage-*"))


HEAD_LINE = "h\t00\tthis boot\t1\t1\t"


def log_of(*texts: str) -> bytes:
    """The content of a file with these records."""
    return START.checksum + pack(START, texts)[0]


def in_outage(folder: Path, calls: int = 0, policy: str = MIXED, **options: Any) -> Place:
    """A wrapper in an outage, after some calls."""
    place = moody.in_outage(policy=policy, folder=folder, **options)
    place.call(calls)
    return place


def killed(folder: Path, calls: int, **options: Any) -> Place:
    """A wrapper that was killed in an outage, after some calls."""
    place = in_outage(folder, calls, **options)
    place.kill()
    return place


def another(place: Place, folder: Path, **options: Any) -> Place:
    """Another wrapper of the same store, which works."""
    return Place(policy=MIXED, folder=folder, other=place, session="00000000000000bb", **options)


def successor(place: Place, folder: Path, **options: Any) -> Place:
    """Another wrapper of the same store, which has taken in the files that it found."""
    after = another(place, folder, **options)
    after.store.tend()
    return after


def look_again(place: Place) -> None:
    """Let a wrapper search the folder again."""
    place.time.now_us += LOOK_EVERY_US
    place.store.tend()


@pytest.mark.posix
@pytest.mark.parametrize("end", [lambda place: place.store.close(), Place.kill], ids=["ends", "is killed"])
def test_what_a_wrapper_has_done_in_an_outage_is_taken_in_by_the_next(tmp_path: Path, end: Callable[[Place], None]) -> None:
    place = in_outage(tmp_path)
    first = place.one()
    assert place.call(1, "drop") == ["denied"]
    place.ends(first, "tool_error")
    second = place.one()
    place.ends(second)
    end(place)
    assert [path.stat().st_mode & 0o777 for path in left(tmp_path)] == [0o600]
    after = successor(place, tmp_path)
    assert after.used() == [2]
    assert [record["decision"] for record in after.records()] == ["allowed", "denied", "allowed"]
    assert after.outcomes() == ["tool_error", None, "ok"]
    assert "args_hash" in after.records()[0]
    assert after.said == ["a wrapper ended while the store was unavailable: 3 audit rows of the outage written"]
    assert left(tmp_path) == []
    assert not after.store.needs_tending


def test_no_row_is_lost_after_a_write_that_was_cut_and_not_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = in_outage(tmp_path, 1)
    write = os.write

    def cut() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", lambda fd, data: write(fd, data[:10]))
            place.call()

    with broken(os, "ftruncate", errno.ENOSPC):
        cut()
    place.probe()  # the file takes what waits
    place.call()
    cut()
    place.kill()
    assert [record["seq"] for record in successor(place, tmp_path).records()] == [1, 2, 3]


def test_a_running_wrapper_takes_in_files_of_ended_wrappers_and_leaves_those_of_running_ones(tmp_path: Path) -> None:
    alive = in_outage(tmp_path, 1, session="00000000000000cc")
    running = successor(alive, tmp_path)
    killed(tmp_path, 2, other=alive)
    running.store.tend()
    assert running.records() == []
    look_again(running)
    assert running.used() == [2]
    alive.mend()
    assert running.used() == [3]


def test_upkeep_after_the_end_writes_nothing_that_was_left_to_another_wrapper(tmp_path: Path) -> None:
    place = in_outage(tmp_path, 2)
    place.store.close()
    place.failing.clear()
    place.probe()
    assert place.records() == []
    assert len(successor(place, tmp_path).records()) == 2


@pytest.mark.posix
def test_a_link_is_not_followed_and_does_not_keep_the_next_file_from_being_taken_in(tmp_path: Path) -> None:
    place = killed(tmp_path, 2)
    (tmp_path / "db-outage-").symlink_to(tmp_path / "elsewhere")  # the first one
    assert len(successor(place, tmp_path).records()) == 2
    assert not (tmp_path / "elsewhere").exists()


# exactly once


class Steps:
    """Counts what is written to the store and to outage logs, and kills the process at one moment: before or after a step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: float = float("inf")
        for owner, names in ((OutageLog, ("flush", "remove")), (Moody, ("adopt", "append", "record"))):
            for name in names:
                monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, do: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **more: Any) -> Any:
            self.moment()
            done = do(*args, **more)
            self.moment()
            return done

        return counted

    def moment(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.left = float("inf")
            raise Killed


@pytest.mark.parametrize("is_other", [False, True], ids=["itself", "for another"])
def test_a_kill_in_write_back_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_other: bool
) -> None:
    steps = Steps(monkeypatch)

    def is_killed_at(moment: int) -> bool:
        """Kill the process at a moment. Returns whether there was such a moment."""
        folder = tmp_path / str(moment)
        folder.mkdir()
        place = writing = in_outage(folder, bounds=Bounds(batch=2))
        for _ in range(5):
            place.ends(place.one())
        place.call(1, "drop")
        if is_other:
            place.kill()
            writing = another(place, folder, bounds=Bounds(batch=2))
        steps.left = moment
        try:
            writing.mend()
            while writing.store.needs_tending:
                writing.store.tend()
        except Killed:
            writing.kill()
            killed = True
        else:
            killed = False
        steps.left = float("inf")
        after = successor(place, folder, bounds=Bounds(batch=2))
        assert left(folder) == []
        assert after.used() == [5]
        assert sorted(int(str(record["seq"])) for record in after.records()) == [1, 2, 3, 4, 5, 6]
        assert after.outcomes().count("ok") == 5
        return killed

    moments = sum(1 for _ in itertools.takewhile(is_killed_at, itertools.count(1)))
    assert moments > 20


def test_a_log_is_removed_without_the_lock_that_calls_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: Locks
) -> None:
    place = in_outage(tmp_path, 2)
    held = before_each(monkeypatch, OutageLog, "remove", lambda: locks.held)
    place.mend()
    while place.store.needs_tending:
        place.store.tend()
    assert (left(tmp_path), held) == ([], [1])


def test_rows_in_doubt_are_found_among_many_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = in_outage(tmp_path, 3)
    steps = Steps(monkeypatch)
    place.after["append"] = lambda: setattr(steps, "left", 1)
    with pytest.raises(Killed):
        place.mend()
    place.kill()
    Place(policy=UNLIMITED, other=place, session="00000000000000cc").session.call("x", 1000)
    after = successor(place, tmp_path)
    assert (len(after.records()), after.used()) == (1003, [3])


def test_admissions_leave_the_window_at_the_right_time_whichever_wrapper_takes_them_in(tmp_path: Path) -> None:
    place = killed(tmp_path, 3, policy=LIMIT_3)
    place.time.pass_s(1800)
    after = successor(place, tmp_path)
    after.time.now_us = START_US + 3600_000_000 - 1
    assert after.used() == [3]
    after.time.now_us += 1
    assert after.used() == []


@pytest.mark.parametrize(("passed_s", "used"), [(1800, [3]), (3599, [3]), (3600, []), (-1800, [3])])
def test_after_a_reboot_wall_clock_time_tells_how_old_admissions_are(tmp_path: Path, passed_s: int, used: list[int]) -> None:
    place = killed(tmp_path, 3, policy=LIMIT_3)
    place.wall.pass_s(passed_s)
    place.time.now_us = 5_000_000_000
    place.memory.states.clear()
    after = another(place, tmp_path)
    after.base = "next boot"
    after.store.tend()
    assert after.used() == used
    assert len(after.records()) == 3
    if passed_s < 0:  # the admissions count as if they were made now: they expire too late, never too early
        after.time.pass_s(3599)
        assert after.used() == [3]
        after.time.pass_s(1)
        assert after.used() == []


# another store


def test_a_store_with_another_key_gets_counts_and_rows_but_no_hashes_and_no_outcomes_of_older_rows(tmp_path: Path) -> None:
    place = Place(policy=MIXED, folder=tmp_path)
    old = place.one()
    place.break_down()
    place.ends(old, "tool_error")
    place.ends(place.one())
    place.kill()
    after = Place(policy=MIXED, folder=tmp_path, session="00000000000000bb")
    after.call(1)
    after.store.tend()
    assert after.used() == [2]
    assert [("args_hash" in record, record.get("outcome")) for record in after.records()] == [(True, None), (False, "ok")]


def test_a_server_that_loses_its_data_while_it_gets_a_log_gets_no_hashes_with_its_old_key(tmp_path: Path) -> None:
    after = another(killed(tmp_path, 6), tmp_path, bounds=Bounds(batch=2))
    after.after["append"] = after.lose_data
    after.store.tend()
    look_again(after)
    assert ["args_hash" in record for record in after.records()] == [False] * 6


@pytest.mark.parametrize("is_of_an_outage", [False, True], ids=["from before it", "from an earlier outage"])
def test_an_outcome_of_an_earlier_call_reaches_its_row(tmp_path: Path, *, is_of_an_outage: bool) -> None:
    place = Place(policy=MIXED, folder=tmp_path)
    if is_of_an_outage:
        place.break_down()
    earlier = place.one()
    if is_of_an_outage:
        place.mend()
        place.store.tend()
    place.break_down()
    place.call(1)
    place.ends(earlier, "tool_error")
    place.kill()
    assert successor(place, tmp_path).outcomes() == ["tool_error", None]


def test_a_session_that_met_a_second_store_leaves_only_hashes_with_the_key_of_that_store(tmp_path: Path) -> None:
    place = in_outage(tmp_path, 1)
    place.memory = SharedMemory()
    place.failing = {"append": StoreUnavailable("not yet")}
    place.probe()  # the wrapper meets the second store, which fails
    place.call(1)
    place.kill()
    place.failing = {}
    after = successor(place, tmp_path)
    assert ["args_hash" in record for record in after.records()] == [False, True]
    assert after.used() == [2]


# disks


def test_without_room_on_disk_all_is_kept_in_memory_and_written_back(tmp_path: Path) -> None:
    with broken(os, "write", errno.ENOSPC):
        place = in_outage(tmp_path)
        assert place.call(3) == ["allowed"] * 3
        place.mend()
    assert (place.used(), len(place.records()), left(tmp_path)) == ([3], 3, [])


def test_closing_on_a_full_disk_reports_how_many_rows_are_kept_and_lost(tmp_path: Path) -> None:
    place = in_outage(tmp_path, 2)
    with broken(os, "write", errno.ENOSPC):
        place.call(3)
        place.store.close()
    assert place.said[-2:] == [
        "2 audit rows kept on disk for the next wrapper that reaches the store",
        "3 audit rows lost: no store and no file on disk could take all of them",
    ]
    after = successor(place, tmp_path)
    assert (after.used(), len(after.records())) == ([2], 2)


def test_a_folder_whose_files_cannot_be_locked_gets_none_however_often_that_is_tried(tmp_path: Path) -> None:
    folder = OutageFolder(tmp_path, "db-outage-")
    before = open_descriptors()
    with broken(file_locks, "try_lock", errno.ENOLCK):
        for _ in range(2):
            with pytest.raises(OSError, match=os.strerror(errno.ENOLCK)):
                folder.create()
    assert left(tmp_path) == []
    assert open_descriptors() == before


@pytest.mark.parametrize("before", [0, 1])
def test_what_a_full_disk_did_not_take_is_written_when_it_has_room(tmp_path: Path, before: int) -> None:
    place = in_outage(tmp_path, before)
    with broken(os, "write", errno.ENOSPC):
        place.call(2)
    place.store.tend()
    place.kill()
    after = successor(place, tmp_path)
    assert (after.used(), len(after.records())) == ([before + 2], before + 2)


def test_a_file_that_cannot_note_a_batch_is_removed_before_the_batch_is_written(tmp_path: Path) -> None:
    place = in_outage(tmp_path, 2)
    with broken(os, "write", errno.ENOSPC), broken(Moody, "append", Killed()), pytest.raises(Killed):
        place.mend()
    assert left(tmp_path) == []


def test_no_file_is_made_beside_too_many_others(tmp_path: Path) -> None:
    folder = OutageFolder(tmp_path, "db-outage-", max_bytes=0)
    file = folder.create()
    os.write(file.fd, b"full")
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        folder.create()
    assert [str(one) for one in left(tmp_path)] == [file.path]
    file.close()


@pytest.mark.parametrize(
    "content",
    [
        b"[1]\n",
        bytes(4) + b"SQLite format 3" * 10,
        log_of("x"),
        log_of("h\tx\ty"),
        log_of(HEAD_LINE, "+\t1"),
        log_of(HEAD_LINE, "c\t1\t[[5,1,1]]"),
    ],
)
def test_a_file_of_another_program_is_left_as_it_is_and_reported_once(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "db-outage-0").write_bytes(content)
    place = Place(folder=tmp_path)
    for _ in range(3):
        look_again(place)
    assert (tmp_path / "db-outage-0").read_bytes().startswith(content)
    (line,) = place.said
    assert "cannot be taken in and is left as it is" in line
    assert not place.store.needs_tending
    assert place.call(1) == ["allowed"]


@pytest.mark.parametrize(
    ("damage", "rows"),
    [(lambda data: bytes(len(data)), 0), (lambda data: data[:-9], 2), (lambda data: data.replace(b"allowed", b"\0llowed"), 0)],
    ids=["zeros", "cut", "overwritten"],
)
def test_what_a_damaged_file_has_lost_is_told(tmp_path: Path, damage: Callable[[bytes], bytes], rows: int) -> None:
    place = killed(tmp_path, 3)
    (path,) = left(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    after = successor(place, tmp_path)
    assert after.said[-1] == f"{path} was damaged: calls or audit rows are lost"
    assert (len(after.records()), left(tmp_path)) == (rows, [])


def test_an_empty_file_of_a_killed_wrapper_is_removed(tmp_path: Path) -> None:
    (tmp_path / "db-outage-0").touch()
    place = Place(folder=tmp_path)
    place.store.tend()
    assert (left(tmp_path), place.said) == ([], [])


# while it is taken in


@pytest.mark.parametrize("failing", ["adopt", "append", "record"])
def test_a_failure_while_a_file_is_taken_in_is_no_outage_and_is_tried_again_later(tmp_path: Path, failing: str) -> None:
    place = in_outage(tmp_path, 2)
    place.ends(place.one())
    place.kill()
    after = another(place, tmp_path)
    after.fail(failing)
    after.store.tend()
    assert (after.store.needs_tending, after.said) == (False, [])
    assert after.call(1) == ["allowed"]
    after.failing = {}
    look_again(after)
    assert (after.used(), len(after.records()), after.outcomes().count("ok"), left(tmp_path)) == ([4], 4, 1, [])


def test_a_file_on_which_the_store_raises_an_undocumented_exception_is_left_as_it_is_and_reported_once(tmp_path: Path) -> None:
    after = another(killed(tmp_path, 1), tmp_path)
    after.failing = {"append": ZeroDivisionError("a bug")}
    for _ in range(3):
        look_again(after)
    assert len(left(tmp_path)) == len(after.said) == 1
    assert "cannot be taken in and is left as it is: ZeroDivisionError('a bug')" in after.said[0]
    assert not after.store.needs_tending


def test_a_long_file_is_taken_in_over_several_rounds_of_upkeep(tmp_path: Path) -> None:
    after = another(killed(tmp_path, 100), tmp_path, bounds=Bounds(batch=10))

    def slow() -> None:
        after.time.pass_ms(100)
        after.before["append"] = slow

    slow()
    rounds = 0
    while after.store.needs_tending:
        after.store.tend()
        rounds += 1
    assert 2 < rounds < 10
    assert len(after.records()) == 100


@pytest.mark.parametrize("is_later", [False, True], ids=["of its version", "of a later one with other batches"])
def test_a_wrapper_that_ends_while_it_takes_in_a_file_leaves_the_rest_to_others(tmp_path: Path, *, is_later: bool) -> None:
    gone, bounds = killed(tmp_path, 100), Bounds(batch=10)
    ending = another(gone, tmp_path, bounds=bounds)
    ending.after["append"] = lambda: ending.time.pass_ms(400)
    ending.store.tend()
    assert 0 < len(ending.records()) < 100
    ending.store.close()
    after = successor(gone, tmp_path, bounds=Bounds() if is_later else bounds)
    assert (len(after.records()), left(tmp_path)) == (100, [])
    (used,) = after.used()
    assert used >= 100 if is_later else used == 100
