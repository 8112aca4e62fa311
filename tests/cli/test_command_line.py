"""Errors of command lines: messages, hints and exit statuses."""

import contextlib
import errno
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from mcpguard.cli import commands, present
from mcpguard.config import Settings
from tests.build import raising
from tests.cli.command import BOUND, calls, command, complaint, mcpguard, output, permissions_bind, process, trapped
from tests.end_to_end.host import environment, policy, rule


@pytest.mark.parametrize("argv", [[], ["policy"], ["audit"]])
def test_without_a_command_the_help_is_printed_to_stderr(tmp_path: Path, argv: list[str]) -> None:
    assert complaint(tmp_path, *argv) == output(tmp_path, *argv, "--help")


@pytest.mark.parametrize("argv", [[], ["policy"], ["audit"], ["hook"]])
def test_the_help_of_a_group_needs_no_characters_that_some_locales_lack(tmp_path: Path, argv: list[str]) -> None:
    done = process(tmp_path, *argv, "--help", PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()


def test_an_error_of_the_system_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands.cli, "invoke", raising(OSError(errno.EIO, os.strerror(errno.EIO), "/bin/x")))
    assert (
        complaint(tmp_path, "clients", status=1)
        == "mcpguard: cannot use /bin/x: Input/output error\nhint: check that its folder is writable and the disk is not full\n"
    )


@pytest.mark.parametrize(
    ("argv", "message", "hint"),
    [
        ("policy sett", "no such command: sett", "did you mean mcpguard policy set?"),
        ("set --tool a", "no such command: set", "did you mean mcpguard policy set?"),
        ("tail", "no such command: tail", "did you mean mcpguard audit tail?"),
        ("polcy", "no such command: polcy", "did you mean mcpguard policy?"),
        ("run --denials none cat", "--denials: 'none' is not one of auto, error, result", "see mcpguard run --help"),
        ("run --server", "--server: requires an argument", "see mcpguard run --help"),
        ("audit tail -n x", "--lines: 'x' is not a whole number", "see mcpguard audit tail --help"),
        ("audit tail -n -1", "--lines: -1 is less than 0", "see mcpguard audit tail --help"),
        ("demo --quick", "no such option: --quick", "see mcpguard demo --help"),
        ("policy set --tool", "--tool: requires an argument", "see mcpguard policy set --help"),
        ("policy set --tool x", "missing argument LIMIT..., or --concurrent", "see mcpguard policy set --help"),
        ("policy explain", "missing option --tool", "see mcpguard policy explain --help"),
        ("policy mode", "missing argument {observe|enforce}", "see mcpguard policy mode --help"),
        ("completion", "missing argument bash|zsh|fish|powershell", "see mcpguard completion --help"),
        ("completion tcsh", "shell: 'tcsh' is not one of bash, zsh, fish, powershell", "see mcpguard completion --help"),
        ("policy show x", "unexpected argument: x", "see mcpguard policy show --help"),
        ("policy show --json=1", "--json: does not take a value", "see mcpguard policy show --help"),
        ("policy set --tol x 1/1s", "no such option: --tol", "did you mean --tool? see mcpguard policy set --help"),
        ("--quick", "no such option: --quick", "see mcpguard --help"),
    ],
)
def test_every_wrong_command_line_is_reported_in_one_form(tmp_path: Path, argv: str, message: str, hint: str) -> None:
    assert complaint(tmp_path, *argv.split()) == f"mcpguard: {message}\nhint: {hint}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("audit report -o /nowhere/r.html", f"-o: there is no folder {Path('/nowhere')}"),
        ("audit report --since 1h --until 2h", "no time is since 1h and until 2h"),
        ("audit report --since 9999-01-01", "--since names a time that has not come yet"),
        ("audit report --axis nothing", "--axis: 'nothing' matches no known value"),
        ("audit export --otlp localhost:4318", "--otlp: this is not an http or https URL"),
        ("audit export --otlp http://x -o f", "--otlp excludes -o and --format"),
        ("audit export --otlp http://x --format jsonl", "--otlp excludes -o and --format"),
        ("audit export --otlp-user", "--otlp-user needs --otlp"),
        ("policy suggest --since soon", "--since: 'soon' is not a span of time"),
        ("policy explain --tool x --token t --user bob", "--user and --token both name the user"),
    ],
)
def test_values_that_cannot_be_are_refused_with_a_hint(home: Path, argv: str, message: str) -> None:
    assert complaint(home, *argv.split()).startswith(f"mcpguard: {message}\nhint: ")


def test_a_word_that_is_like_no_command_gets_the_list_of_commands(tmp_path: Path) -> None:
    _, hint = complaint(tmp_path, "policy", "zzz").splitlines()
    assert hint.startswith("hint: use one of: ")
    assert {"set", "show", "check"} <= set(hint.split())


@pytest.mark.parametrize(
    ("argv", "env", "place", "status"),
    [
        ("audit tail --store x", {}, "--store", 2),
        ("policy explain --tool a --agent x", {}, "--agent", 2),
        ("whoami", {"MCPGUARD_AGENT": "x"}, "MCPGUARD_AGENT", 78),
        pytest.param("policy show --policy ~nobody-here/x", {}, "--policy", 2, marks=pytest.mark.posix),
        ("whoami --config nowhere.toml", {}, "--config", 2),
    ],
)
def test_an_invalid_value_is_reported_with_the_option_or_variable_that_has_it(
    tmp_path: Path, argv: str, env: dict[str, str], place: str, status: int
) -> None:
    first, _ = complaint(tmp_path, *argv.split(), status=status, **env).splitlines()
    assert first.startswith(f"mcpguard: {place}: ")


@pytest.fixture
def unread() -> Iterator[int]:
    """The end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize(
    "argv",
    [
        "--version",
        "policy --help",
        "policy show",
        "policy show --json",
        "audit export",
        "audit report -o -",
        "audit tail --json",
        "clients",
        "doctor",
        "usage --json",
        "hook --help",
    ],
)
def test_a_command_ends_quietly_when_the_reader_of_its_output_leaves(used: Path, unread: int, argv: str) -> None:
    done = subprocess.run(command(*argv.split()), env=environment(used), stdout=unread, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_reader_of_stderr_that_leaves_is_no_success(tmp_path: Path, unread: int) -> None:
    argv = command("audit", "tail")  # says that there is no store
    done = subprocess.run(argv, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=unread, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


@pytest.mark.posix
def test_another_pipe_without_a_reader_is_an_error(used: Path, monkeypatch: pytest.MonkeyPatch, unread: int) -> None:
    monkeypatch.setattr(Settings, "read_store", lambda _: os.write(unread, b"x"))
    monkeypatch.setattr(present, "reader_leaves", lambda **_: False)  # the stdout of this test is no pipe
    done = mcpguard(used, "audit", "export")
    assert (done.returncode, done.stderr) == (1, "mcpguard: cannot continue: Broken pipe\n")


def test_an_option_that_is_given_twice_has_the_last_value(tmp_path: Path) -> None:
    assert "call of b\n" in output(tmp_path, "policy", "explain", "--tool", "a", "--tool=b")
    path = output(tmp_path, "policy", "path", "--policy", "/a", "--policy", "/b")
    assert path == f"{Path('/b').absolute()}\n"
    run = process(tmp_path, "run", "--user", "a", "--user=b", "--", sys.executable, "-c", "")
    assert (run.returncode, " user=b " in run.stderr) == (0, True)


def test_role_and_scope_may_be_repeated(tmp_path: Path) -> None:
    argv = ["--role", "a", "--role", "b", "--scope", "c", "--scope", "d"]
    mcpguard(tmp_path, "policy", "set", *argv, "5/1m")
    assert "role=a,b scope=c,d" in output(tmp_path, "policy", "unset", *argv)


def test_line_ends_in_a_name_are_escaped_in_an_error(tmp_path: Path) -> None:
    policy(tmp_path, rule("5/1m", user="x\nhint: run me\u2028\x85", tool="\r") * 2)
    first, *_, hint = complaint(tmp_path, "policy", "check", status=78).split("\n")[:-1]
    assert r"user=x\nhint: run me\u2028\x85 tool=\r" in first
    assert hint.startswith("hint: keep one")
    first, *_ = complaint(tmp_path, "polic\nhint: run me").split("\n")
    assert first == r"mcpguard: no such command: polic\nhint: run me"


@pytest.mark.parametrize(
    ("argv", "status"), [("policy show", 0), ("policy check nowhere.toml", 78), ("audit tail", 0), ("reset", 2)]
)
def test_a_command_has_the_same_output_and_status_in_a_process_of_its_own(tmp_path: Path, argv: str, status: int) -> None:
    apart, here = process(tmp_path, *argv.split()), mcpguard(tmp_path, *argv.split())
    assert apart.returncode == here.returncode == status
    assert (apart.stdout, apart.stderr) == (here.stdout, here.stderr)


@pytest.mark.parametrize("module", ["mcpguard.errors", "mcpguard.cli", "mcpguard.cli.run", "click"])
@pytest.mark.parametrize("error", ["ModuleNotFoundError", "SyntaxError"])
def test_a_hook_does_not_stop_the_call_if_a_part_cannot_be_loaded(tmp_path: Path, module: str, error: str) -> None:
    done = process(tmp_path, "hook", "claude-code", PYTHONPATH=trapped(tmp_path, module, f"raise {error}"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("argv", "module"),
    [
        (["run", "--", "cat"], "mcpguard.errors"),
        (["policy", "show"], "click"),
        (["policy", "show"], "mcpguard.cli.policy.show"),
        (["usage"], "mcpguard.policy.file"),
    ],
)
def test_a_part_that_cannot_be_loaded_is_one_line_and_a_hint(tmp_path: Path, argv: list[str], module: str) -> None:
    missing = f"""raise ModuleNotFoundError("No module named '{module}'")"""
    done = process(tmp_path, *argv, PYTHONPATH=trapped(tmp_path, module, missing))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"mcpguard: cannot continue: No module named '{module}'\nhint: ")
    assert done.stderr.count("\n") == 2


def heed_ctrl_c() -> None:
    """Restore the default action, because a shell ignores SIGINT for background processes."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.posix
@pytest.mark.parametrize(
    ("argv", "module"),
    [
        (["run", "--", "cat"], "mcpguard.cli"),
        (["run", "--", "cat"], "mcpguard.errors"),
        (["run", "--", "cat"], "mcpguard.relay.run"),
        (["policy", "show"], "mcpguard.run_options"),
        (["policy", "show"], "click"),
        (["policy", "show"], "mcpguard.cli.policy"),
    ],
)
def test_ctrl_c_while_modules_are_loaded_ends_the_process_without_output(tmp_path: Path, argv: list[str], module: str) -> None:
    trap = trapped(tmp_path, module, "signal.raise_signal(signal.SIGINT)")
    done = process(tmp_path, *argv, preexec=heed_ctrl_c, PYTHONPATH=trap)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


# What commands have in common

START = "hint: start a server with mcpguard run, which creates it\n"


@pytest.mark.parametrize(
    ("argv", "status", "told", "hint"),
    [
        ("audit tail", 0, "mcpguard: no audit log yet", ""),
        ("audit stats", 0, "mcpguard: no calls", ""),
        ("audit show x-1", 1, "mcpguard: no audit log yet", START),
        ("audit export", 1, "mcpguard: no audit log yet", START),
        ("audit report -o {}/r.html", 1, "mcpguard: no audit log yet", START),
        ("audit prune --before 1d --yes", 0, "no rows", ""),
        ("usage", 0, "mcpguard: no counters", ""),
        ("reset --yes", 0, "no counters", ""),
    ],
)
def test_without_a_store_a_command_says_so_and_makes_none(tmp_path: Path, argv: str, status: int, told: str, hint: str) -> None:
    done = mcpguard(tmp_path, *shlex.split(argv.format(tmp_path.as_posix())))
    said = f"{told}: there is no store at {tmp_path / 'mcpguard.db'}\n{hint}"
    assert done.returncode == status
    expected = ("", said) if told.startswith("mcpguard: ") else (said, "")
    assert (done.stdout, done.stderr) == expected
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argv", ["audit tail", "usage", "reset --yes"])
def test_a_damaged_store_is_reported_with_status_69(home: Path, argv: str) -> None:
    (home / "mcpguard.db").write_bytes(b"no database" * 1000)
    first, hint = complaint(home, *argv.split(), status=69).splitlines()
    assert "is damaged" in first
    assert hint.startswith("hint: move it away")


@pytest.mark.parametrize(
    ("change", "argv"), [("UPDATE counter SET label = '{'", "usage"), ("UPDATE counter SET log = x'01'", "reset --yes")]
)
def test_a_damaged_value_in_a_store_is_reported_in_one_line_with_status_69(home: Path, change: str, argv: str) -> None:
    with contextlib.closing(sqlite3.connect(home / "mcpguard.db")) as db, db:
        db.execute(change)
    message, hint = complaint(home, *argv.split(), status=69).splitlines()
    assert message.startswith(f"mcpguard: {home / 'mcpguard.db'} cannot be used: internal error: ")
    assert hint == "hint: report it, unless the store is damaged"


@permissions_bind
@pytest.mark.parametrize("closed", [".", "mcpguard.db", "mcpguard.db-calls"])
def test_a_store_that_another_account_keeps_to_itself_is_unavailable_and_not_the_output(tmp_path: Path, closed: str) -> None:
    theirs = tmp_path / "theirs"
    calls(theirs, "echo", 1)
    mode = (theirs / closed).stat().st_mode
    (theirs / closed).chmod(0)
    try:
        for argv in (["audit", "tail"], ["usage"]):
            done = process(tmp_path, *argv, "--store", f"sqlite://{theirs}/mcpguard.db", under=BOUND)
            assert (done.returncode, done.stdout) == (69, "")
            assert re.match(f"mcpguard: {theirs}/mcpguard.db(-calls)? cannot be used: ", done.stderr)
    finally:
        (theirs / closed).chmod(mode)


@pytest.mark.parametrize(("argv", "what"), [("reset", "reset"), ("audit prune --before 1d", "delete")])
def test_a_command_that_asks_needs_a_terminal_or_yes(home: Path, argv: str, what: str) -> None:
    before = (home / "mcpguard.db-calls").read_bytes()
    assert complaint(home, *argv.split()).endswith(f"\nhint: add --yes to {what} without asking\n")
    assert (home / "mcpguard.db-calls").read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "module", "needs", "extra"),
    [
        ("audit report -o -", "jinja2", "audit report needs jinja2", "report"),
        ("audit export --otlp http://x", "opentelemetry.sdk", "audit export --otlp needs opentelemetry-sdk", "otel"),
    ],
)
def test_a_missing_package_is_named_with_what_installs_it(home: Path, argv: str, module: str, needs: str, extra: str) -> None:
    with patch.dict(sys.modules, {module: None}):
        said = complaint(home, *argv.split(), status=1)
    assert said == (
        f"mcpguard: {needs}, which is not installed\n"
        f"hint: install 'mcpguard-cli[{extra}]' with uv tool install, pipx install --force or pip install; "
        "name the extras that you use already, too, or uv removes them\n"
    )
