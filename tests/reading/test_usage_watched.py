"""A watcher counts the rows since its last look, and makes records only of denials."""

from pathlib import Path

import pytest

from mcpguard.policy.file import PolicyFile
from mcpguard.reading import usage
from mcpguard.reading.usage import Watcher
from mcpguard.stores.memory import MemoryStore, SharedMemory
from tests.build import Session, identity

POLICY = '[[rule]]\nuser = "*"\ntool = "limited"\nlimit = "2/1h"\n\n[[rule]]\ntool = "closed"\nlimit = "deny"\n'


class Watched:
    """A store, the file of its policy, and a watcher whose clock the test sets."""

    def __init__(self, folder: Path) -> None:
        self.memory = SharedMemory()
        self.now_s = 100.0
        self.file = folder / "policy.toml"
        self.file.write_text(POLICY)

    def session(self, user: str = "alice", namespace: str = "default") -> Session:
        store = MemoryStore(self.memory)
        return Session(store, POLICY, session=user[0] * 16, who=identity(user), namespace=namespace)

    def watcher(self, user: str | None = None) -> Watcher:
        file = PolicyFile(self.file, named=True)
        policy = file.begin()
        assert not isinstance(policy, Exception)
        reader = MemoryStore(self.memory)
        return Watcher(reader, file, policy, "default", lambda one: user is None or one.get("user") == user, lambda: self.now_s)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_calls_and_denials_per_second_are_by_axis_over_the_last_seconds(watched: Watched) -> None:
    watcher, session = watched.watcher(), watched.session()
    session.call("limited", 2)
    session.call("free", 4)
    session.one("closed")
    watched.now_s += 2
    view = watcher.look()
    assert view.calls_per_s == {"user": 1.0, "none": 2.0, "tool": 0.5}
    assert view.denials_per_s == {"tool": 0.5}
    watched.now_s += usage.RATE_S + 1
    watcher.look()
    watched.now_s += 1
    assert watcher.look().calls_per_s == {}


def test_the_latest_denials_come_first_and_those_before_the_start_are_found(watched: Watched) -> None:
    session = watched.session()
    session.call("limited", 2)
    session.one("limited")
    watcher = watched.watcher()
    session.one("closed")
    assert [one["tool"] for one in watcher.look().denials] == ["closed", "limited"]
    assert [one["tool"] for one in watcher.look().denials] == ["closed", "limited"]


def test_only_what_is_selected_is_shown(watched: Watched) -> None:
    watcher = watched.watcher("bob")
    watched.session("alice").call("limited", 3)
    watched.session("bob").call("limited", 1)
    watched.now_s += 1
    view = watcher.look()
    assert [one.counter["user"] for one in view.usages] == ["bob"]
    assert view.calls_per_s == {"user": 1.0}
    assert view.denials == []


def test_what_another_namespace_counts_and_denies_is_not_shown(watched: Watched) -> None:
    other = watched.session(namespace="other")
    other.call("limited", 3)
    watcher = watched.watcher()
    other.one("closed")
    watched.now_s += 1
    view = watcher.look()
    assert (view.usages, view.calls_per_s, view.denials) == ([], {}, [])


def test_an_edit_of_the_policy_is_taken_up_and_a_broken_one_is_told(watched: Watched) -> None:
    watcher = watched.watcher()
    watched.session().call("limited", 1)
    assert [(one.left, one.rate and one.rate.n) for one in watcher.look().usages] == [(1, 2)]
    watched.file.write_text(POLICY.replace("2/1h", "50/1h"))
    assert [one.left for one in watcher.look().usages] == [49]
    watched.file.write_text("limit")
    view = watcher.look()
    assert "policy.toml" in view.trouble
    assert [one.left for one in view.usages] == [49]
    watched.file.write_text(POLICY)
    assert watcher.look().trouble == ""
