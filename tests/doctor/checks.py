"""Runs `mcpguard doctor --json`."""

import json
import os
from pathlib import Path
from typing import Any

from mcpguard.doctor import Check
from tests.cli.command import mcpguard


def doctor(home: Path, *argv: str, status: int = 0, **env: str) -> list[Check]:
    """The checks, without those of the PATH, which depend on the machine, and that of how many servers are guarded.

    The account has no clients in its home folder.
    """
    env = {"PATH": os.environ["PATH"], "HOME": str(home / "account"), **env}
    done = mcpguard(home, "doctor", "--json", *argv, **env)
    assert done.stderr == ""
    found: list[dict[str, Any]] = json.loads(done.stdout)
    checks = [Check(**one) for one in found]
    assert done.returncode == int(not all(one.ok for one in checks))
    checks = [one for one in checks if one.check not in ("PATH", "clients", "servers guarded")]
    assert int(not all(one.ok for one in checks)) == status
    assert all(one.hint for one in checks if not one.ok)
    assert all(text.isprintable() for one in checks for text in (one.check, one.detail, one.hint))
    return checks


def of(checks: list[Check], name: str) -> list[Check]:
    return [one for one in checks if one.check == name]


def only(checks: list[Check], name: str) -> Check:
    (one,) = of(checks, name)
    return one
