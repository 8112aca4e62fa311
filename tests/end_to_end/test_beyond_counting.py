"""What limits count beyond calls, over eight wrappers that are killed at random, against what was seen at both ends."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.end_to_end.host import audit, policy
from tests.end_to_end.load import Load, Seen, most_at_once, most_in_a_window
from tests.redis_servers import running

WINDOW_US = 1_000_000
SHORT_LEASE = {"mcpguard.stores.redis.scripts.LEASE_US": 5_000_000}
"""On a server, the places of a wrapper that was killed are free after this time."""


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mapping[str, str]]:
    """The variables of wrappers that use a store."""
    if request.param == "sqlite":
        yield {}
        return
    with running(tmp_path / "redis") as server:
        yield {"MCPGUARD_STORE": server.url}


def test_calls_in_flight_never_exceed_their_cap(tmp_path: Path, store: Mapping[str, str]) -> None:
    policy(tmp_path, '[[rule]]\ntool = "work"\nconcurrent = 3\n')
    kills, tuned = (2, SHORT_LEASE) if store else (4, None)
    load = Load(tmp_path, lambda chance: {"ms": chance.randrange(1, 30)}, at_once=2, kills=kills, env=store, tuned=tuned)
    calls = load.run(150)
    assert most_at_once(calls) == 3
    assert {one.reason for one in calls} == {"", "concurrent"}


def test_no_window_holds_more_cost_than_the_limit(tmp_path: Path, store: Mapping[str, str]) -> None:
    policy(
        tmp_path,
        '[[rule]]\ntool = "work"\ncount = "cost"\nlimit = "20/1s"\n[[rule]]\nuser = "*"\ncount = "cost"\nlimit = "60/3s"\n'
        '[[cost]]\ntool = "work"\ncost = 3\n',
    )
    calls = Load(tmp_path, lambda _: {}, env=store).run(20)
    assert most_in_a_window(calls, WINDOW_US, lambda _: 3) <= 20
    assert most_in_a_window(calls, 3 * WINDOW_US, lambda _: 3) <= 60
    assert {one.reason for one in calls} == {"", "rate_limited"}


def test_a_tool_that_has_failed_so_often_is_closed_for_every_client(tmp_path: Path, store: Mapping[str, str]) -> None:
    policy(tmp_path, '[[rule]]\ntool = "work"\ncount = "errors"\nlimit = "4/1s"\n')
    calls = Load(tmp_path, lambda chance: {"fail": chance.random() < 0.5}, env=store).run(30)
    failures = [one for one in calls if one.failed]
    assert {one.reason for one in calls} == {"", "failing"}
    assert len(failures) >= 8, "the tool was opened again"

    def surely_counted(one: Seen) -> int:
        """How many failures clients knew of before they sent this call, that were in the window when it was decided."""
        assert one.begun_us is not None
        return sum(
            failure.answered_us is not None
            and failure.ended_us is not None
            and failure.answered_us <= one.sent_us
            and failure.ended_us > one.begun_us - WINDOW_US
            for failure in failures
        )

    assert max(surely_counted(one) for one in calls if one.begun_us is not None) < 4


def test_calls_with_equal_arguments_are_counted_together_by_all_wrappers(tmp_path: Path, store: Mapping[str, str]) -> None:
    policy(tmp_path, '[[rule]]\nuser = "*"\nper = ["user", "arguments"]\nlimit = "5/1s"\n')
    calls = Load(tmp_path, lambda chance: {"which": chance.randrange(3)}, env=store).run(40)
    for which in range(3):
        assert most_in_a_window([one for one in calls if one.arguments == {"which": which}], WINDOW_US) <= 5


def test_calls_that_wait_are_forwarded_in_order_and_never_over_the_limit(tmp_path: Path, store: Mapping[str, str]) -> None:
    policy(tmp_path, 'wait = "2s"\n[[rule]]\ntool = "work"\nlimit = "10/1s"\n[[rule]]\nuser = "*"\nconcurrent = 4\n')
    calls = Load(tmp_path, lambda chance: {"ms": chance.randrange(1, 20)}, at_once=3, env=store).run(30)
    assert most_in_a_window(calls, WINDOW_US) <= 10
    assert most_at_once(calls) <= 4
    begun = [one for one in calls if one.begun_us is not None]
    for life in {one.wrapper for one in begun}:
        numbers = [one.number for one in sorted(begun, key=lambda one: one.begun_us or 0) if one.wrapper == life]
        assert numbers == sorted(numbers)
    if not store:
        assert any(int(str(row.get("waited_ms", 0))) > 100 for row in audit(tmp_path) if row["decision"] == "allowed")
