from pathlib import Path

import pytest

from mcpguard.text.printing import quoted

from .host import ROOT, Host, policy, rule, script, serving

OBEDIENT = script("obedient")


@pytest.mark.parametrize(
    ("command", "options", "env", "words", "status"),
    [
        (["no-such-command"], [], {}, "cannot run no-such-command: no such command", 127),
        ([], [], {}, "no command to run", 2),
        (OBEDIENT, ["--polcy", "x"], {}, "--polcy", 2),
        (OBEDIENT, ["--store", "redis//x"], {}, "--store: this is not a URL", 2),
        (OBEDIENT, ["--store", "sqlite:////x.db?mode=ro"], {}, "--store: the URL of a file has no options", 2),
        (OBEDIENT, ["--user", "*"], {}, "--user: '*' is a pattern", 2),
        (OBEDIENT, [], {"MCPGUARD_AGENT": "a::*::b"}, "MCPGUARD_AGENT: 'a::*::b' is a pattern", 78),
        (OBEDIENT, ["--config", ROOT.anchor], {}, f"{ROOT.anchor}: cannot be read: ", 78),
    ],
)
def test_what_keeps_a_session_from_its_begin_is_one_line_and_perhaps_a_hint_and_no_server_starts(
    tmp_path: Path, command: list[str], options: list[str], env: dict[str, str], words: str, status: int
) -> None:
    with Host(tmp_path, *command, options=options, env=env) as host:
        assert host.ended() == (b"", status)  # the server would answer at its end
    first, *hints = host.err.splitlines()
    assert first.startswith("mcpguard: ")
    assert words in host.err
    assert [line[:6] for line in hints] in ([], ["hint: "])


def test_a_policy_that_is_broken_at_the_start_closes_every_tool_and_says_where(tmp_path: Path) -> None:
    file = policy(tmp_path, '\n[[rule]]\ntool = "a"\nlimit = "0/1h"\n')
    with serving(tmp_path, *script("obedient", tmp_path / "calls")) as host:
        assert "result" in host.ask("list", "tools/list")
        error = host.call(1, "search")["error"]
        assert (error["code"], error["data"]["reason"]) == (503, "policy_invalid")
        assert f"{file}: line 4: rule 1" in error["message"]
        assert "'0/1h' admits nothing" in error["message"]
        assert " mode=closed (every call is denied) server=" in host.err
        assert f" policy={quoted(file)} (no policy: {file}: line 4: rule 1" in host.err
    assert [row["decision"] for row in host.audit()] == ["unavailable"]
    assert (tmp_path / "calls").read_text() == ""


def test_a_running_wrapper_obeys_an_edit_from_the_next_call_on(tmp_path: Path) -> None:
    with serving(tmp_path, rules=rule("1/1h", tool="search")) as host:
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
    notes = host.notes()
    assert len(notes) == len({row["policy"] for row in notes}) == 13
    assert [row["reason"] for row in notes] == ["in force at the start"] + ["applied"] * 12


@pytest.mark.posix
def test_who_else_may_change_what_decides_and_who_may_see_a_password_is_told_once_at_the_start(tmp_path: Path) -> None:
    file = policy(tmp_path, rule("2/1h", tool="search"))
    file.chmod(0o666)
    with serving(tmp_path, options=["--store", "redis://alice:S3cret@127.0.0.1:1/0"]) as host:
        assert "result" in host.call(1, "search")
        assert "result" in host.call(2, "search")
    assert host.err.count("may change") == 1
    assert f"mcpguard: other accounts may change {file}: {file} may be written to by everybody\n" in host.err
    assert host.err.count("--store holds a password") == 1
    assert "S3cret" not in host.err
