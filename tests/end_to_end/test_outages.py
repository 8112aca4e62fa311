"""Whatever happens to a store: what calls get meanwhile, what is told, and what is counted afterwards."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.redis_servers import running

from .host import KILLED_STATUS, WINDOWS, script, total, until
from .outages import (
    AT_THE_START,
    KILLED,
    LATER,
    LOCKED,
    SLOW_S,
    EagerHost,
    Place,
    Trouble,
    codes,
    is_back,
    mounted,
    settings,
    stopped_holder,
    told,
)

pytestmark = pytest.mark.waits

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")
MODES = {"local": [200, 200, 200, 429], "deny": [503] * 4, "allow": [200] * 4}
"""How four calls are answered without a store, where two of five have been counted."""


@contextlib.contextmanager
def store(home: Path, trouble: Trouble, on_a_server: bool) -> Iterator[Place]:
    """The store that the trouble is with."""
    with contextlib.ExitStack() as stack:
        folder = home / "disk"
        folder.mkdir()
        if not on_a_server:
            if trouble.is_mounted:
                stack.enter_context(mounted(folder, "-t", "tmpfs", "-o", "size=10m", "none"))
            yield Place(folder)
            return
        server = stack.enter_context(running(home / "redis", *DURABLE))
        yield Place(folder, server)


def wrapper(home: Path, place: Place) -> EagerHost:
    command, env = script("obedient", home / "calls"), {"MCPGUARD_STORE": place.url}
    return EagerHost(home, *command, env=env)


def cases(troubles: Mapping[str, Trouble]) -> list[object]:
    """All troubles with local counting, and one of them with each other mode."""
    return [
        pytest.param(mode, trouble, "server" in name, id=f"{name}, {mode}", marks=trouble.mark or ())
        for name, trouble in troubles.items()
        for mode in (MODES if trouble is LOCKED else ["local"])
    ]


def is_whole(host: EagerHost, place: Place) -> None:
    """The session's audit has no gap, and every call that was forwarded has its outcome, once."""
    assert host.end() == 0
    assert "Traceback" not in host.err
    assert "internal error" not in host.err
    rows = place.rows
    assert [row["seq"] for row in rows] == list(range(2, len(rows) + 2))
    forwarded = [row for row in rows if row["decision"] in {"allowed", "allowed_unavailable"}]
    assert {row.get("outcome") for row in forwarded} <= {"ok"}
    assert len(forwarded) == len((host.home / "calls").read_text().splitlines())


@pytest.mark.parametrize(("mode", "trouble", "on_a_server"), cases(LATER))
def test_an_outage_costs_one_call_its_budget_is_told_once_and_loses_no_count(
    tmp_path: Path, mode: str, trouble: Trouble, on_a_server: bool
) -> None:
    settings(tmp_path, mode, timeout_ms=trouble.timeout_ms)
    with store(tmp_path, trouble, on_a_server) as place, wrapper(tmp_path, place) as host:
        assert codes(host, 2) == [200, 200]
        with trouble.happens(place, host):
            assert codes(host, 1) == MODES[mode][:1]
            since = time.monotonic()
            assert codes(host, 3) == MODES[mode][1:]
            assert time.monotonic() - since < 3 * trouble.timeout_ms / 1000
            assert codes(host, 1, "drop") == [403]
            assert trouble.told in host.err
        is_back(host)
        assert place.used == [{"local": 5, "deny": 2, "allow": 2}[mode]]
        assert codes(host, 1) == ([429] if mode == "local" else [200])
        assert (told(host, "store unavailable"), told(host, "store is back")) == (1, 1)
        is_whole(host, place)
        assert total(place.rows, "unavailable") == (4 if mode == "deny" else 0)


@pytest.mark.parametrize(("mode", "trouble", "on_a_server"), cases(AT_THE_START))
def test_a_store_that_cannot_be_used_at_the_start_is_named_left_as_it_is_and_used_as_soon_as_it_can(
    tmp_path: Path, mode: str, trouble: Trouble, on_a_server: bool
) -> None:
    settings(tmp_path, mode, timeout_ms=trouble.timeout_ms)
    with store(tmp_path, trouble, on_a_server) as place, contextlib.ExitStack() as stack:
        with trouble.happens(place, None):
            host = stack.enter_context(wrapper(tmp_path, place))
            assert codes(host, 6) == {"local": [200] * 5 + [429], "deny": [503] * 6, "allow": [200] * 6}[mode]
            assert codes(host, 1, "drop") == [403]
            assert "store unavailable" in host.err
            assert trouble.told in host.err
        is_back(host)
        assert place.used == ([5] if mode == "local" else [])
        assert codes(host, 1) == ([429] if mode == "local" else [200])
        is_whole(host, place)


def test_each_of_many_wrappers_admits_without_a_store_what_it_may_and_all_of_it_is_counted(tmp_path: Path) -> None:
    settings(tmp_path, limit="6/1h")
    place = Place(tmp_path)
    with contextlib.ExitStack() as stack:
        hosts = [stack.enter_context(EagerHost(tmp_path)) for _ in range(3)]
        assert [codes(host, 1) for host in hosts] == [[200]] * 3
        admitted = 0
        with stopped_holder("hold", place.log):
            for already, host in enumerate(hosts, 1):
                found = codes(host, 7)
                share = found.count(200)
                assert found == [200] * share + [429] * (7 - share)
                assert 3 <= share <= 6 - already  # it has seen the calls of those before it, and perhaps those after it
                admitted += share
        for host in hosts:
            is_back(host)
        assert place.used == [3 + admitted]
        assert [codes(host, 1) for host in hosts] == [[429]] * 3


def test_a_wrapper_that_ends_just_after_the_store_is_back_hands_over_what_it_counted(tmp_path: Path) -> None:
    settings(tmp_path)
    place = Place(tmp_path)
    patient = {"mcpguard.stores.outage.store.LAST_TRY_S": 30.0, "mcpguard.relay.guard.CLOSE_S": 30.5}
    with EagerHost(tmp_path, tuned=patient) as host:
        assert codes(host, 1) == [200]
        with stopped_holder("hold", place.log):
            assert codes(host, 2) == [200, 200]
        host.end()
    assert place.used == [3]
    assert [row["outcome"] for row in place.rows] == ["ok"] * 3


def taken_in(host: EagerHost, home: Path) -> None:
    """Wait until a wrapper has taken in what another left on disk."""
    until(lambda: told(host, "a wrapper ended while the store was unavailable") == 1, "it takes in what the other left")
    until(lambda: not list(home.glob("*-outage-*")), "no file is left")


@pytest.mark.parametrize("how", ["in order", "killed"])
@pytest.mark.parametrize("on_a_server", [False, True], ids=["SQLite", "Redis"])
def test_a_wrapper_that_ends_in_an_outage_leaves_all_that_it_forwarded_to_another(
    tmp_path: Path, how: str, on_a_server: bool
) -> None:
    """The other one outlives the outage."""
    settings(tmp_path)
    trouble = KILLED if on_a_server else LOCKED
    with store(tmp_path, trouble, on_a_server) as place, wrapper(tmp_path, place) as host, wrapper(tmp_path, place) as other:
        assert codes(host, 1) == codes(other, 1) == [200]
        with trouble.happens(place, host):
            assert codes(other, 2) == [200, 200]
            since = time.monotonic()
            if how == "in order":
                assert other.end() == 0
                assert told(other, "kept on disk for the next wrapper") == 1, other.err
            else:
                other.kill()
                assert other.wait() == KILLED_STATUS
            assert time.monotonic() - since < SLOW_S
            left = [file for folder in (tmp_path, place.path.parent) for file in folder.glob("*-outage-*")]
            assert WINDOWS or {file.stat().st_mode & 0o777 for file in left} == {0o600}
            assert codes(host, 1) == [200]
        is_back(host)
        taken_in(host, left[0].parent)
        assert place.used == [5]
        assert codes(host, 1) == [429]
        assert host.end() == 0
        rows = [row for row in place.rows if row["decision"] == "allowed"]
        assert len({row["id"] for row in rows}) == len(rows) == len((tmp_path / "calls").read_text().splitlines()) == 5
        if how == "in order":
            assert {row["outcome"] for row in rows} == {"ok"}
