from pathlib import Path

from tests.cli.command import calls
from tests.doctor.checks import doctor, of, only
from tests.end_to_end.host import policy, rule


def test_a_broken_policy_fails_with_its_line(tmp_path: Path) -> None:
    file = policy(tmp_path, rule("5/1m", user="*") + "[[rule]]\nlimit = 5\n")
    found = only(doctor(tmp_path, status=1), "policy")
    assert not found.ok
    assert found.detail.startswith(f"{file}: line 6: ")


def test_a_policy_that_denies_nothing_is_noted(tmp_path: Path) -> None:
    file = policy(tmp_path, 'mode = "observe"\n' + rule("5/1m", user="*"))
    found = only(doctor(tmp_path), "policy")
    assert (found.detail, found.is_advice) == (f"{file}: 1 rule, observe mode denies nothing", True)
    policy(tmp_path, 'mode = "enforce"\n')
    found = only(doctor(tmp_path), "policy")
    assert (found.detail, found.is_advice) == (f"{file}: no rules, so nothing is limited", True)


def test_each_warning_of_policy_check_is_a_note(tmp_path: Path) -> None:
    capped = rule("30/1m", user="*") + rule("10000/1h", user="*", tool="x")
    policy(tmp_path, capped + rule("5/1m", tool="mcp__crm__search") + '[[cost]]\ntool = "x"\ncost = 2\n')
    calls(tmp_path, "x", 1)
    _, cost, name, cap, unmatched = found = of(doctor(tmp_path), "policy")
    assert [one.is_advice for one in found] == [False, *[True] * 4]
    assert cost.detail.startswith("line 14: the cost of tool=x has no effect")
    assert "mcp__crm__search" in name.detail
    assert "rule 1 (user=*) still caps calls of rule 2 more tightly, at 30/1m" in cap.detail
    assert unmatched.detail.endswith("rule 3 (tool=mcp__crm__search) has matched none of the calls in the audit log")


def test_a_rule_of_the_starter_policy_need_not_have_matched_and_a_tier_that_no_rule_matches_is_a_note(tmp_path: Path) -> None:
    calls(tmp_path, "x", 1)
    assert not only(doctor(tmp_path), "policy").is_advice
    _, warning = of(doctor(tmp_path, "--agent", "a::batch::b"), "policy")
    assert warning.is_advice
    assert warning.detail.startswith("no rule matches agents of the tier batch")
