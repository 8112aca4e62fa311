"""The limiters that are compared: the version of each, the mode that was chosen, and how it is started."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import mcpguard
from tests.benchmarks.variants import GUARD

SERVER_ENVIRONMENT: Final = "fastmcp"
SERVER: Final = "fastmcp==4.2.3 mcp==2.3.0"
"""What the server of every experiment needs. A library that limits inside the server is installed beside it."""

_PROGRAM: Final = str(Path(__file__).resolve().parent / "programs" / "server.py")


class Setting(NamedTuple):
    """What a limiter is started with.

    Attributes:
        python: The interpreter of its virtual environment.
        server: The command of the server, without a limiter in it.
        log: The file in which the server records its calls.
        folder: Where its configuration and its state are, the same for all its processes.
        calls: The limit, in calls a minute.
        redis: The URL of its Redis server, if its mode has one.
    """

    python: str
    server: tuple[str, ...]
    log: str
    folder: Path
    calls: int
    redis: str


class Start(NamedTuple):
    """A command, and what its environment has in addition."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Peer:
    """A limiter in one mode.

    Attributes:
        name: How the tables and `--only` name it.
        version: The version that is installed; the checkout's for mcpguard.
        needs: What pip installs for it. Nothing for mcpguard, which runs from the checkout.
        place: Where it decides.
        mode: What was chosen of what it offers.
        start: How it is started.
        uses_redis: Whether its counters are in Redis.
        says: Finds the retry time in its denial, and how many of its units are a second.
    """

    name: str
    version: str
    needs: str
    place: str
    mode: str
    start: Callable[[Setting], Start]
    uses_redis: bool = False
    says: tuple[str, float] | None = None


class Read(NamedTuple):
    """A limiter that neither PyPI nor npm has: what its source says instead of a measurement."""

    name: str
    why: str
    source: str
    finding: str


ALONE: Final = "the server alone"
IN_FRONT: Final = "in front of any stdio server"
INSIDE: Final = "inside a server in Python"
_TEXT: Final = (r"[Rr]etry (?:in|after) ~?([\d.]+) ?s", 1.0)


def bare(setting: Setting) -> Start:
    """The server without a limiter."""
    return Start(setting.server, {})


def _guard(setting: Setting) -> Start:
    home = setting.folder / "home"
    home.mkdir(mode=0o700, exist_ok=True)
    rule = f'[[rule]]\nuser = "*"\ntool = "echo"\nlimit = "{setting.calls}/1m"\n'
    (home / "policy.toml").write_text(rule, encoding="utf-8")
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
    Peer(
        "mcpguard",
        mcpguard.__version__,
        "",
        IN_FRONT,
        "sliding window, counters and audit log in SQLite (its defaults), one rule by user and tool",
        _guard,
        says=(r'"retry_after_ms": ?(\d+)', 1000.0),
    ),
    Peer(
        "mcpguard on Redis",
        mcpguard.__version__,
        "",
        IN_FRONT,
        "the same, counters and audit log in Redis",
        _guard,
        uses_redis=True,
        says=(r'"retry_after_ms": ?(\d+)', 1000.0),
    ),
    Peer(
        "mcp-warden",
        "0.1.3",
        "mcp-warden==0.1.3",
        IN_FRONT,
        "`mcp-warden both --max-calls-per-minute N -- SERVER`, as its help recommends: sliding window in memory, "
        "audit log in a file. It has no shared store",
        _warden,
        says=_TEXT,
    ),
    Peer(
        "mcp-hangar",
        "2.34.4",
        "mcp-hangar==2.34.4 mcp==2.3.0",
        IN_FRONT,
        "`mcp-hangar --config FILE serve` with `tool_access.mode: front_door` and `rate_limit.per_caller` "
        "(`rps` N/60, `burst` N): token bucket in memory. It has no shared store for it",
        _hangar,
        says=_TEXT,
    ),
    Peer(
        "FastMCP",
        "4.2.3",
        SERVER,
        INSIDE,
        "`SlidingWindowRateLimitingMiddleware(max_requests=N, window_minutes=1)`, which its documentation calls the "
        "more precise of its two: in memory. It also counts `initialize`. It has no shared store",
        _inside("fastmcp"),
    ),
    Peer(
        "cpex-rate-limiter",
        "0.1.12",
        f"cpex-rate-limiter==0.1.12 {SERVER}",
        INSIDE,
        "plugin in cpex's `PluginManager` with `by_user: N/m`, `algorithm: sliding_window` and `backend: redis`, "
        "which its documentation recommends against bursts and for several instances",
        _inside("cpex-rate-limiter"),
        uses_redis=True,
        says=_TEXT,
    ),
    Peer(
        "agentguard-oss",
        "0.5.0",
        f"agentguard-oss[redis]==0.5.0 {SERVER}",
        INSIDE,
        "`Guard(rate_limiter=RedisRateLimiter(…))` with `max_calls_per_minute: N` and `rate_limit_scope: global`: "
        "fixed window, the only one of its limiters that processes share; with its audit log",
        _inside("agentguard-oss"),
        uses_redis=True,
        says=_TEXT,
    ),
    Peer(
        "limits",
        "5.8.0",
        f"limits[redis]==5.8.0 {SERVER}",
        INSIDE,
        "`MovingWindowRateLimiter` on Redis (`redispy`), the most exact of its strategies; the retry time is its "
        "`get_window_stats().reset_time`",
        _inside("limits"),
        uses_redis=True,
        says=_TEXT,
    ),
)

NOT_RUN: Final = (
    Read(
        "Intercept",
        "not on PyPI; its npm package is not in the registry",
        "`PolicyLayer/Intercept` on GitHub, `internal/state/sqlite.go` and `internal/proxy/handler.go` at fa36957 and 7898b01",
        "exact across processes (one SQLite transaction, or Redis); fixed window, so up to 2 N around an edge; "
        "its denial has no retry time",
    ),
    Read(
        "ToolHive",
        "in Go, not on PyPI or npm; limits servers over HTTP only",
        "`stacklok/toolhive` on GitHub, `pkg/ratelimit/internal/bucket/bucket.go` at ee7b317",
        "exact across processes (one Redis script for all limits); token bucket, so up to 2 N within a window; "
        "its retry time is the time of one token, whatever is in the bucket",
    ),
)


def environment() -> dict[str, str]:
    """The environment of every process: what sets mcpguard up here does not reach it."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MCPGUARD_", "PYTHON"))}
    return {**inherited, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
