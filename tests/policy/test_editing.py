"""Edits of a policy file: what changes in it, and what stays."""

import contextlib
import errno
import os
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcpguard import locks
from mcpguard.documents.document import spliced
from mcpguard.errors import ExitStatus, McpguardError, PolicyError
from mcpguard.policy import writing
from mcpguard.policy.editing import put, put_cost, set_mode, take_out, take_out_cost
from mcpguard.policy.parse import STARTER, parse, parse_cost, parse_rule
from mcpguard.policy.writing import begin, folder_lock
from tests.missing import make_link

ENOUGH_S = 60
"""Only a process that hangs takes this long."""

BY_HAND = """\
# Our policy. Ask Ines before you change it.

mode = "enforce"  # for real

# Searches are dear.
[[rule]]
tool  = "search"      # the slow one
user  = "*"
limit = "100/1h"      # agreed in May

# Reports
[[rule]]
tool = "report"
limit = [ "5/1m" ]
# last words
"""


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the lock is on Windows."""
    monkeypatch.setenv("MCPGUARD_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "policy.toml"
    file.write_text(BY_HAND)
    return file


def remove(file: Path, **selectors: Any) -> str | None:
    """Remove a rule; the limit that it had, None if there was no such rule."""
    found = take_out(file, parse_rule({**selectors, "limit": "unlimited"}, where="test"), named=True)
    return found[0].limit_text if found else None


def rules(file: Path) -> list[tuple[str, str]]:
    return [(rule.text, rule.limit_text) for rule in parse(file.read_text()).rules]


MIXED = """\
# Ours
wait = "5s"  # for all

# Reports
[[rule]]
tool = "report"
limit = "5/1m"  # agreed
# after the limit

# Dear
[[cost]]
tool = "report"  # a tool
cost = 20  # units

# Everything
[[rule]]
limit = "100/1h"
count = "cost"

[[cost]]
cost = 2

# Syncs
[[rule]]
tool = "sync"
concurrent = 2
# last words
"""


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    file = tmp_path / "mixed.toml"
    file.write_text(MIXED)
    return file


# Setting a rule


def test_a_missing_file_begins_with_the_starter_rules(tmp_path: Path) -> None:
    file = tmp_path / "new" / "policy.toml"
    before, after, at, _ = put(file, {"user": "*", "tool": "search", "limit": ["20/1m", "100/1h"]})
    assert (before.rules, at) == (parse(STARTER).rules, 4)
    assert after.rules == parse(file.read_text()).rules
    assert file.read_text() == STARTER + '\n[[rule]]\nuser = "*"\ntool = "search"\nlimit = ["20/1m", "100/1h"]\n'
    modes = [stat.S_IMODE(one.stat().st_mode) for one in (file, file.parent)]
    assert sys.platform == "win32" or modes == [0o600, 0o700]


def test_the_same_selectors_with_another_per_are_another_rule(file: Path) -> None:
    put(file, {"user": "*", "tool": "search", "per": ["user", "tool"], "limit": "1/1h"})
    assert len(rules(file)) == 2
    put(file, {"user": "*", "tool": "search", "per": ["tool"], "limit": "1/1h"})
    assert len(rules(file)) == 3


def test_a_name_that_is_given_later_is_written_into_its_own_rule(file: Path) -> None:
    put(file, {"user": "*", "tool": "search", "name": 'the "dear" one', "limit": "50/1h"})
    changed = BY_HAND.replace('"100/1h"', '"50/1h"').replace("[[rule]]\n", "[[rule]]\nname = 'the \"dear\" one'\n", 1)
    assert tomllib.loads(file.read_text()) == tomllib.loads(changed)
    assert "# Reports\n[[rule]]" in file.read_text()
    put(file, {"user": "*", "tool": "search", "name": "renamed", "limit": "50/1h"})
    assert [rule.name for rule in parse(file.read_text()).rules] == ["renamed", ""]


def test_an_empty_name_removes_the_name_and_adds_none_to_a_new_rule(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    unnamed = '[[rule]]\ntool = "a"\nlimit = "5/1m"\n\n# b\n'
    file.write_text(unnamed)
    put(file, {"tool": "a", "limit": "5/1m", "name": "ours"})
    assert parse(file.read_text()).rules[0].name == "ours"
    put(file, {"tool": "a", "limit": "5/1m", "name": ""})
    assert file.read_text() == unnamed
    put(file, {"tool": "b", "limit": "5/1m", "name": ""})
    assert "name" not in file.read_text()
    assert rules(file) == [("tool=a", "5/1m"), ("tool=b", "5/1m")]


COMMENTED = """\
[[ rule ]]  # spaced
tool = "a"
limit = [
  "20/1m",   # short bursts
  # and the long run
  "100/1h",  # per hour
]

[[rule]]  # not spaced
tool = "b"
limit = "5/1m"  # five
"""
NOTED = '[[rule]]\ntool = "a"\nlimit = [\n  # "9/1h" was too few\n  "6/1m",\n  "60/1h",\n]\n'
BOTH = {"tool": "a", "limit": ["6/1m", "60/1h"]}
MAY = '[[rule]]\ntool = "a"\nlimit = [\n  "5/1m", # short\n] # in May\n'


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize(
    ("old", "table", "before", "after"),
    [
        (BY_HAND, {"user": "*", "tool": "search", "limit": "50/1h"}, '"100/1h"', '"50/1h"'),
        (
            BY_HAND,
            {"tool": "search", "role": ["a", "b"], "per": [], "limit": "deny"},
            "# last words\n",
            '# last words\n\n[[rule]]\ntool = "search"\nrole = ["a", "b"]\nper = []\nlimit = "deny"\n',
        ),
        (COMMENTED, {"tool": "b", "limit": "6/1m"}, "5/1m", "6/1m"),
        (
            COMMENTED,
            {"tool": "a", "limit": ["10/1m", "100/1h"]},
            COMMENTED[40:116],
            '[\n  # short bursts\n  # and the long run\n  # per hour\n  "10/1m",\n  "100/1h",\n]',
        ),
        (COMMENTED, {"tool": "a", "limit": "deny"}, COMMENTED[40:116], '"deny" # short bursts; and the long run; per hour'),
        (MAY, {"tool": "a", "limit": "unlimited"}, MAY[28:], '"unlimited" # short; in May\n'),
        # a comment that has no limit of its own
        ('[[rule]]\ntool = "a"\nlimit = [\n  "5/1m"\n  # "9/1h" was too few\n]\n', BOTH, "", NOTED),
        ('[[rule]]\ntool = "a"\nlimit = [ "5/1m" # "9/1h" was too few\n]\n', BOTH, "", NOTED),
        ('[[rule]]\ntool = "a"\nlimit = [ # "9/1h" was too few\n  "5/1d", "5/1w"]\n', BOTH, "", NOTED),
        ('[[rule]]\nlimit = "5/1m"', {"concurrent": 3}, '"5/1m"', '"5/1m"\nconcurrent = 3\n'),
        (MIXED, {"tool": "report", "concurrent": 3}, "# agreed\n", "# agreed\nconcurrent = 3\n"),
    ],
)  # fmt: skip
def test_an_edit_changes_its_place_only_and_keeps_comments_and_line_ends(
    tmp_path: Path, end: str, old: str, table: dict[str, Any], before: str, after: str
) -> None:
    file = tmp_path / "policy.toml"
    file.write_bytes(old.replace("\n", end).encode())
    put(file, table)
    assert file.read_bytes().decode() == (old.replace(before, after) if before else after).replace("\n", end)


# Line ends


@pytest.mark.parametrize("char", ["\u2028", "\u2029", "\x85"])
def test_characters_that_end_a_line_for_python_but_not_for_toml_stay(tmp_path: Path, char: str) -> None:
    file = tmp_path / "policy.toml"
    first = f'# a{char}b\n\n[[rule]]\nname = "c{char}d"\ntool = "a"\nlimit = "5/1m"\n\n'
    text = first + f'[[rule]]\ntool = "b"\nlimit = "5/1m"\n# z{char}'
    file.write_bytes(text.encode())
    for tool in ("a", "b"):
        put(file, {"tool": tool, "limit": "6/1m"})
    assert file.read_bytes().decode() == text.replace("5/1m", "6/1m")
    put(file, {"tool": "c", "limit": "7/1m"})
    assert file.read_bytes().decode().startswith(text.replace("5/1m", "6/1m") + "\n\n[[rule]]\n")


# Removing a rule


def test_a_rule_is_removed_with_the_comment_right_above_it_and_all_else_stays(file: Path) -> None:
    assert remove(file, user="*", tool="search") == "100/1h"
    start, end = BY_HAND.index("# Searches"), BY_HAND.index("# Reports")
    assert file.read_text() == BY_HAND[:start] + BY_HAND[end:]


def test_without_its_last_rule_a_file_holds_a_policy_that_allows_everything(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text('# ours\n[[rule]]\ntool = "a"\nlimit = "5/1m"\n')
    assert remove(file, tool="a") == "5/1m"
    assert rules(file) == []
    assert file.read_text() == '# ours\n\nmode = "enforce"\n'
    put(file, {"tool": "b", "limit": "5/1m"})
    assert remove(file, tool="b") == "5/1m"


@pytest.mark.parametrize("above", ['# ours\n[[rule]]\ntool = "b"\nlimit = "5/1m"', "# ours", 'mode = "observe" # ours'])
def test_a_last_rule_whose_last_line_has_no_end_is_removed_from_a_file_with_the_line_ends_of_windows(
    tmp_path: Path, above: str
) -> None:
    file = tmp_path / "policy.toml"
    file.write_bytes(f'{above}\n\n[[rule]]\ntool = "a"\nlimit = "5/1m"'.replace("\n", "\r\n").encode())
    assert remove(file, tool="a") == "5/1m"
    left = f'{above}\n\nmode = "enforce"\n' if above == "# ours" else above
    assert file.read_bytes() == left.replace("\n", "\r\n").encode()


def test_removing_a_rule_that_is_not_there_writes_nothing(file: Path) -> None:
    before = file.stat()
    assert remove(file, tool="search") is None
    assert (file.stat().st_ino, file.stat().st_mtime_ns, file.read_text()) == (before.st_ino, before.st_mtime_ns, BY_HAND)


def test_removing_a_rule_from_a_missing_file_is_an_error_and_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="no such file"):
        remove(tmp_path / "policy.toml", tool="search")
    assert list(tmp_path.iterdir()) == []


# Files that cannot be edited


@pytest.mark.parametrize(
    "content", [b"", b"# nothing\n", b'[[rule]]\ntool = "a\n', b"\xff\xfe", b"[[rule]]\ntool = 'a'\nlimt = '5/1m'\n"]
)
def test_a_file_that_is_not_a_policy_is_an_error_with_its_line_and_stays(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "policy.toml"
    file.write_bytes(content)
    for edit in (lambda: put(file, {"tool": "x", "limit": "5/1m"}), lambda: remove(file, tool="x")):
        with pytest.raises(PolicyError) as raised:
            edit()
        assert raised.value.message.startswith(f"{file}: line ")
        assert raised.value.hint
        assert file.read_bytes() == content


@pytest.mark.posix
def test_no_edit_waits_for_a_pipe_in_place_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    os.mkfifo(file)
    for edit in (lambda: put(file, {"tool": "search", "limit": "1/1h"}), lambda: remove(file, tool="search")):
        with pytest.raises(PolicyError) as raised:
            edit()
        assert raised.value.message == f"{file}: cannot be read: not a regular file"
        assert raised.value.exit_status == ExitStatus.CONFIGURATION


# The file itself


def test_a_link_stays_and_its_target_is_replaced_as_a_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    target = tmp_path / "team" / "limits.toml"
    target.write_text(BY_HAND)
    target.chmod(0o644)
    link = tmp_path / "policy.toml"
    make_link(link, target)
    with contextlib.ExitStack() as reading:
        old = None if sys.platform == "win32" else reading.enter_context(link.open())  # there it keeps the file as it is
        put(link, {"tool": "x", "limit": "5/1m"})
        assert old is None or old.read() == BY_HAND
    assert link.is_symlink()
    assert sys.platform == "win32" or stat.S_IMODE(target.stat().st_mode) == 0o644
    assert target.read_text() == BY_HAND + '\n[[rule]]\ntool = "x"\nlimit = "5/1m"\n'
    assert list(target.parent.iterdir()) == [target]
    target.unlink()
    assert begin(link) is True
    assert target.read_text() == STARTER


def test_the_starter_policy_is_written_only_where_there_is_no_file(file: Path) -> None:
    assert begin(file) is False
    assert file.read_text() == BY_HAND
    file.unlink()
    assert begin(file) is True
    assert file.read_text() == STARTER


KILLED_BEFORE_THE_END = """
import os, sys
from pathlib import Path
from mcpguard.policy import editing
os.replace = lambda *names: os._exit(9)
editing.put(Path(sys.argv[1]), {"tool": "x", "limit": "5/1m"})
"""


def test_an_edit_that_is_killed_leaves_the_file_and_the_next_edit_removes_the_unfinished_one(file: Path) -> None:
    backup = file.parent / ".policy.toml.20261126"
    backup.write_text("mine")
    done = subprocess.run([sys.executable, "-c", KILLED_BEFORE_THE_END, file], check=False, timeout=ENOUGH_S)
    assert done.returncode == 9
    assert file.read_text() == BY_HAND
    assert len(list(file.parent.iterdir())) == 3
    put(file, {"tool": "x", "limit": "5/1m"})
    assert sorted(file.parent.iterdir()) == [backup, file]


EDIT_WHEN_TOLD = """
import sys
from pathlib import Path
from mcpguard.policy import editing
print("ready", flush=True)
for tool in sys.stdin.readline().split():
    editing.put(Path(sys.argv[1]), {"tool": tool, "limit": "5/1m"})
"""


def test_edits_of_several_processes_at_once_lose_nothing(file: Path) -> None:
    tools = [f"{letter}0 {letter}1 {letter}2 {letter}3" for letter in "abc"]
    command, pipe = [sys.executable, "-c", EDIT_WHEN_TOLD, str(file)], subprocess.PIPE
    editors = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in tools]
    for editor in editors:
        assert editor.stdout is not None
        assert editor.stdout.readline() == "ready\n"
    for editor, mine in zip(editors, tools, strict=True):
        assert editor.stdin is not None
        editor.stdin.write(f"{mine}\n")
        editor.stdin.flush()
    for editor in editors:
        editor.communicate(timeout=ENOUGH_S)
    assert [editor.returncode for editor in editors] == [0, 0, 0]
    added = sorted(f"tool={tool}" for mine in tools for tool in mine.split())
    assert [tool for tool, _ in sorted(rules(file))] == [*added, "tool=report", "user=* tool=search"]
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(("age_s", "left"), [(60, True), (7200, False)])
def test_where_folders_cannot_be_locked_only_old_unfinished_files_are_removed(
    file: Path, age_s: float, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks, "_lock", no_locks)
    leftover = file.parent / ".policy.toml.mcpguard-abc"
    leftover.touch()
    now = leftover.stat().st_mtime
    monkeypatch.setattr(time, "time", lambda: now + age_s)
    put(file, {"tool": "x", "limit": "5/1m"})
    assert leftover.exists() is left


@pytest.mark.parametrize(("freed", "written"), [(True, True), (False, False)])
def test_an_edit_waits_for_another_one_for_some_time_and_then_gives_up(
    file: Path, monkeypatch: pytest.MonkeyPatch, freed: bool, written: bool
) -> None:
    other = folder_lock(file.parent)
    assert other.acquire(0)
    now_s = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds
        if freed and now_s > 0.1:
            other.release()

    with monkeypatch.context() as patched:
        patched.setattr(writing, "LOCK_TIMEOUT_S", 0.2)
        patched.setattr(time, "monotonic", lambda: now_s)
        patched.setattr(time, "sleep", sleep)
        with contextlib.nullcontext() if written else pytest.raises(McpguardError, match="locked by another process"):
            put(file, {"tool": "x", "limit": "5/1m"})
    other.close()
    assert (file.read_text() != BY_HAND) is written


# The mode

RULE = '[[rule]]\ntool = "a"\nlimit = "5/1m"\n'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (RULE, f'mode = "observe"\n\n{RULE}'),
        (MIXED, f'mode = "observe"\n\n{MIXED}'),
        (f"# about us\n\n{RULE}", f'# about us\n\nmode = "observe"\n\n{RULE}'),
        (f"# about the rule\n{RULE}", f'mode = "observe"\n\n# about the rule\n{RULE}'),
        (f"mode = 'enforce'   # why\n{RULE}", f'mode = "observe"   # why\n{RULE}'),
        (f"# about us\r\n\r\n{RULE}", f'# about us\r\n\r\nmode = "observe"\r\n\r\n{RULE}'),
        ("rule = []\nmode = 'enforce' # why\n", 'rule = []\nmode = "observe" # why\n'),
        ("rule = [{tool = 'a', limit = 'deny'}]\n", "mode = \"observe\"\n\nrule = [{tool = 'a', limit = 'deny'}]\n"),
        ('[[rule]]\nmode = "observe"\nlimit = "deny"\n', 'mode = "observe"\n\n[[rule]]\nmode = "observe"\nlimit = "deny"\n'),
    ],
)
def test_the_mode_is_changed_or_added_where_it_belongs_and_all_else_stays(tmp_path: Path, before: str, after: str) -> None:
    file = tmp_path / "policy.toml"
    file.write_bytes(before.encode())
    assert set_mode(file, "enforce").is_unchanged
    assert file.read_bytes().decode() == before
    edit = set_mode(file, "observe")
    assert (edit.before.observe, edit.after.observe, edit.is_new_file) == (False, True, False)
    assert file.read_bytes().decode() == after
    set_mode(file, "enforce")
    policy = parse(file.read_text())
    assert not policy.observe
    assert [rule.text for rule in policy.rules] == [rule.text for rule in parse(before).rules]


def test_a_rules_own_mode_is_set_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(RULE)

    def modes(**more: str) -> list[bool]:
        put(file, {"tool": "a", "limit": "5/1m", **more})
        return [rule.observe for rule in parse(file.read_text()).rules]

    assert modes(mode="enforce") == [False]
    assert "mode" not in file.read_text()
    assert modes(mode="observe") == [True]
    assert modes() == [True]
    assert modes(mode="enforce") == [False]
    assert modes(mode="observe", name="a") == [True]


def test_a_named_file_gets_the_mode_but_is_not_made_for_it(file: Path) -> None:
    assert set_mode(file, "observe", named=True).after.observe
    file.unlink()
    with pytest.raises(PolicyError, match="no such file"):
        set_mode(file, "enforce", named=True)
    assert not file.exists()


# Caps, costs and waits


@pytest.mark.parametrize(
    ("table", "before", "after"),
    [
        ({"tool": "report", "limit": "6/1m"}, '"5/1m"', '"6/1m"'),
        ({"tool": "report", "concurrent": 3}, "# agreed\n", "# agreed\nconcurrent = 3\n"),
        ({"tool": "report", "limit": "6/1m", "wait": "9s"}, '"5/1m"  # agreed\n', '"6/1m"  # agreed\nwait = "9s"\n'),
        (
            {"tool": "report", "limit": "5/1m", "name": "r"},
            '[[rule]]\ntool = "report"',
            '[[rule]]\nname = "r"\ntool = "report"',
        ),
        ({"tool": "report", "limit": "5/1m", "warn": "80%"}, "# agreed\n", '# agreed\nwarn = "80%"\n'),
        ({"tool": "sync", "concurrent": 3}, "concurrent = 2", "concurrent = 3"),
        ({"tool": "sync", "limit": "3/1m", "warn": "9%"}, "concurrent = 2\n", 'concurrent = 2\nlimit = "3/1m"\nwarn = "9%"\n'),
        ({"tool": "sync", "limit": "3/1m"}, "concurrent = 2\n", 'concurrent = 2\nlimit = "3/1m"\n'),
        (
            {"tool": "sync", "limit": "3/1m", "count": "errors", "concurrent": 1},
            "concurrent = 2\n",
            'concurrent = 1\nlimit = "3/1m"\ncount = "errors"\n',
        ),
        (
            {"limit": "9/1h", "count": "cost", "mode": "observe"},
            '[[rule]]\nlimit = "100/1h"',
            '[[rule]]\nmode = "observe"\nlimit = "9/1h"',
        ),
        ({"limit": "9/1h"}, "# last words\n", '# last words\n\n[[rule]]\nlimit = "9/1h"\n'),
        ({"tool": "sync", "limit": "deny"}, "# last words\n", '# last words\n\n[[rule]]\ntool = "sync"\nlimit = "deny"\n'),
        (
            {"tool": "sync", "limit": "3/1m", "mode": "observe"},
            "# last words\n",
            '# last words\n\n[[rule]]\ntool = "sync"\nlimit = "3/1m"\nmode = "observe"\n',
        ),
    ],
)
def test_an_edit_among_rules_and_costs_changes_its_place_only(
    mixed: Path, table: dict[str, Any], before: str, after: str
) -> None:
    put(mixed, table)
    assert mixed.read_text() == MIXED.replace(before, after, 1)
    text = mixed.read_text()
    edit = put(mixed, table)
    assert (edit.is_unchanged, mixed.read_text()) == (True, text)


@pytest.mark.parametrize("old", ["deny", "unlimited", "5/1m"])
@pytest.mark.parametrize("new", ["deny", "unlimited", "6/1m"])
def test_a_word_replaces_a_limit_and_another_word(tmp_path: Path, old: str, new: str) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(f'[[rule]]\ntool = "a"\nlimit = "{old}"\n')
    edit = put(file, {"tool": "a", "limit": new})
    assert (file.read_text(), edit.is_unchanged) == (f'[[rule]]\ntool = "a"\nlimit = "{new}"\n', old == new)


def test_limits_in_another_order_change_nothing(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    put(file, {"tool": "a", "limit": ["20/1m", "100/1h"]})
    assert put(file, {"tool": "a", "limit": ["100/1h", "20/1m"]}).is_unchanged


def test_closing_a_rule_removes_what_a_closed_rule_cannot_have(mixed: Path) -> None:
    put(mixed, {"tool": "report", "limit": "5/1m", "concurrent": 3, "wait": "9s", "count": "calls", "warn": "80%"})
    put(mixed, {"tool": "report", "limit": "deny"})
    assert mixed.read_text() == MIXED.replace('"5/1m"', '"deny"')


def test_a_warning_goes_with_its_limit(mixed: Path) -> None:
    put(mixed, {"tool": "report", "limit": "5/1m", "concurrent": 3, "warn": "80%"})
    take_out(mixed, parse_rule({"tool": "report", "limit": "unlimited"}, where=""), named=False, part="calls")
    assert "warn" not in mixed.read_text()
    put(mixed, {"tool": "report", "limit": "5/1m", "warn": "80%"})
    put(mixed, {"tool": "report", "limit": "unlimited"})
    assert "warn" not in mixed.read_text()


@pytest.mark.parametrize(("key", "value", "other"), [("name", "a", "b"), ("mode", "observe", "enforce"), ("wait", "5s", "6s")])
def test_a_cap_joins_the_rule_of_a_limit_unless_its_name_mode_or_wait_is_another_one(
    tmp_path: Path, key: str, value: str, other: str
) -> None:
    file = tmp_path / "policy.toml"
    for cap, rules_then in ((value, 1), (other, 2)):
        file.write_text(f'[[rule]]\ntool = "x"\nlimit = "5/1m"\n{key} = "{value}"\n')
        put(file, {"tool": "x", "concurrent": 2, key: cap})
        assert len(parse(file.read_text()).rules) == rules_then


def test_a_limit_and_a_cap_in_two_rules_are_not_set_at_once(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    text = '[[rule]]\ntool = "x"\nlimit = "5/1m"\n[[rule]]\ntool = "x"\nconcurrent = 2\n'
    file.write_text(text)
    with pytest.raises(McpguardError, match="rules 1 and 2 have these selectors"):
        put(file, {"tool": "x", "limit": "6/1m", "concurrent": 3})
    assert file.read_text() == text
    put(file, {"tool": "x", "limit": "6/1m"})
    put(file, {"tool": "x", "concurrent": 3})
    assert file.read_text() == text.replace("5/1m", "6/1m").replace("= 2", "= 3")


def test_a_limit_per_session_is_a_rule_of_its_own_unless_it_is_set_together_with_others(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text('[[rule]]\nuser = "*"\nlimit = "5/1m"\n')
    put(file, {"user": "*", "limit": "9/session"})
    put(file, {"user": "*", "limit": "8/session"})
    put(file, {"user": "*", "limit": "6/1m"})
    assert [rule.limits_text for rule in parse(file.read_text()).rules] == ["6/1m", "8/session"]
    with pytest.raises(McpguardError, match="rules 1 and 2 have these selectors") as error:
        put(file, {"user": "*", "limit": ["6/1m", "8/session"]})
    assert error.value.hint == "set the limits one after the other"


@pytest.mark.parametrize(
    ("before", "per", "part", "gone"),
    [
        (["'5/1m'", "'9/session'"], None, None, "5/1m"),
        (["'5/1m'", "'9/session'"], ["user", "session"], None, "9/session"),
        (["'9/session'"], None, None, "9/session"),
        (["['5/1m', '9/session']"], None, "calls", "5/1m 9/session"),
        (["['5/1m', '9/session']"], ["user", "session"], None, None),
        (["['5/1m', '9/session']\nconcurrent = 2"], None, "calls", "5/1m 9/session"),
        (["'9/session'\nconcurrent = 2"], None, "concurrent", "2-in-flight"),
    ],
)
def test_a_rule_with_limits_per_session_is_removed_by_its_selectors(
    tmp_path: Path, before: list[str], per: list[str] | None, part: Any, gone: str | None
) -> None:
    file = tmp_path / "policy.toml"
    file.write_text("".join(f'[[rule]]\nuser = "*"\nlimit = {limit}\n' for limit in before))
    table: dict[str, Any] = {"user": "*", "limit": "unlimited"} | ({"per": per} if per else {})
    found = take_out(file, parse_rule(table, where=""), named=False, part=part)
    assert (found and found.gone.limits_text) == gone
    left = [rule.limits_text for rule in parse(file.read_text()).rules]
    assert gone is None or gone not in " ".join(left)
    assert len(left) == len(before) - (gone is not None and "concurrent" not in before[0])


@pytest.mark.parametrize(
    ("count", "table"),
    [
        ("calls", {"count": "errors"}),
        ("errors", {"count": "calls"}),
        ("cost", {}),
    ],
)
def test_a_limit_that_counts_something_else_is_not_replaced_because_it_shares_its_rule_with_a_cap(
    tmp_path: Path, count: str, table: dict[str, Any]
) -> None:
    file = tmp_path / "policy.toml"
    text = f'[[rule]]\ntool = "x"\nlimit = "20/1m"\ncount = "{count}"\nconcurrent = 2\n'
    file.write_text(text)
    with pytest.raises(McpguardError, match=f"rule 1 has these selectors, but its limit counts {count}, not ") as error:
        put(file, {"tool": "x", "limit": "3/1m", "concurrent": 4, **table})
    assert error.value.hint == "set the limit and the cap one after the other"
    assert file.read_text() == text
    put(file, {"tool": "x", "limit": "3/1m", **table})
    put(file, {"tool": "x", "concurrent": 4})
    assert parse(file.read_text()).rules[0].limit_text == "20/1m"
    assert [rule.concurrent for rule in parse(file.read_text()).rules] == [4, None]


@pytest.mark.parametrize(
    ("table", "before", "after"),
    [
        ({"tool": "report", "cost": 30}, "cost = 20  # units", "cost = 30  # units"),
        ({"cost": 3}, "cost = 2\n", "cost = 3\n"),
        ({"server": "crm", "cost": 3}, "# last words\n", '# last words\n\n[[cost]]\nserver = "crm"\ncost = 3\n'),
    ],
)
def test_setting_a_cost_changes_its_place_only(mixed: Path, table: dict[str, Any], before: str, after: str) -> None:
    put_cost(mixed, table)
    assert mixed.read_text() == MIXED.replace(before, after, 1)
    edit = put_cost(mixed, table)
    assert edit.is_unchanged


def test_rules_and_costs_are_removed_with_their_comments(mixed: Path) -> None:
    def costs(**table: Any) -> None:
        assert take_out_cost(mixed, parse_cost(table | {"cost": 1}, where="test"), named=True) is not None

    costs(tool="report")
    text = MIXED.replace('# Dear\n[[cost]]\ntool = "report"  # a tool\ncost = 20  # units\n\n', "")
    assert mixed.read_text() == text
    remove(mixed, tool="report")
    text = text.replace('# Reports\n[[rule]]\ntool = "report"\nlimit = "5/1m"  # agreed\n# after the limit\n\n', "")
    assert "after the limit" in mixed.read_text()  # it could be about what follows
    costs()
    assert "cost = 2\n" not in mixed.read_text()
    assert [rule.limits_text for rule in parse(mixed.read_text()).rules] == ["100-units/1h", "2-in-flight"]
    assert take_out_cost(mixed, parse_cost({"cost": 1}, where="test"), named=True) is None


def test_a_policy_of_costs_only_keeps_them_without_its_last_rule(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text('[[rule]]\nlimit = "5/1m"\n\n[[cost]]\ncost = 2\n')
    remove(file)
    assert file.read_text() == "[[cost]]\ncost = 2\n"
    take_out_cost(file, parse_cost({"cost": 1}, where="test"), named=True)
    assert file.read_text() == 'mode = "enforce"\n'


def test_a_part_of_a_rule_is_removed(mixed: Path) -> None:
    put(mixed, {"tool": "sync", "limit": "3/1m", "count": "errors"})
    rule = parse_rule({"tool": "sync", "limit": "unlimited"}, where="test")
    text = mixed.read_text()
    for part, kept, gone in (("errors", "2-in-flight", "3-errors/1m"), ("concurrent", "3-errors/1m", "2-in-flight")):
        mixed.write_text(text)
        found = take_out(mixed, rule, named=True, part=part)  # type: ignore[arg-type]
        assert found is not None
        assert (found.gone.limits_text, found.after.rules[2].limits_text, found.at) == (gone, kept, 2)
    assert take_out(mixed, rule, named=True, part="cost") is None


@pytest.mark.parametrize(
    "edit",
    [
        lambda file: put(file, {"tool": "b", "limit": "7/1m"}),
        lambda file: put(file, {"tool": "a", "limit": "7/1m"}),
        lambda file: remove(file, tool="a"),
        lambda file: put_cost(file, {"tool": "a", "cost": 4}),
    ],
)
def test_rules_and_costs_in_a_list_in_brackets_are_left_to_the_user(tmp_path: Path, edit: Callable[[Path], object]) -> None:
    file = tmp_path / "policy.toml"
    text = 'cost = [{tool = "a", cost = 2}]  # dear\nrule = [{tool = "a", limit = "5/1m"}]  # ours\n'
    file.write_text(text)
    with pytest.raises(McpguardError, match=r"= \[…\] in place of lines \[\["):
        edit(file)
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("100/1h", "9/1h"),
        ('wait = "5s"', 'wait = "6s"'),
        ("cost = 20", "cost = 21"),
        ("concurrent = 2", "concurrent = 3"),
    ],
)
def test_an_edit_that_would_change_more_than_its_place_is_refused(
    mixed: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    monkeypatch.setattr("mcpguard.policy.text.spliced", lambda *edits: spliced(*edits).replace(old, new))
    with pytest.raises(McpguardError, match="would change more than it should"):
        put(mixed, {"tool": "another", "limit": "1/1h"})
    assert mixed.read_text() == MIXED
