"""What can stand between the client and the server, and how each is started."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.end_to_end.host import rule
from tests.pages import ROOT

from .session import Session

PROGRAMS = Path(__file__).resolve().parent / "programs"

# Without `site`, and out of reach of the environment: what is measured is not how Python starts.
_BARE_PYTHON = (sys.executable, "-I", "-S")
BENCH_SERVER = (*_BARE_PYTHON, str(PROGRAMS / "bench_server.py"))
TINY_SERVER = ("/bin/sh", str(PROGRAMS / "tiny_server.sh"))
SDK_SERVER = (sys.executable, str(PROGRAMS / "sdk_server.py"))

# Three limits a call, one of each axis. N is over 64, so that each counter is a coalesced log, and out of reach.
POLICY = (
    rule("100000000/1h", user="*", tool="echo")
    + rule("100000000/1h", tool="echo")
    + rule("100000000/1h", user="*", agent="*::interactive::*")
    + rule("1/1h", tool="full")
)


@dataclass(frozen=True, slots=True)
class Variant:
    """A command that takes the server's command as its last arguments."""

    name: str
    prefix: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)

    def start(self, server: Sequence[str], folder: Path) -> Session:
        """Start it before a server; its files go into a subfolder of `folder`, mcpguard's into `folder/home`."""
        cwd = folder / self.name
        cwd.mkdir(parents=True, exist_ok=True)
        return Session(self.name, [*self.prefix, *server], cwd=cwd, env=prepared(self, folder))


def prepared(variant: Variant, folder: Path) -> dict[str, str]:
    """The environment of a variant, whose home `folder/home` has the policy."""
    home = folder / "home"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (home / "policy.toml").exists():  # a running one may be reading it
        (home / "policy.toml").write_text(POLICY, encoding="utf-8")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MCPGUARD_")}
    return {**inherited, **variant.env, "MCPGUARD_HOME": str(home)}


BARE = Variant("bare", ())
LEAST = Variant("least", (*_BARE_PYTHON, str(PROGRAMS / "least_relay.py")))
YARDSTICK = Variant("yard", (*_BARE_PYTHON, str(PROGRAMS / "yardstick.py")))
CAT = Variant("cat", ("/bin/sh", "-c", '"$@" | cat', "sh"))
GUARD = Variant(
    "mcpguard",
    (sys.executable, "-m", "mcpguard", "run", "--server", "bench", "--denials", "error", "--"),
    {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))},
)
