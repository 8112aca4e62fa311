"""Write-back after an outage: nothing is lost, and nothing of one store reaches another."""

import threading

import pytest

from mcpguard.stores.memory import MemoryStore, SharedMemory
from mcpguard.stores.outage import store as outage_store
from mcpguard.stores.outage.log import Bounds
from mcpguard.stores.outage.recovery import BATCH_CHARS
from tests.build import START_US
from tests.stores.conftest import broken
from tests.stores.outage.conftest import Locks
from tests.stores.outage.moody import Place, in_outage

BATCH = Bounds().batch
UNLIMITED = '[[rule]]\ntool = "other"\nlimit = "1/1h"\n'
MANY = '[[rule]]\nuser = "*"\nlimit = "100000/1h"\n'


def test_a_probe_that_the_system_has_no_thread_for_fails_and_is_not_the_last_one() -> None:
    place = in_outage("deny")
    assert place.call() == ["unavailable"]
    with broken(threading.Thread, "start", RuntimeError("can't start new thread")):
        place.probe()
    assert place.is_cut_off
    place.mend()
    assert place.call() == ["allowed"]


def test_another_store_gets_neither_outcomes_nor_hashes_of_the_previous_one() -> None:
    place = Place()
    old, ended = place.one(), place.one()
    place.break_down()
    during = place.one()
    place.ends(ended)
    place.memory = SharedMemory()
    place.mend()
    place.ends(old)
    place.ends(during, "rpc_error")
    new = place.one()
    place.ends(new, "cancelled")
    assert place.outcomes() == ["rpc_error", "cancelled"]
    assert "args_hash" not in place.records()[0]
    assert place.store.args_key == place.memory.args_key


def test_calls_are_decided_locally_during_write_back_and_their_rows_come_last() -> None:
    place = in_outage(policy='[[rule]]\nuser = "*"\nlimit = "300/1h"\n')
    place.call(2 * BATCH)
    during: list[str] = []
    place.before["append"] = lambda: during.extend(place.call(2 * BATCH))
    place.mend()
    assert during == ["allowed"] * (300 - 2 * BATCH) + ["rate_limited"] * (4 * BATCH - 300)
    assert place.used() == [300]
    assert [record["seq"] for record in place.records()] == list(range(1, 302))
    assert place.call() == ["rate_limited"]


def test_write_back_ends_even_if_calls_add_rows_as_fast_as_they_are_written(locks: Locks) -> None:
    place = in_outage(policy=UNLIMITED)
    place.call(2 * BATCH)

    def flood() -> None:
        assert len(place.records()) < 20 * BATCH
        place.before["append"] = flood
        if locks.held < 2:  # else calls have to wait
            place.call(BATCH)

    place.before["append"] = flood
    place.mend()
    seqs = [record["seq"] for record in place.records()]
    assert seqs == list(range(1, len(seqs) + 1))


def test_a_store_that_counts_too_slowly_does_not_get_the_last_batch_while_a_call_waits() -> None:
    place = in_outage()
    place.call(2)
    place.before["adopt"] = lambda: place.time.pass_s(20)
    place.failing.clear()
    place.probe()
    assert place.store.needs_tending
    place.mend()
    assert (place.used(), len(place.records())) == ([2], 2)


def test_a_store_that_counts_slowly_is_used_at_once_if_no_row_is_left_to_write() -> None:
    place = in_outage(policy='[[rule]]\nuser = "*"\nlimit = ["3/1h", "5/1d"]\n', bounds=Bounds(batch=1))
    place.call(1)
    place.after["adopt"] = lambda: place.before.update(adopt=lambda: place.time.pass_s(20))  # the second batch has no row
    place.mend()
    assert (place.used(), len(place.records())) == ([1, 1], 1)


@pytest.mark.parametrize(("n", "left"), [(64, [[10], [9], [8]]), (65, [[10], [10], []])])
def test_admissions_are_written_back_as_single_entries_up_to_64_and_coalesced_above(n: int, left: list[list[int]]) -> None:
    """Beside a limit of another size, each has its own entries."""
    place = in_outage(policy=f'[[rule]]\nuser = "*"\nlimit = "{n}/1h"\n[[rule]]\ntool = "*"\nlimit = "{129 - n}/1h"\n')
    for _ in range(10):
        place.one()
        place.time.pass_s(1)
    place.mend()
    user = place.session.charges("search")[0].plan.counters[0]
    found = []
    for at_us in (3600_000_000 - 1, 3600_000_000, 3601_000_000 if n == 64 else 3600_000_000 + 3600_000_000 // 64):
        place.time.now_us = START_US + at_us
        held = MemoryStore(place.memory, clock=place.time).counters()
        found.append([one.used for one in held if one.label == user.label])
    assert found == left


def test_closing_does_not_wait_for_a_store_that_writes_slowly() -> None:
    place = in_outage(policy=MANY)
    place.call(10 * BATCH)
    place.failing.clear()
    place.before["append"] = lambda: place.time.pass_ms(round(outage_store.LAST_TRY_S * 1000) + 1)
    place.store.close()
    assert len(place.records()) == BATCH


def test_a_store_that_lost_its_data_between_two_calls_gets_hashes_with_its_new_key_and_no_old_outcomes() -> None:
    place = Place()
    old = place.one()
    place.lose_data()
    new = place.one()
    assert place.store.args_key == place.memory.args_key
    place.ends(old, "tool_error")
    place.ends(new)
    assert place.outcomes() == ["ok"]


def test_an_outcome_of_a_call_in_an_outage_is_not_joined_to_a_row_of_a_later_store() -> None:
    place = in_outage()
    old = place.one()
    place.mend()
    place.lose_data()
    place.call(1)
    place.ends(old, "tool_error")
    assert place.outcomes() == [None]


def test_admissions_that_may_have_been_counted_are_sent_again_with_the_same_id_and_newer_ones_with_another() -> None:
    place = in_outage(policy=MANY)
    place.call(3)
    place.fail("adopt")
    place.probe()
    place.call(2)
    place.mend()
    adopted = [args for name, args in place.asked if name == "adopt"]
    (first, one), (again, same), (other, two) = [(key, sum(sum(log[2::2]) for _, log in logs)) for logs, key in adopted]
    assert first == again != other
    assert (one, same, two) == (3, 3, 2)
    assert place.used() == [5]


def test_long_rows_are_written_a_few_at_a_time_and_one_that_is_too_long_loses_its_arguments() -> None:
    place = in_outage(policy=UNLIMITED)
    place.session.keep_arguments("full")
    for size in (BATCH_CHARS // 3, BATCH_CHARS // 3, BATCH_CHARS // 3, 3 * BATCH_CHARS):
        place.session.call("x", arguments={"text": "a" * size})
    place.mend()
    sizes = [sum(len(row.detail or "") for row in rows) for name, (rows, *_) in place.asked if name == "append"]
    assert max(sizes) <= BATCH_CHARS
    assert [len(str(record["arguments"])) > 1000 for record in place.records()] == [True, True, True, False]
    assert "too long" in str(place.records()[-1]["arguments"])
    assert [record["seq"] for record in place.records()] == [1, 2, 3, 4]
