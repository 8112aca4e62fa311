"""Sessions through real processes, on Windows (also under Wine) and on Linux."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.windows import processes
from tests.windows.client import ENDS_S, MCPGUARD, STUB, STUBBORN, Client, Home, is_denied

only_on_windows = pytest.mark.skipif(sys.platform != "win32", reason="only Windows has it")
WINDOWS = sys.platform == "win32"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "a home é")


def test_calls_pass_until_the_limit_and_then_are_denied_and_audited(home: Home) -> None:
    home.command("policy", "set", "--tool", "search_customers", "5/1h")
    with Client(home).begin() as client:
        assert "result" in client.ask("tools/list")
        answers = [client.call("search_customers", q="é✓") for _ in range(6)]
        assert [is_denied(one) for one in answers] == [False] * 5 + [True]
        assert client.text("echo", text="é✓") == "é✓"
        assert client.leave() == 0
    assert "search_customers" in home.command("audit", "tail", "-n", "60")


def test_bytes_pass_unchanged_in_both_directions(home: Home, tmp_path: Path) -> None:
    files = {"STUB_IN": str(tmp_path / "in"), "STUB_OUT": str(tmp_path / "out")}
    sent = b""
    with Client(home, environ=files).begin() as client:
        for number, text in enumerate((r"\u001a \r\n \n", "é✓ \U0001f600", r"C:\\dir\\", " " * 70_000), 100):
            params = f'{{"name":"echo","arguments":{{"text":"{text}"}}}}'
            line = f' {{"jsonrpc":"2.0",\t"method" : "tools/call","id":{number}, "params":{params}}} '.encode()
            end = b"\r\n" if number % 2 else b"\n"
            client.stdin.write(line + end)
            sent += line + end.replace(b"\r", b" ")  # as documented
            assert "result" in client.answer(number)
        assert client.leave() == 0
        assert client.raw == (tmp_path / "out").read_bytes()
    assert (tmp_path / "in").read_bytes().endswith(sent)


def test_frames_of_megabytes_pass_in_both_directions(home: Home) -> None:
    with Client(home).begin() as client:
        assert len(client.text("big", bytes=3_000_000)) == 3_000_000
        text = "é✓ and more " * 150_000
        assert client.text("echo", text=text) == text
        assert client.leave() == 0


@pytest.mark.parametrize("code", [0, 3, 255, *([256, 0xC0000005] if WINDOWS else [])])
def test_the_exit_status_is_the_servers(home: Home, code: int) -> None:
    with Client(home).begin() as client:
        assert "error" in client.call("die", code=code if code < 2**31 else code - 2**32)
        assert client.wait() == code


def test_the_open_call_of_a_killed_server_is_answered_with_an_error(home: Home) -> None:
    with Client(home).begin() as client:
        servers = client.servers()
        client.send(id=99, method="tools/call", params={"name": "sleep", "arguments": {"seconds": 40}})
        client.await_said("sleeps")
        processes.kill(servers)
        assert "error" in client.answer(99)
        assert client.wait() == (9 if WINDOWS else -9)


def test_a_server_that_ignores_the_end_of_its_input_does_not_outlive_a_killed_mcpguard(home: Home) -> None:
    with Client(home, STUBBORN).begin() as client:
        servers = client.servers()
        client.process.kill()
        assert processes.left_after(5, servers) == []


@only_on_windows
def test_nothing_outlives_the_killed_launcher_that_pip_installs(home: Home) -> None:
    python = Path(sys.executable)
    launcher = python.parent / "Scripts/mcpguard.exe"
    if not launcher.exists():
        launcher = python.with_name("mcpguard.exe")  # a virtual environment
    with Client(home, program=[str(launcher), "run", "--", *STUBBORN]).begin() as client:
        pids = client.servers()
        assert len(pids) > 1, "mcpguard and the server"
        client.process.kill()
        assert processes.left_after(5, pids) == []


LEAVES = """
import json, os, sys, threading, time
from pathlib import Path
from tests.windows.client import STUBBORN, Client, Home
client = Client(Home(Path(sys.argv[1])), STUBBORN).begin()
print(json.dumps([client.process.pid, *client.servers()]), flush=True)
def write():
    client.send(method="notifications/x", params={"a": "z" * 1_000_000})
threading.Thread(target=write, daemon=True).start()
time.sleep(3)
os._exit(0)
"""
"""A client that prints the ids of the processes below it, writes 1 MB and ends at once."""


def test_mcpguard_ends_when_the_client_of_a_server_that_reads_nothing_has_left(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LEAVES, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as client:
        assert client.stdout
        pids = json.loads(client.stdout.readline())
        client.wait(30)
    try:
        assert processes.left_after(ENDS_S, pids) == []
    finally:
        processes.kill(pids)


def test_three_wrappers_on_one_store_count_exactly(home: Home) -> None:
    home.command("policy", "set", "--tool", "report", "20/1h")
    clients = [Client(home).begin() for _ in range(3)]
    denials: list[bool] = []

    def use(client: Client) -> None:
        denials.extend([is_denied(client.call("report")) for _ in range(20)])

    threads = [threading.Thread(target=use, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (denials.count(False), len(denials)) == (20, 60)
    for client in clients:
        with client:
            assert client.leave() == 0


def test_a_star_that_the_shell_leaves_alone_is_a_pattern(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").touch()
    monkeypatch.chdir(tmp_path)
    home.command("policy", "set", "--user", "*", "--tool", "report", "7/1m")
    assert '"*"' in home.policy.read_text("utf-8")


@only_on_windows
def test_install_and_uninstall_leave_the_clients_file_as_it_was(home: Home, tmp_path: Path) -> None:
    for name, folder in {"APPDATA": "Roaming", "LOCALAPPDATA": "Local", "USERPROFILE": "."}.items():
        (tmp_path / folder).mkdir(exist_ok=True)
        home.environ[name] = str(tmp_path / folder)
    file = tmp_path / "Roaming/Claude/claude_desktop_config.json"
    file.parent.mkdir()
    crm = json.dumps({"command": STUB[0], "args": STUB[1:], "env": {"NAME": "Jörg"}}, ensure_ascii=False)
    before = (
        '{\r\n  "grüße": "✓ \\u00e9",\r\n\t"mcpServers" : {\r\n'
        f'    "crm": {crm},\r\n    "remote": {{"url": "https://mcp.example/"}}\r\n'
        '  },\r\n  "big": 123456789012345678901234567890\r\n}\r\n'
    ).encode()
    file.write_bytes(before)
    home.command("install", "claude-desktop", "--yes")
    after = file.read_bytes()
    entry = json.loads(after)["mcpServers"]["crm"]
    assert entry["args"][0] == "run"
    assert [line for line in before.split(b"\r\n") if line not in after.split(b"\r\n")] == [f'    "crm": {crm},'.encode()]
    assert after.count(b"\n") == after.count(b"\r\n")
    with Client(home, program=[entry["command"], *entry["args"]]).begin() as client:
        assert client.text("echo", text="é") == "é"
        assert client.leave() == 0
    home.command("uninstall", "claude-desktop", "--yes")
    assert file.read_bytes() == before


def test_mcpguard_runs_as_a_module() -> None:
    assert subprocess.run([*MCPGUARD, "--version"], capture_output=True, check=True).stdout.startswith(b"mcpguard ")
