"""The preview of a change shows the lines of the file that change, and no secret in them."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.cli.clients import install
from mcpguard.clients.entries import EntryEdit, Layout, edited, entries
from mcpguard.clients.plan import Change
from mcpguard.documents.document import Dialect
from tests.clients.test_editing import SERVERS, calls, file, guards

FILE = Path("mcp.json")
GUARD = ("/x/mcpguard", "run", "--server", "crm", "--")
SECRETS = ("s3cret1", "s3cret2", "s3cret3", "s3cret4", "4711")


def diff(old: bytes | None, new: bytes | None, dialect: Dialect = Dialect.JSON) -> list[str]:
    return list(install.diff(Change(FILE, old, new, dialect)))


def guarding(text: str, dialect: Dialect, layout: Layout = SERVERS) -> list[str]:
    """The preview of guarding all servers of a file, without the names of the file."""
    data = text.encode()
    wanted = [EntryEdit(layout, one.name, GUARD) for one in entries(data, layout, dialect) if one.kind == "stdio"]
    there = diff(data, edited(data, dialect, wanted).data, dialect)
    back = diff(edited(data, dialect, wanted).data, data, dialect)
    opposite = str.maketrans("+-", "-+")
    added, removed = ([line for line in lines[2:] if not line.startswith("@@")] for lines in (there, back))
    assert {line[0].translate(opposite) + line[1:] for line in added} == set(removed)
    return there[2:]


SERVER_A = {
    Dialect.JSON: '{"mcpServers": {"a": %s}, "x": "s3cret3"}',
    Dialect.JSONC: '{"mcpServers": {"a": %s, } }',
    Dialect.TOML: "mcpServers.a = %s # token=s3cret3",
    Dialect.YAML: "mcpServers: {a: %s} # token=s3cret3",
}


@pytest.mark.parametrize(
    ("dialect", "entry"),
    [
        (Dialect.JSON, '{"command": "npx", "args": ["--token", "s3cret1"], "env": {"A": "s3cret2", "N": 4711}}'),
        (Dialect.JSON, '{"command": "npx", "headers": {"X": "s3cret1"}, "l": [["s3cret2"]]}'),
        (Dialect.JSONC, '{ "env": {"A": "s3cret1"}, "command": "npx" /* token: s3cret2 */ }'),
        (Dialect.TOML, "{env = {A = 's3cret1', N = 4711}, command = 'npx', args = ['TOKEN=s3cret2']}"),
        (Dialect.YAML, "{env: {A: s3cret1, N: 4711}, command: npx, args: [--token=s3cret2]}"),
        (Dialect.YAML, "{env: &e {A: s3cret1}, command: npx, x: *e}"),
        (Dialect.YAML, "{command: npx, b: !t [s3cret1]}"),
        (Dialect.YAML, "{command: npx, env: {A: s3cret4}}, b: {command: !t s3cret1, args: [[s3cret2], {c: s3cret3}]}"),
    ],
)
def test_values_of_variables_and_secrets_on_the_line_of_a_command_are_masked(dialect: Dialect, entry: str) -> None:
    shown = guarding(SERVER_A[dialect] % entry, dialect)
    assert any("/x/mcpguard" in line for line in shown)
    assert any("npx" in line and line.startswith("-") for line in shown)
    assert [secret for secret in SECRETS if secret in "\n".join(shown)] == []
    assert "***" in "\n".join(shown)


def test_what_is_no_secret_is_shown_as_it_is_in_the_file() -> None:
    text = '{"mcpServers": {\n  "a": { "type": "stdio",  "command": "npx", "args": ["-y", "a@1"], "t": 20, "on": true }\n}}'
    assert guarding(text, Dialect.JSON) == [
        "@@ -2,1 +2,1 @@",
        '-  "a": { "type": "stdio",  "command": "npx", "args": ["-y", "a@1"], "t": 20, "on": true }',
        '+  "a": { "type": "stdio",  "command": "/x/mcpguard", "args": ["run", "--server", "crm", "--", "npx", "-y", "a@1"], '
        '"t": 20, "on": true }',
    ]


def test_of_a_long_line_the_parts_that_change_are_shown_with_marks_where_it_goes_on() -> None:
    servers = {name: {"command": "npx", "args": ["-y", name], "env": {"K": "s3cret1"}} for name in "abc"}
    text = json.dumps({"history": ["a long story"] * 100, "mcpServers": servers, "end": [1] * 100})
    shown = guarding(text, Dialect.JSON)
    assert [line[:2] for line in shown] == ["@@", "-…", "+…"]
    assert shown[2].count('"command": "/x/mcpguard", "args": ["run", "--server", "crm", "--", "npx", "-y",') == 3
    assert all(line.endswith("…") or line.startswith("@@") for line in shown)
    assert max(map(len, shown)) < len(text) / 2
    assert "s3cret1" not in "".join(shown)


def test_of_a_line_that_only_becomes_long_the_parts_that_change_are_shown() -> None:
    entry = {"env": {"K": "s3cret1"}, "command": "npx", "args": ["-y", "@acme/" + "x" * 80]}
    shown = "".join(guarding(json.dumps({"mcpServers": {"crm": entry}}), Dialect.JSON))
    assert ("/x/mcpguard" in shown, "s3cret1" in shown) == (True, False)


NUMBERS = st.lists(st.integers(0, 5), max_size=80)


@given(NUMBERS, NUMBERS, NUMBERS)
def test_a_preview_is_a_diff_that_leads_from_the_old_lines_to_the_new(old: list[int], same: list[int], new: list[int]) -> None:
    before, after = (["[", *(f"{number}," for number in [*numbers, *same]), "0]"] for numbers in (old, new))
    lines, at = [], 0
    for line in diff("\n".join(before).encode(), "\n".join(after).encode())[2:]:
        if match := re.fullmatch(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,\d+)? @@", line):
            start = int(match[1]) - (match[2] != "0")
            lines += before[at:start]
            at = start
        elif line.startswith("-"):
            assert line == f"-{before[at]}"
            at += 1
        else:
            lines.append(line[1:])
    assert lines + before[at:] == after


def test_no_token_at_the_beginning_of_a_line_that_goes_is_shown() -> None:
    shown = diff(b"eyJhbGciOiJSUzI1NiJ9.e30.c2ln: 1", b"npx: 1", Dialect.YAML)
    assert shown[-2:] == ["-(a token): 1", "+npx: 1"]


def test_a_file_that_is_made_or_removed_is_shown_as_a_whole() -> None:
    text = b'{\n  "command": "mcpguard hook codex"\n}\n'
    lines = ["{", '  "command": "mcpguard hook codex"', "}"]
    assert diff(None, text) == ["--- /dev/null", "+++ mcp.json", "@@ -0,0 +1,3 @@", *(f"+{line}" for line in lines)]
    assert diff(text, None) == ["--- mcp.json", "+++ /dev/null", "@@ -1,3 +0,0 @@", *(f"-{line}" for line in lines)]
    assert diff(b"", text)[2:] == ["@@ -0,0 +1,3 @@", *(f"+{line}" for line in lines)]


@pytest.mark.parametrize("between", ["\n", " "])
def test_a_preview_of_eight_times_as_many_servers_is_eight_times_as_much_work(between: str) -> None:
    few, many = (
        (data, guards(data, Dialect.JSON, n)) for n, data in ((n, file(Dialect.JSON, n, between=between)) for n in (25, 200))
    )
    assert calls(lambda: diff(*many)) < 8.5 * calls(lambda: diff(*few))
