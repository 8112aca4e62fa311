import json
import re
import signal
import subprocess
from pathlib import Path

import pytest

from mcpguard.cli._audit_table import Table
from mcpguard.core.audit import MEMBERS, line
from tests.cli.command import ALICE, OBEDIENT, calls, command, line_of, mcpguard, on_terminal, start
from tests.core.build import WALL_US, Talk
from tests.end_to_end.host import DEADLINE_S, Host, audit, environment, policy, rule

BOB = ("--server", "files", "--user", "bob", "--agent", "Cursor::background::nightly")


def tools(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert (done.returncode, done.stderr) == (0, "")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    return [record["tool"] for record in records if record["decision"] != "policy"]


def followed(home: Path, *argv: str) -> subprocess.Popen[bytes]:
    return start(home, "audit", "tail", "-f", *argv)


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two calls by Alice, the second over a limit; and by Bob one call of a closed tool and one with a rule in observe mode."""
    home = tmp_path_factory.mktemp("home")
    observed = '[[rule]]\ntool = "watched"\nlimit = "deny"\nmode = "observe"\n'
    policy(home, rule("1/1h", user="*", tool="echo") + rule("deny", tool="closed") + observed)
    calls(home, "echo", 2)
    calls(home, "closed", 1, *BOB)
    calls(home, "watched", 1, *BOB)
    return home


def test_in_a_pipe_each_row_is_a_line_of_keys_and_values(home: Path) -> None:
    done = mcpguard(home, "audit", "tail")
    assert (done.returncode, done.stderr) == (0, "")
    time = r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
    alice = r'user=alice@acme\.com agent="Claude Code::interactive::default"'
    note, first, second, *_, third, _, fourth = done.stdout.splitlines()
    assert re.fullmatch(rf'{time} policy reason="in force at the start"', note)
    assert re.fullmatch(rf"{time} allowed axis=user {alice} tool=echo limit=1/1h count=1 outcome=ok", first)
    assert re.fullmatch(rf"{time} rate_limited axis=user {alice} tool=echo limit=1/1h count=2 retry_after=\d+s", second)
    assert re.fullmatch(rf'{time} denied axis=tool user=bob agent=\S+ tool=closed rule="tool=closed"', third)
    assert re.fullmatch(rf"{time} would_deny axis=tool user=bob .* outcome=\S+", fourth)


def test_json_output_has_the_record_of_each_row_oldest_first(home: Path) -> None:
    done = mcpguard(home, "audit", "tail", "--json")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record for record in records if record["decision"] != "policy"] == audit(home)
    assert [record for record in records if record["decision"] == "policy"] == audit(home, policies=True)
    assert all(list(record) == [member for member in MEMBERS if member in record] for record in records)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["-n", "2", "--tool", "*"], ["closed", "watched"]),
        (["-n", "0"], []),
        (["-n", "1", "--tool", "echo"], ["echo"]),
        (["--user", "alice@acme.com"], ["echo", "echo"]),
        (["--user", "b*"], ["closed", "watched"]),
        (["--user", "b"], []),
        (["--agent", "*::background::*"], ["closed", "watched"]),
        (["--agent", "Cursor*"], ["closed", "watched"]),
        (["--agent", "Cursor"], []),
        (["--server", "crm"], ["echo", "echo"]),
        (["--tool", "*o*d"], ["closed"]),
        (["--axis", "tool"], ["closed", "watched"]),
        (["--decision", "rate_limited"], ["echo"]),
        (["--decision", "denied", "--decision", "would_*"], ["closed", "watched"]),
        (["--since", "1h", "--user", "alice*"], ["echo", "echo"]),
        (["--since", "2020-01-01T00:00:00Z"], ["echo", "echo", "closed", "watched"]),
        (["--since", "2020-01-01T00:00:00+02:00", "-n", "1"], ["watched"]),
        (["--since", "9999-01-01T00:00:00Z"], []),
        (["--until", "9999-01-01T00:00:00Z"], ["echo", "echo", "closed", "watched"]),
        (["--until", "1h"], []),
        (["--since", "2h", "--until", "1h"], []),
        (["--denied"], ["echo", "closed"]),
        (["--denied", "--decision", "*limited"], ["echo"]),
        (["--denied", "--decision", "denied", "--decision", "would_deny"], ["closed"]),
        (["--outcome", "*"], ["echo", "watched"]),
        (["--outcome", "ok", "--outcome", "tool_*", "--server", "crm"], ["echo"]),
        (["--outcome", "cancelled"], []),
    ],
)
def test_filters_choose_rows(home: Path, filters: list[str], expected: list[str]) -> None:
    assert tools(mcpguard(home, "audit", "tail", "--json", *filters)) == expected


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["--axis", "agents"], "user tool agent"),
        (["--decision", "limited"], "rate_limited"),
        (["--since", "soon"], "90m"),
        (["--since", "0m"], "90m"),
        (["--since", "5y"], "90m"),
        (["--until", "soon"], "--until: 'soon'"),
        (["--outcome", "okay"], "ok tool_error rpc_error cancelled no_answer unparsed"),
        (["--since", "1h", "--until", "2h"], "--since takes the earlier time"),
        (["--denied", "--decision", "allowed"], "denied invalid rate_limited unauthenticated unavailable"),
        (["-n", "-1"], ""),
    ],
)
def test_a_filter_that_matches_no_known_value_is_a_usage_error(home: Path, argv: list[str], hint: str) -> None:
    done = mcpguard(home, "audit", "tail", *argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert hint in done.stderr
    assert "Traceback" not in done.stderr


def test_ten_rows_are_shown_unless_since_is_given(tmp_path: Path) -> None:
    policy(tmp_path, rule("unlimited", tool="*"))
    calls(tmp_path, "echo", 12)
    assert len(tools(mcpguard(tmp_path, "audit", "tail", "--json"))) == 10
    assert len(tools(mcpguard(tmp_path, "audit", "tail", "--json", "--since", "1h"))) == 12


def test_rows_of_other_namespaces_are_not_shown(tmp_path: Path) -> None:
    calls(tmp_path, "echo", 1)
    (tmp_path / "config.toml").write_text('[store]\nnamespace = "other"\n')
    calls(tmp_path, "plain", 1)
    assert tools(mcpguard(tmp_path, "audit", "tail", "--json")) == ["plain"]
    (tmp_path / "config.toml").unlink()
    assert tools(mcpguard(tmp_path, "audit", "tail", "--json")) == ["echo"]


def test_the_table_fits_a_terminal_of_eighty_columns(home: Path) -> None:
    status, shown = on_terminal(home, "audit", "tail", "--tool", "*", NO_COLOR="1")
    assert status == 0
    assert "\x1b" not in shown
    heading, who, first, *_ = shown.splitlines()
    assert heading.split() == ["TIME", "DECISION", "AXIS", "TOOL", "COUNT", "LIMIT", "OUTCOME"]
    assert who == "- alice@acme.com as Claude Code::interactive::default on crm"
    assert re.fullmatch(r"\d\d:\d\d:\d\d allowed      user  echo +1 1/1h +ok", first)
    assert shown.count("- ") == 2
    assert [line for line in shown.splitlines() if len(line) >= 80] == []
    assert "\x1b[31mdenied" in on_terminal(home, "audit", "tail", "--tool", "*")[1]


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["table", "json"])
def test_on_a_terminal_it_says_that_no_row_matches(home: Path, form: list[str]) -> None:
    argv = ["audit", "tail", "--user", "nobody", *form]
    assert on_terminal(home, *argv) == (0, "mcpguard: no row matches\n")
    assert on_terminal(home, "audit", "tail", "-n", "0", *form) == (0, "")
    assert on_terminal(home, "audit", "tail", *form, MCPGUARD_NAMESPACE="other") == (0, "mcpguard: no rows\n")
    done = mcpguard(home, *argv)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_on_a_wide_terminal_each_row_has_user_and_agent(home: Path) -> None:
    shown = on_terminal(home, "audit", "tail", "--tool", "*", columns=150)[1].splitlines()
    assert shown[0].split()[3:6] == ["USER", "AGENT", "TOOL"]
    assert re.search(r"user  alice@acme.com +Claude Code::interactive::default +echo ", shown[1])
    assert [line for line in shown if len(line) >= 150 + len("\x1b[31m\x1b[0m")] == []


def test_with_columns_set_a_pipe_gets_the_table_without_colour(home: Path) -> None:
    done = mcpguard(home, "audit", "tail", COLUMNS="78")
    assert done.stdout.startswith("TIME ")
    assert "\x1b" not in done.stdout
    assert [line for line in done.stdout.splitlines() if len(line) > 78] == []


def test_long_and_wide_names_are_cut_to_fit(tmp_path: Path) -> None:
    policy(tmp_path, rule("1000000/999h", user="*", tool="*"))
    options = ("--server", "s" * 40, "--user", "客" * 60, "--agent", f"{'c' * 40}::{'t' * 40}::n")
    calls(tmp_path, "検索" * 30, 1, *options)
    for columns in (80, 140):
        shown = on_terminal(tmp_path, "audit", "tail", "--tool", "*", columns=columns, NO_COLOR="1")[1].splitlines()
        assert "…" in shown[1]
        cells = [sum(2 if ord(char) > 0x2E80 else 1 for char in line) for line in shown]
        assert max(cells) < columns


def test_control_characters_in_names_do_not_reach_a_terminal_or_a_pipe(tmp_path: Path) -> None:
    evil = "x\x1b[2J\x1b]0;owned\x07\x9b31m\r\n\u2028\u202e"
    calls(tmp_path, evil, 1, "--user", "\x1b[31mroot", "--server", "crm\x08", "--agent", "a\x07::b\x1b::c")
    shown = on_terminal(tmp_path, "audit", "tail", "--tool", "*", NO_COLOR="1", columns=200)[1]
    assert "x\\x1b[2J" in shown
    for text in (shown, mcpguard(tmp_path, "audit", "tail").stdout, mcpguard(tmp_path, "audit", "tail", "--json").stdout):
        assert [char for char in text if char != "\n" and not char.isprintable()] == []
    assert tools(mcpguard(tmp_path, "audit", "tail", "--json")) == [evil]


def test_without_a_store_it_says_so_on_stderr(tmp_path: Path) -> None:
    done = mcpguard(tmp_path, "audit", "tail")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"mcpguard: no audit log yet: there is no store at {tmp_path / 'mcpguard.db'}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_store_is_reported_with_status_69(tmp_path: Path) -> None:
    (tmp_path / "mcpguard.db").write_bytes(b"no database" * 1000)
    done = mcpguard(tmp_path, "audit", "tail")
    assert (done.returncode, done.stdout) == (69, "")
    assert "is damaged" in done.stderr
    assert "hint: " in done.stderr


def test_an_unknown_kind_of_store_is_reported(tmp_path: Path) -> None:
    done = mcpguard(tmp_path, "audit", "tail", "--store", "mysql://host/db")
    assert (done.returncode, done.stdout) == (78, "")
    assert len(done.stderr.splitlines()) == 2


def test_following_waits_for_a_store_and_shows_the_rows_of_running_wrappers(tmp_path: Path) -> None:
    following = followed(tmp_path, "--json", "--decision", "allowed")
    assert following.stderr
    assert b"no audit log yet" in following.stderr.readline()
    with Host(tmp_path, *OBEDIENT, options=ALICE) as alice, Host(tmp_path, *OBEDIENT, options=BOB) as bob:
        alice.call(1, "echo")
        assert json.loads(line_of(following))["user"] == "alice@acme.com"
        bob.call(1, "plain")
        bob.send(b"not json\n")
        alice.call(2, "other")
        assert [json.loads(line_of(following))["tool"] for _ in range(2)] == ["plain", "other"]
        alice.end()
        bob.end()
    end(following)


@pytest.mark.parametrize("is_replaced", [False, True], ids=["removed", "replaced"])
def test_following_continues_with_a_store_that_replaces_the_first(tmp_path: Path, *, is_replaced: bool) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    calls(home, "echo", 1)
    following = followed(home, "--json", "--decision", "allowed")
    assert json.loads(line_of(following))["tool"] == "echo"
    following.send_signal(signal.SIGSTOP)  # so that everything happens between two polls
    calls(home, "last_of_the_first", 1)
    for file in home.glob("mcpguard.db*"):
        file.unlink()
    calls(other if is_replaced else home, "first_of_the_new", 1)
    if is_replaced:
        for file in other.glob("mcpguard.db*"):  # the newest rows may be in the call log only
            file.rename(home / file.name)
    following.send_signal(signal.SIGCONT)
    assert json.loads(line_of(following))["tool"] == "last_of_the_first"
    assert json.loads(line_of(following))["tool"] == "first_of_the_new"
    calls(home, "plain", 1)
    assert json.loads(line_of(following))["tool"] == "plain"
    following.terminate()
    _, said = following.communicate(timeout=DEADLINE_S)
    file = home / "mcpguard.db"
    assert said.decode() == f"mcpguard: {file} was removed or replaced; following the new store from its first row\n"


def test_following_waits_for_a_new_store_after_the_first_was_removed(tmp_path: Path) -> None:
    calls(tmp_path, "echo", 1)
    following = followed(tmp_path, "--json", "--decision", "allowed")
    assert json.loads(line_of(following))["tool"] == "echo"
    for file in tmp_path.glob("mcpguard.db*"):
        file.unlink()
    assert following.stderr
    assert b"was removed or replaced" in following.stderr.readline()
    calls(tmp_path, "plain", 1)
    assert json.loads(line_of(following))["tool"] == "plain"
    end(following)


def test_following_begins_with_the_last_rows(home: Path) -> None:
    following = followed(home, "-n", "1", "--user", "alice*")
    assert "rate_limited" in line_of(following)
    end(following)


def test_an_interrupt_ends_following_quietly(home: Path) -> None:
    following = followed(home, "-n", "1")
    line_of(following)
    following.send_signal(signal.SIGINT)
    assert following.communicate(timeout=DEADLINE_S) == (b"", b"")
    assert following.returncode == 130


def test_following_ends_quietly_when_the_reader_goes_away_even_if_no_row_comes(home: Path) -> None:
    following = followed(home, "-n", "1")
    line_of(following)
    assert following.stdout
    assert following.stderr
    following.stdout.close()
    with following.stderr:
        assert following.stderr.read() == b""
    assert following.wait(DEADLINE_S) == 0


def test_a_reader_that_takes_only_the_first_line_causes_no_error(home: Path) -> None:
    pipeline = f"{' '.join(command('audit', 'tail', '--json', '--since', '1h'))} 2>err.txt | head -n 1"
    loops = f"for i in 1 2 3; do {pipeline}; done"
    done = subprocess.run(["/bin/sh", "-c", loops], env=environment(home), cwd=home, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 3
    assert (home / "err.txt").read_text() == ""


@pytest.mark.parametrize("argv", [[], ["tail"]])
def test_help_has_an_example(tmp_path: Path, argv: list[str]) -> None:
    assert "Example" in mcpguard(tmp_path, "audit", *argv, "--help").stdout


@pytest.mark.parametrize("width", [80, 120, 160])
def test_a_row_for_many_denials_shows_their_number_at_any_width(width: int) -> None:
    talk = Talk('[[rule]]\nuser = "*"\ntool = "closed*"\nlimit = "deny"\n')
    for at in range(500):
        talk.call(f"closed {at}")
    talk.store.append(talk.journal.flush(WALL_US, all_of_them=True))
    first, *_, summed = talk.records
    table = Table(width, coloured=False)
    lines = [table.lines(one)[-1] for one in (first | {"tool": "x" * 300, "repeats": 7}, summed)]
    assert max(map(len, lines)) < width
    assert re.search(r" denied +user .*x+… ×7 +deny", lines[0])
    assert re.search(rf" denied +user .*mor.* ×{summed['repeats']} +deny", lines[1])
    assert f'repeats={summed["repeats"]} reason="more of this kind, not kept one by one"' in line(summed)
