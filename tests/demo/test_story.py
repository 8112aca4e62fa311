"""The demo as a user starts it: a process of its own, with real guards and servers behind it; and its page."""

import contextlib
import io
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from unittest.mock import AsyncMock

import anyio
import pytest
from mcp import MCPError

from mcpguard.demo import story
from mcpguard.demo.story import ALICE, BOB, CAROL, WIDTH, CallResults, Page, Stage, last_line
from mcpguard.errors import McpguardError
from mcpguard.policy.parse import SCHEMA_LINE
from mcpguard.session.denial import RATE_LIMITED, UNAVAILABLE
from tests.build import raising
from tests.cli.command import trapped
from tests.demo.conftest import DEMO, ROOT, SHORT_DEMO, Run, environment, made
from tests.windows import processes


def test_it_ends_well_in_plain_text_of_eighty_columns_with_what_to_do_next_and_leaves_nothing_behind(run: Run) -> None:
    assert (run.status, run.err, run.left_behind) == (0, "", [])
    assert "\x1b" not in run.out
    assert [line for line in run.out.splitlines() if len(line) > 80] == []
    assert run.out.splitlines()[-1].strip() == "mcpguard install"


def test_the_users_limit_holds_and_bob_is_never_denied(run: Run) -> None:
    assert "Of Alice's 3,000 searches, 100 reached the server and 2,900 were denied." in run.out
    assert "Bob's 10 searches during the loop: 10 answered, 0 denied" in run.out


def test_it_shows_the_policy_that_is_in_force(run: Run) -> None:
    policy = "".join(f"  {line}\n" if line else "\n" for line in story.POLICY.splitlines())
    assert policy in run.out


def test_it_shows_each_users_command_as_a_shell_takes_it(run: Run) -> None:
    shown = run.out.partition("starts the CRM server behind mcpguard\n")[2].partition("\n\n")[0].replace("\\\n", "")
    for person, line in zip((ALICE, BOB, CAROL), shown.splitlines(), strict=True):
        expected = ["mcpguard", "run", "--server", "crm", *person.options, "--", "python", "-m", "mcpguard.demo.crm"]
        assert shlex.split(line) == expected


def test_it_shows_a_denial_as_the_client_received_it(run: Run) -> None:
    message = "  code     429\n  message  Tool search_customers rate limit exceeded for user alice@acme.com:\n"
    assert f"{message}           100 calls per 1h. Retry in 3600 seconds.\n  data\n    {{\n" in run.out
    assert '"axis": "user",' in run.out
    assert '"retry_after_ms": ' in run.out


def test_it_shows_the_last_denials_in_the_audit_log(run: Run) -> None:
    rows = run.out.partition("mcpguard audit tail -n")[2].partition("Next:")[0]
    assert "generate_report" in rows
    assert "rate_limited" in rows


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place for temporary files of a demo in this process."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_it_may_keep_its_folder(temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert story.run_demo(keep=True, loop_calls=30) == 0
    (folder,) = temporary.iterdir()
    assert capsys.readouterr().out.splitlines()[-1].strip() == str(folder)
    assert (folder / "policy.toml").read_text("utf-8") == SCHEMA_LINE + story.POLICY


@contextlib.contextmanager
def started(temporary: Path) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """A demo in a process of its own, and its output. It says nothing on stderr, and leaves no files behind."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    with subprocess.Popen(DEMO, env=environment(temporary), cwd=ROOT, **pipes) as process:  # type: ignore[call-overload]
        yield process, process.stdout
        assert process.stderr.read() == ""
    assert list(temporary.iterdir()) == []


@pytest.mark.posix
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for orphans in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_all_its_processes_quietly(tmp_path: Path, number: signal.Signals) -> None:
    with started(tmp_path) as (process, lines):
        assert any("caught in a loop" in line for line in lines)
        assert (
            len(processes.with_variable("TMPDIR", tmp_path)) == 1 + 2 * 3
        )  # the demo; a guard and a server for each of three people
        process.send_signal(number)
        process.send_signal(number)
        assert "What happened" not in lines.read()
    assert process.returncode == 128 + number
    assert processes.with_variable("TMPDIR", tmp_path) == []


@pytest.mark.posix
@pytest.mark.parametrize(("trap", "status"), [("true", -signal.SIGINT), ("trap '' INT", 7)])
def test_ctrl_c_during_imports_ends_it_quietly_unless_its_parent_had_it_ignored(tmp_path: Path, trap: str, status: int) -> None:
    # An import may make another error of a `KeyboardInterrupt`
    interrupted = (
        "try:\n    signal.raise_signal(signal.SIGINT)\n    os._exit(7)\n"
        "except KeyboardInterrupt:\n    raise ValueError('no schema')"
    )
    argv = ["/bin/sh", "-c", f'{trap}; exec "$@"', "sh", *DEMO]
    done = made(argv, tmp_path, PYTHONPATH=trapped(tmp_path, "mcp.client", interrupted))
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


@pytest.mark.posix
def test_it_runs_without_a_stdout(tmp_path: Path) -> None:
    done = made(["/bin/sh", "-c", 'exec "$@" >&-', "sh", *SHORT_DEMO], tmp_path)
    assert (done.returncode, done.stderr, list(tmp_path.iterdir())) == (0, "", [])


@pytest.mark.parametrize("last", ["mcpguard demo", "caught in a loop"])
def test_it_ends_quietly_when_the_reader_goes_away(tmp_path: Path, last: str) -> None:
    with started(tmp_path) as (process, lines):
        assert any(last in line for line in lines)
        lines.close()
    assert process.returncode == 0


@pytest.mark.posix
def test_a_failing_mcpguard_run_is_reported_in_one_line_with_its_reason(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'no guard today' >&2\nexit 3\n")
    broken.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(McpguardError, match=r"^the demo failed: .+$") as failure:
        story.run_demo(keep=False, loop_calls=30)
    assert failure.value.hint == "no guard today"
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("where", "what", "value", "message"),
    [
        (sys, "executable", "/nowhere/python", "the demo failed: .*(nowhere|WinError 2)"),
        (story, "_STORY_TIMEOUT_S", 0.0, "the demo failed: it took too long$"),
        (tempfile, "tempdir", "/nowhere/tmp", "no temporary folder can be made: "),
    ],
    ids=["no interpreter", "too long", "no temporary folder"],
)
def test_what_stops_the_demo_is_reported_in_one_line(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, where: object, what: str, value: object, message: str
) -> None:
    monkeypatch.setattr(where, what, value)
    with pytest.raises(McpguardError, match=f"^{message}") as failure:
        story.run_demo(keep=False, loop_calls=30)
    assert failure.value.hint.startswith("set TMPDIR ") == (where is tempfile)
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="SQLite on Windows takes a folder for a store that is not made yet")
def test_an_audit_log_that_cannot_be_shown_fails_the_demo_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "mcpguard.db").mkdir()
    with pytest.raises(McpguardError, match=r"^the demo failed: mcpguard audit tail ended with status 69$") as failure:
        anyio.run(Stage(tmp_path).audit_tail, 80)
    assert failure.value.hint == f"mcpguard: {tmp_path / 'mcpguard.db'} is a folder"


def test_a_call_that_fails_for_another_reason_than_a_limit_is_not_counted_as_denied() -> None:
    tally = CallResults(ALICE, "search_customers")

    def refuse(code: int) -> None:
        client = AsyncMock(**{"call_tool.side_effect": MCPError(code, "Tool x was not called", {"axis": "user"})})
        anyio.run(tally.call, client)

    refuse(RATE_LIMITED)
    with pytest.raises(MCPError, match="Tool x was not called"):
        refuse(UNAVAILABLE)
    assert (tally.made, tally.denied) == (1, {"user": 1})


@pytest.mark.usefixtures("temporary")
def test_a_bug_is_not_reported_as_a_failure_of_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stage, "connect", raising(KeyError("a bug")))
    with pytest.raises(KeyError, match="a bug"):
        story.run_demo(keep=False, loop_calls=30)


def test_the_accounts_own_settings_do_not_reach_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCPGUARD_STORE", "redis://elsewhere/0")
    found = Stage(tmp_path).environment()
    assert {name: value for name, value in found.items() if name.startswith("MCPGUARD_")} == {"MCPGUARD_HOME": str(tmp_path)}


def test_the_reason_why_a_command_failed_is_its_error_and_not_the_hint_below_it() -> None:
    said = "a warning\nmcpguard: a.db cannot be used: disk I/O error\nhint: check that its disk is not full\n\n"
    assert last_line(said).startswith("mcpguard: ")
    assert last_line("\n") == ""


COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:(?:3|4|9|10)[0-7]m|[34]8;)")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def use_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    stdout = Terminal()
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return stdout


def test_in_a_pipe_there_are_no_escape_codes_and_eighty_columns_whatever_the_environment_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "60"}.items():
        monkeypatch.setenv(name, value)
    page = Page()
    page.heading("A heading")
    page.verbatim('# a comment\n\nlimit = "5/1m" [bold]')
    page.verbatim("x" * 100, indent="")
    assert capsys.readouterr().out == f'\nA heading\n  # a comment\n\n  limit = "5/1m" [bold]\n{"x" * 100}\n'
    assert page.width == WIDTH


def test_on_a_terminal_it_has_colours_unless_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    Page().heading("A heading")
    assert not COLOUR.search(terminal.getvalue())
    monkeypatch.delenv("NO_COLOR")
    Page().heading("A heading")
    assert COLOUR.search(terminal.getvalue())


@pytest.mark.parametrize(("columns", "width"), [("60", 60), ("200", WIDTH)])
def test_a_narrow_terminal_is_filled_and_a_wide_one_is_not(monkeypatch: pytest.MonkeyPatch, columns: str, width: int) -> None:
    use_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", columns)
    page = Page()  # an old console of Windows wraps a line of full width
    assert page.width == min(int(columns) - page.legacy_windows, width)
