"""Sessions as only Windows has them, also under Wine. `tests/end_to_end` has those of all systems."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.account import APPS, Account
from tests.cli.command import process
from tests.end_to_end.host import Host, call, environment, lines, script
from tests.windows import processes

only_on_windows = pytest.mark.skipif(sys.platform != "win32", reason="only Windows has it")
ENDS_S = 20.0
"""How long an mcpguard whose client has left may take to end."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "a home é"


@only_on_windows
@pytest.mark.parametrize("code", [255, 256, 0xC0000005])
def test_the_exit_status_is_the_servers(home: Path, code: int) -> None:
    with Host(home, *script("obedient")) as host:
        host.send(call(1, "leave", {"status": code if code < 2**31 else code - 2**32}))
        assert "error" in host.answer(1)
        assert host.wait() == code


@only_on_windows
def test_nothing_outlives_the_killed_launcher_that_pip_installs(home: Path) -> None:
    python = Path(sys.executable)
    launcher = python.parent / "Scripts/mcpguard.exe"
    if not launcher.exists():
        launcher = python.with_name("mcpguard.exe")  # a virtual environment
    command = [str(launcher), "run", "--", *script("stubborn")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment(home)) as started:
        assert started.stdout
        assert b"notifications/ready" in started.stdout.readline()
        pids = [pid for pid, program in processes.below(started.pid) if "python" in program.lower()]
        assert len(pids) > 1, "mcpguard and the server"
        started.kill()
        assert processes.left_after(ENDS_S, pids) == []


def test_a_star_that_the_shell_leaves_alone_is_a_pattern(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").touch()
    monkeypatch.chdir(tmp_path)
    assert process(home, "policy", "set", "--user", "*", "--tool", "report", "7/1m").returncode == 0
    assert '"*"' in (home / "policy.toml").read_text("utf-8")


@only_on_windows
def test_install_and_uninstall_leave_the_clients_file_as_it_was(tmp_path: Path) -> None:
    account = Account(tmp_path)
    command, *args = script("obedient")
    crm = json.dumps({"command": command, "args": args, "env": {"NAME": "Jörg"}}, ensure_ascii=False)
    before = (
        '{\r\n  "grüße": "✓ \\u00e9",\r\n\t"mcpServers" : {\r\n'
        f'    "crm": {crm},\r\n    "remote": {{"url": "https://mcp.example/"}}\r\n'
        '  },\r\n  "big": 123456789012345678901234567890\r\n}\r\n'
    )
    file = account.write(f"{APPS}/Claude/claude_desktop_config.json", before)
    files = account.files()
    account.install("claude-desktop")
    after = file.read_bytes()
    assert [line for line in before.encode().split(b"\r\n") if line not in after.split(b"\r\n")] == [
        f'    "crm": {crm},'.encode()
    ]
    assert after.count(b"\n") == after.count(b"\r\n")
    entry = json.loads(after)["mcpServers"]["crm"]
    asked, start = lines([call(1, "search", {"text": "é"})]), [entry["command"], *entry["args"]]
    served = subprocess.run(start, input=asked, env=environment(account.state), capture_output=True, check=True)
    assert "result" in json.loads(served.stdout.splitlines()[0])
    account.undo(files)
