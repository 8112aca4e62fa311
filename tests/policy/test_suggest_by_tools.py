"""Limits that are suggested for the tools of a server, from their annotations and names."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.policy.lint import still_capped
from mcpguard.policy.model import Policy
from mcpguard.policy.parse import STARTER, parse
from mcpguard.policy.suggest_by_tools import (
    CHANGES,
    DELETES,
    DESTROYS,
    KINDS,
    LOOKS,
    READS,
    SENDS,
    ServerTool,
    ToolFindings,
    ToolKind,
    suggest_by_tools,
)
from mcpguard.text.patterns import glob
from tests.end_to_end.host import rule

NO_RULES = Policy(())
ANNOTATED = "by annotation"
NAMED = "by name, without annotations"


def reading(*names: str) -> list[ServerTool]:
    return [ServerTool(name, read_only=True, open_world=False) for name in names]


def writing(*names: str) -> list[ServerTool]:
    return [ServerTool(name, read_only=False, open_world=False) for name in names]


def found(tools: Sequence[ServerTool], policy: str = "") -> ToolFindings:
    return suggest_by_tools(parse(policy) if policy else NO_RULES, "crm", tools)


def patterns(tools: Sequence[ServerTool], policy: str = "") -> dict[str, ToolKind]:
    return {one.tool: one.kind for one in found(tools, policy).rules}


@pytest.mark.parametrize(
    ("tool", "kind"),
    [
        (ServerTool("x", read_only=True, open_world=False), READS),
        (ServerTool("x", read_only=True), LOOKS),
        (ServerTool("x", read_only=False), DESTROYS),
        (ServerTool("x", read_only=False, destructive=True, idempotent=True, open_world=False), DESTROYS),
        (ServerTool("x", destructive=True), DESTROYS),
        (ServerTool("x", destructive=False), SENDS),
        (ServerTool("x", destructive=False, idempotent=True), CHANGES),
        (ServerTool("x", destructive=False, open_world=False), CHANGES),
        (ServerTool("create_x", read_only=True, destructive=True, open_world=False), READS),
        (ServerTool("get_x", read_only=False), DESTROYS),
        (ServerTool("delete_x", destructive=True), DELETES),
        (ServerTool("post_x", destructive=False, open_world=False), SENDS),
    ],
)
def test_annotations_tell_the_kind_of_a_tool_with_the_protocols_defaults(tool: ServerTool, kind: ToolKind) -> None:
    (one,) = found([tool]).rules
    assert (one.kind, one.tools) == (kind, {tool.name: ANNOTATED})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, LOOKS) for name in ("get_user", "getUser", "API-list-users", "crm.search")),
        *((name, SENDS) for name in ("slack_post_message", "HTTPSend", "create_user")),
        *((name, DELETES) for name in ("drop_table", "bulkDelete")),
        *((name, DESTROYS) for name in ("update_user", "mark_all_read")),
    ],
)
def test_without_annotations_the_first_verb_of_the_name_tells_the_kind(name: str, kind: ToolKind) -> None:
    (one,) = found([ServerTool(name)]).rules
    assert (one.kind, one.tools) == (kind, {name: NAMED})


@pytest.mark.parametrize("name", ["frobnicate", "settings", "postgres", "客户", "1"])
def test_a_tool_without_annotations_and_without_a_verb_may_destroy(name: str) -> None:
    (one,) = found([ServerTool(name)]).rules
    assert (one.kind, one.tools) == (DESTROYS, {name: "without annotations, and the name does not tell"})


def test_by_its_name_a_tool_without_annotations_may_read_only_here_if_another_hint_says_so() -> None:
    assert patterns([ServerTool("get_x", open_world=False)]) == {"*": READS}
    assert patterns([ServerTool("add_x", open_world=False)]) == {"*": CHANGES}


@pytest.mark.parametrize(
    ("tool", "kind"),
    [
        *((ServerTool("delete_all", **hint), DELETES) for hint in ({"read_only": True}, {"destructive": False})),
        (ServerTool("send_mail", read_only=True, destructive=False, open_world=False), SENDS),
    ],
)
def test_a_name_that_deletes_or_sends_is_believed_more_than_its_annotation(tool: ServerTool, kind: ToolKind) -> None:
    (one,) = found([tool]).rules
    assert (one.kind, one.tools) == (kind, {tool.name: "by name, although annotated as more harmless"})


def test_the_kind_that_saves_most_rules_has_all_that_no_rule_names() -> None:
    tools = [*reading("one", "two", "three"), *writing("four", "five"), ServerTool("delete_it", destructive=True)]
    assert patterns(tools) == {"*": READS, "four": DESTROYS, "five": DESTROYS, "delete_it": DELETES}
    rest, *others = found(tools).rules
    assert rest.reasons == [
        "Only read (by annotation): one, two, three",
        "And any tool without a rule of its own, such as one of a later version",
    ]
    assert [one.reasons for one in others] == [
        ["May overwrite or destroy something (by annotation): four"],
        ["May overwrite or destroy something (by annotation): five"],
        ["May destroy something, and are named so (by annotation): delete_it"],
    ]


def test_of_kinds_that_save_as_many_rules_the_most_tightly_limited_one_has_the_rest() -> None:
    assert patterns([*reading("a"), *writing("b"), ServerTool("delete_c")]) == {"*": DELETES, "a": READS, "b": DESTROYS}


def test_the_reasons_of_a_rule_name_its_tools_by_how_their_kind_is_known() -> None:
    (one,) = found([ServerTool("update"), ServerTool("frob"), *writing("x"), ServerTool("put")]).rules
    assert one.reasons[:-1] == [
        "May overwrite or destroy something (by name, without annotations): update, put",
        "May overwrite or destroy something (without annotations, and the name does not tell): frob",
        "May overwrite or destroy something (by annotation): x",
    ]


@pytest.mark.parametrize(
    ("writes", "expected"),
    [
        (("add_a", "add_b"), {"add_*"}),
        (("add", "add_b"), {"add", "add_b"}),
        (("a_add", "b_add"), {"*_add"}),
        (("addUser", "addGroup"), {"add*"}),
        (("crm.add", "crm.put"), {"crm.*"}),
        (("add_a", "add_x", "put_a", "put_x", "put_y"), {"put_*", "add_*"}),
        (("add_a", "x_put"), {"add_a", "x_put"}),
        (("adda", "addb"), {"adda", "addb"}),
        (("read_a", "read_b"), {"read_a", "read_b"}),
        (("read_a_x", "read_b_x"), {"*_x"}),
    ],
)
def test_a_pattern_is_cut_at_a_word_and_matches_no_other_tools(writes: Sequence[str], expected: set[str]) -> None:
    reads = reading("read_c", "one", "two", "three", "four", "five", "six")
    assert patterns([*reads, *writing(*writes)]) == {"*": READS} | dict.fromkeys(expected, DESTROYS)


def test_a_tool_for_which_the_policy_has_a_rule_is_left_out_and_no_pattern_matches_it() -> None:
    tools = [*reading("get_a", "get_b", "get_c"), *writing("put_a", "put_b")]
    for text in (
        rule("5/1m", user="*", tool="get_a"),
        rule("deny", tool="get_a", server="c*"),
        rule("1/1s", tool="*_a", server="crm"),
    ):
        findings = found(tools, text)
        assert "get_a" in findings.kept
        assert [one.tool for one in findings.rules if glob(one.tool, "get_a")] == []
    assert found(tools, rule("5/1m", user="*", tool="*", server="crm")) == ToolFindings([], [tool.name for tool in tools], [])


OTHERS: list[dict[str, str]] = [
    *({"user": "*", "tool": "*"}, {"user": "*", "server": "crm"}, {"user": "*", "tool": "get_a", "server": "erp"}),
    *({"user": "bob", "tool": "get_a"}, {"tool": "get_a", "count": "errors"}),
]


@pytest.mark.parametrize("text", [STARTER, *(rule("5/1m", **keys) for keys in OTHERS)])
def test_a_rule_for_any_tool_or_another_server_or_one_user_leaves_no_tool_out(text: str) -> None:
    assert patterns(reading("get_a"), text) == {"*": READS}


def test_a_name_with_an_asterisk_has_a_rule_only_if_it_matches_no_tool_of_another_kind() -> None:
    reads = reading("one", "two", "three", "a_b")
    findings = found([*reads, *writing("x*y", "a*b")])
    assert [one.tool for one in findings.rules] == ["*", "x*y"]
    assert findings.left_out == ["a*b"]


def test_no_starter_rule_caps_a_suggested_limit_more_tightly() -> None:
    names = ((f"tool_{number}", limit) for number, kind in enumerate(KINDS) for limit in kind.limits)
    rules = "".join(rule(limit, user="*", server="crm", tool=f"{name}_{limit}") for name, limit in names)
    assert still_capped(parse(STARTER + rules)).warnings == []


@given(st.lists(st.builds(ServerTool, st.text("ab_*", max_size=5), *[st.none() | st.booleans()] * 2), max_size=9))
def test_each_rule_matches_its_tools_and_of_others_only_those_that_it_leaves_to_narrower_rules(tools: list[ServerTool]) -> None:
    findings = found(tools)
    named = [name for one in findings.rules for name in one.tools]
    assert sorted([*named, *findings.left_out]) == sorted({tool.name for tool in tools if tool.name})
    assert [one.tool for one in findings.rules if one.tool == "*"] == ["*"][: len(named)]
    for one in findings.rules:
        assert one.tools
        assert all(glob(one.tool, name) for name in one.tools)
        foreign = [name for other in findings.rules if other.kind is not one.kind for name in other.tools]
        assert one.tool == "*" or not any(glob(one.tool, name) for name in foreign)
