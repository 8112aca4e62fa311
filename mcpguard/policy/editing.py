"""Edits a policy file and keeps its comments, order and mode. A failed edit leaves the file unchanged."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mcpguard.errors import McpguardError, PolicyError
from mcpguard.light_typing import Any, Final, NamedTuple
from mcpguard.limiter.sliding import Counts
from mcpguard.policy.file import no_such_file
from mcpguard.policy.model import Cost, Policy, Rule
from mcpguard.policy.parse import STARTER, parse, parse_cost, parse_rule
from mcpguard.policy.text import PolicyText
from mcpguard.policy.writing import locked, read, write_policy

_EDITED: Final = ("limit", "count", "concurrent", "wait", "warn", "name", "mode")
"""The keys of a rule that an edit changes. The other keys identify the rule."""

_ONE_BY_ONE: Final = "set the limit and the cap one after the other"
"""The hint for an edit of a limit and a cap that are not in one rule."""


class PolicyEdit(NamedTuple):
    """What an edit did.

    Attributes:
        before: The policy before.
        after: The policy now. If the edit changed nothing, it is the policy before.
        at: The place of the edited rule or cost in it.
        is_new_file: Whether the edit made the file, with the starter rules.
    """

    before: Policy
    after: Policy
    at: int = 0
    is_new_file: bool = False

    @property
    def is_unchanged(self) -> bool:
        """Whether the policy was already as wanted. Then nothing was written."""
        return self.after is self.before


class _Open(NamedTuple):
    """A policy file that is being edited.

    Attributes:
        path: The file, as the user names it.
        target: The file; if `path` is a link, its target.
        old: Its text; None if it does not exist. Then the starter rules are edited.
        before: The policy before.
        text: The text to edit.
    """

    path: Path
    target: Path
    old: str | None
    before: Policy
    text: PolicyText

    def save(self, at: int = 0) -> PolicyEdit:
        """Write the edited text, unless nothing changed. `at` is the place of the edited rule or cost."""
        new = self.text.edited()
        if new == self.old:
            return PolicyEdit(self.before, self.before, at)
        after = parse(new, source=str(self.path))
        write_policy(self.target, new.encode())
        return PolicyEdit(self.before, after, at, is_new_file=self.old is None)


@contextlib.contextmanager
def _opened(path: Path, *, missing: PolicyError | None = None) -> Iterator[_Open]:
    """Lock and read a policy file.

    Args:
        path: The file.
        missing: The error if it does not exist; None to make it.

    Raises:
        PolicyError: The file is missing, or not a valid policy.
    """
    with locked(path) as target:
        old = read(target)
        if old is None and missing:
            raise missing
        text = STARTER if old is None else old
        yield _Open(path, target, old, parse(text, source=str(path)), PolicyText(text))


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
        hint = "set the limits one after the other" if rule.concurrent is None else _ONE_BY_ONE
        raise McpguardError(f"rules {numbers} have these selectors", hint)
    if same:
        found = policy.rules[same[0]]
        if rule.has_limit and found.has_limit and rule.counts != found.counts:  # found by its cap
            message = f"rule {same[0] + 1} has these selectors, but its limit counts {found.counts}, not {rule.counts}"
            raise McpguardError(message, _ONE_BY_ONE)
        if not _is_for_same(rule, found) and {part.key for part in found.parts} != keys:  # one of them has `N/session`
            message = f"rule {same[0] + 1} ({found.text}) has limits per session for the same calls: {found.limits_text}"
            raise McpguardError(message, "set the limits of that rule with its own --per, or remove it before")
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


def put(path: Path, table: dict[str, Any]) -> PolicyEdit:
    """Set a rule in a policy file.

    It replaces the limit, the cap, or both, in the rule that has the same selectors and `per` and counts the same. A limit
    joins a rule that has only a cap, and a cap one that has only a limit. Else the rule is added at the end.

    Args:
        path: The file. If it does not exist, it is made with the starter rules.
        table: The rule as a table of the file. An empty `name` removes the rule's name. Without `name`, `mode`, `wait` or
            `warn`, a rule that exists keeps its own.

    Raises:
        PolicyError: The file is not a valid policy; it is unchanged.
        McpguardError: The file cannot be written; it is unchanged.
    """
    with _opened(path) as file:
        rule = parse_rule(table, where=str(path))
        cleared = {"count": None, "concurrent": None, "wait": None} if rule.deny else {}
        cleared |= {"warn": None} if rule.has_limit and not rule.rates else {}
        values = cleared | {key: table[key] for key in _EDITED if key in table}
        at = _place(file.before, rule, table)
        if at is not None and "per" in table and not _is_for_same(rule, file.before.rules[at]):  # it has `N/session`
            values["per"] = table["per"]
        return _put(file, "rule", at, table, values)


def _put(file: _Open, kind: str, at: int | None, table: dict[str, Any], values: dict[str, Any]) -> PolicyEdit:
    """Give the rule or cost at a place these values, or add this table if the place is None."""
    if at is not None:
        file.text.set(kind, at, values)
        return file.save(at)
    file.text.append(kind, table)
    return file.save(len(file.before.rules if kind == "rule" else file.before.costs))


def put_cost(path: Path, table: dict[str, Any]) -> PolicyEdit:
    """Set a cost in a policy file. It replaces the cost with the same selectors, or is added at the end.

    Args:
        path: The file. If it does not exist, it is made with the starter rules.
        table: The cost as a table of the file.

    Raises:
        PolicyError: The file is not a valid policy; it is unchanged.
        McpguardError: The file cannot be written; it is unchanged.
    """
    with _opened(path) as file:
        cost = parse_cost(table, where=str(path))
        return _put(file, "cost", _place_of_cost(file.before, cost), table, {"cost": cost.units})


def _place_of_cost(policy: Policy, cost: Cost) -> int | None:
    return next((at for at, other in enumerate(policy.costs) if other.pattern.key == cost.pattern.key), None)


def set_mode(path: Path, mode: str, *, named: bool = False) -> PolicyEdit:
    """Set the mode of a policy file: `observe` or `enforce`. The modes of single rules stay.

    Args:
        path: The file. If it does not exist and the mode changes, it is made with the starter rules.
        mode: The mode.
        named: Whether an option or a variable names the file. Then it must exist.

    Raises:
        PolicyError: The file does not exist although `named`, or is not a valid policy; it is unchanged.
        McpguardError: The file cannot be written; it is unchanged.
    """
    with _opened(path, missing=no_such_file(path, named=True) if named else None) as file:
        if file.before.observe == (mode == "observe"):  # and a missing file stays missing
            return PolicyEdit(file.before, file.before)
        file.text.set_mode(mode)
        return file.save()


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


def take_out(
    path: Path, rule: Rule, *, named: bool, part: Counts | None = None, observe: bool | None = None
) -> TakenOut | None:
    """Remove a rule, or a part of a rule, from a policy file.

    Args:
        path: The file.
        rule: A rule with the selectors and `per` of the rule to remove.
        named: Whether an option or a variable names the file.
        part: Remove only the limit that counts this, or the cap if it is `concurrent`; None for all of the rule.
        observe: Whether the rule to remove is in observe mode; None if that does not matter.

    Returns:
        What was removed; None if there is no such rule. Then nothing is written.

    Raises:
        PolicyError: The file does not exist or is not a valid policy; it is unchanged.
        McpguardError: The file cannot be written, or several rules have these selectors; it is unchanged.
    """
    with _opened(path, missing=no_such_file(path, named=named)) as file:
        before = file.before
        found = [at for at, other in enumerate(before.rules) if part is None or any(one.counts == part for one in other.parts)]
        found = [at for at in found if observe in {None, before.rules[at].observe}]
        # Of two rules with these selectors, `--per` tells the one with limits per session from the other
        found = [at for at in found if _is_for_same(rule, before.rules[at].parts[0])] or [
            at for at in found if _is_for_same(rule, before.rules[at])
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
        if part is None or {one.counts for one in old.parts} == {part}:
            file.text.remove("rule", at)
            return TakenOut(old, file.save().after)
        gone = old.parts[-1] if part == "concurrent" else old._replace(concurrent=None)
        file.text.set("rule", at, dict.fromkeys(["concurrent"] if part == "concurrent" else ["limit", "count", "warn"]))
        return TakenOut(gone, file.save().after, at)


def take_out_cost(path: Path, cost: Cost, *, named: bool) -> Cost | None:
    """Remove the cost with the same selectors from a policy file, and return it; see `take_out`."""
    with _opened(path, missing=no_such_file(path, named=named)) as file:
        at = _place_of_cost(file.before, cost)
        if at is None:
            return None
        file.text.remove("cost", at)
        file.save()
        return file.before.costs[at]
