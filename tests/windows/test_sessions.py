"""Sessions as only Windows has them, also under Wine. `tests/end_to_end` has those of all systems."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import process
from tests.end_to_end.host import DEADLINE_S, ROOT, Host, call, environment, lines, policy, script
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


LEAVES = """
import json, os, sys, threading, time
from pathlib import Path
from tests.end_to_end.host import Host, request, script
from tests.windows import processes
host = Host(Path(sys.argv[1]), *script("stubborn"))
host.notification("notifications/ready")
print(json.dumps([host.process.pid, *(pid for pid, _ in processes.below(host.process.pid))]), flush=True)
threading.Thread(target=host.send, args=(request(1, "x", {"a": "z" * 1_000_000}),), daemon=True).start()
time.sleep(3)
os._exit(0)
"""
"""A client that prints the ids of the processes below it, writes 1 MB and ends at once."""


def test_mcpguard_ends_when_the_client_of_a_server_that_reads_nothing_has_left(home: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", LEAVES, str(home)], stdout=subprocess.PIPE, cwd=ROOT) as client:
        assert client.stdout
        pids = json.loads(client.stdout.readline())
        client.wait(DEADLINE_S)
    try:
        assert processes.left_after(ENDS_S, pids) == []
    finally:
        processes.kill(pids)


def test_a_star_that_the_shell_leaves_alone_is_a_pattern(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").touch()
    monkeypatch.chdir(tmp_path)
    assert process(home, "policy", "set", "--user", "*", "--tool", "report", "7/1m").returncode == 0
    assert '"*"' in (home / "policy.toml").read_text("utf-8")


@only_on_windows
def test_install_and_uninstall_leave_the_clients_file_as_it_was(home: Path, tmp_path: Path) -> None:
    policy(home, 'mode = "enforce"\n')
    account = {}
    for name, folder in {"APPDATA": "Roaming", "LOCALAPPDATA": "Local", "USERPROFILE": "."}.items():
        (tmp_path / folder).mkdir(exist_ok=True)
        account[name] = str(tmp_path / folder)
    file = tmp_path / "Roaming/Claude/claude_desktop_config.json"
    file.parent.mkdir()
    command, *args = script("obedient")
    crm = json.dumps({"command": command, "args": args, "env": {"NAME": "Jörg"}}, ensure_ascii=False)
    before = (
        '{\r\n  "grüße": "✓ \\u00e9",\r\n\t"mcpServers" : {\r\n'
        f'    "crm": {crm},\r\n    "remote": {{"url": "https://mcp.example/"}}\r\n'
        '  },\r\n  "big": 123456789012345678901234567890\r\n}\r\n'
    ).encode()
    file.write_bytes(before)
    assert process(home, "install", "claude-desktop", "--yes", preexec=None, **account).returncode == 0
    after = file.read_bytes()
    entry = json.loads(after)["mcpServers"]["crm"]
    assert entry["args"][0] == "run"
    assert [line for line in before.split(b"\r\n") if line not in after.split(b"\r\n")] == [f'    "crm": {crm},'.encode()]
    assert after.count(b"\n") == after.count(b"\r\n")
    asked = lines([call(1, "search", {"text": "é"})])
    start = [entry["command"], *entry["args"]]
    served = subprocess.run(start, input=asked, env=environment(home), capture_output=True, check=True)
    assert "result" in json.loads(served.stdout.splitlines()[0])
    assert process(home, "uninstall", "claude-desktop", "--yes", preexec=None, **account).returncode == 0
    assert file.read_bytes() == before
