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
        if not _is_there(module):
            name = module.replace(".", "-").removeprefix("google-")
            raise ConfigError(f"{what} needs {name}, which is not installed", f"pip install 'mcpguard-cli[{extra}]'")


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a package that the module is in
        return False
