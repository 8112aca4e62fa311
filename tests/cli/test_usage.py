"""`mcpguard usage` shows the counters by the policy in force, and its screen leaves the terminal as it was."""

import contextlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from rich.cells import cell_len

from mcpguard.cli.usage import SIGNALS, end_watching, limit_text, plain, screen, table, usage_as_json
from mcpguard.limiter.sliding import EMPTY, charge
from mcpguard.policy.model import Call
from mcpguard.policy.parse import parse
from mcpguard.reading.usage import LimitFinder, Usage, View
from mcpguard.stores.api import CounterUse
from tests.cli.command import BOB, Terminal, calls, command, compare, complaint, mcpguard, objects, on_terminal, output
from tests.end_to_end.host import environment, policy, rule

RULES = rule("3/1h", user="*", tool="echo") + rule("100/1h", user="*") + rule("200/1d", tool="*")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Alice calls a tool five times, over a limit of three; Bob calls another three times."""
    home = tmp_path_factory.mktemp("home")
    calls(home, "echo", 5, rules=RULES)
    calls(home, "plain", 3, *BOB)
    return home


def listed(home: Path, *argv: str) -> list[dict[str, Any]]:
    return objects(home, "usage", "--json", *argv)


def test_without_a_counter_to_show_usage_says_so_on_stderr_in_a_pipe_too(home: Path) -> None:
    done = mcpguard(home, "usage", "--user", "nobody")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "mcpguard: no counter holds calls, or none matches\n")
    assert on_terminal(home, "usage", "--user", "nobody") == (0, done.stderr)
    assert mcpguard(home, "usage", "-n", "0").stderr == ""
    assert listed(home, "--user", "nobody") == []


def test_each_counter_has_its_rule_and_what_is_left_the_least_left_first(home: Path) -> None:
    first, *rest = listed(home)
    assert 0 < first.pop("next_free_ms") <= 3_600_000
    counter = {"user": "alice@acme.com", "tool": "echo", "server": "crm"}
    assert first == {"rule": "user=* tool=echo", "counter": counter, "limit": 3, "window": "1h", "used": 3, "left": 0}
    found = [(one["rule"], one["left"], one["next_free_ms"]) for one in rest]
    assert found == [("user=*", 97, 0)] * 2 + [("tool=*", 197, 0)] * 2


@pytest.mark.parametrize(
    ("argv", "counters"),
    [
        (["--user", "bob"], [{"user": "bob"}]),
        (["--tool", "ec*"], [{"user": "alice@acme.com", "tool": "echo", "server": "crm"}, {"tool": "echo", "server": "crm"}]),
        (["--server", "files"], [{"tool": "plain", "server": "files"}]),
        (["--agent", "*"], []),
        (["-n", "1"], [{"user": "alice@acme.com", "tool": "echo", "server": "crm"}]),
        (["-n", "0"], []),
    ],
)
def test_filters_choose_counters(home: Path, argv: list[str], counters: list[object]) -> None:
    assert [one["counter"] for one in listed(home, *argv)] == counters


def usages(text: str, *held: tuple[Call, int], used: str | None = None, now_us: int = 1_000_000) -> list[Usage]:
    """The usage under a policy, if so many calls were made at once, after a second, under this policy or under another."""
    counters: dict[str, CounterUse] = {}
    for call, times in held:
        plan = parse(used or text).plan(call)
        for limit in plan.limits:
            label = plan.counters[limit.counter].label
            log = charge(EMPTY, limit.n, limit.window_us, 1_000_000, times)
            counters[label] = CounterUse(label, times, log)
    return LimitFinder(parse(text), "default").usages(counters.values(), now_us)


ALICE = Call("alice", "Claude Code::subagent::Explore", "crm", "search")


TOGETHER = rule("9/1h", user="*", agent="*::subagent::*", per=["user"]) + rule("8/1m", tool="search", per=[])


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        (rule("9/1h", user="*", agent="*"), [9]),
        (rule("9/1h", user="a*") + rule("20/1h", user="*e"), [9]),
        (rule("9/1h", user="a*", mode="observe") + rule("20/1h", user="*e"), [20]),
        (TOGETHER, [8, 9]),
        (rule(["5/1m", "100/1h"], user="*"), [5, 100]),
        (rule("9/1h", user="*", role="admin"), []),
    ],
)  # fmt: skip
def test_a_counter_has_the_limit_by_which_it_is_charged(text: str, limits: list[int]) -> None:
    assert [one.rate.n for one in usages(text, (ALICE, 2)) if one.rate] == limits
    assert all(one.rule for one in usages(text, (ALICE, 2)))


def test_a_lowered_limit_has_nothing_left_and_tells_when_a_call_is_free() -> None:
    (after,) = usages(rule("3/1h", user="*"), (ALICE, 9), used=rule("9/1h", user="*"))
    assert (after.used, after.left, after.share, after.next_free_ms) == (9, 0, 1.0, 3_600_000)


def test_an_override_is_the_limit_of_the_counter_that_it_names_and_of_no_other() -> None:
    text = rule("9/1h", user="*") + rule("5/1h", user="alice") + rule("20/1h", user="carol")
    found = usages(text, (ALICE, 1), (ALICE._replace(user="bob"), 1), (ALICE._replace(user="carol"), 1))
    assert {one.counter["user"]: one.rate and one.rate.n for one in found} == {"alice": 5, "bob": 9, "carol": 20}


def test_calls_that_have_left_the_window_by_now_are_not_counted() -> None:
    at_us = 1_000_000 + 3_600_000_000
    for now_us, left in ((at_us - 1, 7), (at_us, 9)):
        (found,) = usages(rule("9/1h", user="*"), (ALICE, 2), now_us=now_us)
        assert (found.used, found.left) == (9 - left, left)


def test_on_a_narrow_terminal_a_counter_is_named_in_place_of_its_bar() -> None:
    found = usages(rule("9/1h", user="*"), (ALICE, 2))
    assert [line.split()[0] for line in table(found, 40)] == ["USED", "2"]
    assert table(found, 40)[1].endswith(" user=ali…")


KINDS = (
    rule("100/1h", user="*", count="cost")
    + rule("3/1m", tool="search", count="errors", concurrent=2)
    + rule("5/10m", user="*", per=["user", "arguments"])
    + rule(user="alice", tool="search", per=["tool"], concurrent=9)
)


def kinds(text: str = KINDS, used: str = KINDS) -> list[Usage]:
    """The usage of counters of each kind under a policy, made under another."""
    plan = parse(used).plan(ALICE).of_arguments("0123456789abcdef01234567")
    held = []
    for limit in plan.limits:
        counter = plan.counters[limit.counter]
        held.append(CounterUse(counter.label, 2, EMPTY))
        if limit.window_us:
            held[-1] = CounterUse(counter.label, limit.n, charge(EMPTY, limit.n, limit.window_us, 1_000_000, limit.n))
    return LimitFinder(parse(text), "default").usages(held, 1_000_000)


def test_each_kind_of_counter_is_shown_with_its_limit() -> None:
    assert [plain(one) for one in kinds()] == [
        'left=0 used=100 limit=100-units/1h next_free_ms=3600000 user=alice rule="user=*"',
        "left=0 used=5 limit=5/10m next_free_ms=600000 user=alice tool=search server=crm arguments=01234567"
        ' rule="user=* per=user,arguments"',
        'left=0 used=3 limit=3-errors/1m next_free_ms=60000 tool=search server=crm rule="tool=search"',
        'left=0 used=2 limit=2-in-flight next_free_ms=- tool=search server=crm rule="tool=search"',
        "left=7 used=2 limit=9-in-flight next_free_ms=0 user=alice tool=search server=crm"
        ' rule="user=alice tool=search per=tool"',
    ]


def test_each_kind_of_counter_has_its_members_as_json() -> None:
    found = [usage_as_json(one) for one in kinds()]
    assert [(one.get("counts"), one["limit"], one["window"], one["used"], one["left"]) for one in found] == [
        ("cost", 100, "1h", 100, 0),
        (None, 5, "10m", 5, 0),
        ("errors", 3, "1m", 3, 0),
        ("concurrent", 2, None, 2, 0),
        ("concurrent", 9, None, 2, 7),
    ]
    arguments = {"arguments": "0123456789abcdef01234567"}
    assert found[1]["counter"] == {"user": "alice", "server": "crm", "tool": "search"} | arguments


def test_counters_that_no_rule_has_any_more_still_say_what_they_count() -> None:
    found = [(limit_text(one), usage_as_json(one)) for one in kinds('mode = "enforce"')]
    told = {(text, one["window"]) for text, one in found}
    assert told == {("-/10m", "10m"), ("-errors/1m", "1m"), ("-in-flight", None), ("-units/1h", "1h")}
    assert {(one["rule"], one["limit"], one["left"]) for _, one in found} == {(None, None, None)}


def test_the_other_part_of_an_overridden_rule_still_limits() -> None:
    found = kinds(KINDS + rule("7/1m", tool="search", server="crm", count="errors"))
    assert [(limit_text(one), one.rule.text) for one in found if one.rule and one.rule.text.startswith("tool=")] == [
        ("2-in-flight", "tool=search"),
        ("7-errors/1m", "tool=search server=crm"),
    ]


def pressed() -> list[Usage]:
    other = Call("客户服务部门的爱丽丝" * 3, "Cursor::background::nightly", "files", "read_\x1b[2J")
    text = rule("3/1m", user="*", tool="*") + rule("100/1h", agent="*") + rule("1000/1d", tool="*", per=[])
    return usages(text, (ALICE, 3), (other, 2))


DENIAL: dict[str, object] = {"time": "2026-01-01T12:34:56Z", "decision": "rate_limited"}


@pytest.mark.parametrize("columns", [80, 160])
@pytest.mark.parametrize(("name", "found"), [("usage-kinds", kinds()), ("usage", pressed())], ids=["kinds", "pressed"])
def test_the_table_is_as_it_was_looked_at(name: str, found: list[Usage], columns: int) -> None:
    shown = list(map(click.unstyle, table(found, columns)))
    assert max(map(cell_len, shown)) < columns
    compare(f"{name}-{columns}.txt", "\n".join(shown) + "\n")


def test_the_table_does_not_cut_large_numbers() -> None:
    (one,) = usages(rule("2000000/1h", user="*"), (ALICE, 1))
    (_, line) = table([one._replace(used=1234567, left=765433)], 80)
    assert click.unstyle(line).split()[1:] == ["1234567", "2000000/1h", "765433", "now", "user=alice"]


@pytest.mark.parametrize(("columns", "height"), [(80, 24), (160, 50)])
def test_the_screen_is_as_it_was_looked_at(columns: int, height: int) -> None:
    denial = DENIAL | {"axis": "user", "limit": 3, "window": "1m"}
    names = {"user": "alice", "agent": "Cursor::api::x", "tool": "search", "server": "crm", "repeats": 7}
    view = View(pressed() * 30, {"user": 123.4, "none": 1.0}, {"user": 3.25}, [denial | names] * 20, "")
    lines = list(map(click.unstyle, screen(view, "/home/alice/mcpguard.db", columns, height, None)))
    assert len(lines) <= height
    assert max(map(cell_len, lines)) < columns
    compare(f"watch-{columns}.txt", re.sub(r"\d\d:\d\d:\d\d", "hh:mm:ss", "\n".join(lines) + "\n"))


@pytest.mark.usefixtures("a_day_ahead")
def test_the_screen_has_the_times_of_any_zone() -> None:
    lines = screen(View(pressed(), {}, {}, [DENIAL], ""), "store", 80, 24, None)
    assert lines[-1].split()[0] == "12:34:56"


def test_the_screen_says_below_its_heading_what_is_wrong_with_the_policy() -> None:
    assert screen(View([], {}, {}, [], "line 1\x1b"), "store", 80, 24, None)[1] == r"line 1\x1b"


@pytest.mark.parametrize("height", [8, 10])
def test_a_low_screen_shows_counters_rather_than_denials(height: int) -> None:
    lines = screen(View(pressed(), {}, {}, [DENIAL], ""), "store", 80, height, None)
    assert [line for line in lines if "█" in line]
    assert "LATEST DENIALS" not in lines


def test_in_a_pipe_each_counter_is_a_line_of_keys_and_values(home: Path) -> None:
    last = 'left=197 used=3 limit=200/1d next_free_ms=0 tool=plain server=files rule="tool=*"'
    assert output(home, "usage").splitlines()[4] == last


def test_watch_shows_a_screen_on_a_terminal_only_and_no_json(home: Path) -> None:
    hint = "hint: use mcpguard usage --json for programs"
    assert complaint(home, "usage", "--watch").splitlines()[-1] == hint
    status, shown = on_terminal(home, "usage", "--watch", "--json")
    assert (status, shown.splitlines()[-1]) == (2, hint)


@pytest.mark.parametrize("kind", ["dumb", "unknown"])
def test_watch_needs_a_terminal_that_can_move_its_cursor(home: Path, kind: str) -> None:
    status, shown = on_terminal(home, "usage", "--watch", TERM=kind)
    error = f"mcpguard: --watch needs a terminal that can move its cursor, and TERM is {kind}"
    assert (status, shown.splitlines()) == (2, [error, "hint: leave out --watch"])


@contextlib.contextmanager
def watching(home: Path, no_color: str = "1") -> Iterator[Terminal]:
    """`usage --watch` on a terminal of its own."""
    env = environment(home, TERM="xterm-256color", NO_COLOR=no_color)
    with contextlib.closing(Terminal(command("usage", "--watch"), env, columns=100, lines=30)) as shown:
        yield shown


def test_a_second_signal_does_not_stop_what_restores_the_terminal() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        with pytest.raises(SystemExit) as end:
            end_watching(signal.SIGTERM, None)
        assert (end.value.code, {signal.getsignal(number) for number in before}) == (143, {signal.SIG_IGN})
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.posix
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_screen_and_leaves_the_terminal_as_it_was(home: Path, name: str) -> None:
    number = getattr(signal, name)
    with watching(home) as shown:
        shown.wait_for(b"LATEST DENIALS")
        shown.wait_for(b"rate_limited")
        assert b"\x1b[?1049h" in shown.data
        assert shown.end(number) == 128 + number
        restored = shown.data.rpartition(b"\x1b[?25l")[2]
        assert b"\x1b[?25h" in restored
        assert restored.endswith(b"\x1b[?1049l")
        assert b"Traceback" not in shown.data
        assert shown.settings() == shown.at_first


@pytest.mark.parametrize("no_color", ["", "1"])
def test_the_screen_has_colours_unless_no_color_is_set(home: Path, no_color: str) -> None:
    with watching(home, no_color) as shown:
        shown.wait_for(b"rate_limited")
        coloured = re.search(rb"\x1b\[[0-9;]*3[0-7][0-9;]*m", shown.data) is not None
    assert coloured is not bool(no_color)


def test_the_screen_goes_on_with_the_policy_that_it_took_up_in_a_store_that_replaces_its_own(tmp_path: Path) -> None:
    calls(tmp_path, "echo", 1, rules=rule("5/1h", user="*"))
    with watching(tmp_path) as shown:
        shown.wait_for(b" 5/1h .*user=alice")
        policy(tmp_path, rule("7/1h", user="*"))
        shown.wait_for(b" 7/1h .*user=alice")
        for path in tmp_path.glob("mcpguard.db*"):
            path.unlink()
        calls(tmp_path, "echo", 1, *BOB)
        assert b" 7/1h " in shown.wait_for(rb"[^\n]*user=bob")[0]
        assert shown.end(signal.SIGTERM) == 143
