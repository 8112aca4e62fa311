"""The policies in `examples/policies` fit the recorded tools of their servers. `tests/real_parts/test_ready` starts these."""

import re

import pytest

from mcpguard.policy.lint import still_capped, warnings
from mcpguard.policy.parse import STARTER, parse
from tests.ready_policies import PAGE, POLICIES, RECORDED, page, recorded, recorded_names, rules, text, without_a_tool


def test_each_server_with_a_recorded_list_has_a_policy() -> None:
    assert [*POLICIES] == sorted(path.stem for path in RECORDED.glob("*.json"))
    assert len(POLICIES) == 12


@pytest.mark.parametrize("name", POLICIES)
def test_each_rule_of_a_ready_policy_is_for_tools_that_its_server_has(name: str) -> None:
    assert {rule.selectors["server"] for rule in rules(name)} == {(name,)}
    assert without_a_tool(name, recorded_names(name)) == []


@pytest.mark.parametrize("name", POLICIES)
def test_a_ready_policy_names_the_server_its_package_and_the_version(name: str) -> None:
    found = recorded(name)
    assert text(name).startswith(f'# Limits for the server "{name}", for each user: {found["package"]} {found["version"]} (')


@pytest.mark.parametrize("name", POLICIES)
def test_each_limit_of_a_ready_policy_has_a_reason(name: str) -> None:
    """Rules with one reason follow each other, below it."""
    begins = re.split(r"\n\n(?=#)", text(name))
    assert "[[rule]]" not in begins[0]
    assert all(re.match(r"(# .*\n)+\[\[rule\]\]\n", begin) for begin in begins[1:])


@pytest.mark.parametrize("names", [*([name] for name in POLICIES), [*POLICIES]], ids="-".join)
def test_ready_policies_can_be_used_alone_or_together_and_with_the_starter_rules(names: list[str]) -> None:
    added = [text(name) for name in names]
    for texts in (added, [STARTER, *added]):
        policy = parse("\n".join(texts))
        assert [*warnings(policy), *still_capped(policy).warnings] == []


def test_the_manual_has_each_ready_policy() -> None:
    assert PAGE.read_text("utf-8") == page(), "write it again: python -m tests.ready_policies"
