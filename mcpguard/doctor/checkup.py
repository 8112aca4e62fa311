"""All checks, in the order in which they are shown."""

from collections.abc import Iterator, Mapping

from mcpguard import config
from mcpguard.doctor import clients, identity, policy, program, settings, store
from mcpguard.doctor.check import Check, failed_by
from mcpguard.errors import ConfigError


def checkup(environ: Mapping[str, str], **options: str | None) -> Iterator[Check]:
    """Run the checks of this machine, one after another. If the settings are broken, those that need them are left out.

    Args:
        environ: The environment.
        options: The options of `config.load`.
    """
    yield from program.checks()
    yield from clients.checks()
    try:
        found = config.load(environ, **options)
        _ = found.address
    except ConfigError as error:
        yield failed_by("config", error)
        return
    yield from settings.checks(found)
    yield from policy.checks(found)
    yield from store.checks(found)
    yield from identity.checks(found, options)
