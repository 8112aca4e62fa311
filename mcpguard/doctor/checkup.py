"""All checks, in the order in which they are shown: PATH, clients, `config.toml`, policy, store, identity, notifications."""

import contextlib
import os
import shutil
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import mcpguard
from mcpguard import __version__, config
from mcpguard.alerts import Way
from mcpguard.alerts.deliver import desktop
from mcpguard.alerts.events import Event
from mcpguard.alerts.notifier import result, start
from mcpguard.clients.coverage import missing_hooks
from mcpguard.clients.discovery import Machine
from mcpguard.clients.guards import version_of
from mcpguard.clients.launcher import PROGRAM, is_same
from mcpguard.config import Settings, place
from mcpguard.configured_identity import SOURCES, TOKEN_UNUSED, configured_identity, configured_tier, used_tiers
from mcpguard.doctor import Check, advice, clients, failed, failed_by, good, store
from mcpguard.errors import ConfigError, PolicyError
from mcpguard.files import changeable, exposed
from mcpguard.identity.caller import Identity
from mcpguard.policy.file import PolicyFile
from mcpguard.policy.lint import still_capped, warnings
from mcpguard.reading.explaining import never_matched
from mcpguard.text.printing import plural
from mcpguard.text.times import span_down

if TYPE_CHECKING:
    from mcpguard.identity.jwt_settings import JwtSettings


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
    with contextlib.suppress(ConfigError):  # without a home folder there are no clients
        yield from clients.checks(Machine.this(), allow_unguarded=allow_unguarded)
    try:
        found = config.load(environ, **options)
        _ = found.address
    except ConfigError as error:
        yield failed_by("config", error)
        return
    yield from _settings(found)
    yield from _policy(found)
    yield from store.checks(found)
    yield from _identity(found, options)
    if found.jwt:
        yield _keys(found.jwt)
    yield from _notifications(found.notify, send=notify)


def found_on(folders: Sequence[str], own: Path) -> Iterator[Check]:
    """Check which mcpguard the folders of a PATH have, and whether it is this one.

    Args:
        folders: The folders, in their order.
        own: The command of this environment.
    """
    found: list[Path] = []
    for file in [Path(folder) / own.name for folder in folders if folder]:
        if os.access(file, os.X_OK) and file.is_file() and not any(is_same(file, other) for other in found):
            found.append(file)
    if not found:
        install = "install it as a program: uv tool install mcpguard-cli"
        hint = f"use its full path in clients: {own}" if own.is_file() else install
        yield advice("PATH", f"mcpguard {__version__} is not on the PATH", hint)
        return
    first, *others = found
    if is_same(first, own):
        yield good("PATH", f"{first}, version {__version__}")
    elif reason := changeable(first):
        detail = f"{first} is found first, and other accounts may change it: {reason}"
        yield advice("PATH", detail, f"remove {first.parent} from it")
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


def _identity(settings: Settings, options: Mapping[str, str | None]) -> Iterator[Check]:
    """Tell the user and the agent with their sources, and until when the token is valid."""
    try:
        configured = configured_identity(settings, "")
    except ConfigError as error:
        yield failed_by("identity", error)
        return
    if settings.jwt:
        yield from _verified(settings, settings.jwt, configured, options)
        return
    yield good("identity", _told(configured, options))
    if os.environ.get("MCPGUARD_TOKEN"):
        yield advice("token", TOKEN_UNUSED, "configure [identity.jwt], or unset the variable")


def _told(who: Identity, options: Mapping[str, str | None]) -> str:
    agent, agent_source = who.agent(None)
    user_from, agent_from = (
        place(key, options.get(key), os.environ) if source == "config" else SOURCES[source]
        for key, source in (("user", who.user_source), ("agent", agent_source))
    )
    return f"user {who.user} ({user_from}), agent {agent} ({agent_from})"


def _verified(
    settings: Settings, jwt: "JwtSettings", configured: Identity, options: Mapping[str, str | None]
) -> Iterator[Check]:
    from mcpguard.identity.claims import time_of, utc
    from mcpguard.identity.token import TokenSource  # loads PyJWT

    warnings: list[str] = []
    source = TokenSource(jwt, configured, os.environ, budget_ms=settings.timeout_ms, notify=warnings.append)
    found = source.examine_patiently()
    if found.identity is None:
        yield failed("identity", "nobody is verified, so every call is denied with 401", "see the next lines")
    else:
        yield good("identity", _told(found.identity, options))
    for problem in found.problems:
        yield failed_by("token", problem)
    expires_s = time_of(found.claims, "exp") if found.claims else None
    if found.identity is not None and expires_s is not None:
        yield good("token", f"{source.where}: valid until {utc(expires_s)}, for {span_down(expires_s - time.time())}")
    for warning in warnings:
        yield advice("token", warning.partition(": chmod")[0], f"run chmod 600 {source.where}")


def _keys(jwt: "JwtSettings") -> Check:
    """Whether the keys that verify tokens can be fetched now, whatever is cached."""
    from mcpguard.identity.keys import FETCH_S, ProviderKeys

    found = ProviderKeys(jwt.jwks, jwt.state)
    found.seek()
    found.wait(FETCH_S)
    if found.problem:
        hint = "check identity.jwt.jwks in config.toml, and that the provider can be reached from here"
        return failed("keys", f"{found.source}: {found.problem}", hint)
    return good("keys", f"{found.source}: {plural(len(found), 'key')}")


def _notifications(ways: Sequence[Way], *, send: bool) -> Iterator[Check]:
    """Check each way to notify the user: whether its program is there, and with a message if that is asked for.

    Args:
        ways: The ways.
        send: Whether to send a message, and wait until that is done.
    """
    test = Event({"decision": "store_lost", "reason": "this is a test of mcpguard doctor"}, time.time_ns() // 1000).message(0)
    if send and not ways:
        yield failed("notify", "config.toml has no [[notify]]", "write desktop = true below a line [[notify]]")
    for way in ways:
        program = "" if way.webhook else (way.command or desktop("", "")[0])[0]
        what = f"{way.shown}, on {', '.join(way.on)}"
        if program and not shutil.which(program):
            yield failed("notify", f"{what}: {program} is not installed", "install it, or write its full path")
        elif send and (why := result(start(way, test))):
            yield failed("notify", f"not sent: {why}", "correct [[notify]] in config.toml")
        else:
            yield good("notify", f"{what}: a message was sent" if send else what)
