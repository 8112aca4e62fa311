"""Packages that only some commands need, and that `pip install mcpguard-cli` leaves out."""

from importlib.util import find_spec

from mcpguard.errors import ConfigError


def require(what: str, extra: str, *modules: str) -> None:
    """Check that modules can be imported.

    Args:
        what: What needs them, for the message.
        extra: The extra that installs them.
        modules: Their names.

    Raises:
        ConfigError: One is not installed.
    """
    for module in modules:
        if find_spec(module) is None:
            name = module.partition(".")[0]
            raise ConfigError(f"{what} needs {name}, which is not installed", f"pip install 'mcpguard-cli[{extra}]'")
