import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from mcpguard.cli.usage import counter_text, used_text
from mcpguard.policy.model import Call
from mcpguard.policy.parse import parse
from mcpguard.stores.api import CounterUse
from mcpguard.stores.sqlite.store import SqliteStore
from tests.cli.command import BOB, calls, mcpguard, objects, on_terminal, output
from tests.end_to_end.host import rule

RULES = (
    rule("5/1h", user="*", tool="*")
    + rule("50/90m", tool="echo")
    + rule("100/30m", user="*", agent="*::interactive::*", per=["user"])
)


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calls by Alice and Bob, made once."""
    home = tmp_path_factory.mktemp("used")
    calls(home, "echo", 2, rules=RULES)
    calls(home, "plain", 1, *BOB)
    return home


def held(home: Path) -> int:
    with contextlib.closing(SqliteStore(home / "mcpguard.db")) as store:
        return len(store.counters())


def test_it_empties_all_counters_and_prints_them(home: Path) -> None:
    *counters, total = output(home, "reset", "--yes").splitlines()
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
        (["--tool", "e*"], 2),
        (["--tool", "echo", "--user", "*"], 1),
        (["--server", "files"], 1),
        (["--agent", "*::interactive::*"], 1),
        (["--user", "bob", "--agent", "*"], 0),
    ],
)
def test_selectors_match_what_counters_count(home: Path, selectors: list[str], reset: int) -> None:
    assert len(output(home, "reset", "--yes", *selectors).splitlines()) == reset + 1
    assert held(home) == 4 - reset


@pytest.mark.parametrize(
    ("selectors", "typed", "status", "said", "left"),
    [
        ((), b"n\n", 1, "Reset 4 counters? [y/N]", 4),
        ((), b"\x04", 130, "Reset 4 counters? [y/N]: \n", 4),
        (("--user", "bob"), b"y\n", 0, "1 counter reset", 3),
    ],
    ids=["no", "end of input", "yes"],
)
def test_on_a_terminal_it_asks(home: Path, selectors: tuple[str, ...], typed: bytes, status: int, said: str, left: int) -> None:
    found, shown = on_terminal(home, "reset", *selectors, typed=typed)
    assert (found, held(home)) == (status, left)
    assert said in shown


@pytest.mark.parametrize(
    ("keys", "used", "told"),
    [
        ({"concurrent": 2}, 1, "1 call in flight"),
        ({"concurrent": 2}, 2, "2 calls in flight"),
        ({"limit": "9/1h", "count": "cost"}, 1, "1 unit in the last hour"),
        ({"limit": "9/90m", "count": "errors"}, 1000, "1,000 errors in the last 90 minutes"),
        ({"limit": "9/1m"}, 2, "2 calls in the last minute"),
    ],
)
def test_a_counter_is_told_with_what_it_counts(keys: dict[str, Any], used: int, told: str) -> None:
    plan = parse(rule(user="*", per=["user", "arguments"], **keys)).plan(Call("bob", "a::b::c", "crm", "x"))
    label = plan.of_arguments("0123456789abcdef01234567").counters[0].label
    text = f"{counter_text(label)}: {used_text(CounterUse(label, used, ()))}"
    assert text == f"user=bob tool=x server=crm arguments=01234567: {told}"


def test_it_empties_marks_with_their_counters_and_shows_them_nowhere(tmp_path: Path) -> None:
    calls(tmp_path, "echo", 2, rules=rule("3/1h", user="*", warn="50%"))
    assert held(tmp_path) == 2
    assert len(objects(tmp_path, "usage", "--json")) == 1
    assert output(tmp_path, "reset", "--yes").splitlines()[1:] == ["1 counter reset"]
    assert held(tmp_path) == 0
    calls(tmp_path, "echo", 2)
    rows = objects(tmp_path, "audit", "tail", "--json", "--tool", "*")
    assert [len(row.get("warned", [])) for row in rows] == [0, 1, 0, 1]
    assert output(tmp_path, "audit", "tail").count(" warned=3/1h ") == 2
