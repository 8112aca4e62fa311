"""Hooks are added to the content of a file and removed from it, with the rest as it was."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpguard.clients import hooks
from mcpguard.clients.catalog import BY_KEY
from mcpguard.documents.document import Dialect, read
from mcpguard.documents.model import Unreadable
from tests.clients.generated import Json

(CLAUDE,) = [client.hook for client in BY_KEY.values() if client.hook and client.key == "claude-code"]
EVENT = CLAUDE.deciding.name
COMMAND = "'/opt/a b/mcpguard' hook claude-code"
HOOK = {"matcher": "mcp__.*", "hooks": [{"type": "command", "command": COMMAND, "timeout": 5}]}
OTHER: dict[str, Any] = {"matcher": "Bash", "hooks": [{"type": "command", "command": "check"}]}


def commands(data: bytes) -> list[str]:
    return [one.command for one in hooks.hooks_in(data, CLAUDE)]


def with_hook(data: bytes) -> bytes:
    return hooks.with_hook(data, CLAUDE, EVENT, HOOK)


def without_hook(data: bytes) -> bytes | None:
    return hooks.without_hook(data, CLAUDE)


def pretty(value: Any, indent: int | str | None = 2) -> bytes:
    return json.dumps(value, indent=indent, separators=(",", ":") if indent is None else None).encode()


def crlf(data: bytes) -> bytes:
    return data.replace(b"\n", b"\r\n")


STRUCTURES: list[dict[str, Any]] = [
    *({}, {"model": "opus"}, {"model": "opus", "permissions": {"allow": []}}, {"hooks": {}}, {"hooks": {}, "z": 1}),
    *({"hooks": {EVENT: []}}, {"hooks": {"Stop": [OTHER]}}, {"hooks": {EVENT: [], "Stop": []}}),
    {"hooks": {"PostToolUseFailure": []}},
    {"hooks": {EVENT: [OTHER]}, "z": [1, {"a": None}]},
    {"hooks": {EVENT: [OTHER, {"hooks": []}, {}]}},
]
FILES = [
    *(b"", b"\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf \r\n", b"{\n}", b"{ }"),
    *(b'{"hooks": { }}', b'{"hooks": {\n}, "a": 1}', b'{"hooks": {"PreToolUse": [\n]}}'),
    b'{\n\t"a": 1,\n\t"hooks": {"PreToolUse": [ {} ]}\n}\n',
    *(pretty(structure, indent) for structure in STRUCTURES for indent in (None, 0, 2, "\t")),
    *(pretty(structure) + b"\n" for structure in STRUCTURES),
    *(crlf(pretty(structure)) for structure in STRUCTURES),
    *(json.dumps(structure).encode() for structure in STRUCTURES),
]


@pytest.mark.parametrize("data", FILES)
def test_a_hook_is_added_and_removed_byte_for_byte(data: bytes) -> None:
    new = with_hook(data)
    assert (commands(data), commands(new)) == ([], [COMMAND])
    assert (without_hook(new), without_hook(data)) == (data, data)
    before = json.loads(data.decode("utf-8-sig").strip() or "{}")
    before.setdefault("hooks", {}).setdefault(EVENT, []).append(HOOK)
    assert json.loads(new.decode("utf-8-sig")) == before


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_hook_in_a_file_with_any_spaces_is_removed_byte_for_byte(draw: st.DataObject) -> None:
    write = Json(draw.draw, Dialect.JSON)
    data = f"{write.gap()}{write.value(draw.draw(st.sampled_from(STRUCTURES)))}{write.gap()}".encode()
    new = with_hook(data)
    assert commands(new) == [COMMAND]
    assert without_hook(new) == data


@pytest.mark.parametrize("indent", [2, 4, "\t"])
def test_a_hook_is_written_in_the_style_of_the_file(indent: int | str) -> None:
    for structure in STRUCTURES[1:3]:
        data, added = pretty(structure, indent), pretty(structure | {"hooks": {EVENT: [HOOK]}}, indent)
        assert (with_hook(data), with_hook(crlf(data))) == (added, crlf(added))
    assert with_hook(pretty({"hooks": {EVENT: [OTHER]}}, indent)) == pretty({"hooks": {EVENT: [OTHER, HOOK]}}, indent)


@pytest.mark.parametrize("order", ["theirs ours theirs ours", "ours theirs", "ours ours theirs", "ours note"])
def test_a_hook_that_shares_an_entry_with_others_or_with_what_is_no_hook_is_removed_alone(order: str) -> None:
    kinds = {"ours": HOOK["hooks"][0], "theirs": OTHER["hooks"][0], "note": "a note"}
    shared, left = ([kinds[word] for word in order.split() if word != without] for without in ("", "ours"))
    data = pretty({"hooks": {EVENT: [{"matcher": "*", "hooks": shared}]}})
    assert commands(data) == [COMMAND] * order.count("ours")
    assert without_hook(data) == pretty({"hooks": {EVENT: [{"matcher": "*", "hooks": left}]}})


def test_many_hooks_are_removed_with_one_parse_before_and_one_after() -> None:
    ours = '{"matcher": "*", "hooks": [{"command": "mcpguard hook codex"}]}'
    theirs = '{"matcher": "*", "hooks": [{"command": "lint"}, {"command": "mcpguard hook codex"}]}'
    data = f'{{"hooks": {{"PreToolUse": [{", ".join([ours, ours, theirs, ours] * 20)}]}}}}'.encode()
    left = '{"matcher": "*", "hooks": [{"command": "lint"}]}'
    read.cache_clear()
    assert without_hook(data) == f'{{"hooks": {{"PreToolUse": [{", ".join([left] * 20)}]}}}}'.encode()
    assert read.cache_info().misses == 2


@pytest.mark.parametrize("indent", [None, 2, 4])
def test_what_others_have_added_after_the_hook_stays(indent: int | None) -> None:
    edited = json.loads(with_hook(pretty({"a": 1}))) | {"b": 2}
    new = without_hook(pretty(edited, indent))
    assert new == pretty({"a": 1, "b": 2}, indent) or (indent is None and commands(new or b"") == [])
    edited["hooks"]["Stop"] = [OTHER]
    left = json.loads(without_hook(pretty(edited, indent)) or b"")
    assert left["hooks"].pop(EVENT, []) == []
    assert left == {"a": 1, "b": 2, "hooks": {"Stop": [OTHER]}}


@pytest.mark.parametrize(
    ("command", "is_ours"),
    [
        ("mcpguard hook claude-code", True),
        (r"C:\bin\mcpguard.exe hook codex", True),
        ('& "C:/a b/mcpguard.exe" hook copilot', True),
        ("'/opt/mcpguard' hook claude-code --store x", True),
        *((other, False) for other in ("mcpguard policy show", "mcpguard-tools hook x", "my-mcpguard hook x", "echo hook")),
    ],
)
def test_a_hook_of_mcpguard_is_recognised_by_its_command_line(command: str, is_ours: bool) -> None:
    data = pretty({"hooks": {EVENT: [{"hooks": [{"type": "command", "command": command}]}]}})
    assert commands(data) == ([command] if is_ours else [])


@pytest.mark.parametrize(
    "data", [b"{", b"[]", b'"x"', b'{"hooks": []}', b'{"hooks": {"PreToolUse": {}}}', b'{"hooks": null}', b"{} // c", b"\xff"]
)
def test_a_file_that_is_damaged_or_has_another_form_raises(data: bytes) -> None:
    with pytest.raises(Unreadable) as caught:
        with_hook(data)
    assert caught.value.line == 1


@pytest.mark.parametrize("entries", [1, [1, [], {"hooks": 1}, {"hooks": [1]}]])
def test_hooks_of_another_form_are_none(entries: Any) -> None:
    values: list[Any] = [[], {"hooks": [1]}, {"hooks": {EVENT: entries}}]
    for value in values:
        assert (commands(pretty(value)), without_hook(pretty(value))) == ([], pretty(value))
