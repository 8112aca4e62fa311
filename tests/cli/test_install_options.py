"""The options that `mcpguard install` writes into entries."""

import sys
from pathlib import Path

import pytest

from tests.cli.account import CURSOR, ONE, Account, guarded, listing, servers


def test_what_the_variables_choose_is_written_as_options(account: Account) -> None:
    file = account.cursor(ONE)
    account.install(
        MCPGUARD_POLICY="~/policy.toml", MCPGUARD_USER="alice", MCPGUARD_STORE="redis://cache/0",
        MCPGUARD_DENIALS="error", MCPGUARD_OBSERVE="1", MCPGUARD_QUIET="1", MCPGUARD_AGENT="::background::",
    )  # fmt: skip
    written = "--store redis://cache/0 --user alice --agent ::background:: --denials error --observe --quiet".split()
    assert servers(file)["a"] == guarded("a", "a", options=("--policy", str(account.home / "policy.toml"), *written))


def test_a_server_whose_name_is_not_utf_8_is_left_and_the_others_are_done(account: Account) -> None:
    file = account.cursor(listing(**{"a\ud800": {"command": "a"}, "b": {"command": "b", "args": []}}))
    why = "not changed: the server's name, an option or the path of mcpguard is not UTF-8"
    assert account.install(status=1).stderr.endswith(f"mcpguard: {file}: {why}\n")
    assert servers(file) == {"a\ud800": {"command": "a"}, "b": guarded("b", "b")}


@pytest.mark.skipif(sys.platform == "win32", reason="variables are Unicode")
def test_an_option_that_is_not_utf_8_is_not_written_into_a_file(account: Account) -> None:
    file = account.write("home/.claude.json", ONE)
    done = account.install("--hook", status=1, MCPGUARD_STORE="sqlite:///caf\udce9.db")
    assert done.stderr.count("an option or the path of mcpguard is not UTF-8\n") == 2  # of the server and of the hook
    assert "Traceback" not in done.stderr
    assert file.read_text("utf-8") == ONE


TOKEN = "eyJhbGciOiJSUzI1NiJ9.e30.c2ln"


@pytest.mark.parametrize(
    ("name", "value", "status", "message"),
    [
        ("MCPGUARD_TOKEN", TOKEN, 2, "MCPGUARD_TOKEN is set here, and a secret must not be written into a client's file"),
        ("MCPGUARD_STORE_PASSWORD", "s3cret", 2, "MCPGUARD_STORE_PASSWORD is set here, and a secret must not be written"),
        ("MCPGUARD_STORE", "redis://:s3cret@cache/0", 2, "MCPGUARD_STORE holds a secret, which must not be written"),
        ("MCPGUARD_USER", TOKEN, 2, "MCPGUARD_USER holds a secret, which must not be written into a client's file"),
        ("MCPGUARD_STORE", "counters.db", 78, "MCPGUARD_STORE: this is not a URL"),
        ("MCPGUARD_AGENT", "nightly", 78, "MCPGUARD_AGENT: 'nightly' does not have three parts"),
        ("MCPGUARD_CONFIG", "/gone.toml", 78, f"MCPGUARD_CONFIG: {Path('/gone.toml').absolute()}: no such file"),
        ("MCPGUARD_DENIALS", "never", 78, "MCPGUARD_DENIALS: 'never' is none of auto, error, result"),
    ],
)
def test_a_secret_or_a_value_with_which_no_server_would_start_is_not_written_into_a_clients_file(
    account: Account, name: str, value: str, status: int, message: str
) -> None:
    cursor = account.cursor()
    done = account.install(status=status, **{name: value})
    assert cursor.read_text("utf-8") == CURSOR
    assert done.stderr.startswith(f"mcpguard: {message}")
    assert ("hint: " in done.stderr, value in done.stderr) == (True, False) or status == 78


def test_variables_that_have_no_option_are_warned_of(account: Account) -> None:
    account.cursor()
    done = account.install(MCPGUARD_NAMESPACE="team")
    assert "warning: MCPGUARD_HOME is set here, but clients do not pass it on to the servers: " in done.stderr
    assert "warning: MCPGUARD_NAMESPACE is set here" in done.stderr
