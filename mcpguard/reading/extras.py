"""Packages that only some commands need, and that `pip install mcpguard-cli` leaves out."""

from importlib.util import find_spec

from mcpguard.errors import McpguardError, installing


def require(what: str, extra: str, *modules: str) -> None:
    """Check that modules can be imported.

    Args:
        what: What needs them, for the message.
        extra: The extra that installs them.
        modules: Their names.

    Raises:
        McpguardError: One is not installed.
    """
    for module in modules:
        if not _is_there(module):
            name = module.replace(".", "-").removeprefix("google-")
            raise McpguardError(f"{what} needs {name}, which is not installed", installing(extra))


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a package that the module is in
        return False
