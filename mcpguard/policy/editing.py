"""Edits a policy file and keeps its comments, order and mode. A failed edit leaves the file unchanged."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from mcpguard.errors import McpguardError, PolicyError
from mcpguard.limiter.sliding import Counts
from mcpguard.policy.file import no_such_file
from mcpguard.policy.model import Cost, Policy, Rule
from mcpguard.policy.parse import STARTER, parse, parse_cost, parse_rule
from mcpguard.policy.text import appended, ended_alike, removed, replaced, with_cost, with_mode
from mcpguard.policy.writing import locked, read
from mcpguard.whole_files import write

_ONE_BY_ONE: Final = "set the limit and the cap one after the other"
"""The hint for an edit of a limit and a cap that are not in one rule."""


class Edit(NamedTuple):
    """What an edit did.

    Attributes:
        before: The policy before.
        after: The policy now. If the edit changed nothing, it is the policy before.
        is_new_file: Whether the edit made the file, with the starter rules.
    """

    before: Policy
    after: Policy
    is_new_file: bool

    @property
    def is_unchanged(self) -> bool:
        """Whether the policy was already as wanted. Then nothing was written."""
        return self.after is self.before


def _place(policy: Policy, rule: Rule, table: dict[str, Any]) -> int | None:
    """The place of the rule that an edit changes; None to add one.

    It is the rule that limits the same; else one with the same selectors and `per` that has only a limit or only a cap, while
    the edit has the other. A rule with another name, mode or wait than the edit stays as it is.

    Raises:
        McpguardError: The limit is in one rule, and the cap in another or beside a limit that counts something else.
    """
    keys = {part.key for part in rule.parts}
    same = [at for at, other in enumerate(policy.rules) if keys & {part.key for part in other.parts}]
    if len(same) > 1:
        numbers = " and ".join(str(at + 1) for at in same)
        raise McpguardError(f"rules {numbers} have these selectors", _ONE_BY_ONE)
    if same:
        found = policy.rules[same[0]]
        if rule.has_limit and found.has_limit and rule.counts != found.counts:  # found by its cap
            message = f"rule {same[0] + 1} has these selectors, but its limit counts {found.counts}, not {rule.counts}"
            raise McpguardError(message, _ONE_BY_ONE)
        return same[0]
    for at, other in enumerate(policy.rules):
        is_other_part = rule.has_limit != other.has_limit and (rule.concurrent is None) != (other.concurrent is None)
        alike = all(
            key not in table or ours == theirs
            for key, ours, theirs in (
                ("name", rule.name, other.name),
                ("mode", rule.observe, other.observe),
                ("wait", rule.wait_us, other.wait_us),
            )
        )
        if is_other_part and alike and not rule.deny and not other.deny and _is_for_same(rule, other):
            return at
    return None


def _is_for_same(rule: Rule, other: Rule) -> bool:
    """Whether two rules have the same selectors and the same `per`."""
    return rule.key[1:] == other.key[1:]


def put(path: Path, table: dict[str, Any]) -> tuple[Edit, int]:
    """Set a rule in a policy file.

    It replaces the limit, the cap, or both, in the rule that has the same selectors and `per` and counts the same. A limit
    joins a rule that has only a cap, and a cap one that has only a limit. Else the rule is added at the end.

    Args:
        path: The file. If it does not exist, it is made with the starter rules.
        table: The rule as a table of the file. An empty `name` removes the rule's name. Without `name`, `mode` or `wait`, a
            rule that exists keeps its own.

    Returns:
        What was done, and the place of the rule in the policy.

    Raises:
        PolicyError: The file is not a valid policy; it is unchanged.
        McpguardError: The file cannot be written; it is unchanged.
    """
    with locked(path) as target:
        text = read(target)
        old = STARTER if text is None else text
        before = parse(old, source=str(path))
        rule = parse_rule(table, where=str(path))
        at = _place(before, rule, table)
        rules = list(before.rules)
        if at is None:
            rules.append(rule)
            new = appended(old, table)
        else:
            rules[at] = _changed(rules[at], rule, table)
            if _content(rules[at]) == _content(before.rules[at]) and text is not None:
                return Edit(before, before, is_new_file=False), at
            cleared = {"count": None, "concurrent": None, "wait": None} if rule.deny else {}
            new = replaced(old, before, at, cleared | table)
        after = _write(path, target, old, new, before, rules=rules)
    return Edit(before, after, is_new_file=text is None), len(rules) - 1 if at is None else at


def put_cost(path: Path, table: dict[str, Any]) -> tuple[Edit, int]:
    """Set a cost in a policy file. It replaces the cost with the same selectors, or is added at the end.

    Args:
        path: The file. If it does not exist, it is made with the starter rules.
        table: The cost as a table of the file.

    Returns:
        What was done, and the place of the cost in the policy.

    Raises:
        PolicyError: The file is not a valid policy; it is unchanged.
        McpguardError: The file cannot be written; it is unchanged.
    """
    with locked(path) as target:
        text = read(target)
        old = STARTER if text is None else text
        before = parse(old, source=str(path))
        cost = parse_cost(table, where=str(path))
        at = _place_of_cost(before, cost)
        costs = list(before.costs)
        if at is None:
            at = len(costs)
            costs.append(cost)
            new = appended(old, table, name="cost")
        else:
            if costs[at].units == cost.units:
                return Edit(before, before, is_new_file=False), at
            costs[at] = cost
            new = with_cost(old, before, at, cost.units)
        after = _write(path, target, old, new, before, costs=costs)
    return Edit(before, after, is_new_file=text is None), at


def _place_of_cost(policy: Policy, cost: Cost) -> int | None:
    return next((at for at, other in enumerate(policy.costs) if other.pattern.key == cost.pattern.key), None)


def set_mode(path: Path, mode: str, *, named: bool = False) -> Edit:
    """Set the mode of a policy file: `observe` or `enforce`. The modes of single rules stay.

    Args:
        path: The file. If it does not exist and the mode changes, it is made with the starter rules.
        mode: The mode.
        named: Whether an option or a variable names the file. Then it must exist.

    Raises:
        PolicyError: The file does not exist although `named`, or is not a valid policy; it is unchanged.
        McpguardError: The file cannot be written; it is unchanged.
    """
    with locked(path) as target:
        text = read(target)
        if text is None and named:
            raise no_such_file(path, named=True)
        old = STARTER if text is None else text
        before = parse(old, source=str(path))
        observe = mode == "observe"
        if before.observe == observe:
            return Edit(before, before, is_new_file=False)
        after = _write(path, target, old, with_mode(old, before, mode), before, observe=observe)
    return Edit(before, after, is_new_file=text is None)


class TakenOut(NamedTuple):
    """What was removed from a policy file.

    Attributes:
        gone: The removed rule, or the removed part of a rule.
        after: The policy now.
        at: The place of the rule that keeps its other part; None if the whole rule was removed.
    """

    gone: Rule
    after: Policy
    at: int | None = None


def take_out(path: Path, rule: Rule, *, named: bool, part: Counts | None = None) -> TakenOut | None:
    """Remove a rule, or a part of a rule, from a policy file.

    Args:
        path: The file.
        rule: A rule with the selectors and `per` of the rule to remove.
        named: Whether an option or a variable names the file.
        part: Remove only the limit that counts this, or the cap if it is `concurrent`; None for all of the rule.

    Returns:
        What was removed; None if there is no such rule. Then nothing is written.

    Raises:
        PolicyError: The file does not exist or is not a valid policy; it is unchanged.
        McpguardError: The file cannot be written, or several rules have these selectors; it is unchanged.
    """
    with locked(path) as target:
        text, before = _read_policy(path, target, named=named)
        found = [
            at
            for at, other in enumerate(before.rules)
            if _is_for_same(rule, other) and (part is None or any(one.counts == part for one in other.parts))
        ]
        if not found:
            return None
        if len(found) > 1:
            numbers = ", ".join(f"{at + 1} ({before.rules[at].limits_text})" for at in found)
            raise McpguardError(
                f"several rules are for {rule.text}: {numbers}", "add --count or --concurrent to name one of them"
            )
        (at,) = found
        old = before.rules[at]
        rules = list(before.rules)
        if part is None or len(old.parts) == 1:
            gone = rules.pop(at)
            new = removed(text, before, at)
        else:
            gone = next(one for one in old.parts if one.counts == part)
            if part == "concurrent":
                rules[at], keys = old._replace(concurrent=None), ["concurrent"]
            else:
                rules[at] = old._replace(rates=(), counts="calls", has_limit=False)
                keys = ["limit", "count"]
            new = replaced(text, before, at, dict.fromkeys(keys))
        after = _write(path, target, text, new, before, rules=rules)
        return TakenOut(gone, after, at if len(rules) == len(before.rules) else None)


def take_out_cost(path: Path, cost: Cost, *, named: bool) -> tuple[Cost, Policy] | None:
    """Remove the cost with the same selectors from a policy file; see `take_out`."""
    with locked(path) as target:
        text, before = _read_policy(path, target, named=named)
        at = _place_of_cost(before, cost)
        if at is None:
            return None
        costs = [*before.costs[:at], *before.costs[at + 1 :]]
        after = _write(path, target, text, removed(text, before, at, name="cost"), before, costs=costs)
        return before.costs[at], after


def _read_policy(path: Path, target: Path, *, named: bool) -> tuple[str, Policy]:
    """The text of a policy file that exists, and the policy."""
    text = read(target)
    if text is None:
        raise no_such_file(path, named=named)
    return text, parse(text, source=str(path))


def _changed(old: Rule, new: Rule, table: dict[str, Any]) -> Rule:
    """A rule with the limit and the cap that an edit has, and with its name, mode and wait if the table has them."""
    name, observe = table.get("name", old.name), new.observe if "mode" in table else old.observe
    found = old._replace(name=name, observe=observe, wait_us=new.wait_us if "wait" in table else old.wait_us)
    if new.has_limit:
        found = found._replace(rates=new.rates, deny=new.deny, counts=new.counts, has_limit=True)
    if new.deny:
        return found._replace(concurrent=None, wait_us=None)
    return found if new.concurrent is None else found._replace(concurrent=new.concurrent)


def _write(
    path: Path,
    target: Path,
    old: str,
    new: str,
    before: Policy,
    *,
    rules: Sequence[Rule] | None = None,
    costs: Sequence[Cost] | None = None,
    observe: bool | None = None,
) -> Policy:
    """Write an edited text with the line ends of the old one, if the edit changed nothing else. Returns the policy now.

    Args:
        path: The file.
        target: The file; if `path` is a link, its target.
        old: Its text.
        new: Its new text.
        before: The policy before.
        rules: The rules that it must have now; None for those before, and so on.
        costs: The costs.
        observe: Whether it only observes.

    Raises:
        McpguardError: The edit changed something else, or the file cannot be written.
    """
    new = ended_alike(old, new)
    refusal = McpguardError(
        f"{path}: this edit would change more than it should", "edit the file by hand: mcpguard policy edit"
    )
    try:
        policy = parse(new, source=str(path))
    except PolicyError as error:  # about a text that the user has never seen
        raise refusal from error
    expected = (
        before.observe if observe is None else observe,
        before.wait_us,
        [_content(rule) for rule in (before.rules if rules is None else rules)],
        [cost[:2] for cost in (before.costs if costs is None else costs)],
    )
    found = policy.observe, policy.wait_us, [_content(rule) for rule in policy.rules], [cost[:2] for cost in policy.costs]
    if found != expected:
        raise refusal
    write(target, new.encode())
    return policy


def _content(rule: Rule) -> tuple[object, ...]:
    return rule._replace(rates=tuple(sorted(rule.rates)), line=0)
