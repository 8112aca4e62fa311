"""What wrappers leave on disk that end in an outage, and which wrappers take it in."""

import signal
from pathlib import Path

import pytest

from mcpguard.stores.api import Options
from mcpguard.stores.redis.store import RedisStore
from tests.redis_servers import running

from .host import DEADLINE_S, Message, audit, script, until
from .outages import EagerHost, codes, is_back, settings, stopped_holder, told, used


def left(home: Path) -> list[Path]:
    return [path for path in home.iterdir() if "-outage-" in path.name]


def end(host: EagerHost, how: str) -> None:
    if how == "in order":
        assert host.end() == 0
    else:
        host.process.send_signal(signal.SIGKILL)
        host.process.wait(DEADLINE_S)


def allowed(rows: list[Message]) -> list[Message]:
    return [row for row in rows if row["decision"] == "allowed"]


@pytest.mark.parametrize("how", ["in order", "killed"])
def test_a_wrapper_that_ends_while_the_file_is_locked_leaves_all_that_it_forwarded_to_the_next(
    tmp_path: Path, how: str
) -> None:
    settings(tmp_path)
    with EagerHost(tmp_path, *script("obedient", tmp_path / "calls")) as first:
        assert codes(first, 1) == [200]
    with stopped_holder("hold", tmp_path / "mcpguard.db-calls"):
        with EagerHost(tmp_path, *script("obedient", tmp_path / "calls")) as host:
            assert codes(host, 3) == [200] * 3
            end(host, how)
            assert told(host, "kept on disk for the next wrapper") == (how == "in order")
        (path,) = left(tmp_path)
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.name.startswith("mcpguard.db-outage-")
    with EagerHost(tmp_path, *script("obedient", tmp_path / "calls")) as after:
        until(lambda: told(after, "a wrapper ended while the store was unavailable") == 1, "the next one takes it in")
        assert left(tmp_path) == []
        assert used(tmp_path) == [4]
        assert codes(after, 2) == [200, 429]
    rows = allowed(audit(tmp_path))
    assert len({row["id"] for row in rows}) == len(rows) == len((tmp_path / "calls").read_text().splitlines()) == 5
    if how == "in order":
        assert {row["outcome"] for row in rows} == {"ok"}


def test_what_a_wrapper_leaves_that_named_the_file_by_a_link_is_taken_in_by_one_that_names_the_file(tmp_path: Path) -> None:
    home, link = tmp_path / "home", tmp_path / "link"
    home.mkdir()
    link.symlink_to(home)
    settings(home)
    with EagerHost(home, *script("obedient")) as first:
        assert codes(first, 1) == [200]
    with stopped_holder("hold", home / "mcpguard.db-calls"), EagerHost(link, *script("obedient")) as host:
        assert codes(host, 2) == [200] * 2
        end(host, "in order")
        assert told(host, "kept on disk for the next wrapper")
    with EagerHost(home, *script("obedient")) as after:
        until(lambda: told(after, "a wrapper ended while the store was unavailable") == 1, "the next one takes it in")
    assert left(home) == []
    assert used(home) == [3]


@pytest.mark.parametrize("how", ["in order", "killed"])
def test_what_was_forwarded_while_a_server_was_away_is_taken_in_by_one_that_outlived_the_outage(
    tmp_path: Path, how: str
) -> None:
    settings(tmp_path)
    with running(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always") as server:
        env = {"MCPGUARD_STORE": server.url}
        with (
            EagerHost(tmp_path, *script("obedient"), env=env) as host,
            EagerHost(tmp_path, *script("obedient"), env=env) as other,
        ):
            assert codes(host, 1) == codes(other, 1) == [200]
            server.kill()
            assert codes(host, 2) == [200, 200]
            assert codes(other, 1) == [200]
            end(other, how)
            server.start()
            is_back(host)
            until(lambda: told(host, "a wrapper ended while the store was unavailable") == 1, "it takes in what the other left")
            until(lambda: left(tmp_path) == [], "no file is left")
            assert codes(host, 1) == [429]
        store = RedisStore(server.address, Options(timeout_ms=10_000))
        assert [held.used for held in store.held()] == [5]
        rows = allowed([entry.record for entry in store.entries()])
        assert len({row["id"] for row in rows}) == len(rows) == 5
        store.close()


def test_wrappers_of_another_namespace_leave_it_alone(tmp_path: Path) -> None:
    settings(tmp_path)
    with EagerHost(tmp_path, *script("obedient")) as first:
        assert codes(first, 1) == [200]
    with stopped_holder("hold", tmp_path / "mcpguard.db-calls"), EagerHost(tmp_path, *script("obedient")) as host:
        assert codes(host, 2) == [200] * 2
        end(host, "killed")
    settings(tmp_path, namespace="another")
    with EagerHost(tmp_path, *script("obedient")) as other:
        assert codes(other, 5) == [200] * 5
    assert len(left(tmp_path)) == 1
    settings(tmp_path)
    with EagerHost(tmp_path, *script("obedient")) as after:
        until(lambda: left(tmp_path) == [], "it is taken in")
        assert codes(after, 3) == [200, 200, 429]
