"""Whether two rules can match the same call."""

from mcpguard.identity.agent import Agent
from mcpguard.policy.model import AXES, Rule
from mcpguard.text.patterns import glob


def may_overlap(rule: Rule, other: Rule) -> bool:
    """Whether a call may match both rules. If False, none can; if True, it is not certain that one can."""
    for key in AXES:
        mine, theirs = rule.selectors.get(key), other.selectors.get(key)
        if mine and theirs and not _may_meet(key, mine[0], theirs[0]):
            return False
    return True


def _may_meet(key: str, one: str, two: str) -> bool:
    """Whether a text may match both patterns."""
    if key == "agent":
        parts = zip(Agent.split(one) or (), Agent.split(two) or (), strict=True)
        return all(_may_meet("", mine, theirs) for mine, theirs in parts)
    if "*" not in one:
        return glob(two, one)
    if "*" not in two:
        return glob(one, two)
    (mine, *_, my_end), (theirs, *_, their_end) = one.split("*"), two.split("*")
    begin = mine.startswith(theirs) or theirs.startswith(mine)
    return begin and (my_end.endswith(their_end) or their_end.endswith(my_end))
