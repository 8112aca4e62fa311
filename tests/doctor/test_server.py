import sys
import tracemalloc
from pathlib import Path

import pytest

from mcpguard import config
from mcpguard.doctor import server
from tests.cli.command import mcpguard
from tests.doctor.checks import doctor, only
from tests.end_to_end.host import DEADLINE_S, environment, policy, rule, script
from tests.ready_policies import RECORDED, recorded_names
from tests.windows import processes

SDK = script("on_the_sdk")[:1] + script("on_the_sdk")[2:]
"""The server needs the installed SDK, so it is started without `-S`."""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> config.Settings:
    """The settings of mcpguard's folder, whose variables are set."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    return config.load(environment(tmp_path))


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def test_the_tools_of_a_server_are_listed_with_the_rules_that_apply(tmp_path: Path) -> None:
    text = rule("100/1h", user="*", tool="search_*") + rule("deny", tool="import_customers", server="crm")
    errors = rule("9/1m", tool="search_customers", mode="observe", count="errors", concurrent=2)
    policy(tmp_path, text + rule("5/1m", tool="*", user="bob") + errors)
    checks = doctor(tmp_path, "--server", "crm", "--user", "alice", "--", *SDK)
    found = only(checks, "server")
    assert found.detail.startswith("crm: crm, protocol 20")
    assert ", 2 tools, ready in " in found.detail
    observed = "9-errors/1m and 2-in-flight by rule 4 (tool=search_customers) in observe mode"
    assert only(checks, "tool search_customers").detail == f"100/1h by rule 1 (user=* tool=search_*); {observed}"
    assert only(checks, "tool import_customers").detail == "deny by rule 2 (tool=import_customers server=crm)"
    other = doctor(tmp_path, "--server", "erp", "--", *SDK)
    assert only(other, "tool import_customers").detail == "no rule applies, so nothing limits it"
    assert mcpguard(tmp_path, "audit", "tail", "--json", "--decision", "allowed").stdout == ""


OLDER = """
import json, sys
info = {"protocolVersion": "2024-11-05", "capabilities": {}, "serverInfo": {"name": "old", "version": "1"}}
tools = [{"name": f"tool_{number}", "inputSchema": {"type": "object"}} for number in range(5)]
results = {"initialize": info, "tools/list": {"tools": tools}}
for line in sys.stdin:
    message = json.loads(line)
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": results[message["method"]]}), flush=True)
"""
"""A server that exits on the first request of today's clients."""


def test_an_older_server_is_asked_as_older_clients_ask_and_tools_with_the_same_rules_are_one_line(tmp_path: Path) -> None:
    policy(tmp_path, rule("5/1m", tool="tool_3"))
    checks = doctor(tmp_path, "--server", "crm", "--", *python(OLDER))
    assert only(checks, "server").detail.startswith("crm: old 1, protocol 2024-11-05, 5 tools, ready in ")
    assert [(one.check, one.detail) for one in checks if one.check.startswith("tool")] == [
        ("tools tool_0, tool_1, tool_2, tool_4", "no rule applies, so nothing limits it"),
        ("tool tool_3", "5/1m by rule 1 (tool=tool_3)"),
    ]


def test_what_mcpguard_does_not_accept_in_an_entry_is_told_with_its_hint(tmp_path: Path) -> None:
    entry = [sys.executable, "-m", "mcpguard", "run", "--agnt", "x", "--", *SDK]
    found = only(doctor(tmp_path, "--server", "crm", "--", *entry, status=1), "server")
    assert found.detail == "no such option: --agnt"
    assert found.hint.startswith("did you mean --agent?")


def test_a_command_that_does_not_exist_is_told_without_starting_anything(tmp_path: Path) -> None:
    found = only(doctor(tmp_path, "--", "no-such-server", "--key", "tango-s3cret", status=1), "server")
    assert found.detail == "cannot run no-such-server: no such command"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import sys; print('first', file=sys.stderr); sys.exit('the last words')", "the last words"),
        ("import sys; sys.stdin.readline(); print('\\33[31mred', file=sys.stderr); sys.exit(1)", "\\x1b[31mred"),
        ("import sys; print(f'{sys.argv[2]} is not valid: api_key=s3cret', file=sys.stderr); sys.exit(1)",
         "*** is not valid: api_key=***"),
    ],
)  # fmt: skip
def test_a_server_that_exits_is_told_with_its_status_and_its_last_line(tmp_path: Path, code: str, told: str) -> None:
    found = only(doctor(tmp_path, "--", *python(code, "--api-key", "tango-s3cret"), status=1), "server")
    assert found.detail == f"server exited with status 1; its last line on stderr: {told}"


def test_a_server_that_exits_without_a_word_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("quiet = true\n", "utf-8")
    for status in (0, 7):
        found = only(doctor(tmp_path, "--quiet", "--", *python(f"import os; os._exit({status})"), status=1), "server")
        assert found.detail == f"server exited with status {status}; it wrote nothing to stderr"


@pytest.mark.parametrize("answer_s", [0.001, 2.0])  # the first one ends while the server starts
def test_a_server_that_does_not_answer_is_told_after_the_time_limit(
    settings: config.Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, answer_s: float
) -> None:
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")  # asyncio logs that it kills a process
    code = "import sys; print('waiting', file=sys.stderr, flush=True); sys.stdin.read()"
    found = list(server.checks(settings, python(code), options=[], server="crm", answer_s=answer_s))
    assert [(one.check, one.ok) for one in found] == [("server", False)]
    assert found[0].detail.startswith(f"no answer within {answer_s:g} s; ")
    assert "Close running child process" not in caplog.text


@pytest.mark.parametrize(
    "answer", ["this is not JSON", '{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"no \\u001b[31m luck"}}']
)
def test_a_server_that_answers_nonsense_fails_in_one_line(tmp_path: Path, answer: str) -> None:
    code = "import sys\nfor line in sys.stdin: print(sys.argv[1], flush=True); sys.exit(3)"
    found = only(doctor(tmp_path, "--", *python(code, answer), status=1), "server")
    assert "\n" not in found.detail


def test_a_flood_on_stderr_takes_no_memory_and_the_last_line_is_told(settings: config.Settings) -> None:
    code = "import sys\nfor _ in range(1000): sys.stderr.write('x' * 32_000 + '\\n')\nsys.exit('the last words')"
    tracemalloc.start()
    try:
        (found,) = server.checks(settings, python(code), options=[], server="crm")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.detail.endswith("; its last line on stderr: the last words"), "mcpguard's own lines may be dropped in a flood"
    assert peak_bytes < 16_000_000, "the server has written 32 MB"


def test_a_broken_policy_or_a_missing_token_does_not_keep_the_tools_from_being_listed(tmp_path: Path) -> None:
    policy(tmp_path, "broken")
    checks = doctor(tmp_path, "--", *SDK, status=1)
    assert only(checks, "server").ok
    assert not [one for one in checks if one.check.startswith("tool")]


STUBBORN = """
import os, pathlib, runpy, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path("pid").write_text(str(os.getpid()))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0])
time.sleep(1000)
"""
"""A server that lists its tools, and heeds neither the end of its input nor SIGTERM."""


@pytest.mark.usefixtures("settings")
def test_a_server_that_has_listed_its_tools_ends_even_if_it_heeds_nothing(tmp_path: Path) -> None:
    command = python(STUBBORN, *script("recorded", RECORDED / "github.json")[2:])
    found = server.listed("github", command, options=[], folder=str(tmp_path))
    assert [tool.name for tool in found.tools] == recorded_names("github"), "all pages are read"
    assert not processes.left_after(DEADLINE_S, [int((tmp_path / "pid").read_text())])
