"""All checks, in the order in which they are shown: the PATH, clients, `config.toml`, policy, store and identity."""

import os
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import mcpguard
from mcpguard import __version__, config
from mcpguard.clients.guards import version_of
from mcpguard.clients.launcher import PROGRAM, is_same
from mcpguard.clients.missing_hooks import missing_hooks
from mcpguard.config import Settings
from mcpguard.configured_identity import configured_tier, used_tiers
from mcpguard.doctor import alerts, clients, identity, store
from mcpguard.doctor.check import Check, advice, failed, failed_by, good
from mcpguard.errors import ConfigError, PolicyError
from mcpguard.files import changeable, exposed
from mcpguard.policy.file import PolicyFile
from mcpguard.policy.lint import still_capped, warnings
from mcpguard.reading.explaining import never_matched
from mcpguard.text.printing import plural


def checkup(
    environ: Mapping[str, str], *, allow_unguarded: bool = False, notify: bool = False, **options: str | None
) -> Iterator[Check]:
    """Run the checks of this machine, one after another. If the settings are broken, those that need them are left out.

    Args:
        environ: The environment.
        allow_unguarded: Whether a server of a client may be unguarded.
        notify: Whether to send a message by each way to notify the user.
        options: The options of `config.load`.
    """
    yield from found_on(os.get_exec_path(), Path(sysconfig.get_path("scripts")) / PROGRAM)
    yield from clients.checks(allow_unguarded=allow_unguarded)
    try:
        found = config.load(environ, **options)
        _ = found.address
    except ConfigError as error:
        yield failed_by("config", error)
        return
    yield from _settings(found)
    yield from _policy(found)
    yield from store.checks(found)
    yield from identity.checks(found, options)
    yield from alerts.checks(found.notify, send=notify)


def found_on(folders: Sequence[str], own: Path) -> Iterator[Check]:
    """Check which mcpguard the folders of a PATH have, and whether it is this one.

    Args:
        folders: The folders, in their order.
        own: The command of this environment.
    """
    places = [Path(folder) / own.name for folder in folders if folder]
    found: list[Path] = []
    for place in places:
        if os.access(place, os.X_OK) and place.is_file() and not any(is_same(place, other) for other in found):
            found.append(place)
    if not found:
        hint = (
            f"use its full path in clients: {own}" if own.is_file() else "install it as a program: uv tool install mcpguard-cli"
        )
        yield advice("PATH", f"mcpguard {__version__} is not on the PATH", hint)
        return
    first, *others = found
    if is_same(first, own):
        yield good("PATH", f"{first}, version {__version__}")
    elif reason := changeable(first):
        yield advice(
            "PATH", f"{first} is found first, and other accounts may change it: {reason}", f"remove {first.parent} from it"
        )
    else:
        version = version_of(first)
        here = own if own.is_file() else Path(mcpguard.__file__).parent
        detail = f"{first} is another mcpguard, version {version or 'unknown'}; this one is {__version__} in {here}"
        if version in (None, __version__):
            yield advice("PATH", detail, "remove one of the two, so that it is clear which one clients start")
        else:
            order = f", or put {own.parent} before its folder in the PATH" if own.is_file() else ""
            yield failed("PATH", detail, f"remove or upgrade {first}{order}")
    if others:
        more = " ".join(map(str, others))
        yield advice("PATH", f"there are more of them: {more}", "remove them: a client whose PATH differs may start one")


def _settings(settings: Settings) -> Iterator[Check]:
    """Tell where the settings come from, and warn of files that other accounts may change."""
    file = settings.file
    where = f"{file}" if file and file.exists() else f"no file at {file}: the defaults apply"
    variables = sorted(name for name in os.environ if name.startswith("MCPGUARD_"))
    yield good("config", f"{where}; variables: {' '.join(variables)}" if variables else where)
    for warning in settings.warnings:
        what, _, hint = warning.partition(": ")
        yield advice("config", what, hint)
    for warning in exposed(settings.files):
        yield advice("config", warning, "let only your account write to them: whoever can change one can raise a limit")


def _policy(settings: Settings) -> Iterator[Check]:
    """Tell which policy is in force, and warn of its likely mistakes."""
    policy = PolicyFile(settings.policy, named=settings.policy_named).begin()
    if isinstance(policy, PolicyError):
        yield failed_by("policy", policy)
        return
    rules = plural(len(policy.rules), "rule")
    where = f"starter policy, no file at {settings.policy}" if policy.is_starter else str(settings.policy)
    if policy.observe:
        yield advice("policy", f"{where}: {rules}, observe mode denies nothing", 'write mode = "enforce" into it to deny calls')
    elif not policy.rules:
        yield advice("policy", f"{where}: no rules, so nothing is limited", "add one: mcpguard policy set --user '*' 100/1h")
    else:
        yield good("policy", f"{where}: {rules}")
    for warning in [*warnings(policy, tiers=used_tiers(settings)), *still_capped(policy).warnings]:
        yield advice("policy", warning, "change or remove the rule: mcpguard policy edit")
    missing = missing_hooks(policy)
    for warning in missing.values():
        what, _, command = warning.partition("; run ")
        yield advice("policy", what, command)
    for warning in [] if policy.is_starter else never_matched(policy, settings, explained=missing):
        yield advice("policy", warning, "compare each name with mcpguard audit tail")
    unlimited = policy.tier_warning(configured_tier(settings))
    if unlimited:
        yield advice("policy", unlimited, "change the tier of the agent, or add a rule for it")
