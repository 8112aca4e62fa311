"""Checks a server behind mcpguard, and lists its tools with the rules that apply to each."""

from collections.abc import Iterator, Sequence

from mcpguard.config import Settings
from mcpguard.doctor.check import Check, failed_by, good
from mcpguard.doctor.listing import ANSWER_S, listed, named
from mcpguard.errors import McpguardError, PolicyError
from mcpguard.identity.caller import Identity
from mcpguard.policy.explain import rule_matches
from mcpguard.policy.file import PolicyFile
from mcpguard.policy.model import Call, Policy
from mcpguard.reading.explaining import caller
from mcpguard.text.printing import plural, printable


def checks(
    settings: Settings,
    command: Sequence[str],
    *,
    options: Sequence[str],
    server: str | None,
    folder: str = "",
    answer_s: float = ANSWER_S,
) -> Iterator[Check]:
    """Start a server behind mcpguard, and check that it answers.

    Args:
        settings: The settings that `options` and the variables give.
        command: The server's command, without mcpguard.
        options: The options of `mcpguard run`.
        server: The server's name; None to derive it from the command.
        folder: Where it starts; empty for the working folder.
        answer_s: How long the server may take.
    """
    name = named(server, command)
    try:
        found = listed(name, command, options=options, folder=folder, answer_s=answer_s)
    except McpguardError as error:
        yield failed_by("server", error)
        return
    tools = plural(len(found.tools), "tool")
    yield good("server", printable(f"{name}: {found.name}, protocol {found.protocol}, {tools}, ready in {found.took_s:.1f} s"))
    yield from _rules(settings, name, [tool.name for tool in found.tools])


def _rules(settings: Settings, server: str, tools: Sequence[str]) -> Iterator[Check]:
    """A line for each tool, or for tools to which the same rules apply: the rules that apply to a call of it from here."""
    policy = PolicyFile(settings.policy, named=settings.policy_named).begin()
    if isinstance(policy, PolicyError):
        return  # the check of the policy reports it
    try:
        who = caller(settings, user=None, agent=None, token=None, roles=(), scopes=(), notify=lambda _: None)
    except McpguardError:
        return  # the check of the identity reports it
    alike: dict[str, list[str]] = {}
    for tool in tools:
        alike.setdefault(_applying(policy, who, server, tool), []).append(tool)
    for rules, names in alike.items():
        yield good(printable(f"tool{'s' if len(names) > 1 else ''} {', '.join(names)}"), printable(rules))


def _applying(policy: Policy, who: Identity, server: str, tool: str) -> str:
    call = Call(who.user, who.agent(None)[0], server, tool, who.roles, who.scopes)
    found = [one for one in rule_matches(policy, call) if one.status == "applies"]
    rules = [
        f"{one.rule.limits_text.replace(' ', ' and ')} by rule {one.at + 1} ({one.rule.text})"
        + (" in observe mode" if one.rule.observe else "")
        for one in found
    ]
    return "; ".join(rules) or "no rule applies, so nothing limits it"
