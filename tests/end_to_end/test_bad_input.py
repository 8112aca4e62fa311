import json
from pathlib import Path

import pytest

from .host import Host, call, lines, policy, rule, script, until

POLICY_INVALID = "policy_invalid"


def complaint(host: Host) -> str:
    """What the guard says of a session that cannot begin: a line, and perhaps a hint."""
    assert host.rest() == b""
    first, *hints = host.err.splitlines()
    assert first.startswith("mcpguard: ")
    assert all(line.startswith("hint: ") for line in hints)
    assert len(hints) <= 1
    return host.err


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        (["no-such-command"], 127, "cannot run no-such-command: no such command"),
        (["{home}/server"], 126, "cannot run {home}/server: not a program for this system"),
        ([], 2, "no command to run"),
    ],
)
def test_a_command_that_cannot_be_run_is_named_with_a_shells_status(
    tmp_path: Path, command: list[str], status: int, words: str
) -> None:
    (tmp_path / "server").write_text("echo hello\n")
    (tmp_path / "server").chmod(0o700)
    with Host(tmp_path, *(word.format(home=tmp_path) for word in command)) as host:
        assert words.format(home=tmp_path) in complaint(host)
        assert host.wait() == status


def test_an_unknown_option_is_an_error_of_usage(tmp_path: Path) -> None:
    with Host(tmp_path, *script("obedient"), options=["--polcy", "x"]) as host:
        assert "--polcy" in complaint(host)
        assert host.wait() == 2


@pytest.mark.parametrize(
    ("options", "env", "words", "status"),
    [
        (["--store", "redis//x"], {}, "--store: this is not a URL", 2),
        ([], {"MCPGUARD_AGENT": "a::*::b"}, "MCPGUARD_AGENT: 'a::*::b' is a pattern", 78),
        (["--config", "/"], {}, "/: cannot be read: Is a directory", 78),
    ],
)
def test_a_setting_that_cannot_be_is_named_and_no_server_starts(
    tmp_path: Path, options: list[str], env: dict[str, str], words: str, status: int
) -> None:
    log = tmp_path / "calls"
    with Host(tmp_path, *script("obedient", log), options=options, env=env) as host:
        assert words in complaint(host)
        assert host.wait() == status
    assert not log.exists()


@pytest.mark.parametrize(
    ("text", "where", "why"),
    [
        ("", "line 1", "the file is empty"),
        ('\n[[rule]]\ntool = "a"\nlimit = "0/1h"\n', "line 4: rule 1", "'0/1h' admits nothing"),
        ("a = " + "[" * 100_000, "line 1", "not TOML"),
    ],
    ids=range(3),
)
def test_a_policy_that_is_broken_at_the_start_closes_every_tool_and_says_where(
    tmp_path: Path, text: str, where: str, why: str
) -> None:
    file = policy(tmp_path, text)
    with Host(tmp_path, *script("obedient", tmp_path / "calls")) as host:
        assert "result" in host.ask("list", "tools/list")
        error = host.call(1, "search")["error"]
        assert (error["code"], error["data"]["reason"]) == (503, POLICY_INVALID)
        assert f"{file}: {where}: " in error["message"]
        assert why in error["message"]
        assert f"{file}: {where}: " in host.err
        assert host.end() == 0
        assert "Traceback" not in host.err
        assert [row["decision"] for row in host.audit()] == ["unavailable"]
    assert (tmp_path / "calls").read_text() == ""


def test_a_policy_that_is_a_folder_closes_every_tool_and_mends_when_it_is_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "policy.toml"
    folder.mkdir()
    with Host(tmp_path, *script("obedient")) as host:
        error = host.call(1, "search")["error"]
        assert (error["code"], error["data"]["reason"]) == (503, POLICY_INVALID)
        assert f"{folder}: cannot be read: Is a directory" in error["message"]
        folder.rmdir()
        policy(tmp_path, rule("1/1h", tool="search"))
        assert "result" in host.call(2, "search")
        assert host.call(3, "search")["error"]["code"] == 429
        assert host.end() == 0


def test_a_policy_that_is_named_but_missing_closes_every_tool_until_it_is_there(tmp_path: Path) -> None:
    named = tmp_path / "team.toml"
    with Host(tmp_path, *script("obedient"), options=["--policy", str(named)]) as host:
        error = host.call(1, "search")["error"]
        assert error["code"] == 503
        assert f"{named}: no such file" in error["message"]
        named.write_text(rule("1/1h", tool="search"))
        assert "result" in host.call(2, "search")
        assert host.end() == 0


@pytest.mark.parametrize("place", ["a file", "/proc"])
@pytest.mark.parametrize("mode", ["local", "deny", "allow"])
def test_a_store_that_cannot_be_made_is_named_and_does_what_is_configured(tmp_path: Path, place: str, mode: str) -> None:
    policy(tmp_path, rule("1/1h", tool="search"))
    (tmp_path / "config.toml").write_text(f'[store]\non_unavailable = "{mode}"\n')
    (tmp_path / "file").write_text("")
    folder = str(tmp_path / "file") if place == "a file" else "/proc"
    with Host(tmp_path, *script("obedient"), options=["--store", f"sqlite://{folder}/mcpguard.db"]) as host:
        answers = [host.call(number, "search") for number in range(3)]
        codes = [answer["error"]["code"] if "error" in answer else 200 for answer in answers]
        assert codes == {"local": [200, 429, 429], "deny": [503] * 3, "allow": [200] * 3}[mode]
        assert host.end() == 0
        assert "store unavailable" in host.err
        assert folder in host.err
        assert "Traceback" not in host.err


def test_a_store_that_is_no_database_is_reported_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mcpguard.db").write_text("my holiday pictures " * 100)
    with Host(tmp_path, *script("obedient")) as host:
        assert "result" in host.call(1, "search")
        assert host.end() == 0
        assert f"{tmp_path}/mcpguard.db is not a store of mcpguard: file is not a database (correct the path" in host.err
        assert "Traceback" not in host.err
    assert (tmp_path / "mcpguard.db").read_text() == "my holiday pictures " * 100


def test_a_running_wrapper_obeys_an_edit_from_the_next_call_on(tmp_path: Path) -> None:
    policy(tmp_path, rule("1/1h", tool="search"))
    with Host(tmp_path, *script("obedient")) as host:
        assert "result" in host.call(1, "search")
        assert "error" in host.call(2, "search")
        for n in range(2, 12):  # the history is kept
            policy(tmp_path, rule(f"{n}/1h", tool="search"))
            assert "result" in host.call(f"{n} a", "search")
            assert host.call(f"{n} b", "search")["error"]["data"]["limit"] == n
        policy(tmp_path, rule("deny", tool="search"))
        assert host.call(3, "search")["error"]["code"] == 403
        policy(tmp_path, rule("unlimited", tool="search"))
        assert "result" in host.call(4, "search")
        assert host.end() == 0
        notes = host.notes()
    assert len(notes) == len({row["policy"] for row in notes}) == 13
    assert [row["reason"] for row in notes] == ["in force at the start"] + ["applied"] * 12


def test_who_else_may_change_what_decides_is_told_once_at_the_start(tmp_path: Path) -> None:
    policy(tmp_path, rule("2/1h", tool="search")).chmod(0o666)
    with Host(tmp_path, *script("obedient")) as host:
        assert "result" in host.call(1, "search")
        assert "result" in host.call(2, "search")
        assert host.end() == 0
    file = tmp_path / "policy.toml"
    assert host.err.count("may change") == 1
    assert f"mcpguard: other accounts may change {file}: {file} may be written to by everybody\n" in host.err


def test_a_large_edit_is_obeyed_within_moments_and_the_last_good_policy_until_then(tmp_path: Path) -> None:
    many = "".join(rule("1/1h", tool=f"tool-{number}") for number in range(1000))
    policy(tmp_path, many + rule("1/1h", tool="search"))
    codes: list[int] = []

    def calls(host: Host) -> int:
        codes.append(host.call(len(codes), "search").get("error", {"code": 0})["code"])
        return codes[-1]

    with Host(tmp_path, *script("obedient")) as host:
        assert [calls(host), calls(host)] == [0, 429]
        policy(tmp_path, many + rule("deny", tool="search"))
        until(lambda: calls(host) == 403, "the edit is obeyed")
        policy(tmp_path, many + "[[rule]]")
        until(lambda: calls(host) == 403 and "policy not applied" in host.err, "what is wrong with an edit is said")
        policy(tmp_path, many + rule("2/1h", tool="search"))
        until(lambda: calls(host) == 0, "the next edit is obeyed")
        assert host.end() == 0
        reasons = [row["reason"].partition(":")[0] for row in host.notes()]
    assert [code for code, before in zip(codes, [None, *codes], strict=False) if code != before] == [0, 429, 403, 0]
    assert reasons == ["in force at the start", "applied", "not applied", "applied"]


def test_without_a_policy_the_starter_policy_is_in_force_until_there_is_one(tmp_path: Path) -> None:
    with Host(tmp_path, *script("obedient")) as host:
        until(lambda: "policy=the starter policy (4 rules)" in host.err, "the guard says what it goes by")
        host.send(lines([call(number, "search") for number in range(101)]))
        answers = [host.answer(number) for number in range(101)]
        assert ["result" in answer for answer in answers] == [True] * 100 + [False]
        assert answers[100]["error"]["data"]["rule"] == "user=* agent=*::interactive::*"
        policy(tmp_path, rule("1/1h", tool="search"))
        assert "result" in host.call("new", "search")
        assert host.end() == 0
    assert json.loads(json.dumps(answers[100]))["error"]["data"]["limit"] == 100


@pytest.mark.parametrize("on_the_command_line", [True, False])
def test_a_password_in_the_list_of_processes_is_warned_of_once(tmp_path: Path, on_the_command_line: bool) -> None:
    url = "redis://alice:S3cret@127.0.0.1:1/0"
    options, env = (["--store", url], {}) if on_the_command_line else ([], {"MCPGUARD_STORE": url})
    with Host(tmp_path, *script("obedient"), options=options, env=env) as host:
        host.ask(1, "ping")
        assert host.end() == 0
        assert host.err.count("--store holds a password") == on_the_command_line
        assert "S3cret" not in host.err
