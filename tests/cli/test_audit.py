import contextlib
import json
import re
import shlex
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from mcpguard.session.audit import MEMBERS
from tests.cli.command import ALICE, BOB, OBEDIENT, calls, complaint, line_of, mcpguard, objects, on_terminal, output, running
from tests.end_to_end.host import DEADLINE_S, Host, audit, call, policy, rule


def tools(home: Path, *argv: str) -> list[str]:
    """The tools of the rows that are shown."""
    done = mcpguard(home, "audit", "tail", "--json", *argv)
    assert done.returncode == 0
    assert done.stdout or done.stderr.startswith("mcpguard: no rows match\n")
    records = map(json.loads, done.stdout.splitlines())
    return [record["tool"] for record in records if record["decision"] != "policy"]


def followed(home: Path, *argv: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    return running(home, "audit", "tail", "-f", *argv)


def tool_of(following: subprocess.Popen[bytes], *known: str) -> object:
    """The tool of the next row of one that is not known. A row is printed again when its outcome is known."""
    while (tool := json.loads(line_of(following))["tool"]) in known:
        pass
    return tool


@pytest.mark.parametrize("argv", ["tail --json", "tail", "export", "export --format csv", "stats --by decision"])
def test_a_damaged_row_is_named_and_all_others_are_shown(home: Path, argv: str) -> None:
    with contextlib.closing(sqlite3.connect(home / "mcpguard.db")) as db, db:
        (damaged,) = db.execute("SELECT id FROM audit WHERE decision = 'rate_limited'").fetchone()
        db.execute("UPDATE audit SET detail = '{', reported = NULL WHERE id = ?", (damaged,))
    done = mcpguard(home, "audit", *argv.split())
    assert (done.returncode, "rate_limited" in done.stdout, "would_deny" in done.stdout) == (0, False, True)
    assert done.stderr.splitlines()[0] == f"mcpguard: row {damaged} of {home / 'mcpguard.db'} is damaged, and left out"


def test_in_a_pipe_each_row_is_a_line_of_keys_and_values(home: Path) -> None:
    alice = r'server=crm user=alice@acme\.com agent="Claude Code::interactive::default" tool=echo limit=1/1h'
    rows = (
        rf"allowed axis=user {alice} count=1 outcome=ok",
        rf"rate_limited axis=user {alice} count=2 retry_after=\d+s",
        r'denied axis=tool server=files user=bob agent=\S+ tool=closed rule="tool=closed"',
        r"would_deny axis=tool server=files user=bob .* outcome=\S+",
    )
    for row, found in zip(rows, output(home, "audit", "tail").splitlines(), strict=True):
        assert re.fullmatch(rf"time=\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{6}}Z {row} id=[0-9a-f]{{16}}-\d", found)


def test_rows_of_the_policy_at_the_start_are_shown_if_they_are_asked_for_and_in_json(home: Path) -> None:
    start = 'policy server=crm reason="in force at the start" id='
    assert start not in output(home, "audit", "tail")
    assert start in output(home, "audit", "tail", "--decision", "policy")
    assert start in output(home, "audit", "tail", "--decision", "*", "-n", "100")
    assert '"in force at the start"' in output(home, "audit", "tail", "--json")


def test_json_output_has_the_record_of_each_row_oldest_first(home: Path) -> None:
    records = objects(home, "audit", "tail", "--json")
    assert [record for record in records if record["decision"] != "policy"] == audit(home)
    assert [record for record in records if record["decision"] == "policy"] == audit(home, policies=True)
    assert all(list(record) == [member for member in MEMBERS if member in record] for record in records)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["-n", "2", "--tool", "*"], ["closed", "watched"]),
        (["--user", "alice@acme.com"], ["echo", "echo"]),
        (["--user", "b"], []),
        (["--agent", "*::background::*"], ["closed", "watched"]),
        (["--tool", "*o*d"], ["closed"]),
        (["--axis", "tool"], ["closed", "watched"]),
        (["--decision", "rate_limited"], ["echo"]),
        (["--decision", "denied", "--decision", "would_*"], ["closed", "watched"]),
        (["--since", "1h", "--user", "alice*"], ["echo", "echo"]),
        (["--since", "2020-01-01T00:00:00Z"], ["echo", "echo", "closed", "watched"]),
        (["--since", "2020-01-01T00:00:00+02:00", "-n", "1"], ["watched"]),
        (["--since", "2020-01-01t00:00:00z", "-n", "1"], ["watched"]),  # RFC 3339 allows small letters
        (["--until", "9999-01-01T00:00:00Z"], ["echo", "echo", "closed", "watched"]),
        (["--since", "2h", "--until", "1h"], []),
        (["--denied"], ["echo", "closed"]),
        (["--denied", "--decision", "*limited"], ["echo"]),
        (["--denied", "--decision", "denied", "--decision", "would_deny"], ["closed"]),
        (["--outcome", "*"], ["echo", "watched"]),
        (["--outcome", "ok", "--outcome", "tool_*", "--server", "crm"], ["echo"]),
    ],
)
def test_filters_choose_rows(home: Path, filters: list[str], expected: list[str]) -> None:
    assert tools(home, *filters) == expected


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["--axis", "agents"], "user tool agent"),
        (["--decision", "limited"], "rate_limited"),
        (["--since", "soon"], "90m"),
        (["--until", "soon"], "--until: 'soon'"),
        (["--outcome", "okay"], "ok tool_error rpc_error cancelled no_answer unparsed"),
        (["--since", "1h", "--until", "2h"], "give --since the earlier time"),
        (["--denied", "--decision", "allowed"], "denied invalid rate_limited unauthenticated unavailable"),
    ],
)
def test_a_filter_that_matches_no_known_value_is_a_usage_error(home: Path, argv: list[str], hint: str) -> None:
    assert hint in complaint(home, "audit", "tail", *argv)


def test_the_last_ten_calls_are_shown_or_all_since_a_time_and_what_is_not_shown_takes_no_place(tmp_path: Path) -> None:
    policy(tmp_path, rule("unlimited", tool="*"))
    for times in (12, 0, 0):  # each session has a row of its policy
        calls(tmp_path, "echo", times)
    assert output(tmp_path, "audit", "tail").count(" tool=echo ") == 10
    assert len(tools(tmp_path, "--since", "1h")) == 12


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["table", "json"])
def test_on_a_terminal_and_in_a_pipe_it_says_that_no_rows_match(home: Path, form: list[str]) -> None:
    argv = ["audit", "tail", "--user", "nobody", "--tool", "none", *form]
    assert on_terminal(home, *argv) == (0, "mcpguard: no rows match\n")
    assert mcpguard(home, *argv).stderr == "mcpguard: no rows match\n"
    assert mcpguard(home, "audit", "tail", *form, MCPGUARD_NAMESPACE="other").stderr == "mcpguard: no rows\n"
    assert output(home, "audit", "tail", "-n", "0", *form) == ""


TRY = "try filters that find rows: "


@pytest.mark.parametrize(
    ("filters", "hint"),
    [
        (["--decision", "denied", "--user", "alice*"], f"{TRY}--decision rate_limited, --decision allowed, --denied"),
        (["--decision", "invalid", "--since", "1h", "--tool", "watched"], f"{TRY}--decision would_deny"),
        (["--user", ""], f"{TRY}--user "),
        (["--user", "alice"], f"{TRY}--user alice@acme.com, --user bob"),
        (["--agent", "Claude"], f"{TRY}--agent 'Claude Code::interactive::default', --agent Cursor::background::nightly"),
        (["--denied", "--tool", "watched"], f"{TRY}--tool closed, --tool echo"),
        (["--denied", "--tool", "watched", "--user", "bob", "--axis", "tool"], f"{TRY}--tool closed"),
        (
            ["--denied", "--outcome", "ok"],
            "leave out --denied: the rows that match without it are of calls that were forwarded",
        ),
        (["--outcome", "cancelled"], f"{TRY}--outcome ok"),
        (["--since", "2999-01-01"], "use an earlier --since: the newest row that matches without it is of 20"),
        (["--until", "1h"], "use a later --until: all rows that match without it are later"),
    ],
)
def test_if_no_rows_match_the_nearest_filters_are_offered(home: Path, filters: list[str], hint: str) -> None:
    assert complaint(home, "audit", "tail", *filters, status=0).startswith(f"mcpguard: no rows match\nhint: {hint}")


def test_the_time_offered_instead_of_since_is_that_of_the_newest_row(home: Path) -> None:
    (newest,) = objects(home, "audit", "tail", "--tool", "echo", "-n", "1", "--json")
    done = mcpguard(home, "audit", "tail", "--tool", "echo", "--since", "2999-01-01")
    assert done.stderr.endswith(f"without it is of {newest['time']}\n")


def test_an_offered_filter_finds_a_name_with_control_characters(tmp_path: Path) -> None:
    calls(tmp_path, "echo", 1, "--user", "bob\x1b[2J\u202e x", "--server", "crm")
    hint = mcpguard(tmp_path, "audit", "tail", "--user", "bob").stderr.splitlines()[-1]
    offered = shlex.split(hint.removeprefix(f"hint: {TRY}"))
    assert offered == ["--user", "bob*[2J* x"]
    assert tools(tmp_path, *offered) == ["echo"]


def test_a_pipe_gets_the_table_if_it_is_asked_for_and_not_because_columns_is_set(home: Path) -> None:
    assert output(home, "audit", "tail", COLUMNS="78") == output(home, "audit", "tail")
    table = output(home, "audit", "tail", "--table", COLUMNS="78")
    assert table.startswith("TIME ")
    assert "\x1b" not in table
    assert max(map(len, table.splitlines())) <= 78


@pytest.fixture
def alice(tmp_path: Path) -> Iterator[Host]:
    """A client of Alice, of whose calls the server does not answer those of `hang`."""
    with Host(tmp_path, *OBEDIENT, options=ALICE) as host:
        yield host


def test_following_waits_for_a_store_and_shows_the_rows_of_running_wrappers(tmp_path: Path) -> None:
    with followed(tmp_path, "--json", "--decision", "allowed") as following:
        assert following.stderr
        assert b"no audit log yet" in following.stderr.readline()
        with Host(tmp_path, *OBEDIENT, options=ALICE) as alice, Host(tmp_path, *OBEDIENT, options=BOB) as bob:
            alice.call(1, "echo")
            assert tool_of(following) == "echo"
            bob.call(1, "plain")
            bob.send(b"not json\n")
            alice.call(2, "other")
            assert [tool_of(following, "echo"), tool_of(following, "echo", "plain")] == ["plain", "other"]


def remove_store(home: Path) -> None:
    for file in home.glob("mcpguard.db*"):
        file.unlink()


@pytest.mark.posix
@pytest.mark.parametrize("is_replaced", [False, True], ids=["removed", "replaced"])
def test_following_continues_with_a_store_that_replaces_the_first(tmp_path: Path, *, is_replaced: bool) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    calls(home, "echo", 1)
    with followed(home, "--json", "--decision", "allowed", "-n", "1") as following:
        assert tool_of(following) == "echo"
        following.send_signal(signal.SIGSTOP)  # so that everything happens between two polls
        calls(home, "last_of_the_first", 1)
        remove_store(home)
        for tool in ("first_of_the_new", "second_of_the_new"):
            calls(other if is_replaced else home, tool, 1)
        if is_replaced:
            for file in other.glob("mcpguard.db*"):  # the newest rows may be in the call log only
                file.rename(home / file.name)
        following.send_signal(signal.SIGCONT)
        assert [tool_of(following) for _ in range(3)] == ["last_of_the_first", "first_of_the_new", "second_of_the_new"]
        calls(home, "plain", 1)
        assert tool_of(following) == "plain"
        following.terminate()
        said = following.communicate(timeout=DEADLINE_S)[1].decode()
    file = home / "mcpguard.db"
    assert said == f"mcpguard: {file} was removed or replaced; following the new store from its first row\n"


CANCELS = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}


def test_following_shows_an_outcome_when_it_comes(tmp_path: Path, alice: Host) -> None:
    alice.send(call(1, "hang"))
    alice.call(2, "echo")
    of_tool = ("--tool", "hang")
    with (
        followed(tmp_path, *of_tool) as before,
        followed(tmp_path, *of_tool, "--json") as objects,
        followed(tmp_path, *of_tool, "--outcome", "cancelled") as after,
    ):
        row, known = line_of(before), json.loads(line_of(objects))
        assert " allowed axis=agent server=crm " in row
        assert "outcome" not in row
        alice.send(CANCELS)
        ended = re.sub("^time=[^ ]* ", "", line_of(before))
        who = 'server=crm user=alice@acme.com agent="Claude Code::interactive::default"'
        assert ended == f"ended {who} tool=hang outcome=cancelled id={row.split(' id=')[1]}"
        assert line_of(after) == row.replace(" id=", " outcome=cancelled id=")
        again = json.loads(line_of(objects))
        assert again == known | {"outcome": "cancelled", "duration_ms": again["duration_ms"]}
        assert list(again) == [member for member in MEMBERS if member in again]


def test_following_begins_with_the_last_rows_of_the_wanted_outcome_whatever_is_in_flight(tmp_path: Path, alice: Host) -> None:
    alice.call(1, "echo")
    alice.send(call(2, "hang"))
    with followed(tmp_path, "--tool", "hang") as in_flight, followed(tmp_path, "-n", "1", "--outcome", "ok") as following:
        assert " tool=hang " in line_of(in_flight)
        assert " tool=echo " in line_of(following)


@pytest.mark.posix
def test_an_outcome_in_a_new_store_is_not_taken_for_that_of_a_call_in_the_removed_one(tmp_path: Path, alice: Host) -> None:
    alice.send(call(1, "hang"))
    with followed(tmp_path, "--json", "--decision", "allowed") as following:
        assert tool_of(following) == "hang"
        following.send_signal(signal.SIGSTOP)
        alice.process.kill()
        remove_store(tmp_path)
        calls(tmp_path, "plain", 1)
        following.send_signal(signal.SIGCONT)
        assert tool_of(following) == "plain"


def test_following_shows_no_rows_of_the_policy_at_the_start(tmp_path: Path) -> None:
    calls(tmp_path, "echo", 1)
    with followed(tmp_path) as following:
        assert " tool=echo " in line_of(following)
        calls(tmp_path, "plain", 1)
        assert " tool=plain " in line_of(following)


def test_rows_stand_in_the_order_of_their_times(tmp_path: Path) -> None:
    with Host(tmp_path, *OBEDIENT, options=ALICE, rules=rule("1/1h", tool="echo")) as alice:
        for number, tool in enumerate(["echo"] * 4 + ["plain"]):
            alice.call(number, tool)
        alice.end()  # a row for many denials is written up to a second after the last of them
    rows = objects(tmp_path, "audit", "tail", "--json", "--tool", "*")
    assert [(one["tool"], one.get("repeats")) for one in rows] == [("echo", None)] * 2 + [("echo", 2), ("plain", None)]
    assert [one["seq"] for one in rows] == [2, 3, 5, 4]


@pytest.mark.parametrize("argv", [("tail", "-n", "9"), ("export",)])
def test_following_ends_when_the_wanted_time_has_passed(home: Path, argv: tuple[str, ...]) -> None:
    done = mcpguard(home, "audit", *argv, "--follow", "--until", "1h")
    assert (done.returncode, done.stdout) == (0, "")
    done = mcpguard(home / "empty", "audit", *argv, "--follow", "--until", "1h")
    assert (done.returncode, done.stdout, done.stderr.startswith("mcpguard: no audit log yet")) == (0, "", True)


@pytest.mark.posix
@pytest.mark.parametrize("argv", [("tail", "-n", "1"), ("export", "--tool", "closed")])
def test_an_interrupt_ends_following_quietly(home: Path, argv: tuple[str, ...]) -> None:
    with running(home, "audit", *argv, "--follow") as following:
        line_of(following)
        following.send_signal(signal.SIGINT)
        assert following.communicate(timeout=DEADLINE_S) == (b"", b"")
        assert following.returncode == 130


@pytest.mark.parametrize("argv", [("tail", "-n", "1"), ("export",)])
def test_following_ends_quietly_when_the_reader_goes_away_even_if_no_row_comes(home: Path, argv: tuple[str, ...]) -> None:
    with running(home, "audit", *argv, "--follow") as following:
        line_of(following)
        assert following.stdout
        assert following.stderr
        following.stdout.close()
        assert following.stderr.read() == b""
        assert following.wait(DEADLINE_S) == 0
