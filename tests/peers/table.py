"""The limiters that are compared: the version of each, the mode that was chosen, and how it is started."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import mcpguard
from tests.benchmarks.variants import GUARD
from tests.end_to_end.host import rule

SERVER_ENVIRONMENT: Final = "fastmcp"
SERVER: Final = "fastmcp==4.2.3 mcp==2.3.0"
"""What the server of every experiment needs. A library that limits inside the server is installed beside it."""

_PROGRAM: Final = str(Path(__file__).resolve().parent / "programs" / "server.py")


class Setting(NamedTuple):
    python: str  # the interpreter of its virtual environment
    server: tuple[str, ...]  # the command of the server, without a limiter in it
    log: str  # the file in which the server records its calls
    folder: Path  # where its configuration and its state are, the same for all its processes
    calls: int  # the limit, in calls a minute
    redis: str  # the URL of its Redis server, if its mode has one


class Start(NamedTuple):
    """A command, and what its environment has in addition."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


class Peer(NamedTuple):
    """A limiter in one mode. docs/comparison.md describes the mode, and why it was chosen."""

    name: str  # in the tables, and for `--only`
    needs: str  # what pip installs for it, itself first. Nothing for mcpguard, which runs from the checkout
    start: Callable[[Setting], Start]
    uses_redis: bool = False
    says: tuple[str, float] | None = None  # finds the retry time in its denial, and how many of its units are a second

    @property
    def version(self) -> str:
        """The version that is installed; the checkout's for mcpguard."""
        return self.needs.partition(" ")[0].partition("==")[2] or mcpguard.__version__


ALONE: Final = "the server alone"
_SECONDS: Final = (r"[Rr]etry (?:in|after) ~?([\d.]+) ?s", 1.0)
_MILLISECONDS: Final = (r'"retry_after_ms": ?(\d+)', 1000.0)


def bare(setting: Setting) -> Start:
    """The server without a limiter."""
    return Start(setting.server, {})


def _guard(setting: Setting) -> Start:
    home = setting.folder / "home"
    home.mkdir(mode=0o700, exist_ok=True)
    (home / "policy.toml").write_text(rule(f"{setting.calls}/1m", user="*", tool="echo"), encoding="utf-8")
    store = {"MCPGUARD_STORE": setting.redis} if setting.redis else {}
    return Start((*GUARD.prefix, *setting.server), {**GUARD.env, "MCPGUARD_HOME": str(home), **store})


def _warden(setting: Setting) -> Start:
    program = str(Path(setting.python).with_name("mcp-warden"))
    return Start((program, "both", "--max-calls-per-minute", str(setting.calls), "--", *setting.server), {})


def _hangar(setting: Setting) -> Start:
    rate, unlimited = f"rps: {setting.calls / 60:.6f}, burst: {setting.calls}", "rps: 1000000, burst: 1000000"
    config = setting.folder / "hangar.yaml"
    config.write_text(
        f"mcp_servers: {{crm: {{mode: subprocess, command: [{', '.join(setting.server)}]}}}}\n"
        "tool_access: {mode: front_door}\n"
        "auth: {stdio: {principal: {id: alice, tenant_id: local, roles: [viewer]}}}\n"
        f"rate_limit: {{{unlimited}, per_caller: {{{rate}}}}}\n",
        encoding="utf-8",
    )
    return Start((str(Path(setting.python).with_name("mcp-hangar")), "--config", str(config), "serve"), {})


def _inside(limiter: str) -> Callable[[Setting], Start]:
    def start(setting: Setting) -> Start:
        return Start((setting.python, _PROGRAM, setting.log, limiter, str(setting.calls), setting.redis), {})

    return start


def server(python: str, log: str) -> tuple[str, ...]:
    """The command of the server without a limiter."""
    return (python, _PROGRAM, log)


PEERS: Final = (
    Peer("mcpguard", "", _guard, says=_MILLISECONDS),
    Peer("mcpguard on Redis", "", _guard, uses_redis=True, says=_MILLISECONDS),
    Peer("mcp-warden", "mcp-warden==0.1.3", _warden, says=_SECONDS),
    Peer("mcp-hangar", "mcp-hangar==2.34.4 mcp==2.3.0", _hangar, says=_SECONDS),
    Peer("FastMCP", SERVER, _inside("fastmcp")),
    *(
        Peer(name, f"{pin} {SERVER}", _inside(name), uses_redis=True, says=_SECONDS)
        for name, pin in {
            "cpex-rate-limiter": "cpex-rate-limiter==0.1.12",
            "agentguard-oss": "agentguard-oss[redis]==0.5.0",
            "limits": "limits[redis]==5.8.0",
        }.items()
    ),
)


def environment() -> dict[str, str]:
    """The environment of every process: what sets mcpguard up here does not reach it."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MCPGUARD_", "PYTHON"))}
    return {**inherited, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
