"""`mcpguard hook`: it is quick, prints only what the client expects, and never stops a call."""

import contextlib
import json
import os
import select
import socket
import sqlite3
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mcpguard.hook.run import MAX_INPUT_BYTES, TIMEOUT_S, _note
from mcpguard.identity.client_agents import AgentNote
from mcpguard.locks import lock_file
from mcpguard.stores.address import SqliteAddress
from mcpguard.stores.sqlite.store import SqliteStore
from tests.cli.command import command, complaint, sqlite
from tests.end_to_end.host import DEADLINE_S, PATIENT_MS, budget, environment, until
from tests.end_to_end.outages import root_only
from tests.identity.test_client_agents import EXPLORE, without
from tests.recorded_hooks import COPILOT

EXPLORE_NOTE = AgentNote.of("", "Claude Code::subagent::Explore", "abc123").text

IN_TIME_S = TIMEOUT_S + 20
"""The hook's own time limit, and time for an interpreter to start on a busy machine; far below `DEADLINE_S`."""


def note(home: Path, given: bytes | dict[str, Any], *options: str, client: str = "claude-code", **env: str) -> bytes:
    """Run the hook with enough time to write a note on a busy machine. Returns what it prints."""
    budget(home, PATIENT_MS)
    return hook(home, given, *options, client=client, tuned={"mcpguard.hook.run.TIMEOUT_S": DEADLINE_S}, **env)


def hook(home: Path, given: bytes | dict[str, Any], *options: str, client: str = "claude-code", **how: Any) -> bytes:
    """Run the hook. It may report nothing, and only Copilot CLI's may print something. Returns what it prints."""
    done = ran(home, given, client, *options, **how)
    assert done.stderr == b""
    assert not done.stdout or client == "copilot"
    return done.stdout


def ran(
    home: Path, given: Any, *argv: str, under: Sequence[str] = (), tuned: Any = None, out: int = subprocess.PIPE, **env: str
) -> subprocess.CompletedProcess[bytes]:
    """Run the hook, which must end in time with status 0. It writes to `out`, or is read."""
    data = json.dumps(given).encode() if isinstance(given, dict) else given
    argv = (*under, *command("hook", *argv, tuned=tuned))
    begin = time.monotonic()
    done = subprocess.run(
        argv, input=data, env=environment(home, **env), stdout=out, stderr=subprocess.PIPE, timeout=DEADLINE_S, check=True
    )
    assert time.monotonic() - begin < IN_TIME_S
    return done


def noted(path: Path, namespace: str = "default", key: str = "abc123 toolu_01ABC") -> str | None:
    with contextlib.closing(SqliteStore(path)) as store:
        return store.take_note(namespace, key) or None


@pytest.fixture
def home(tmp_path: Path) -> Path:
    SqliteStore(tmp_path / "mcpguard.db").close()
    return tmp_path


def test_it_uses_the_store_and_the_namespace_of_the_settings(home: Path) -> None:
    SqliteStore(home / "other.db").close()
    (home / "other.toml").write_text(f'[store]\nurl = "{sqlite(home)}/other.db"\nnamespace = "team"\n', "utf-8")
    note(home, EXPLORE, "--config", str(home / "other.toml"))
    found = [noted(home / "other.db", "default"), noted(home / "mcpguard.db"), noted(home / "other.db", "team")]
    assert found == [None, None, EXPLORE_NOTE]


def test_copilots_hook_prints_the_meta_that_it_is_given_and_the_calls_id(home: Path) -> None:
    given = COPILOT["subagent"]["hook"]
    added = {"mcpguard/toolCallId": "call_68_sub"}
    assert json.loads(note(home, given, client="copilot")) == {"metaToUse": added}
    call_meta = {"progressToken": 7, "vendor/größe": {"x": [1.50, 12345678901234567890, None, "\u2028"]}}
    printed = note(home, given | {"_meta": call_meta}, client="copilot")
    assert json.loads(printed) == {"metaToUse": call_meta | added}
    assert printed.isascii()
    assert printed.count(b"\n") == 1


def test_copilots_hook_prints_nothing_if_it_left_no_note(tmp_path: Path) -> None:
    assert hook(tmp_path / "none", COPILOT["subagent"]["hook"], client="copilot") == b""
    (tmp_path / "config.toml").write_text("not toml [", "utf-8")
    assert hook(tmp_path, COPILOT["subagent"]["hook"], client="copilot") == b""


def test_copilots_hook_ends_in_time_if_nobody_reads_what_it_prints(home: Path) -> None:
    given = COPILOT["subagent"]["hook"] | {"_meta": {"x": "x" * (1 << 20)}}  # more than a pipe holds
    reader, writer = os.pipe()
    try:
        assert ran(home, given, "copilot", out=writer).stderr == b""
    finally:
        os.close(writer)
        os.close(reader)


def test_large_arguments_are_accepted_and_too_large_ones_are_ignored(home: Path) -> None:
    note(home, without(tool_input={"text": "x" * (MAX_INPUT_BYTES // 2)}))
    assert noted(home / "mcpguard.db")
    hook(home, without(tool_use_id="huge", tool_input={"text": "x" * MAX_INPUT_BYTES}))  # which need not read all of it
    assert not noted(home / "mcpguard.db", key="abc123 huge")


@pytest.mark.parametrize(
    "broken",
    ["not toml [", '[store]\nurl = "nonsense"\n', '[store]\nurl = "redis://127.0.0.1:1/0"\n', "[store]\ntimeout_ms = -1\n"],
)
def test_a_broken_config_is_not_reported_by_the_hook(home: Path, broken: str) -> None:
    (home / "config.toml").write_text(broken, "utf-8")
    hook(home, EXPLORE)


def test_a_file_that_is_not_a_store_is_not_changed(home: Path) -> None:
    content = b"something else, and longer than the header of a database is" * 10
    (home / "mcpguard.db").write_bytes(content)
    hook(home, EXPLORE)
    assert (home / "mcpguard.db").read_bytes() == content


def test_a_locked_call_log_does_not_delay_the_hook(home: Path) -> None:
    with contextlib.closing(lock_file(home / "mcpguard.db-calls")) as lock:
        assert lock.acquire(DEADLINE_S)
        hook(home, EXPLORE)
        lock.release()
    assert not noted(home / "mcpguard.db")


def test_a_locked_database_does_not_prevent_a_note(home: Path) -> None:
    with contextlib.closing(sqlite3.connect(home / "mcpguard.db", isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        hook(home, EXPLORE)
    assert noted(home / "mcpguard.db") == EXPLORE_NOTE


def test_it_waits_for_the_store_at_most_timeout_ms(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def leave_note(_: object, namespace: str, note: AgentNote, *, wall_us: int, timeout_s: float) -> None:
        assert (namespace, note.key, wall_us > 0) == ("default", "abc123 toolu_01ABC", True)
        waits.append(timeout_s)

    monkeypatch.setenv("MCPGUARD_HOME", str(home))
    monkeypatch.setattr(SqliteAddress, "leave_note", leave_note)
    for config in ("", "[store]\ntimeout_ms = 90\n"):
        (home / "config.toml").write_text(config, "utf-8")
        _note("claude-code", EXPLORE, {"observe": False})
    assert waits == [0.25, 0.09]


@root_only
def test_a_hanging_name_server_does_not_delay_the_call(tmp_path: Path) -> None:
    nameserver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    place = ".".join(["127", *map(str, os.urandom(2)), "53"])  # an address of its own, for tests that run at the same time
    with contextlib.closing(nameserver):
        nameserver.bind((place, 53))  # it receives queries and does not answer
        (tmp_path / "resolv.conf").write_text(f"nameserver {place}\noptions timeout:30 attempts:5\n", "utf-8")
        under = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"', tmp_path / "resolv.conf"]
        tuned = {"mcpguard.hook.run.TIMEOUT_S": 8}  # long enough to reach the query on a busy machine

        def has_hung() -> bool:
            hook(tmp_path, EXPLORE, "--store", "redis://cache.acme.com:6379/0", under=[*map(str, under)], tuned=tuned)
            asked, _, _ = select.select([nameserver], [], [], 0)
            return bool(asked)  # false if the hook timed out earlier

        until(has_hung, "it asks the name server")
        assert b"cache" in nameserver.recv(4096)


def test_it_ends_in_silence_if_the_system_has_no_thread_for_its_watchdog(home: Path) -> None:
    hook(home, EXPLORE, tuned={"mcpguard.hook.run.start_new_thread": None})


def test_it_does_not_wait_for_endless_input(home: Path) -> None:
    begin = time.monotonic()
    process = subprocess.Popen(command("hook", "claude-code"), env=environment(home), stdin=subprocess.PIPE)
    assert process.wait(DEADLINE_S) == 0
    assert time.monotonic() - begin < IN_TIME_S
    assert process.stdin
    process.stdin.close()


@pytest.mark.posix
def test_closed_streams_are_accepted(home: Path) -> None:
    def close() -> None:
        for fd in (0, 1, 2):
            os.close(fd)

    process = subprocess.Popen(command("hook", "claude-code"), env=environment(home), preexec_fn=close)
    assert process.wait(DEADLINE_S) == 0


@pytest.mark.parametrize("wrong", ["codex --nope", "codex --store", "codex more", "claude-cod", "--nope", ""])
def test_a_usage_error_is_reported_and_does_not_block_the_call(home: Path, wrong: str) -> None:
    said = complaint(home, "hook", *wrong.split(), status=0)
    assert said.startswith("mcpguard: " if wrong else "Usage: mcpguard hook [OPTIONS] COMMAND")


def test_it_loads_only_what_it_needs(home: Path) -> None:
    lines = ran(home, EXPLORE, "claude-code", PYTHONPROFILEIMPORTTIME="1").stderr.decode()
    loaded = {line.rpartition("|")[2].strip() for line in lines.splitlines()}
    assert "mcpguard.stores.sqlite.call_log" in loaded
    heavy = "mcp rich anyio asyncio tomli_w logging mcpguard.policy.model mcpguard.limiter.plan mcpguard.stores.sqlite.store"
    assert loaded.isdisjoint(heavy.split())
