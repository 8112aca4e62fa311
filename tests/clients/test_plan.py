"""What `install` notes for `uninstall`, and whether a client runs that would undo a change."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mcpguard.clients.catalog import BY_KEY
from mcpguard.clients.plan import NAME, UndoRecord, is_running, load, save

ONE, TWO = UndoRecord("/a.json", ("mcpServers", "crm")), UndoRecord("/b.json", ("mcp", "x"))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "home" / "state"


@pytest.mark.posix
def test_only_this_account_can_read_the_notes_and_their_folder(state: Path) -> None:
    save(state, added={ONE})
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (state.parent, state, state / NAME)]
    assert modes == [0o700, 0o700, 0o600]


def test_notes_are_added_and_dropped_beside_another_commands_and_nothing_is_written_without_a_new_one(state: Path) -> None:
    save(state, dropped={ONE})
    assert not state.exists()
    save(state, added={ONE})
    save(state, added={TWO})
    assert load(state) == {ONE, TWO}
    save(state, dropped={ONE})
    assert load(state) == {TWO}


@pytest.mark.parametrize("data", [b"", b"\xff", b"{", b"1", b'[{"file": "/a.json"}]', b"[1]", b"[" * 100_000])
def test_a_damaged_file_of_notes_has_none_and_is_replaced(state: Path, data: bytes) -> None:
    state.mkdir(parents=True)
    (state / NAME).write_bytes(data)
    assert load(state) == set()
    save(state, added={ONE})
    assert load(state) == {ONE}


DESKTOP = BY_KEY["claude-desktop"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
def test_on_linux_the_names_of_processes_are_read() -> None:
    own = Path("/proc/self/comm").read_text().strip()
    assert is_running(DESKTOP._replace(processes=(own, "", "")))
    assert not is_running(DESKTOP._replace(processes=("no such program", "", "")))
    assert not is_running(DESKTOP._replace(processes=()))


PGREP = ["/usr/bin/pgrep", "-a", "-x", "Claude"]  # -a: also a client in whose terminal this runs
TASKLIST = [r"D:\Win\System32\tasklist.exe", "/FI", "IMAGENAME eq Claude.exe"]


@pytest.mark.parametrize(
    ("system", "command", "output", "runs"),
    [
        *(("darwin", PGREP, output, runs) for output, runs in {"4711\n": True, "": False, None: False}.items()),
        ("win32", TASKLIST, "claude.exe    4711 Console", True),
        *(("win32", TASKLIST, output, False) for output in ("INFO: No tasks are running", None)),
    ],
)
def test_elsewhere_a_program_of_the_system_tells_which_is_started_by_its_full_path_and_gets_no_secrets(
    monkeypatch: pytest.MonkeyPatch, system: str, command: list[str], output: str | None, runs: bool
) -> None:
    def run(started: list[str], *, env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        assert (started, env) == (command, {"SYSTEMROOT": r"D:\Win"} if system == "win32" else {})
        if output is None:
            raise FileNotFoundError
        return subprocess.CompletedProcess(started, 0, output)

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("SYSTEMROOT", r"D:\Win")
    monkeypatch.setenv("MCPGUARD_TOKEN", "tango")
    assert is_running(DESKTOP) == runs
