"""Where the settings stand that say who is calling."""

import os
from collections.abc import Mapping


def place(key: str, options: Mapping[str, str | None]) -> str:
    """Where a `user` or an `agent` that is configured stands: an option, a variable, or `config.toml`."""
    variable = f"MCPGUARD_{key.upper()}"
    return f"--{key}" if options[key] else variable if os.environ.get(variable) else "config.toml"
