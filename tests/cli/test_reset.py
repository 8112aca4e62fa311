import contextlib
import json
from pathlib import Path

import pytest

from mcpguard.cli.reset import used_text
from mcpguard.cli.usage import counter_text
from mcpguard.policy.model import Call
from mcpguard.policy.parse import parse
from mcpguard.stores.api import CounterUse
from mcpguard.stores.sqlite.store import SqliteStore
from tests.cli.command import ALICE, BOB, OBEDIENT, calls, mcpguard, on_terminal
from tests.end_to_end.host import Host, policy, rule

RULES = (
    rule("5/1h", user="*", tool="*")
    + rule("50/90m", tool="echo")
    + '[[rule]]\nuser = "*"\nagent = "*::interactive::*"\nper = ["user"]\nlimit = "100/30m"\n'
)


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calls by Alice and Bob, made once."""
    home = tmp_path_factory.mktemp("used")
    policy(home, RULES)
    calls(home, "echo", 2)
    calls(home, "plain", 1, *BOB)
    return home


def held(home: Path) -> int:
    with contextlib.closing(SqliteStore(home / "mcpguard.db")) as store:
        return len(store.counters())


def test_it_empties_all_counters_and_prints_them(home: Path) -> None:
    done = mcpguard(home, "reset", "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    *counters, total = done.stdout.splitlines()
    assert total == "4 counters reset"
    assert sorted(counters) == [
        "tool=echo server=crm: 2 calls in the last 90 minutes",
        "user=alice@acme.com agent=*::interactive::* (counted together): 2 calls in the last 30 minutes",
        "user=alice@acme.com tool=echo server=crm: 2 calls in the last hour",
        "user=bob tool=plain server=files: 1 call in the last hour",
    ]
    assert held(home) == 0
    assert mcpguard(home, "reset", "--yes").stdout == "no counter in use matches\n"


def test_json_output_has_a_line_for_each_counter_and_nothing_else(home: Path) -> None:
    argv = ("reset", "--user", "alice@acme.com", "--yes", "--json")
    done = mcpguard(home, *argv)
    found = sorted(map(json.loads, done.stdout.splitlines()), key=lambda counter: counter["window_seconds"])
    alice = {"namespace": "default", "user": "alice@acme.com", "used": 2}
    assert found == [
        alice | {"together": {"agent": ["*::interactive::*"]}, "window_seconds": 1800},
        alice | {"tool": "echo", "server": "crm", "together": {}, "window_seconds": 3600},
    ]
    assert done.stderr == "2 counters reset\n"
    assert mcpguard(home, *argv).stdout == ""


@pytest.mark.parametrize(
    ("selectors", "reset"),
    [
        (["--user", "alice@acme.com"], 2),
        (["--user", "*"], 3),
        (["--tool", "e*"], 2),
        (["--tool", "echo", "--user", "*"], 1),
        (["--server", "files"], 1),
        (["--agent", "*::interactive::*"], 1),
        (["--agent", "*interactive*"], 1),
        (["--user", "bob", "--agent", "*"], 0),
        (["--user", "nobody"], 0),
    ],
)
def test_selectors_match_what_counters_count(home: Path, selectors: list[str], reset: int) -> None:
    done = mcpguard(home, "reset", "--yes", *selectors)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == reset + 1
    assert held(home) == 4 - reset


def test_counters_of_other_namespaces_stay(home: Path) -> None:
    assert "no counter" in mcpguard(home, "reset", "--yes", MCPGUARD_NAMESPACE="other").stdout
    assert held(home) == 4


def test_a_running_wrapper_obeys_from_its_next_call(tmp_path: Path) -> None:
    policy(tmp_path, rule("1/1h", user="*", tool="echo"))
    with Host(tmp_path, *OBEDIENT, options=ALICE) as host:
        before = [host.call(number, "echo") for number in (1, 2)]
        assert mcpguard(tmp_path, "reset", "--user", "alice@acme.com", "--yes").returncode == 0
        after = [host.call(number, "echo") for number in (3, 4)]
    assert [["result" in answer for answer in some] for some in (before, after)] == [[True, False]] * 2


def test_on_a_terminal_it_asks(home: Path) -> None:
    status, shown = on_terminal(home, "reset", typed=b"n\n")
    assert status == 1
    assert "Reset 4 counters? [y/N]" in shown
    assert held(home) == 4
    status, shown = on_terminal(home, "reset", "--user", "bob", typed=b"y\n")
    assert status == 0
    assert "1 counter reset" in shown
    assert held(home) == 3


def test_end_of_input_at_the_question_resets_nothing(home: Path) -> None:
    assert on_terminal(home, "reset", typed=b"\x04")[0] == 130
    assert held(home) == 4


def test_control_characters_in_names_do_not_reach_a_terminal(tmp_path: Path) -> None:
    policy(tmp_path, RULES)
    calls(tmp_path, "x\x1b[2J\x9b", 1)
    shown = on_terminal(tmp_path, "reset", typed=b"y\n")[1]
    assert "x\\x1b[2J" in shown
    assert not {"\x1b", "\x9b"} & set(shown)


@pytest.mark.parametrize(
    ("rule", "used", "told"),
    [
        ("concurrent = 2", 1, "user=bob tool=x server=crm arguments=01234567: 1 call in flight"),
        ("concurrent = 2", 2, "user=bob tool=x server=crm arguments=01234567: 2 calls in flight"),
        ('limit = "9/1h"\ncount = "cost"', 1, "arguments=01234567: 1 unit in the last hour"),
        ('limit = "9/90m"\ncount = "errors"', 1000, "arguments=01234567: 1,000 errors in the last 90 minutes"),
        ('limit = "9/1m"', 2, "arguments=01234567: 2 calls in the last minute"),
    ],
)
def test_a_counter_is_told_with_what_it_counts(rule: str, used: int, told: str) -> None:
    text = f'[[rule]]\nuser = "*"\nper = ["user", "arguments"]\n{rule}\n'
    plan = parse(text).plan(Call("bob", "a::b::c", "crm", "x")).of_arguments("0123456789abcdef01234567")
    label = plan.counters[0].label
    assert f"{counter_text(label)}: {used_text(CounterUse(label, used, ()))}".endswith(told)


def test_it_empties_marks_with_their_counters_and_shows_them_nowhere(tmp_path: Path) -> None:
    policy(tmp_path, rule("3/1h", user="*") + 'warn = "50%"\n')
    calls(tmp_path, "echo", 2)
    assert held(tmp_path) == 2
    assert len(mcpguard(tmp_path, "usage", "--json").stdout.splitlines()) == 1
    assert mcpguard(tmp_path, "reset", "--yes").stdout.splitlines()[1:] == ["1 counter reset"]
    assert held(tmp_path) == 0
    calls(tmp_path, "echo", 2)
    rows = map(json.loads, mcpguard(tmp_path, "audit", "tail", "--json").stdout.splitlines())
    assert [len(row.get("warned", [])) for row in rows if "tool" in row] == [0, 1, 0, 1]
    assert mcpguard(tmp_path, "audit", "tail").stdout.count(" warned=3/1h ") == 2
