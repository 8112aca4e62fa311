"""`mcpguard hook CLIENT --enforce`: it decides each call once, exactly, and answers in the client's form."""

import contextlib
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from mcpguard.clients import catalog
from mcpguard.hook.run import MAX_INPUT_BYTES
from mcpguard.hook.shown import CLIENTS
from mcpguard.run_options import HOOK_CLIENTS
from mcpguard.stores.sqlite.store import SqliteStore
from tests.end_to_end.host import DEADLINE_S, PATIENT_MS, Host, Message, environment, policy, program, rule, script, until
from tests.end_to_end.test_hook import PATIENCE, guarded, hook, used
from tests.recorded_hooks import COPILOT


def failed(tool: str, call_id: str = "t1") -> Message:
    return used(tool, call_id, hook_event_name="PostToolUseFailure", error="exit 1")


def enforce(
    home: Path,
    given: Message | bytes,
    *options: str,
    client: str = "claude-code",
    tuned: Mapping[str, float] = PATIENCE,
    **env: str,
) -> Message:
    """Run the deciding hook with patience. Returns what it prints."""
    return hook(home, client, given, "--enforce", *options, tuned=tuned, **env)


def start(home: Path, given: Message) -> subprocess.Popen[bytes]:
    """Start the hook of Claude Code, with its input."""
    command, pipe = program("hook", "claude-code", "--enforce", tuned=PATIENCE), subprocess.PIPE
    process = subprocess.Popen(command, env=environment(home), stdin=pipe, stdout=pipe)
    assert process.stdin
    with process.stdin:
        process.stdin.write(json.dumps(given).encode())
    process.stdin = None  # `communicate` would flush it
    return process


def refusal(home: Path, tool: str, call_id: str = "t1", *options: str, **more: object) -> str:
    """Why Claude Code's hook denies a call; empty if it does not."""
    return reason(enforce(home, used(tool, call_id, **more), *options))


def reason(answer: Message) -> str:
    """Why Claude Code's or Codex's hook denies; empty if it does not."""
    if not answer:
        return ""
    output = answer["hookSpecificOutput"]
    assert (output["hookEventName"], output["permissionDecision"]) == ("PreToolUse", "deny")
    return str(output["permissionDecisionReason"])


def rows(home: Path) -> list[Message]:
    with contextlib.closing(SqliteStore(home / "mcpguard.db")) as store:
        return [entry.record for entry in store.entries() if entry.record["decision"] != "policy"]


def decisions(home: Path) -> list[object]:
    return [row["decision"] for row in rows(home)]


def test_a_built_in_tool_is_limited_and_each_decision_is_audited(tmp_path: Path) -> None:
    policy(tmp_path, rule("1/1h", user="*", tool="WebSearch", server="built-in"))
    assert not refusal(tmp_path, "WebSearch", "t1")
    told = refusal(tmp_path, "WebSearch", "t2")
    assert told.startswith("Tool WebSearch rate limit exceeded for user ")
    assert "1 call per 1h. Retry in " in told
    members = ("decision", "via", "server", "tool", "request_id")
    found = [tuple(row[key] for key in members) for row in rows(tmp_path)]
    assert found == [(how, "hook", "built-in", "WebSearch", at) for how, at in (("allowed", "t1"), ("rate_limited", "t2"))]


def test_eight_hooks_at_once_admit_no_call_too_many_though_some_are_killed(tmp_path: Path) -> None:
    policy(tmp_path, rule("9/1h", user="*", tool="WebSearch"))
    passed = int(enforce(tmp_path, used("WebSearch")) == {})  # sets the time limit for the store, too
    for batch in range(3):
        processes = [start(tmp_path, used("WebSearch", f"{batch}-{at}")) for at in range(8)]
        passed += not processes[0].communicate()[0]
        for process in processes[1:3]:
            process.kill()  # wherever it is by now
        ended = [(process.communicate()[0], process.returncode) for process in processes[1:]]
        passed += sum((printed, status) == (b"", 0) for printed, status in ended)
    found = rows(tmp_path)
    admitted = [row["decision"] for row in found].count("allowed")
    assert passed <= admitted == 9
    assert enforce(tmp_path, used("WebSearch", "last"))


GEMINI: Message = {"hook_event_name": "BeforeTool", "tool_name": "mcp_crm_search", "tool_input": {}, "cwd": "/none"}
CURSOR: Message = {
    "cursor_version": "3", "hook_event_name": "beforeMCPExecution", "tool_name": "search", "mcp_server_name": "crm",
}  # fmt: skip
COPILOT_BASH: Message = {"sessionId": "s", "timestamp": 1, "cwd": "/none", "toolName": "bash", "toolArgs": {}}


def of_gemini(*command: str) -> Message:
    server = {"server_name": "crm", "tool_name": "search", "command": command[0], "args": list(command[1:])}
    return GEMINI | {"mcp_context": server}


DENY = {"permissionDecision": "deny", "permissionDecisionReason": "R"}


@pytest.mark.parametrize(
    ("client", "given", "answer"),
    [
        ("codex", used("mcp__crm__search", turn_id="1"), {"hookSpecificOutput": {"hookEventName": "PreToolUse"} | DENY}),
        ("copilot", COPILOT_BASH | {"toolName": "crm-search"}, DENY),
        ("gemini", of_gemini("npx"), {"decision": "deny", "reason": "R"}),
        ("cursor", CURSOR | {"command": "npx crm"}, {"permission": "deny", "user_message": "R", "agent_message": "R"}),
    ],
)
def test_each_client_is_answered_in_its_own_form(tmp_path: Path, client: str, given: Message, answer: Message) -> None:
    policy(tmp_path, rule("deny", tool="search", server="crm"))
    printed = json.dumps(enforce(tmp_path, given, client=client))
    why = "Tool search is denied by policy for all users together. Waiting does not help."
    assert json.loads(printed.replace(why, "R")) == answer
    assert [row.get("request_id") for row in rows(tmp_path)] == [given.get("tool_use_id")]


def called(host: Host, call_id: str, tool: str = "search") -> Message:
    return host.call(f"{call_id} {tool}", tool, _meta={"claudecode/toolUseId": call_id})


def test_a_call_that_reaches_a_wrapper_counts_once(tmp_path: Path) -> None:
    policy(tmp_path, rule("2/1h", user="*", tool="search"))
    with guarded(tmp_path, "--server", "crm") as host:
        for call_id in ("t1", "t2"):
            assert not refusal(tmp_path, "mcp__crm__search", call_id)
            assert "result" in called(host, call_id)
        assert "2 calls per 1h" in refusal(tmp_path, "mcp__crm__search", "t3")
        assert called(host, "t1")["error"]["code"] == 429  # a note is used once
    assert decisions(tmp_path) == ["allowed", "continued", "allowed", "continued", "rate_limited", "rate_limited"]


def test_waits_and_caps_do_not_hold_a_hook_up(tmp_path: Path) -> None:
    policy(tmp_path, rule("1/1h", user="*", tool="Bash", wait="5m") + '[[rule]]\ntool = "Bash"\nconcurrent = 1\n')
    assert not refusal(tmp_path, "Bash", "t1")
    assert "Retry in " in refusal(tmp_path, "Bash", "t2")


@pytest.mark.parametrize("arguments", ["hash", "none", "full"])
def test_failed_calls_are_counted_if_the_client_tells_of_them_whatever_the_audit_keeps(tmp_path: Path, arguments: str) -> None:
    policy(tmp_path, rule("1/1h", user="*", tool="*", count="errors"))
    (tmp_path / "config.toml").write_text(f'[audit]\narguments = "{arguments}"\n')
    assert not refusal(tmp_path, "Bash", "t1")
    assert enforce(tmp_path, failed("Bash", "t1")) == {}
    assert "keeps failing" in refusal(tmp_path, "Bash", "t2")


def test_a_failure_that_a_wrapper_has_seen_is_not_counted_again(tmp_path: Path) -> None:
    policy(tmp_path, rule("2/1h", user="*", tool="*", count="errors"))
    with guarded(tmp_path, "--server", "crm") as host:
        assert not refusal(tmp_path, "mcp__crm__fail", "t1")
        called(host, "t1", "fail")
    assert enforce(tmp_path, failed("mcp__crm__fail", "t1")) == {}
    assert not refusal(tmp_path, "mcp__crm__fail", "t2")
    assert enforce(tmp_path, failed("mcp__crm__fail", "t2")) == {}
    assert "keeps failing" in refusal(tmp_path, "mcp__crm__fail", "t3")


@pytest.mark.parametrize(
    ("on_unavailable", "is_denied", "decision"),
    [("local", False, "allowed"), ("allow", False, "allowed_unavailable"), ("deny", True, "unavailable")],
)
def test_without_the_store_on_unavailable_decides(tmp_path: Path, on_unavailable: str, is_denied: bool, decision: str) -> None:
    policy(tmp_path, rule("1/1h", user="*", tool="Bash"))
    SqliteStore(tmp_path / "mcpguard.db").close()
    good = (tmp_path / "mcpguard.db").read_bytes()
    (tmp_path / "mcpguard.db").write_bytes(b"no database" * 1000)
    (tmp_path / "config.toml").write_text(f'[store]\ntimeout_ms = {PATIENT_MS}\non_unavailable = "{on_unavailable}"\n')
    told = refusal(tmp_path, "Bash")
    assert ("the store of counters is unavailable" in told, bool(told)) == (is_denied, is_denied)
    (tmp_path / "mcpguard.db").write_bytes(good)
    with Host(tmp_path, *script("obedient")) as host:  # reads what the hook has left
        until(lambda: [row["decision"] for row in host.audit() if row.get("via") == "hook"] == [decision], "its row")


def test_a_broken_policy_broken_settings_and_unknown_options_deny_and_say_why(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("[[rule]\n")
    assert "no policy is in force" in refusal(tmp_path, "Bash")
    (tmp_path / "config.toml").write_text("[store]\ntimeout = 1\n")
    assert "timeout: unknown setting" in refusal(tmp_path, "Bash")
    assert "no such option: --nope" in refusal(tmp_path, "Bash", "t1", "--nope").lower()


def test_an_input_that_cannot_be_read_is_denied_since_a_model_writes_a_part_of_it(tmp_path: Path) -> None:
    begin, end = json.dumps(used("Bash"))[:-1].encode() + b', "more": ', b"}"
    for more in (b"[" * 100_000 + b"]" * 100_000, b"1" * 5000, b'"' + b"x" * MAX_INPUT_BYTES + b'"', b"[1 2]"):
        assert "mcpguard cannot judge this call" in reason(enforce(tmp_path, begin + more + end))
    assert enforce(tmp_path, b"[]") == {}


def test_a_call_that_has_failed_is_never_answered(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[store]\non_unavailable = 'never'\n")
    assert enforce(tmp_path, used("Bash")) != {}
    assert enforce(tmp_path, failed("Bash")) == {}


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    policy(tmp_path, rule("deny", tool="*"))
    return tmp_path


def test_a_call_of_a_claude_code_that_tells_no_id_is_decided(closed: Path) -> None:
    assert enforce(closed, {key: value for key, value in used("Bash").items() if key != "tool_use_id"}) != {}


OTHERS: list[tuple[str, Any]] = [
    ("claude-code", used("Bash", turn_id="1")),
    ("claude-code", {key: value for key, value in used("Bash", timestamp="2026").items() if key != "tool_use_id"}),
    ("claude-code", used("Bash", cursor_version="3")),
    ("claude-code", used("Bash", hook_event_name="PostToolUse")),
    ("codex", used("Bash")),
    ("copilot", COPILOT["main"]["hook"]),
    ("copilot", {"toolName": "bash", "toolResult": {}, "sessionId": "s"}),
    ("cursor", {"cursor_version": "3", "hook_event_name": "preToolUse", "tool_name": "MCP:search"}),
    ("gemini", used("Bash")),
    ("gemini", {"hook_event_name": "AfterTool", "tool_name": "write_file", "tool_response": {"llmContent": "x"}}),
]


@pytest.mark.parametrize(("client", "given"), OTHERS)
def test_what_another_hook_decides_is_passed_over(client: str, given: Message) -> None:
    assert CLIENTS[client].shown(given) is None


RUN = ("run", "--server", "crm", "--", "npx", "crm")


def test_gemini_and_cursor_leave_guarded_servers_to_their_wrapper(closed: Path) -> None:
    assert enforce(closed, of_gemini("mcpguard", *RUN), client="gemini") == {}
    assert enforce(closed, CURSOR | {"command": f"mcpguard {' '.join(RUN)}"}, client="cursor") == {}
    assert enforce(closed, of_gemini("mcpguard", "run", "--user", "a", *RUN[1:]), "--user", "a", client="gemini") == {}


@pytest.mark.parametrize(
    "command",
    [
        ("sh", "-c", "exec evil # mcpguard run x"),
        ("./mcpguard", *RUN),  # in the project's folder
        ("mcpguard", "run", "--observe", *RUN[1:]),  # it judges otherwise than the hook
        ("mcpguard", "run", "--policy", "/lax.toml", *RUN[1:]),
        ("mcpguard", "hook", "gemini"),
    ],
)
def test_a_command_that_only_looks_like_a_wrapper_is_none(closed: Path, command: tuple[str, ...]) -> None:
    (closed / "mcpguard").write_text("#!/bin/sh\n")
    (closed / "mcpguard").chmod(0o755)
    assert enforce(closed, of_gemini(*command) | {"cwd": str(closed)}, client="gemini")
    assert enforce(closed, CURSOR | {"cwd": str(closed), "command": shlex.join(command)}, client="cursor")


@pytest.fixture
def copilots(tmp_path: Path) -> Path:
    servers: Message = {
        "crm": {"command": "mcpguard", "args": ["run", "--", "npx", "crm"]},
        "crm-old": {"command": "npx"},
        "off": {"command": "mcpguard", "args": ["run", "--", "x"], "disabled": True},
    }
    (tmp_path / "mcp-config.json").write_text(json.dumps({"mcpServers": servers}))
    (tmp_path / ".github").mkdir()
    lures = {"crm-old": servers["crm"], "context7-resolve": {"command": "npx"}}
    (tmp_path / ".github/mcp.json").write_text(json.dumps({"mcpServers": lures}))
    return tmp_path


def of_copilot(home: Path, name: str) -> str | None:
    given = COPILOT_BASH | {"cwd": str(home), "toolName": name}
    return enforce(home, given, client="copilot", COPILOT_HOME=str(home)).get("permissionDecisionReason")


def test_copilot_leaves_the_guarded_servers_of_its_files_to_their_wrapper(copilots: Path) -> None:
    policy(copilots, rule("deny", tool="*"))
    assert of_copilot(copilots, "crm-search") is None
    for name, server, tool in (
        ("crm-old-search", "crm-old", "search"),  # guarded in the project's file alone
        ("off-search", "off", "search"),
        ("github-mcp-server-get_me", "github-mcp-server", "get_me"),
        ("bash", "built-in", "bash"),
    ):
        assert f"Tool {tool} is denied by policy" in str(of_copilot(copilots, name))
        assert (rows(copilots)[-1]["server"], rows(copilots)[-1]["tool"]) == (server, tool)


def test_a_name_of_copilot_that_may_mean_a_closed_tool_is_closed(copilots: Path) -> None:
    policy(copilots, rule("deny", tool="resolve-library-id"))
    assert of_copilot(copilots, "other-resolve-library-id")
    policy(copilots, rule("deny", tool="library-id"))
    assert of_copilot(copilots, "context7-resolve-library-id")


def test_an_agents_name_cannot_say_that_its_call_is_decided(tmp_path: Path) -> None:
    policy(tmp_path, rule("1/1h", user="*", tool="Bash"))
    told = {"agent_id": "a", "agent_type": "x\0" + "3898967433348088878/1"}
    assert not refusal(tmp_path, "Bash", **told)
    assert "rate limit exceeded" in refusal(tmp_path, "Bash", **told)
    assert str(rows(tmp_path)[0]["agent"]).replace("\\\\", "\\") == "Claude Code::subagent::x\\x003898967433348088878/1"


def test_a_hook_that_decides_otherwise_than_the_wrapper_does_not_decide_for_it(tmp_path: Path) -> None:
    policy(tmp_path, rule("2/1h", user="*", tool="*"))
    (tmp_path / "lax.toml").write_text(rule("9/1h", user="*", tool="*"))
    with guarded(tmp_path, "--server", "crm") as host:
        assert not refusal(tmp_path, "mcp__crm__search", "t1", "--observe")
        assert "result" in called(host, "t1")
        assert not refusal(tmp_path, "mcp__crm__search", "t2", "--policy", str(tmp_path / "lax.toml"))
        assert called(host, "t2")["error"]["code"] == 429
        assert not refusal(tmp_path, "mcp__crm__search", "t3", "--observe")
        assert called(host, "t3")["error"]["code"] == 429
    assert decisions(tmp_path) == ["allowed", "continued", "allowed", "rate_limited", "would_deny", "rate_limited"]


def test_a_wrapper_with_its_store_decides_what_a_hook_has_let_pass_without_it(tmp_path: Path) -> None:
    policy(tmp_path, rule("1/1h", user="*", tool="*"))
    with guarded(tmp_path, "--server", "crm") as host:
        assert "result" in called(host, "t0")
        too_old = {**PATIENCE, "mcpguard.stores.sqlite.database.VERSION": 0}  # a hook that cannot use the store
        assert not reason(enforce(tmp_path, used("mcp__crm__search", "t1"), tuned=too_old))
        assert called(host, "t1")["error"]["code"] == 429


def test_a_server_that_is_called_built_in_is_none_of_the_clients_own_tools(tmp_path: Path) -> None:
    with guarded(tmp_path, "--server", "built-in") as host:
        assert not refusal(tmp_path, "mcp__built-in__search")
        assert "result" in called(host, "t1")
    assert [row["server"] for row in rows(tmp_path)] == ["built-in (server)"] * 2
    assert decisions(tmp_path) == ["allowed", "continued"]


def test_with_deny_a_call_that_comes_too_slowly_is_denied(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[store]\non_unavailable = "deny"\n')
    process = subprocess.Popen(
        program("hook", "claude-code", "--enforce"), env=environment(tmp_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin
    assert process.stdout
    with process.stdin, process.stdout:
        process.stdin.write(json.dumps(used("Bash"))[:-1].encode())
        process.stdin.flush()
        assert "could not decide this call in time" in str(reason(json.loads(process.stdout.read())))
    assert process.wait(DEADLINE_S) == 0


def test_every_client_whose_hook_decides_has_a_command_a_form_and_a_place() -> None:
    placed = {client.key for client in catalog.CLIENTS if client.hook and any(event.decides for event in client.hook.events)}
    assert set(HOOK_CLIENTS) == set(CLIENTS) == placed


def test_calls_count_in_the_session_that_the_client_tells_the_hook_and_without_one_together(tmp_path: Path) -> None:
    policy(tmp_path, '[[rule]]\nper = ["session"]\nlimit = "1/1h"\n')
    given: list[Message] = [GEMINI, GEMINI | {"session_id": "a b"}, GEMINI | {"session_id": "s1"}]  # none, no valid one, one
    found = [json.dumps(enforce(tmp_path, one, client="gemini")) for one in given]
    assert ["exceeded for this session: 1 call per 1h." in told for told in found] == [False, True, False]
    assert found[0] == found[2] == "{}"


MOST_MODULES: Final = 76
"""A hook starts for each call, and each module takes it 0.1 ms or more: load what is seldom needed when it is needed."""

NOT_NEEDED: Final = """
    click dataclasses datetime hashlib logging pathlib rich shlex signal sqlite3 subprocess threading tomllib typing
    mcpguard.alerts mcpguard.clients mcpguard.documents mcpguard.policy.lint mcpguard.relay mcpguard.stores.outage.store
    mcpguard.stores.redis mcpguard.stores.sqlite.upkeep mcpguard.whole_files
"""

UNHURRIED: Final = f"""
from mcpguard import config
from mcpguard.cli import main
from mcpguard.hook import deciding, run
load = config.load
config.load = lambda *args, **options: load(*args, **options)._replace(timeout_ms={PATIENT_MS})  # a file would load tomllib
run.TIMEOUT_S, run.MOST_TIMEOUT_MS, deciding.UPKEEP_SHARE, deciding.OPENING_S = {DEADLINE_S}, {PATIENT_MS}, 0, {DEADLINE_S}
main()
"""


NO_THREADS: Final = f"""
import _thread
def start_new_thread(*_): raise RuntimeError("can't start new thread")
_thread.start_new_thread = start_new_thread
{UNHURRIED.replace(f"{PATIENT_MS}", "50")}"""
FULL: Final = f"""
from mcpguard.stores.sqlite.call_log import CallLog
def append(*_): raise OSError(28, 'No space left on device')
CallLog.append = append
{UNHURRIED}"""


def ran(program: str, home: Path, call_id: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    """The hook, which a program runs, for a call of a built-in tool."""
    command = [sys.executable, *options, "-c", program, "hook", "claude-code", "--enforce"]
    data = json.dumps(used("Bash", call_id)).encode()
    return subprocess.run(command, input=data, env=environment(home), capture_output=True, timeout=DEADLINE_S, check=True)


def test_a_closed_tool_stays_closed_if_the_system_has_no_thread_left(tmp_path: Path) -> None:
    policy(tmp_path, rule("deny", tool="Bash"))
    assert b"Tool Bash is denied by policy" in ran(NO_THREADS, tmp_path, "t1").stdout


TIME_IS_UP: Final = f"""
import threading
from mcpguard.hook import deciding, run
is_asked = threading.Event()
run.time.sleep = lambda _: is_asked.wait()
def use(*_): is_asked.set(); threading.Event().wait()
deciding._HookStore.use = use
{UNHURRIED}"""


def test_a_closed_tool_stays_closed_if_the_time_is_up_before_the_store_has_decided(tmp_path: Path) -> None:
    policy(tmp_path, rule("deny", tool="Bash"))
    assert b"Tool Bash is denied by policy" in ran(TIME_IS_UP, tmp_path, "t1").stdout
    policy(tmp_path, rule("1/1h", tool="Bash"))
    assert ran(TIME_IS_UP, tmp_path, "t2").stdout == b""


@pytest.mark.parametrize("on_unavailable", ["local", "allow"])
def test_a_store_that_fails_while_it_decides_has_told_before_what_was_counted(tmp_path: Path, on_unavailable: str) -> None:
    policy(tmp_path, rule("1/1h", user="*", tool="Bash"))
    (tmp_path / "config.toml").write_text(f'[store]\non_unavailable = "{on_unavailable}"\n')
    assert not refusal(tmp_path, "Bash", "t1")
    assert (ran(FULL, tmp_path, "t2").stdout == b"") == (on_unavailable == "allow")
    with Host(tmp_path, *script("obedient")) as host:  # reads what the hook has left
        until(lambda: len([row for row in host.audit() if row.get("via")]) == 2, "the row of the hook")
        first, second = [row["args_hash"] for row in host.audit() if row.get("via")]
    assert first == second


def test_it_loads_only_what_a_usual_decision_needs(tmp_path: Path) -> None:
    policy(tmp_path, rule("9/1h", user="*", tool="Bash"))
    ran(UNHURRIED, tmp_path, "t1")  # makes the store, and keeps what the policy says
    told = ran(UNHURRIED, tmp_path, "t2", "-X", "importtime").stderr.decode()
    loaded = {line.rpartition("|")[2].strip() for line in told.splitlines()}
    assert "mcpguard.stores.sqlite.follower" in loaded
    assert loaded.isdisjoint(NOT_NEEDED.split())
    own = {name for name in loaded if name.startswith("mcpguard")}
    assert len(own) <= MOST_MODULES, sorted(own)
    assert decisions(tmp_path) == ["allowed", "allowed"]


def test_what_the_policy_said_before_a_change_is_not_obeyed(tmp_path: Path) -> None:
    policy(tmp_path, rule("9/1h", tool="Bash"))
    assert not refusal(tmp_path, "Bash", "t1")
    policy(tmp_path, rule("deny", tool="Bash"))
    assert "denied by policy" in refusal(tmp_path, "Bash", "t2")
