"""Checks the policy, as `mcpguard policy check` does."""

from collections.abc import Iterator

from mcpguard.clients.missing_hooks import missing_hooks
from mcpguard.config import Settings
from mcpguard.configured_identity import configured_tier, used_tiers
from mcpguard.doctor.check import Check, advice, failed_by, good
from mcpguard.errors import PolicyError
from mcpguard.policy.file import PolicyFile
from mcpguard.policy.lint import still_capped, warnings
from mcpguard.reading.explaining import never_matched
from mcpguard.text.printing import plural


def checks(settings: Settings) -> Iterator[Check]:
    """Tell which policy is in force, and warn of its likely mistakes."""
    file = PolicyFile(settings.policy, named=settings.policy_named)
    policy = file.begin()
    if isinstance(policy, PolicyError):
        yield failed_by("policy", policy)
        return
    rules = plural(len(policy.rules), "rule")
    where = f"starter policy, no file at {settings.policy}" if file.is_starter else str(settings.policy)
    if policy.observe:
        yield advice("policy", f"{where}: {rules}, observe mode denies nothing", 'write mode = "enforce" into it to deny calls')
    elif not policy.rules:
        yield advice("policy", f"{where}: no rules, so nothing is limited", "add one: mcpguard policy set --user '*' 100/1h")
    else:
        yield good("policy", f"{where}: {rules}")
    for warning in [*warnings(policy, tiers=used_tiers(settings)), *still_capped(policy).warnings]:
        yield advice("policy", warning, "change or remove the rule: mcpguard policy edit")
    missing = missing_hooks(policy)
    for one in missing:
        yield advice("policy", one.warning, one.command)
    explained = {one.at for one in missing}
    for warning in [] if file.is_starter else never_matched(policy, settings, explained=explained):
        yield advice("policy", warning, "compare each name with mcpguard audit tail")
    unlimited = policy.tier_warning(configured_tier(settings))
    if unlimited:
        yield advice("policy", unlimited, "change the tier of the agent, or add a rule for it")
