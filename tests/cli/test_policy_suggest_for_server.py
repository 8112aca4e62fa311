"""`mcpguard policy suggest -- COMMAND`: limits for the tools of a server."""

import json
from pathlib import Path
from typing import Any

import pytest

from mcpguard.policy.lint import still_capped, warnings
from mcpguard.policy.model import Call
from mcpguard.policy.parse import STARTER, parse
from mcpguard.policy.suggest_by_tools import DELETES, LOOKS
from tests.cli.account import Account, listing
from tests.cli.command import complaint, mcpguard, output
from tests.end_to_end.host import PYTHON, rule, script
from tests.ready_policies import POLICIES, RECORDED, recorded_names

Tool = dict[str, Any]


def serving(folder: Path, *tools: Tool | str) -> list[str]:
    """The command of a server with these tools."""
    file = folder / "tools.json"
    listed = [{"name": tool} if isinstance(tool, str) else tool for tool in tools]
    file.write_text(json.dumps({"tools": listed}), "utf-8")
    return script("recorded", file)


@pytest.mark.parametrize("name", POLICIES)
def test_each_tool_of_a_real_server_gets_one_limit_and_each_rule_has_an_effect(tmp_path: Path, name: str) -> None:
    command = script("recorded", RECORDED / f"{name}.json")
    done = mcpguard(tmp_path, "policy", "suggest", "--toml", "--server", name, "--", *command)
    tools = recorded_names(name)
    number = f"{len(tools)} tool{'s' if len(tools) > 1 else ''}"
    assert done.stderr.startswith(f"{name}: recorded 1, {number}; annotations are hints that nobody has checked\n")
    assert done.stdout.startswith(STARTER)
    policy = parse(done.stdout)
    assert [*warnings(policy), *still_capped(policy).warnings] == []
    applying = [policy.applying(Call("alice", "a::b::c", name, tool)) for tool in tools]
    assert [len({part.limit_text for part, _ in one}) for one in applying] == [1] * len(tools)
    assert {at for one in applying for _, at in one} == {*range(len(parse(STARTER).rules), len(policy.rules))}


READ, WRITE = {"name": "get_it", "annotations": {"readOnlyHint": True}}, {"name": "put_it", "description": "\n[[rule]]\n"}
SUGGESTED = f"""\
# For the server crm. Annotations are what a server says of its tools: nobody has checked them.
# May overwrite or destroy something (by name, without annotations): put_it
# And any tool without a rule of its own, such as one of a later version
{rule(["10/1m", "100/1h"], user="*", server="crm", tool="*")}\
# Only read, perhaps from outside (by annotation): get_it
{rule(["20/1m", "300/1h"], user="*", server="crm", tool="get_it").strip()}
"""


def test_the_rules_have_their_reasons_above_them_and_are_added_to_the_policy_in_force(tmp_path: Path) -> None:
    ours = "# ours\n" + rule("2/1h", user="*", tool="other")
    file = tmp_path / "policy.toml"
    file.write_text(ours, "utf-8", newline="\n")
    server = ["--server", "crm", "--", *serving(tmp_path, READ, WRITE)]
    done = mcpguard(tmp_path, "policy", "suggest", *server)
    new = ours + SUGGESTED
    assert done.stdout.startswith(f"{new}\n--- {file}\n+++ {file} (suggested)\n@@ ")
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
    (tmp_path / "policy.toml").write_text(rule("2/1h", user="*", tool="other"), "utf-8")
    reads = [f"get_{number}" for number in range(3)]
    command = ["run", "--server", "crm", "--", *serving(tmp_path, "other", "put_it", "*", *reads)]
    found = json.loads(output(tmp_path, "policy", "suggest", "--json", "--", *command))
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
def test_a_server_without_a_list_is_one_line_with_a_hint(tmp_path: Path, words: list[str], status: int, message: str) -> None:
    first, hint = complaint(tmp_path, "policy", "suggest", *words, status=status).splitlines()
    assert message in first
    assert (first[:10], hint[:6], "\x1b" in first) == ("mcpguard: ", "hint: ", False)


def test_a_server_without_tools_is_told(tmp_path: Path) -> None:
    said = complaint(tmp_path, "policy", "suggest", "--server", "crm", "--", *serving(tmp_path), status=1)
    assert said.startswith("mcpguard: crm has no tools\n")


def test_the_server_of_a_client_is_started_by_its_name(tmp_path: Path) -> None:
    account = Account(tmp_path)
    program, *arguments = serving(tmp_path, WRITE)
    account.cursor(listing(crm={"command": program, "args": arguments}))
    done = account.run("policy", "suggest", "--diff", "--server", "crm")
    assert (done.returncode, done.stdout.splitlines()[-2]) == (0, '+tool = "*"')
    other = account.run("policy", "suggest", "--server", "erp")
    assert (other.returncode, other.stderr.splitlines()[1]) == (2, "hint: use one of: crm")
