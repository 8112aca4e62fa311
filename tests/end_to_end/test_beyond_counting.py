"""What limits count beyond calls, over eight wrappers that are killed at random, against what was seen at both ends."""

import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.end_to_end.host import Message, audit, policy
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
    load = Load(
        tmp_path, lambda chance: ("work", {"ms": chance.randrange(1, 30)}), at_once=2, kills=kills, env=store, tuned=tuned
    )
    calls = load.run(150)
    assert most_at_once(calls) <= 3
    assert {one.reason for one in calls} == {"", "concurrent"}


MIXED = """
[[rule]]
tool = "cost"
count = "cost"
limit = "20/1s"

[[rule]]
user = "*"
tool = "cost"
count = "cost"
limit = "60/3s"

[[cost]]
tool = "cost"
cost = 3

[[rule]]
tool = "fail"
count = "errors"
limit = "4/1s"

[[rule]]
user = "*"
tool = "same"
per = ["user", "arguments"]
limit = "5/1s"
"""


def mixed(chance: random.Random) -> tuple[str, Message]:
    """A call that costs something, one that may fail, or one with arguments that others have, too."""
    tool = chance.choice(["cost", "fail", "same"])
    arguments: dict[str, Message] = {
        "cost": {},
        "fail": {"fail": chance.random() < 0.5},
        "same": {"which": chance.randrange(3)},
    }
    return tool, arguments[tool]


def test_cost_errors_and_equal_arguments_are_counted_over_all_wrappers(tmp_path: Path, store: Mapping[str, str]) -> None:
    policy(tmp_path, MIXED)
    calls = Load(tmp_path, mixed, kills=8, env=store).run(110)
    costly, failing, same = ([one for one in calls if one.tool == tool] for tool in ("cost", "fail", "same"))
    assert most_in_a_window(costly, WINDOW_US, lambda _: 3) <= 20
    assert most_in_a_window(costly, 3 * WINDOW_US, lambda _: 3) <= 60
    for which in range(3):
        assert most_in_a_window([one for one in same if one.arguments == {"which": which}], WINDOW_US) <= 5
    assert {one.reason for one in costly} == {one.reason for one in same} == {"", "rate_limited"}
    assert {one.reason for one in failing} == {"", "failing"}
    assert_is_closed(failing)


def assert_is_closed(calls: list[Seen]) -> None:
    """Check that a tool that may fail four times in a second is closed for every client when it has."""
    failures = [one for one in calls if one.failed]
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


def test_calls_that_wait_are_forwarded_in_order_and_never_over_the_limit(tmp_path: Path, store: Mapping[str, str]) -> None:
    policy(tmp_path, 'wait = "2s"\n[[rule]]\ntool = "work"\nlimit = "10/1s"\n[[rule]]\nuser = "*"\nconcurrent = 4\n')
    calls = Load(tmp_path, lambda chance: ("work", {"ms": chance.randrange(1, 20)}), at_once=3, env=store).run(30)
    assert most_in_a_window(calls, WINDOW_US) <= 10
    assert most_at_once(calls) <= 4
    begun = [one for one in calls if one.begun_us is not None]
    for life in {one.wrapper for one in begun}:
        numbers = [one.number for one in sorted(begun, key=lambda one: one.begun_us or 0) if one.wrapper == life]
        assert numbers == sorted(numbers)
    if not store:
        assert any(int(str(row.get("waited_ms", 0))) > 100 for row in audit(tmp_path) if row["decision"] == "allowed")
