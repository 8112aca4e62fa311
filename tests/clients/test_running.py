"""Whether a client is running."""

import subprocess
import sys
from pathlib import Path

import pytest

from mcpguard.clients import running
from mcpguard.clients.catalog import BY_KEY

DESKTOP = BY_KEY["claude-desktop"]


def test_a_client_that_does_not_write_its_file_back_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_name", lambda _: "cursor")
    assert not running.is_running(BY_KEY["cursor"])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
def test_on_linux_the_names_of_processes_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_PROCESSES", {"claude-desktop": ("no such program", "", "")})
    assert not running.is_running(DESKTOP)
    own = running._name(Path("/proc/self"))
    monkeypatch.setattr(running, "_PROCESSES", {"claude-desktop": (own, "", "")})
    assert running.is_running(DESKTOP)


@pytest.mark.parametrize(
    ("system", "found", "other"),
    [("darwin", "4711\n", ""), ("win32", "Claude.exe    4711 Console", "INFO: No tasks are running")],
)
def test_on_macos_and_windows_a_program_of_the_system_tells(
    monkeypatch: pytest.MonkeyPatch, system: str, found: str, other: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    for output, is_running in ((found, True), (other, False)):
        monkeypatch.setattr(subprocess, "run", lambda *_, output=output, **__: subprocess.CompletedProcess([], 0, output))
        assert running.is_running(DESKTOP) == is_running


@pytest.mark.parametrize(("system", "program"), [("darwin", "/usr/bin/pgrep"), ("win32", r"D:\Win\System32\tasklist.exe")])
def test_the_program_of_the_system_is_started_by_its_full_path_and_gets_no_secrets(
    monkeypatch: pytest.MonkeyPatch, system: str, program: str
) -> None:
    started: list[tuple[str, dict[str, str]]] = []

    def run(command: list[str], *, env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        started.append((command[0], env))
        return subprocess.CompletedProcess(command, 0, "")

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("SYSTEMROOT", r"D:\Win")
    monkeypatch.setenv("MCPGUARD_TOKEN", "tango")
    assert not running.is_running(DESKTOP)
    assert started == [(program, {"SYSTEMROOT": r"D:\Win"} if system == "win32" else {})]


def test_if_it_cannot_be_found_out_the_client_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", fail)
    assert not running.is_running(DESKTOP)
