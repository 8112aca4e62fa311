"""Checks `config.toml` and the variables. `config.load` has accepted them."""

import os
from collections.abc import Iterator

from mcpguard.config import Settings
from mcpguard.doctor.check import Check, advice, good
from mcpguard.files import exposed


def checks(settings: Settings) -> Iterator[Check]:
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
