"""Suggests a policy from the audit log, or for the tools of a server: writes the suggested limits into the policy's text."""

import difflib
import io
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mcpguard.config import Settings
from mcpguard.light_typing import Final, NamedTuple
from mcpguard.policy.file import no_such_file
from mcpguard.policy.model import AXES, Policy
from mcpguard.policy.parse import STARTER, parse
from mcpguard.policy.suggest import COUNTED, Findings, Survey
from mcpguard.policy.suggest_by_tools import ServerTool, ToolFindings, suggest_by_tools
from mcpguard.policy.text import PolicyText
from mcpguard.policy.writing import read
from mcpguard.stores.api import Wanted
from mcpguard.text.printing import printable

_COMMENT_WIDTH: Final = 110
"""The longest line of a reason, if no name is longer."""


class SuggestedPolicy(NamedTuple):
    """A suggested policy.

    Attributes:
        before: The text of the policy in force.
        after: The suggested text, with the reasons as comments.
        policy: The policy in force.
    """

    before: str
    after: str
    policy: Policy

    def diff(self, path: Path) -> str:
        """The change as a unified diff; empty if there is none."""
        old, new = (io.StringIO(text, newline="\n").readlines() for text in (self.before, self.after))  # by the rules of TOML
        found = difflib.unified_diff(old, new, str(path), f"{path} (suggested)")
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in found)


def suggest(settings: Settings, *, since_us: int) -> tuple[Findings, SuggestedPolicy]:
    """Suggest limits from the calls since a time.

    Args:
        settings: The settings of this machine.
        since_us: The wall-clock time.

    Raises:
        PolicyError: The policy in force is not valid.
        StoreUnavailable: The audit log cannot be read.
    """
    before, policy = _in_force(settings)
    survey = Survey(policy)
    if settings.address.exists():
        survey.add(_rows(settings, since_us))
    findings = survey.findings()
    return findings, SuggestedPolicy(before, _rewritten(before, findings), policy)


def suggest_for_server(settings: Settings, server: str, tools: Iterable[ServerTool]) -> tuple[ToolFindings, SuggestedPolicy]:
    """Suggest limits for the tools of a server.

    Args:
        settings: The settings of this machine.
        server: The server's name.
        tools: Its tools.

    Raises:
        PolicyError: The policy in force is not valid.
    """
    before, policy = _in_force(settings)
    findings = suggest_by_tools(policy, server, tools)
    new = PolicyText(before)
    reasons = [f"For the server {server}. Annotations are what a server says of its tools: nobody has checked them."]
    for rule in findings.rules:
        table = {"user": "*", "server": server, "tool": rule.tool, "limit": [*rule.kind.limits]}
        reasons += rule.reasons
        new.append("rule", table, [line for reason in reasons for line in _wrapped(printable(reason))])
        reasons = []
    return findings, SuggestedPolicy(before, new.edited(), policy)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _COMMENT_WIDTH, break_long_words=False, break_on_hyphens=False, subsequent_indent="  ")


def _in_force(settings: Settings) -> tuple[str, Policy]:
    """The text of the policy in force, and the policy."""
    text = read(settings.policy)
    if text is None and settings.policy_named:
        raise no_such_file(settings.policy, named=True)
    before = STARTER if text is None else text
    return before, parse(before, source=str(settings.policy), is_starter=text is None)


def _rows(settings: Settings, since_us: int) -> Iterator[Mapping[str, object]]:
    """The rows of calls since a time, newest first."""

    def is_call(context: Mapping[str, object]) -> bool:
        return context.get("namespace") == settings.namespace and all(axis in context for axis in AXES)

    with settings.read_store() as store:
        for _, record in store.newest(wanted=Wanted(is_call, COUNTED | {"rate_limited"}, since_us=since_us)):
            yield record


def _rewritten(text: str, findings: Findings) -> str:
    """The policy's text with the suggested limits, each with its reason in a comment."""
    new = PolicyText(text)
    for suggestion in findings.suggestions:
        limits = {"limit": [(f"{one.n}/{one.window}", printable(one.reason)) for one in suggestion.limits]}
        if suggestion.kind == "change":
            new.set("rule", suggestion.at, limits)
        elif suggestion.kind == "add":
            new.append("rule", suggestion.table | limits)
    return new.edited()
