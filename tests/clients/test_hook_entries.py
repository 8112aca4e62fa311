import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpguard.clients.hooks import hook_commands, with_hook, without_hook
from mcpguard.documents.document import Dialect
from mcpguard.documents.model import Unreadable
from tests.clients.generated import Json

EVENT = "PreToolUse"
COMMAND = "'/opt/a b/mcpguard' hook claude-code"
HOOK: dict[str, Any] = {"matcher": "mcp__.*", "hooks": [{"type": "command", "command": COMMAND, "timeout": 5}]}
OTHER: dict[str, Any] = {"matcher": "Bash", "hooks": [{"type": "command", "command": "check"}]}


def pretty(value: Any, indent: int | str | None = 2) -> bytes:
    return json.dumps(value, indent=indent, separators=(",", ":") if indent is None else None).encode()


def crlf(data: bytes) -> bytes:
    return data.replace(b"\n", b"\r\n")


STRUCTURES: list[dict[str, Any]] = [
    {},
    {"model": "opus"},
    {"model": "opus", "permissions": {"allow": []}},
    {"hooks": {}},
    {"hooks": {}, "z": 1},
    {"hooks": {EVENT: []}},
    {"hooks": {"Stop": [OTHER]}},
    {"hooks": {EVENT: [], "Stop": []}},
    {"hooks": {EVENT: [OTHER]}, "z": [1, {"a": None}]},
    {"hooks": {EVENT: [OTHER, {"hooks": []}, {}]}},
]
FILES = [
    b"",
    b"\n",
    b"\xef\xbb\xbf",
    b"\xef\xbb\xbf \r\n",
    b"{\n}",
    b"{ }",
    b'{"hooks": { }}',
    b'{"hooks": {\n}, "a": 1}',
    b'{"hooks": {"PreToolUse": [\n]}}',
    b'{\n\t"a": 1,\n\t"hooks": {"PreToolUse": [ {} ]}\n}\n',
    *(pretty(structure, indent) for structure in STRUCTURES for indent in (None, 0, 2, "\t")),
    *(pretty(structure) + b"\n" for structure in STRUCTURES),
    *(crlf(pretty(structure)) for structure in STRUCTURES),
    *(json.dumps(structure).encode() for structure in STRUCTURES),
]


@pytest.mark.parametrize("data", FILES)
def test_a_hook_is_added_once_and_removed_byte_for_byte(data: bytes) -> None:
    new = with_hook(data, EVENT, HOOK)
    assert hook_commands(data, EVENT) == []
    assert hook_commands(new, EVENT) == [COMMAND]
    assert with_hook(new, EVENT, HOOK) == new
    assert without_hook(new, EVENT) == data
    assert without_hook(data, EVENT) == data
    before = json.loads(data.decode("utf-8-sig").strip() or "{}")
    before.setdefault("hooks", {}).setdefault(EVENT, []).append(HOOK)
    assert json.loads(new.decode("utf-8-sig")) == before


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_hook_in_a_file_with_any_spaces_is_removed_byte_for_byte(draw: st.DataObject) -> None:
    write = Json(draw.draw, Dialect.JSON)
    data = f"{write.gap()}{write.value(draw.draw(st.sampled_from(STRUCTURES)))}{write.gap()}".encode()
    new = with_hook(data, EVENT, HOOK)
    assert hook_commands(new, EVENT) == [COMMAND]
    assert without_hook(new, EVENT) == data


def test_a_hook_is_written_in_the_style_of_the_file() -> None:
    for indent in (2, 4, "\t"):
        for structure in STRUCTURES[1:3]:
            added = structure | {"hooks": {EVENT: [HOOK]}}
            assert with_hook(pretty(structure, indent), EVENT, HOOK) == pretty(added, indent)
            assert with_hook(crlf(pretty(structure, indent)), EVENT, HOOK) == crlf(pretty(added, indent))
        assert with_hook(pretty({"hooks": {EVENT: [OTHER]}}, indent), EVENT, HOOK) == pretty(
            {"hooks": {EVENT: [OTHER, HOOK]}}, indent
        )


def test_a_new_file_of_copilot_cli_has_a_version_and_goes_afterwards() -> None:
    hook = {"type": "command", "bash": "/x/mcpguard hook copilot", "timeoutSec": 5}
    new = with_hook(None, "preMcpToolCall", hook, version=1)
    assert json.loads(new) == {"version": 1, "hooks": {"preMcpToolCall": [hook]}}
    assert new.endswith(b"}\n")
    assert hook_commands(new, "preMcpToolCall") == ["/x/mcpguard hook copilot"]
    assert without_hook(new, "preMcpToolCall") is None


def test_a_hook_of_another_path_is_replaced() -> None:
    old = {"matcher": "mcp__.*", "hooks": [{"type": "command", "command": "mcpguard hook claude-code"}]}
    data = pretty({"hooks": {EVENT: [old, OTHER]}})
    assert json.loads(with_hook(data, EVENT, HOOK)) == {"hooks": {EVENT: [OTHER, HOOK]}}


@pytest.mark.parametrize("order", ["theirs ours theirs ours", "ours theirs", "ours ours theirs"])
def test_a_hook_that_shares_an_entry_with_others_is_removed_alone(order: str) -> None:
    ours, theirs = HOOK["hooks"][0], OTHER["hooks"][0]
    hooks = [ours if word == "ours" else theirs for word in order.split()]
    data = pretty({"hooks": {EVENT: [{"matcher": "*", "hooks": hooks}]}})
    assert hook_commands(data, EVENT) == [COMMAND] * hooks.count(ours)
    left = [theirs] * hooks.count(theirs)
    assert without_hook(data, EVENT) == pretty({"hooks": {EVENT: [{"matcher": "*", "hooks": left}]}})


@pytest.mark.parametrize("indent", [None, 2, 4])
def test_what_others_have_added_after_the_hook_stays(indent: int | None) -> None:
    edited = json.loads(with_hook(pretty({"a": 1}), EVENT, HOOK)) | {"b": 2}
    new = without_hook(pretty(edited, indent), EVENT)
    assert new == pretty({"a": 1, "b": 2}, indent) or (indent is None and hook_commands(new or b"", EVENT) == [])
    edited["hooks"]["Stop"] = [OTHER]
    new = without_hook(pretty(edited, indent), EVENT)
    assert json.loads(new or b"")["hooks"].pop(EVENT, []) == []
    assert json.loads(new or b"") | {"hooks": {"Stop": [OTHER]}} == {"a": 1, "b": 2, "hooks": {"Stop": [OTHER]}}


@pytest.mark.parametrize(
    ("command", "is_ours"),
    [
        ("mcpguard hook claude-code", True),
        (r"C:\bin\mcpguard.exe hook codex", True),
        ('& "C:/a b/mcpguard.exe" hook copilot', True),
        ("'/opt/mcpguard' hook claude-code --store x", True),
        ("mcpguard policy show", False),
        ("mcpguard-tools hook x", False),
        ("my-mcpguard hook x", False),
        ("echo hook", False),
    ],
)
def test_a_hook_of_mcpguard_is_recognised_by_its_command_line(command: str, is_ours: bool) -> None:
    data = pretty({"hooks": {EVENT: [{"hooks": [{"type": "command", "command": command}]}]}})
    assert hook_commands(data, EVENT) == ([command] if is_ours else [])


@pytest.mark.parametrize(
    "data", [b"{", b"[]", b'"x"', b'{"hooks": []}', b'{"hooks": {"PreToolUse": {}}}', b'{"hooks": null}', b"{} // c", b"\xff"]
)
def test_a_file_that_is_damaged_or_has_another_form_raises(data: bytes) -> None:
    with pytest.raises(Unreadable) as caught:
        with_hook(data, EVENT, HOOK)
    assert caught.value.line == 1


def test_hooks_of_another_form_are_none() -> None:
    values: list[Any] = [[], {"hooks": [1]}, {"hooks": {EVENT: 1}}, {"hooks": {EVENT: [1, [], {"hooks": 1}, {"hooks": [1]}]}}]
    for value in values:
        assert hook_commands(pretty(value), EVENT) == []
        assert without_hook(pretty(value), EVENT) == pretty(value)
