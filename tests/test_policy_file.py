import os
import time
from pathlib import Path

import pytest

from mcpguard.core.policy import Policy
from mcpguard.errors import PolicyError
from mcpguard.policy_file import PolicyFile


def rule(limit: str) -> str:
    return f'[[rule]]\ntool = "search"\nlimit = "{limit}"\n'


def limit(found: Policy | PolicyError | None) -> str:
    """The one limit of what was taken up, or why nothing was."""
    if isinstance(found, PolicyError):
        return found.message
    if found is None:
        return "nothing new"
    (one,) = found.rules
    return "deny" if one.deny else f"{one.rates[0].n}/{one.rates[0].text}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "policy.toml"


@pytest.fixture
def running(path: Path) -> PolicyFile:
    """A file of one rule that has been taken up."""
    path.write_text(rule("1/1h"))
    file = PolicyFile(path)
    assert limit(file.begin()) == "1/1h"
    return file


def settle(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a minute go by."""
    later = max(path.stat().st_mtime_ns, path.stat().st_ctime_ns) + 60_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)


def test_a_file_that_does_not_change_is_nothing_new(running: PolicyFile) -> None:
    assert [running.poll() for _ in range(3)] == [None] * 3


def test_a_file_that_has_settled_is_not_read_again(running: PolicyFile, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(path, monkeypatch)
    assert running.poll() is None
    monkeypatch.setattr(Path, "read_bytes", None)
    assert running.poll() is None


def test_an_edit_is_found_at_the_next_look(running: PolicyFile, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(path, monkeypatch)
    running.poll()
    path.write_text(rule("22/1h"))
    assert limit(running.poll()) == "22/1h"
    assert running.poll() is None


def test_two_edits_in_one_tick_of_the_clock_are_both_found(running: PolicyFile, path: Path) -> None:
    for n in (2, 3, 4):  # of the same size, in the same file, and with the same time
        stamp = path.stat()
        path.write_text(rule(f"{n}/1h"))
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert limit(running.poll()) == f"{n}/1h"


def test_an_edit_that_keeps_the_time_and_size_is_found_by_the_time_of_the_change(
    running: PolicyFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(path, monkeypatch)
    running.poll()
    stamp = path.stat()
    path.write_text(rule("2/1h"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert limit(running.poll()) == "2/1h"


def test_a_file_that_is_put_in_its_place_is_found(running: PolicyFile, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(path, monkeypatch)
    running.poll()
    other = path.with_suffix(".new")
    other.write_text(rule("2/1h"))
    other.replace(path)
    assert limit(running.poll()) == "2/1h"


def test_a_file_behind_a_link_is_followed(path: Path) -> None:
    target = path.with_name("team.toml")
    target.write_text(rule("1/1h"))
    path.symlink_to(target)
    file = PolicyFile(path)
    assert limit(file.begin()) == "1/1h"
    target.write_text(rule("2/1h"))
    assert limit(file.poll()) == "2/1h"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "line 1: the file is empty"),
        (b"# nothing\n", "line 1: the file is empty"),
        (b"[[rule]\n", "line 1: not TOML"),
        (b'[[rule]]\nlimit = "\xff"\n', "line 2: not UTF-8"),
        (b"\xef\xbb\xbf" + b'[[rule]]\nlimit = "1/1h"\n', "line 1: begins with a byte order mark"),
        (b"[[rule]]\n", "line 1: rule 1: no limit"),
    ],
)
def test_a_file_that_breaks_is_reported_once_and_found_again_when_it_is_mended(
    running: PolicyFile, path: Path, content: bytes, words: str
) -> None:
    path.write_bytes(content)
    assert f"{path}: {words}" in limit(running.poll())
    assert running.poll() is None
    path.write_bytes(content)
    assert running.poll() is None
    path.write_text(rule("1/1h"))
    assert limit(running.poll()) == "1/1h"


def test_a_file_that_goes_is_reported_once_and_found_again_when_it_comes_back(running: PolicyFile, path: Path) -> None:
    path.unlink()
    assert limit(running.poll()) == f"{path}: no such file"
    assert running.poll() is None
    assert not running.is_starter
    path.write_text(rule("1/1h"))
    assert limit(running.poll()) == "1/1h"


def test_a_file_that_becomes_a_folder_is_reported_once(running: PolicyFile, path: Path) -> None:
    path.unlink()
    path.mkdir()
    assert limit(running.poll()) == f"{path}: cannot be read: Is a directory"
    assert running.poll() is None


def test_a_file_that_is_broken_when_it_begins_is_an_error_until_it_is_mended(path: Path) -> None:
    path.write_text("[[rule]")
    file = PolicyFile(path)
    assert f"{path}: line 1: not TOML" in limit(file.begin())
    assert file.poll() is None
    path.write_text(rule("1/1h"))
    assert limit(file.poll()) == "1/1h"


def test_a_file_that_is_named_but_missing_is_an_error_until_it_is_there(path: Path) -> None:
    file = PolicyFile(path, named=True)
    assert limit(file.begin()) == f"{path}: no such file"
    assert not file.is_starter
    assert file.poll() is None
    path.write_text(rule("1/1h"))
    assert limit(file.poll()) == "1/1h"


def test_where_nobody_named_a_file_the_starter_policy_is_in_force_until_there_is_one(path: Path) -> None:
    file = PolicyFile(path)
    starter = file.begin()
    assert isinstance(starter, Policy)
    assert len(starter.rules) == 4
    assert file.is_starter
    assert file.poll() is None
    path.write_text(rule("1/1h"))
    assert limit(file.poll()) == "1/1h"
    assert not file.is_starter


@pytest.mark.parametrize("content", [None, rule("1/1h")], ids=["starter", "file"])
def test_observing_is_of_every_policy_that_is_taken_up(path: Path, content: str | None) -> None:
    if content:
        path.write_text(content)
    file = PolicyFile(path, observe=True)
    first = file.begin()
    path.write_text('mode = "enforce"\n' + rule("2/1h"))
    second = file.poll()
    assert isinstance(first, Policy)
    assert isinstance(second, Policy)
    assert first.observe
    assert second.observe


def test_a_file_that_cannot_be_looked_at_is_none_that_is_missing(path: Path) -> None:
    path.symlink_to(path)
    file = PolicyFile(path)
    assert limit(file.begin()) == f"{path}: cannot be read: Too many levels of symbolic links"
    assert not file.is_starter
    assert file.poll() is None
    path.unlink()
    path.write_text(rule("1/1h"))
    assert limit(file.poll()) == "1/1h"


def test_a_token_that_was_pasted_into_the_file_is_not_told(path: Path) -> None:
    path.write_text('[[rule]]\n"eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2ln" = 1\nlimit = "1/1h"\n')
    assert "(a token)" in limit(PolicyFile(path).begin())
