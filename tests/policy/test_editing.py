"""Edits of a policy file: what changes in it, and what stays."""

import contextlib
import errno
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcpguard.documents.document import spliced
from mcpguard.errors import ExitStatus, McpguardError, PolicyError
from mcpguard.limiter.sliding import Counts
from mcpguard.locks import FileLock
from mcpguard.policy.editing import PolicyEdit, TakenOut, put, put_cost, set_mode, take_out, take_out_cost
from mcpguard.policy.model import Cost
from mcpguard.policy.parse import STARTER, parse, parse_cost, parse_rule
from mcpguard.policy.writing import begin, folder_lock
from tests.build import refusing
from tests.end_to_end.host import rule
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
"""A policy that a person wrote, for tests of commands, too."""

REPORTS = """\
# Reports
[[rule]]
tool  = "report"      # the slow one
limit = "5/1m"  # agreed
"""
DEAR = """\
# Dear
[[cost]]
tool = "report"  # a tool
cost = 20  # units

"""
OURS = f"""\
# Ask Ines before you change this
wait = "5s"  # for all

{REPORTS}# after the limit

{DEAR}# Everything
[[rule]]
limit = "100/1h"
count = "cost"

[[cost]]
cost = 2

# Syncs
[[ rule ]]  # spaced
tool = "sync"
concurrent = 2
# last words
"""
RULE = '[[rule]]\ntool = "a"\nlimit = "5/1m"\n'
ENFORCE = 'mode = "enforce"\n'
NEW: dict[str, Any] = {"tool": "x", "limit": "5/1m"}
"""A rule that is not there yet."""

each_line_end = pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the lock is on Windows."""
    monkeypatch.setenv("MCPGUARD_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "policy.toml"
    write(file, OURS)
    return file


def write(file: Path, text: str, end: str = "\n") -> None:
    file.write_bytes(text.replace("\n", end).encode())


def written(file: Path) -> str:
    return file.read_bytes().decode()


def edit(file: Path, table: dict[str, Any]) -> PolicyEdit:
    """Set a rule or a cost."""
    return (put_cost if "cost" in table else put)(file, table)


def remove(file: Path, part: Counts | None = None, **selectors: Any) -> TakenOut | None:
    return take_out(file, parse_rule({**selectors, "limit": "unlimited"}, where="test"), named=True, part=part)


def remove_cost(file: Path, **selectors: Any) -> Cost | None:
    return take_out_cost(file, parse_cost({**selectors, "cost": 1}, where="test"), named=True)


def limits(file: Path) -> list[str]:
    return [rule.limits_text for rule in parse(written(file)).rules]


# Setting a rule or a cost


def test_a_missing_file_begins_with_the_starter_rules(tmp_path: Path) -> None:
    file = tmp_path / "new" / "policy.toml"
    before, after, at, _ = put(file, {"user": "*", "limit": ["20/1m", "100/1h"]})
    assert (before.rules, at) == (parse(STARTER).rules, 4)
    assert after.rules == parse(written(file)).rules
    assert written(file) == STARTER + '\n[[rule]]\nuser = "*"\nlimit = ["20/1m", "100/1h"]\n'
    modes = [stat.S_IMODE(one.stat().st_mode) for one in (file, file.parent)]
    assert sys.platform == "win32" or modes == [0o600, 0o700]


@pytest.mark.parametrize(
    "table",
    [
        {"limit": "9/1h"},  # the rule for every call counts something else
        {"tool": "sync", "limit": "deny"},
        {"tool": "sync", "mode": "observe", "limit": "3/1m"},
        {"tool": "report", "role": ["a", "b"], "limit": "deny"},
        {"tool": "report", "per": [], "limit": "1/1h"},
    ],
)
def test_a_rule_for_something_else_is_added_at_the_end(file: Path, table: dict[str, Any]) -> None:
    assert edit(file, table).at == 3
    assert written(file) == f"{OURS}\n{rule(**table)}"[:-1]


CAP = "concurrent = 2\n"
EDITS: dict[str, tuple[dict[str, Any], str, str]] = {
    "limit": ({"tool": "report", "limit": "6/1m"}, '"5/1m"', '"6/1m"'),
    "cap": ({"tool": "sync", "concurrent": 3}, CAP, "concurrent = 3\n"),
    "limit and cap": ({"tool": "sync", "limit": "3/1m", "concurrent": 1}, CAP, 'concurrent = 1\nlimit = "3/1m"\n'),
    "limit beside a cap": ({"tool": "sync", "limit": "3/1m"}, CAP, f'{CAP}limit = "3/1m"\n'),
    "cap beside a limit": ({"tool": "report", "concurrent": 3}, "# agreed\n", "# agreed\nconcurrent = 3\n"),
    "count": ({"tool": "sync", "limit": "3/1m", "count": "errors"}, CAP, f'{CAP}limit = "3/1m"\ncount = "errors"\n'),
    "wait": ({"tool": "report", "limit": "5/1m", "wait": "9s"}, "# agreed\n", '# agreed\nwait = "9s"\n'),
    "warning": ({"tool": "report", "limit": "5/1m", "warn": "80%"}, "# agreed\n", '# agreed\nwarn = "80%"\n'),
    "name": ({"tool": "report", "limit": "5/1m", "name": 'a "b"'}, "tool  =", r'name = "a \"b\""' + "\ntool  ="),
    "mode": ({"limit": "9/1h", "count": "cost", "mode": "observe"}, 'limit = "100/1h"', 'mode = "observe"\nlimit = "9/1h"'),
    "cost": ({"tool": "report", "cost": 30}, "cost = 20  # units", "cost = 30  # units"),
    "cost of all tools": ({"cost": 3}, "cost = 2\n", "cost = 3\n"),
    "cost that is new": ({"server": "x", "cost": 3}, "last words\n", 'last words\n\n[[cost]]\nserver = "x"\ncost = 3\n'),
}


@each_line_end
@pytest.mark.parametrize(("table", "before", "after"), EDITS.values(), ids=EDITS)
def test_an_edit_changes_its_place_only(file: Path, end: str, table: dict[str, Any], before: str, after: str) -> None:
    write(file, OURS, end)
    assert not edit(file, table).is_unchanged
    changed = OURS.replace(before, after, 1).replace("\n", end)
    assert written(file) == changed
    assert edit(file, table).is_unchanged
    assert written(file) == changed


LIST = '[\n  "20/1m",   # short bursts\n  # and the long run\n  "100/1h",  # per hour\n]'
BOTH, NOTED = ["6/1m", "60/1h"], '[\n  # "9/1h" was too few\n  "6/1m",\n  "60/1h",\n]'


@each_line_end
@pytest.mark.parametrize(
    ("before", "limit", "after"),
    [
        (LIST, BOTH, '[\n  # short bursts\n  # and the long run\n  # per hour\n  "6/1m",\n  "60/1h",\n]'),
        (LIST, "50/1h", '[\n  # short bursts\n  # and the long run\n  # per hour\n  "50/1h",\n]'),
        ('[\n  "5/1m"\n  # ours\n]', "6/1m", '[\n  # ours\n  "6/1m",\n]'),
        (LIST, "deny", '"deny" # short bursts; and the long run; per hour'),
        ('[\n  "5/1m", # short\n] # in May', "unlimited", '"unlimited" # short; in May'),
        ('[\n  "5/1m"\n  # "9/1h" was too few\n]', BOTH, NOTED),
        ('[ "5/1m" # "9/1h" was too few\n]', BOTH, NOTED),
        ('[ # "9/1h" was too few\n  "5/1d", "5/1w"]', BOTH, NOTED),
    ],
)
def test_the_comments_in_a_list_of_limits_stay(file: Path, end: str, before: str, limit: Any, after: str) -> None:
    write(file, RULE.replace('"5/1m"', before), end)
    put(file, {"tool": "a", "limit": limit})
    assert written(file) == RULE.replace('"5/1m"', after).replace("\n", end)


@pytest.mark.parametrize("old", ["deny", "unlimited", "5/1m"])
@pytest.mark.parametrize("new", ["deny", "unlimited", "6/1m"])
def test_a_word_replaces_a_limit_and_another_word(file: Path, old: str, new: str) -> None:
    write(file, RULE.replace("5/1m", old))
    assert put(file, {"tool": "a", "limit": new}).is_unchanged == (old == new)
    assert written(file) == RULE.replace("5/1m", new)


def test_limits_in_another_order_change_nothing(file: Path) -> None:
    put(file, {"tool": "a", "limit": ["20/1m", "100/1h"]})
    assert put(file, {"tool": "a", "limit": ["100/1h", "20/1m"]}).is_unchanged


def test_a_name_is_added_changed_kept_and_removed(file: Path) -> None:
    write(file, RULE)

    def names(**more: str) -> list[str]:
        put(file, {"tool": "a", "limit": "5/1m", **more})
        return [rule.name for rule in parse(written(file)).rules]

    assert [names(name="ours"), names(name="renamed"), names()] == [["ours"], ["renamed"], ["renamed"]]
    assert names(name="") == [""]
    assert written(file) == RULE
    put(file, {"tool": "b", "limit": "5/1m", "name": ""})
    assert "name" not in written(file)


def test_a_key_is_added_below_a_last_line_without_an_end(file: Path) -> None:
    write(file, RULE[:-1])
    put(file, {"tool": "a", "concurrent": 3})
    assert written(file) == f"{RULE}concurrent = 3\n"


@pytest.mark.parametrize("char", ["\u2028", "\u2029", "\x85"])
def test_characters_that_end_a_line_for_python_but_not_for_toml_stay(file: Path, char: str) -> None:
    text = f'# a{char}b\n\n[[rule]]\nname = "c{char}d"\ntool = "b"\nlimit = "5/1m"\n\n{RULE}# z{char}'
    write(file, text)
    for tool in ("a", "b"):
        put(file, {"tool": tool, "limit": "6/1m"})
    assert written(file) == text.replace("5/1m", "6/1m")
    put(file, {"tool": "c", "limit": "7/1m"})
    assert written(file).startswith(text.replace("5/1m", "6/1m") + "\n\n[[rule]]\n")


# Removing


SEARCHES = BY_HAND[BY_HAND.index("# Searches") : BY_HAND.index("# Reports")]
B = RULE.replace('"a"', '"b"')
OF_A = {"tool": "a"}
REMOVALS: dict[str, tuple[str, Callable[..., object], dict[str, str], str]] = {
    "rule with the comment above it": (OURS, remove, {"tool": "report"}, OURS.replace(REPORTS, "")),
    "rule of several selectors": (BY_HAND, remove, {"tool": "search", "user": "*"}, BY_HAND.replace(SEARCHES, "")),
    "cost with the comment above it": (OURS, remove_cost, {"tool": "report"}, OURS.replace(DEAR, "")),
    "cost of all tools": (OURS, remove_cost, {}, OURS.replace("[[cost]]\ncost = 2\n\n", "")),
    "only rule": (f"# ours\n{RULE}", remove, OF_A, f"# ours\n\n{ENFORCE}"),
    "only rule below a mode": (f"# ours\n\n{ENFORCE}\n{RULE}", remove, OF_A, f"# ours\n\n{ENFORCE}"),
    "only rule beside costs": (f"{RULE}\n[[cost]]\ncost = 2\n", remove, OF_A, "[[cost]]\ncost = 2\n"),
    "only cost": ("[[cost]]\ncost = 2\n", remove_cost, {}, ENFORCE),
    "last line without an end": (f"# ours\n{B}\n{RULE}"[:-1], remove, OF_A, f"# ours\n{B}"[:-1]),
    "last line without an end, below a mode": (f"{ENFORCE}\n{RULE}"[:-1], remove, OF_A, ENFORCE[:-1]),
    "last line without an end, below a comment": (f"# ours\n\n{RULE}"[:-1], remove, OF_A, f"# ours\n\n{ENFORCE}"),
}


@each_line_end
@pytest.mark.parametrize(("old", "take", "selectors", "left"), REMOVALS.values(), ids=REMOVALS)
def test_what_is_removed_leaves_all_else_and_a_policy(
    file: Path, end: str, old: str, take: Callable[..., object], selectors: dict[str, str], left: str
) -> None:
    write(file, old, end)
    assert take(file, **selectors)
    assert written(file) == left.replace("\n", end)


def test_removing_what_is_not_there_writes_nothing(file: Path) -> None:
    before = file.stat()
    assert [remove(file, tool="search"), remove_cost(file, tool="search")] == [None, None]
    assert (file.stat().st_ino, file.stat().st_mtime_ns, written(file)) == (before.st_ino, before.st_mtime_ns, OURS)


def test_removing_a_rule_from_a_missing_file_is_an_error_and_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="no such file"):
        remove(tmp_path / "policy.toml", tool="search")
    assert list(tmp_path.iterdir()) == []


# Files that cannot be edited


CHANGES: list[Callable[[Path], object]] = [
    lambda file: put(file, {"tool": "a", "limit": "7/1m"}),
    lambda file: put(file, NEW),
    lambda file: remove(file, tool="a"),
    lambda file: put_cost(file, {"tool": "a", "cost": 4}),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("content", [b"", b"# x\n", b'[[rule]]\ntool = "a\n', b"\xff\xfe", b"[[rule]]\ntool = 'a'\nlimt = 'x'"])
def test_a_file_that_is_no_policy_is_an_error_and_stays(file: Path, content: bytes, change: Callable[[Path], object]) -> None:
    file.write_bytes(content)
    with pytest.raises(PolicyError, match=re.escape(f"{file}: line ")) as raised:
        change(file)
    assert raised.value.hint
    assert file.read_bytes() == content


@pytest.mark.posix
@pytest.mark.parametrize("change", CHANGES)
def test_no_edit_waits_for_a_pipe_in_place_of_the_file(file: Path, change: Callable[[Path], object]) -> None:
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(PolicyError, match=re.escape(f"{file}: cannot be read: not a regular file")) as raised:
        change(file)
    assert raised.value.exit_status == ExitStatus.CONFIGURATION


@pytest.mark.parametrize("change", CHANGES)
def test_rules_and_costs_in_a_list_in_brackets_are_left_to_the_user(file: Path, change: Callable[[Path], object]) -> None:
    text = 'cost = [{tool = "a", cost = 2}]  # dear\nrule = [{tool = "a", limit = "5/1m"}]  # ours\n'
    write(file, text)
    with pytest.raises(McpguardError, match=r"= \[…\] in place of lines \[\["):
        change(file)
    assert written(file) == text


@pytest.mark.parametrize(("old", "new"), [("100/1h", "9/1h"), ("cost = 20", "cost = 21")])
def test_an_edit_that_would_change_more_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    monkeypatch.setattr("mcpguard.policy.text.spliced", lambda *edits: spliced(*edits).replace(old, new))
    with pytest.raises(McpguardError, match="would change more than it should"):
        put(file, NEW)
    assert written(file) == OURS


# The file itself


def test_a_link_stays_and_its_target_is_replaced_as_a_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    target = tmp_path / "team" / "limits.toml"
    write(target, OURS)
    target.chmod(0o644)
    link = tmp_path / "policy.toml"
    make_link(link, target)
    with contextlib.ExitStack() as reading:
        old = None if sys.platform == "win32" else reading.enter_context(link.open())  # there it keeps the file as it is
        put(link, NEW)
        assert old is None or old.read() == OURS
    assert link.is_symlink()
    assert sys.platform == "win32" or stat.S_IMODE(target.stat().st_mode) == 0o644
    assert written(target) == f"{OURS}\n{rule(**NEW)}"[:-1]
    assert list(target.parent.iterdir()) == [target]
    target.unlink()
    assert begin(link) is True
    assert written(target) == STARTER


def test_an_unfinished_file_of_an_edit_that_was_killed_is_removed_by_the_next_edit(file: Path) -> None:
    unfinished, backup = (file.with_name(f".policy.toml.{name}") for name in ("mcpguard-abc", "20261126"))
    unfinished.touch()
    backup.touch()
    put(file, NEW)
    assert sorted(file.parent.iterdir()) == [backup, file]


def test_where_folders_cannot_be_locked_only_old_unfinished_files_go(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FileLock, "acquire", refusing(errno.ENOLCK))
    leftover = file.parent / ".policy.toml.mcpguard-abc"
    leftover.touch()
    now = leftover.stat().st_mtime
    for age_s, left in ((60, True), (7200, False)):
        monkeypatch.setattr(time, "time", lambda age_s=age_s: now + age_s)
        put(file, NEW)
        assert leftover.exists() is left


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
    kept, added = parse(OURS).rules, [f"tool={tool}" for mine in tools for tool in mine.split()]
    assert sorted(rule.text for rule in parse(written(file)).rules[len(kept) :]) == sorted(added)
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("freed", [True, False])
def test_an_edit_waits_for_another_for_some_time(file: Path, monkeypatch: pytest.MonkeyPatch, freed: bool) -> None:
    other = folder_lock(file.parent)
    assert other.acquire(0)
    now_s = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds
        if freed and now_s > 0.1:
            other.release()

    with monkeypatch.context() as patched:
        patched.setattr(time, "monotonic", lambda: now_s)
        patched.setattr(time, "sleep", sleep)
        with contextlib.nullcontext() if freed else pytest.raises(McpguardError, match="locked by another process"):
            put(file, NEW)
    other.close()
    assert (written(file) != OURS) is freed


# The mode


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (RULE, f'mode = "observe"\n\n{RULE}'),
        (OURS, f'mode = "observe"\n\n{OURS}'),
        (f"# about us\n\n{RULE}", f'# about us\n\nmode = "observe"\n\n{RULE}'),
        (f"# about the rule\n{RULE}", f'mode = "observe"\n\n# about the rule\n{RULE}'),
        (f"mode = 'enforce'   # why\n{RULE}", f'mode = "observe"   # why\n{RULE}'),
        (f"# about us\r\n\r\n{RULE}", f'# about us\r\n\r\nmode = "observe"\r\n\r\n{RULE}'),
        ("rule = []\nmode = 'enforce' # why\n", 'rule = []\nmode = "observe" # why\n'),
        ("rule = [{tool = 'a', limit = 'deny'}]\n", "mode = \"observe\"\n\nrule = [{tool = 'a', limit = 'deny'}]\n"),
        (f'{RULE}mode = "observe"\n', f'mode = "observe"\n\n{RULE}mode = "observe"\n'),
    ],
)
def test_the_mode_is_changed_or_added_where_it_belongs_and_all_else_stays(file: Path, before: str, after: str) -> None:
    write(file, before)
    assert set_mode(file, "enforce").is_unchanged
    assert written(file) == before
    edit = set_mode(file, "observe")
    assert (edit.before.observe, edit.after.observe, edit.is_new_file) == (False, True, False)
    assert written(file) == after
    set_mode(file, "enforce")
    policy = parse(written(file))
    assert not policy.observe
    assert [rule.text for rule in policy.rules] == [rule.text for rule in parse(before).rules]


def test_a_rules_own_mode_is_set_and_kept(file: Path) -> None:
    write(file, RULE)

    def modes(**more: str) -> list[bool]:
        put(file, {"tool": "a", "limit": "5/1m", **more})
        return [rule.observe for rule in parse(written(file)).rules]

    assert modes(mode="enforce") == [False]
    assert written(file) == RULE
    assert modes(mode="observe") == modes() == [True]
    assert modes(mode="enforce") == [False]
    assert modes(mode="observe", name="a") == [True]


# Rules with several parts


def test_closing_a_rule_removes_what_a_closed_rule_cannot_have(file: Path) -> None:
    put(file, {"tool": "report", "limit": "5/1m", "concurrent": 3, "wait": "9s", "count": "calls", "warn": "80%"})
    put(file, {"tool": "report", "limit": "deny"})
    assert written(file) == OURS.replace('"5/1m"', '"deny"')


def test_a_warning_goes_with_its_limit(file: Path) -> None:
    for go in (lambda: remove(file, "calls", tool="a"), lambda: put(file, {"tool": "a", "limit": "unlimited"})):
        write(file, f'{RULE}warn = "80%"\nconcurrent = 3\n')
        go()
        assert "warn" not in written(file)


@pytest.mark.parametrize(("key", "value", "other"), [("name", "a", "b"), ("mode", "observe", "enforce"), ("wait", "5s", "6s")])
def test_a_cap_joins_a_limit_of_the_same_name_mode_and_wait(file: Path, key: str, value: str, other: str) -> None:
    for cap, found in ((value, ["5/1m 2-in-flight"]), (other, ["5/1m", "2-in-flight"])):
        write(file, f'{RULE}{key} = "{value}"\n')
        put(file, {"tool": "a", "concurrent": 2, key: cap})
        assert limits(file) == found


def test_a_limit_and_a_cap_in_two_rules_are_not_set_at_once(file: Path) -> None:
    text = f'{RULE}[[rule]]\ntool = "a"\nconcurrent = 2\n'
    write(file, text)
    with pytest.raises(McpguardError, match="rules 1 and 2 have these selectors"):
        put(file, {"tool": "a", "limit": "6/1m", "concurrent": 3})
    assert written(file) == text
    put(file, {"tool": "a", "limit": "6/1m"})
    put(file, {"tool": "a", "concurrent": 3})
    assert written(file) == text.replace("5/1m", "6/1m").replace("= 2", "= 3")


def test_a_limit_per_session_is_a_rule_of_its_own_unless_it_is_set_together_with_others(file: Path) -> None:
    write(file, RULE)
    for limit in ("9/session", "8/session", "6/1m"):
        put(file, {"tool": "a", "limit": limit})
    assert limits(file) == ["6/1m", "8/session"]
    with pytest.raises(McpguardError, match="rules 1 and 2 have these selectors") as error:
        put(file, {"tool": "a", "limit": ["6/1m", "8/session"]})
    assert error.value.hint == "set the limits one after the other"


@pytest.mark.parametrize(
    ("old", "table", "new"),
    [
        ("limit = '9/session'", {"per": ["user", "session"], "limit": "5/1m"}, ("5/1m", "user,session")),
        ("limit = '9/session'", {"per": ["user", "session"], "limit": "unlimited"}, ("unlimited", "user,session")),
        ("per = ['user', 'session']\nlimit = '5/1m'", {"limit": "9/session"}, ("9/session", "user,session")),
        ("limit = ['5/1m', '9/session']", {"per": ["user", "session"], "limit": "2/1m"}, None),
        ("limit = '9/session'\nconcurrent = 2", {"per": ["user", "session"], "limit": "2/1m"}, None),
        ("per = ['user', 'session']\nlimit = '5/1m'", {"limit": ["2/1m", "9/session"]}, None),
    ],
)
def test_limits_per_session_written_in_either_way_are_replaced_only_if_nothing_else_changes(
    file: Path, old: str, table: dict[str, Any], new: tuple[str, str] | None
) -> None:
    text = f'[[rule]]\nuser = "*"\n{old}\n'
    write(file, text)
    if new:
        put(file, {"user": "*", **table})
        (rule,) = parse(written(file)).rules
        assert (rule.limits_text, rule.per_text) == new
        return
    with pytest.raises(McpguardError, match="has limits per session for the same calls"):
        put(file, {"user": "*", **table})
    assert written(file) == text


@pytest.mark.parametrize(("count", "table"), [("calls", {"count": "errors"}), ("errors", {"count": "calls"}), ("cost", {})])
def test_a_limit_beside_a_cap_is_not_replaced_by_one_of_another_count(file: Path, count: str, table: dict[str, Any]) -> None:
    text = f'{RULE}count = "{count}"\nconcurrent = 2\n'
    write(file, text)
    with pytest.raises(McpguardError, match=f"rule 1 has these selectors, but its limit counts {count}, not ") as error:
        put(file, {"tool": "a", "limit": "3/1m", "concurrent": 4, **table})
    assert error.value.hint == "set the limit and the cap one after the other"
    assert written(file) == text
    put(file, {"tool": "a", "limit": "3/1m", **table})
    put(file, {"tool": "a", "concurrent": 4})
    first, second = parse(written(file)).rules
    assert (first.limit_text, first.concurrent, second.concurrent) == ("5/1m", 4, None)


@pytest.mark.parametrize(
    ("before", "per", "part", "gone", "left"),
    [
        (["'5/1m'", "'9/session'"], None, None, "5/1m", ["9/session"]),
        (["'5/1m'", "'9/session'"], ["user", "session"], None, "9/session", ["5/1m"]),
        (["'9/session'"], None, None, "9/session", []),
        (["['5/1m', '9/session']"], None, "calls", "5/1m 9/session", []),
        (["['5/1m', '9/session']"], ["user", "session"], None, None, ["5/1m 9/session"]),
        (["['5/1m', '9/session']\nconcurrent = 2"], None, "calls", "5/1m 9/session", ["2-in-flight"]),
        (["'9/session'\nconcurrent = 2"], None, "concurrent", "2-in-flight", ["9/session"]),
    ],
)
def test_a_rule_with_limits_per_session_is_removed_by_its_selectors(
    file: Path, before: list[str], per: list[str] | None, part: Counts | None, gone: str | None, left: list[str]
) -> None:
    write(file, "".join(f'[[rule]]\nuser = "*"\nlimit = {limit}\n' for limit in before))
    found = remove(file, part, user="*", **({"per": per} if per else {}))
    assert (found and found.gone.limits_text) == gone
    assert limits(file) == left


def test_a_part_of_a_rule_is_removed(file: Path) -> None:
    put(file, {"tool": "sync", "limit": "3/1m", "count": "errors"})
    text = written(file)
    parts: list[tuple[Counts, str, str]] = [
        ("errors", "3-errors/1m", "2-in-flight"),
        ("concurrent", "2-in-flight", "3-errors/1m"),
    ]
    for part, gone, kept in parts:
        write(file, text)
        found = remove(file, part, tool="sync")
        assert found is not None
        assert (found.gone.limits_text, found.after.rules[2].limits_text, found.at) == (gone, kept, 2)
    assert remove(file, "cost", tool="sync") is None
