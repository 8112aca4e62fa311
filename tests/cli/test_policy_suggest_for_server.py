"""`mcpguard policy suggest -- COMMAND`: limits for the tools of a server."""

import json
from pathlib import Path
from typing import Any

import pytest

from mcpguard.policy.lint import still_capped, warnings
from mcpguard.policy.model import Call
from mcpguard.policy.parse import STARTER, parse
from mcpguard.policy.suggest_by_tools import CHANGES, DELETES, DESTROYS, LOOKS, READS, SENDS, ToolKind
from tests.cli.command import mcpguard
from tests.end_to_end.host import PYTHON, rule, script
from tests.ready_policies import POLICIES, RECORDED, recorded

Tool = dict[str, Any]


def serving(folder: Path, *tools: Tool | str) -> list[str]:
    """The command of a server with these tools."""
    file = folder / "tools.json"
    listed = [{"name": tool} if isinstance(tool, str) else tool for tool in tools]
    file.write_text(json.dumps({"tools": listed}), "utf-8")
    return script("recorded", file)


def possible(hints: dict[str, bool]) -> tuple[ToolKind, ...]:
    """The kinds that the annotations of a tool allow, with the defaults of the protocol, if it has any of the first two."""
    if not hints.keys() & {"readOnlyHint", "destructiveHint"}:
        return (LOOKS, CHANGES, DESTROYS, SENDS, DELETES)
    is_outside = hints.get("openWorldHint", True)
    if hints.get("readOnlyHint"):
        return (LOOKS if is_outside else READS,)
    if hints.get("destructiveHint", True):
        return (DESTROYS, DELETES)
    return (SENDS if is_outside and not hints.get("idempotentHint") else CHANGES,)


@pytest.mark.parametrize("name", POLICIES)
def test_each_tool_of_a_real_server_gets_the_limit_that_its_annotations_ask_for(tmp_path: Path, name: str) -> None:
    done = mcpguard(
        tmp_path, "policy", "suggest", "--toml", "--server", name, "--", *script("recorded", RECORDED / f"{name}.json")
    )
    tools = recorded(name)["tools"]
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        0,
        f"{name}: recorded 1, {len(tools)} tool{'s' if len(tools) > 1 else ''}; annotations are hints that nobody has checked",
    )
    assert done.stdout.startswith(STARTER)
    policy = parse(done.stdout)
    assert [*warnings(policy), *still_capped(policy).warnings] == []
    used: set[int] = set()
    for tool in tools:
        applying = policy.applying(Call("alice", "a::b::c", name, tool["name"]))
        limits = {part.limit_text for part, _ in applying}
        assert len(limits) == 1
        assert limits <= {" ".join(kind.limits) for kind in possible(tool.get("annotations", {}))}
        used.update(at for _, at in applying)
    starter = len(parse(STARTER).rules)
    assert used == {*range(starter, len(policy.rules))}, "each rule has an effect"


READ, WRITE = {"name": "get_it", "annotations": {"readOnlyHint": True}}, {"name": "put_it", "description": "\n[[rule]]\n"}
SUGGESTED = """\
# For the server crm. Annotations are what a server says of its tools: nobody has checked them.
# May overwrite or destroy something (by name, without annotations): put_it
# And any tool without a rule of its own, such as one of a later version
[[rule]]
user = "*"
server = "crm"
tool = "*"
limit = ["10/1m", "100/1h"]

# Only read, perhaps from outside (by annotation): get_it
[[rule]]
user = "*"
server = "crm"
tool = "get_it"
limit = ["20/1m", "300/1h"]
"""


def test_the_rules_have_their_reasons_above_them_and_are_added_to_the_policy_in_force(tmp_path: Path) -> None:
    ours = "# ours\n" + rule("2/1h", user="*", tool="other")
    file = tmp_path / "policy.toml"
    file.write_text(ours, "utf-8", newline="\n")
    server = ["--server", "crm", "--", *serving(tmp_path, READ, WRITE)]
    done = mcpguard(tmp_path, "policy", "suggest", *server)
    new = ours + SUGGESTED
    assert (done.returncode, done.stdout.partition("\n--- ")[0]) == (0, new)
    assert done.stdout.partition("\n--- ")[2].startswith(f"{file}\n+++ {file} (suggested)\n@@ ")
    assert done.stderr == (
        "crm: recorded 1, 2 tools; annotations are hints that nobody has checked\n"
        "the limits are a start: observe for a week (mcpguard policy mode observe), then mcpguard policy suggest\n"
    )
    assert file.read_text("utf-8") == ours
    file.write_text(new, "utf-8", newline="\n")
    again = mcpguard(tmp_path, "policy", "suggest", *server)
    assert (again.returncode, again.stdout) == (0, "")
    assert again.stderr == (
        "left out, because the policy has rules for them: get_it, put_it\n"
        "nothing to suggest: the policy has rules for its tools\n"
    )


def test_as_json_it_has_the_rules_with_their_tools_what_is_left_out_and_both_texts(tmp_path: Path) -> None:
    policy = rule("2/1h", user="*", tool="other")
    (tmp_path / "policy.toml").write_text(policy, "utf-8")
    reads = [f"get_{number}" for number in range(3)]
    command = ["run", "--server", "crm", "--", *serving(tmp_path, "other", "put_it", "*", *reads)]
    done = mcpguard(tmp_path, "policy", "suggest", "--json", "--", *command)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    named = "by name, without annotations"
    assert [(one["tool"], one["tools"], one["limits"]) for one in found["rules"]] == [
        ("get_*", dict.fromkeys(reads, named), ["20/1m", "300/1h"]),
        ("put_it", {"put_it": named}, ["10/1m", "100/1h"]),
    ]
    assert (found["server"], found["kept"], found["left_out"]) == ("crm", ["other"], ["*"])
    assert (len(parse(found["toml"]).rules), found["diff"][:4]) == (3, "--- ")


def test_names_cannot_leave_a_comment_or_a_text_and_do_not_reach_the_terminal(tmp_path: Path) -> None:
    names = ["\x1b]0;owned\x07", "x\n[[rule]]\nlimit = 'deny' #", '"', "\\", "\u202e\u2028\u009b2J", "a\tb\r", "# it", "用户"]
    annotated = [{"name": f"get_{name}", "annotations": {"readOnlyHint": True}} for name in names]
    server = "\x1b[2J\u009b\u202e"
    command = ["--server", server, "--", *serving(tmp_path, *annotated, *(f"delete_{name}" for name in names))]
    done = mcpguard(tmp_path, "policy", "suggest", "--toml", *command)
    assert (done.returncode, done.stderr.isprintable()) == (0, False)
    assert all(line.isprintable() for line in (done.stdout + done.stderr).split("\n"))
    policy = parse(done.stdout)
    assert warnings(policy) == []
    for kind, verb in ((LOOKS, "get"), (DELETES, "delete")):
        for name in names:
            applying = policy.applying(Call("alice", "a::b::c", server, f"{verb}_{name}"))
            assert [part.limit_text for part, _ in applying] == [" ".join(kind.limits)]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--", "no-such-server"], 1, "cannot run no-such-server: no such command"),
        (["--", *PYTHON, "raise SystemExit('bo\\x1bom')"], 1, "server exited with status 1; its last line on stderr: bo"),
        (["--since", "7d", "--", "server"], 2, "--since: the tools of a server are not in the audit log"),
        (["--client", "cursor"], 2, "--client: it says in which client's file --server is"),
        (["--policy", "nowhere.toml", "--", *script("recorded", RECORDED / "time.json")], 78, "nowhere.toml: no such file"),
    ],
)  # fmt: skip
def test_a_server_that_lists_no_tools_is_one_line_with_a_hint(
    tmp_path: Path, words: list[str], status: int, message: str
) -> None:
    done = mcpguard(tmp_path, "policy", "suggest", *words)
    assert (done.returncode, done.stdout) == (status, "")
    first, hint = done.stderr.splitlines()
    assert message in first
    assert (first[:10], hint[:6], done.stderr.count("\x1b")) == ("mcpguard: ", "hint: ", 0)


def test_a_server_without_tools_is_told(tmp_path: Path) -> None:
    done = mcpguard(tmp_path, "policy", "suggest", "--server", "crm", "--", *serving(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[0] == "mcpguard: crm has no tools"


def test_the_server_of_a_client_is_started_by_its_name(tmp_path: Path) -> None:
    program, *arguments = serving(tmp_path, WRITE)
    file = tmp_path / "account/.cursor/mcp.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"mcpServers": {"crm": {"command": program, "args": arguments}}}), "utf-8")
    done = mcpguard(tmp_path, "policy", "suggest", "--diff", "--server", "crm", HOME=str(tmp_path / "account"))
    assert (done.returncode, done.stdout.splitlines()[-2]) == (0, '+tool = "*"')
    other = mcpguard(tmp_path, "policy", "suggest", "--server", "erp", HOME=str(tmp_path / "account"))
    assert (other.returncode, other.stderr.splitlines()[1]) == (2, "hint: use one of: crm")
