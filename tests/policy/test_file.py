import errno
import os
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mcpguard import files
from mcpguard.errors import PolicyError
from mcpguard.policy import file
from mcpguard.policy.file import AT_ONCE_BYTES, PolicyFile
from mcpguard.policy.model import Policy
from mcpguard.policy.parse import parse
from tests.build import raising, refusing


def rule(limit: str) -> str:
    return f'[[rule]]\ntool = "search"\nlimit = "{limit}"\n'


NEW = rule("2/1h")


def limit(found: Policy | PolicyError | None) -> str:
    """The only limit of the policy that was loaded, or why none was loaded."""
    if isinstance(found, PolicyError):
        return found.message
    if found is None:
        return "nothing new"
    (one,) = found.rules
    return "deny" if one.deny else f"{one.rates[0].n}/{one.rates[0].text}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "team").mkdir()
    return tmp_path / "team/policy.toml"


@pytest.fixture
def running(path: Path) -> PolicyFile:
    """A file with one rule, which has been loaded."""
    path.write_text(rule("1/1h"))
    file = PolicyFile(path)
    assert limit(file.begin()) == "1/1h"
    return file


def settle(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a minute pass."""
    later = max(path.stat().st_mtime_ns, path.stat().st_ctime_ns) + 60_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)


def test_a_file_that_has_settled_is_not_read_again(running: PolicyFile, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(path, monkeypatch)
    assert running.poll() is None
    monkeypatch.setattr(files, "read_at_once", None)
    assert running.poll() is None


def assert_loads_the_next(file: PolicyFile, path: Path) -> None:
    """What was loaded or reported last is told once, until there is another policy."""
    assert file.poll() is None
    path.write_text(NEW)
    assert limit(file.poll()) == "2/1h"


def edit_and_keep_the_time(path: Path) -> None:
    stamp = path.stat()
    path.write_text(NEW)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_text(NEW)
    other.replace(path)


def remove_and_make_anew(path: Path) -> None:
    path.unlink()
    path.write_text(NEW)


def replace_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("before"))
    path.parent.mkdir()
    path.write_text(NEW)


Change = Callable[[Path], object]
CHANGES: dict[str, Change] = {
    "edited": lambda path: path.write_text(NEW),
    "edited, with the time kept": edit_and_keep_the_time,
    "replaced": replace,
    "renamed and made anew": lambda path: path.rename(path.with_suffix(".old")).with_name(path.name).write_text(NEW),
    "removed and made anew": remove_and_make_anew,
    "in another folder of that name": replace_folder,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_next_poll_finds_a_change(running: PolicyFile, path: Path, monkeypatch: pytest.MonkeyPatch, change: Change) -> None:
    settle(path, monkeypatch)
    assert running.poll() is None
    change(path)
    assert limit(running.poll()) == "2/1h"
    assert running.poll() is None


@pytest.mark.posix
def test_another_target_of_a_link_is_found_by_the_next_poll(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = [path.with_name(f"{n}.toml") for n in (1, 2)]
    for n, target in enumerate(targets, 1):
        target.write_text(rule(f"{n}/1h"))
    path.symlink_to(targets[0])
    file = PolicyFile(path)
    file.begin()
    settle(targets[1], monkeypatch)
    assert [file.poll() for _ in range(3)] == [None] * 3
    path.unlink()
    path.symlink_to(targets[1])
    assert limit(file.poll()) == "2/1h"


@pytest.mark.posix
@pytest.mark.parametrize(
    ("target", "named", "told"),
    [
        ("team.toml", False, "{path} is a link to {target}, which does not exist"),
        ("team.toml", True, "{path} is a link to {target}, which does not exist"),
        ("policy.toml", False, "{path}: cannot be read: Too many levels of symbolic links"),
    ],
)
def test_a_link_that_leads_nowhere_is_an_error_until_there_is_a_file(path: Path, target: str, named: bool, told: str) -> None:
    path.symlink_to(path.with_name(target))
    file = PolicyFile(path, named=named)
    assert limit(file.begin()) == told.format(path=path, target=path.with_name(target))
    assert file.poll() is None
    path.unlink()
    path.write_text(NEW)
    assert limit(file.poll()) == "2/1h"


def test_a_named_file_that_is_missing_is_an_error_with_the_command_that_makes_it_until_it_is_there(path: Path) -> None:
    file = PolicyFile(path, named=True)
    error = file.begin()
    assert isinstance(error, PolicyError)
    assert error.message == f"{path}: no such file"
    assert error.hint == f"correct the name, or make that file: mcpguard policy init --policy {shlex.quote(str(path))}"
    assert_loads_the_next(file, path)


def make_a_folder(path: Path) -> str:
    path.unlink()
    path.mkdir()
    return f"{path}: cannot be read: Is a directory"


def remove(path: Path) -> str:
    path.unlink()
    return f"{path}: no such file"


@pytest.mark.parametrize("fault", [remove, pytest.param(make_a_folder, marks=pytest.mark.posix)])
def test_a_file_that_goes_is_told_once_until_it_is_back(running: PolicyFile, path: Path, fault: Callable[[Path], str]) -> None:
    told = fault(path)
    assert limit(running.poll()) == told
    assert running.poll() is None
    if path.is_dir():
        path.rmdir()
    path.write_text(NEW)
    assert limit(running.poll()) == "2/1h"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "line 1: the file is empty"),
        (b"[[rule]\n", "line 1: not TOML"),
        (b'[[rule]]\nlimit = "\xff"\n', "line 2: not UTF-8"),
        (b"[[rule]]\n", "line 1: rule 1: no limit"),
    ],
)
def test_a_broken_file_is_told_once_until_it_is_corrected(running: PolicyFile, path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    assert f"{path}: {words}" in limit(running.poll())
    assert running.poll() is None
    path.write_bytes(content)
    assert_loads_the_next(running, path)


def test_a_file_that_is_broken_and_then_removed_brings_no_starter_policy_back(running: PolicyFile, path: Path) -> None:
    path.unlink()
    new = PolicyFile(path)
    new.begin()
    path.write_text("[[rule]")
    for one in (running, new):
        assert f"{path}: line 1: not TOML" in limit(one.poll())
    path.unlink()
    assert limit(running.poll()) == f"{path}: no such file"
    found = new.poll()
    assert isinstance(found, Policy)
    assert found.is_starter


def test_the_starter_policy_is_in_force_until_the_default_file_exists(path: Path) -> None:
    file = PolicyFile(path)
    starter = file.begin()
    assert isinstance(starter, Policy)
    assert starter.is_starter
    assert_loads_the_next(file, path)


def test_observe_mode_holds_for_every_policy_that_is_loaded(path: Path) -> None:
    file = PolicyFile(path, observe=True)
    loaded = [file.begin()]
    for text in (rule("1/1h"), 'mode = "enforce"\n' + NEW):
        path.write_text(text)
        loaded.append(file.poll() or PolicyError("nothing new"))
    assert [isinstance(one, Policy) and one.observe for one in loaded] == [True] * 3


@pytest.mark.parametrize("when", ["at the start", "after an edit"])
def test_a_file_that_cannot_be_read_for_a_moment_is_read_later(path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    path.write_text(rule("1/1h"))
    file = PolicyFile(path)
    if when == "after an edit":
        assert isinstance(file.begin(), Policy)
        path.write_text(rule("22/1h"))
    settle(path, monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(files, "read_at_once", refusing(errno.EMFILE))
        found = file.begin() if when == "at the start" else file.poll()
        assert isinstance(found, PolicyError)
        assert file.poll() is None  # it is reported once
    assert isinstance(file.poll(), Policy)


def test_a_file_that_is_broken_at_the_start_is_an_error_that_repeats_no_token(path: Path) -> None:
    path.write_text('[[rule]]\n"eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2ln" = 1\nlimit = "1/1h"\n')
    file = PolicyFile(path)
    assert "(a token)" in limit(file.begin())
    assert_loads_the_next(file, path)


# Files that are too large to be parsed while a call waits


def large(limit: str) -> str:
    return rule(limit) + "#" * AT_ONCE_BYTES


class Parser:
    """Parses in threads once it may."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.threads: list[str] = []
        self.may = threading.Event()

    def __call__(self, text: str, **options: object) -> Policy:
        self.asked.append(text.split('"')[-2] if '"' in text else "")
        self.threads.append(threading.current_thread().name)
        if threading.current_thread() is not threading.main_thread():
            assert self.may.wait(30)
        return parse(text, **options)  # type: ignore[arg-type]


@pytest.fixture
def parser(running: PolicyFile, monkeypatch: pytest.MonkeyPatch) -> Iterator[Parser]:
    found = Parser()
    monkeypatch.setattr(file, "parse", found)
    yield found
    found.may.set()
    for thread in threading.enumerate():
        if thread.name == "mcpguard-policy":
            thread.join(30)


def next_of(file: PolicyFile) -> str:
    """What is taken up next."""
    deadline = time.monotonic() + 30
    while (found := file.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return limit(found)


def test_a_large_file_is_loaded_once_by_the_first_poll_after_parsing(running: PolicyFile, path: Path, parser: Parser) -> None:
    path.write_text(large("2/1h"))
    assert [running.poll() for _ in range(3)] == [None] * 3
    parser.may.set()
    assert next_of(running) == "2/1h"
    assert running.poll() is None
    assert parser.threads == ["mcpguard-policy"]


def test_a_large_file_waits_for_a_thread(running: PolicyFile, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(large("2/1h"))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", raising(RuntimeError("can't start new thread")))
        assert [running.poll() for _ in range(3)] == [None] * 3
    assert next_of(running) == "2/1h"


def test_a_small_edit_replaces_a_large_one_that_is_still_being_parsed(running: PolicyFile, path: Path, parser: Parser) -> None:
    path.write_text(large("2/1h"))
    assert running.poll() is None
    path.write_text(rule("3/1h"))
    assert limit(running.poll()) == "3/1h"
    parser.may.set()
    path.write_text(large("4/1h"))
    assert next_of(running) == "4/1h"
    assert running.poll() is None


def test_the_last_of_several_large_edits_is_loaded(running: PolicyFile, path: Path, parser: Parser) -> None:
    for n in (2, 3, 4):
        path.write_text(large(f"{n}/1h"))
        assert running.poll() is None
    assert len(parser.threads) <= 1
    parser.may.set()
    assert next_of(running) == "4/1h"
    assert parser.asked == ["2/1h", "4/1h"]


def test_a_large_edit_that_is_undone_while_it_is_parsed_is_not_loaded(running: PolicyFile, path: Path, parser: Parser) -> None:
    path.write_text(large("2/1h"))
    assert running.poll() is None
    path.unlink()
    assert limit(running.poll()) == f"{path}: no such file"
    parser.may.set()
    assert running.poll() is None


def test_an_internal_error_is_reported_once(running: PolicyFile, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(file, "parse", raising(ZeroDivisionError("x")))
        path.write_text(large("2/1h"))
        assert next_of(running) == "internal error, please report it: ZeroDivisionError('x')"
        assert running.poll() is None
    path.write_text(large("3/1h"))
    assert next_of(running) == "3/1h"


def kept_in(folder: Path, path: Path) -> tuple[str, list[Path]]:
    """The limit that a hook loads, and what it has kept of the policy after that."""
    return limit(PolicyFile(path, tables_beside=str(folder / "kept/mcpguard.db")).begin()), [*folder.glob("kept/*")]


def test_what_is_kept_of_a_policy_counts_only_as_it_was_written(tmp_path: Path, path: Path) -> None:
    path.write_text(rule("deny"))
    _, (kept,) = kept_in(tmp_path, path)
    good = kept.read_bytes()
    for damaged in (good.replace(b"deny", b"9/1h"), good + b" " * 9, b"{}", b"", b"x" * (2 << 20)):
        kept.write_bytes(damaged)
        assert kept_in(tmp_path, path)[0] == "deny"
        assert kept.read_bytes() == good


def test_nothing_is_kept_of_a_policy_of_another_account(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(rule("deny"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert kept_in(tmp_path, path) == ("deny", [])


@pytest.mark.parametrize("value", ["2026-12-01", "0x" + "f" * 6000])
def test_a_value_that_cannot_be_kept_leaves_no_file_and_is_reported_as_ever(tmp_path: Path, path: Path, value: str) -> None:
    path.write_text(f"since = {value}\n{rule('deny')}")
    assert kept_in(tmp_path, path) == (limit(PolicyFile(path).begin()), [])
