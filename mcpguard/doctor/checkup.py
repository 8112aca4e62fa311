"""All checks, in the order in which they are shown."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from mcpguard import config
from mcpguard.config import Settings
from mcpguard.doctor import clients, identity, keys, policy, program, settings, store
from mcpguard.doctor.check import Check, failed_by
from mcpguard.errors import ConfigError

WITHOUT_SETTINGS: Final[tuple[Callable[[], Iterable[Check]], ...]] = (program.checks, clients.checks)
"""Checks that need no settings, so that they run even if `config.toml` is broken."""

WITH_SETTINGS: Final[tuple[Callable[[Settings], Iterable[Check]], ...]] = (
    settings.checks,
    policy.checks,
    store.checks,
    identity.checks,
    keys.checks,
)


def checkup(environ: Mapping[str, str], **options: str | None) -> Iterator[Check]:
    """Run the checks of this machine, one after another.

    Args:
        environ: The environment.
        options: The options of `config.load`.
    """
    for check_program in WITHOUT_SETTINGS:
        yield from check_program()
    try:
        found = config.load(environ, **options)
        _ = found.address
    except ConfigError as error:
        yield failed_by("config", error)
        return
    for check in WITH_SETTINGS:
        yield from check(found)
