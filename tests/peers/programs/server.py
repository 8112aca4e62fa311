"""The server of every experiment: `server.py LOG [LIMITER N REDIS]`.

A FastMCP server with one tool. For each call that reached it, the tool appends two times in nanoseconds to LOG: what the
call has as `limit`, and the present. LIMITER is a library that
limits the tool to N calls a minute inside this process, used as its documentation says; REDIS is the URL of its store.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Awaitable, Callable

from fastmcp import FastMCP
from fastmcp.exceptions import ToolError

Tool = Callable[[str, int, bool], Awaitable[str]]


def recording_tool(log: str) -> Tool:
    """The tool, which says when it ran by appending to a file: one short write, so that no lines of two processes mix."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    async def echo(query: str, limit: int, newest_first: bool) -> str:
        os.write(file, b"%d %d\n" % (limit, time.monotonic_ns()))
        return f"{query}, {limit}, {newest_first}"

    return echo


def checked(tool: Tool, check: Callable[[], Awaitable[str]]) -> Tool:
    """The tool behind a check, which returns why a call may not run, or nothing."""

    async def echo(query: str, limit: int, newest_first: bool) -> str:
        if denial := await check():
            raise ToolError(denial)
        return await tool(query, limit, newest_first)

    return echo


def with_limits(tool: Tool, calls: int, redis: str) -> Tool:
    """`limits`: the moving window, the only one of its strategies that it calls exact, on Redis."""
    from limits import RateLimitItemPerMinute
    from limits.aio.strategies import MovingWindowRateLimiter
    from limits.storage import storage_from_string

    limiter = MovingWindowRateLimiter(storage_from_string(f"async+{redis}", implementation="redispy"))
    item = RateLimitItemPerMinute(calls)

    async def check() -> str:
        if await limiter.hit(item, "alice", "echo"):
            return ""
        window = await limiter.get_window_stats(item, "alice", "echo")
        return f"Rate limit exceeded. Retry after {window.reset_time - time.time():.3f} s"

    return checked(tool, check)


def with_cpex(tool: Tool, calls: int, redis: str) -> Tool:
    """`cpex-rate-limiter`: a plugin in cpex's manager, with the sliding window and the backend for several instances."""
    from cpex.framework import GlobalContext, PluginManager, ToolHookType, ToolPreInvokePayload

    with open("plugins.yaml", "w", encoding="utf-8") as file:  # noqa: PTH123 - as short as this program
        file.write(
            "plugins:\n"
            "  - name: RateLimiterPlugin\n"
            "    kind: cpex_rate_limiter.rate_limiter.RateLimiterPlugin\n"
            "    hooks: [tool_pre_invoke]\n"
            "    mode: enforce\n"
            f"    config: {{by_user: {calls}/m, algorithm: sliding_window, backend: redis, redis_url: '{redis}'}}\n"
        )
    manager = PluginManager("plugins.yaml")
    starting = asyncio.Lock()

    async def check() -> str:
        async with starting:
            if not manager.initialized:
                await manager.initialize()
        context = GlobalContext(request_id="1", user="alice", server_id="crm")
        payload = ToolPreInvokePayload(name="echo", args={})
        result, _ = await manager.invoke_hook(ToolHookType.TOOL_PRE_INVOKE, payload, context)
        if result.continue_processing:
            return ""
        violation = result.violation
        return f"{violation.code}: {violation.reason}. Retry after {violation.http_headers.get('Retry-After')} s"

    return checked(tool, check)


def with_agentguard(tool: Tool, calls: int, redis: str) -> Tool:
    """`agentguard-oss`: its limiter on Redis, the one for several processes, for all sessions together."""
    from agentguard import Guard, GuardDenied
    from agentguard.core.ratelimit import RedisRateLimiter
    from redis import Redis

    policy = {
        "version": 1,
        "capabilities": {"crm.search": {"risk": 0}},
        "rules": [{"capability": "crm.search", "effect": "allow"}],
        "limits": {"max_calls_per_minute": calls, "rate_limit_scope": "global"},
    }
    guard = Guard(policy, audit="agentguard.jsonl", rate_limiter=RedisRateLimiter(Redis.from_url(redis)))
    guarded: Tool = guard.tool(capability="crm.search")(tool)

    async def echo(query: str, limit: int, newest_first: bool) -> str:
        try:
            return await guarded(query, limit, newest_first)
        except GuardDenied as denied:
            raise ToolError(str(denied)) from None

    return echo


LIMITERS = {"limits": with_limits, "cpex-rate-limiter": with_cpex, "agentguard-oss": with_agentguard}


def main(log: str, limiter: str = "", calls: str = "0", redis: str = "") -> None:
    server = FastMCP("peers")
    tool = recording_tool(log)
    if limiter == "fastmcp":
        from fastmcp.server.middleware.rate_limiting import SlidingWindowRateLimitingMiddleware

        server.add_middleware(SlidingWindowRateLimitingMiddleware(max_requests=int(calls), window_minutes=1))
    elif limiter:
        tool = LIMITERS[limiter](tool, int(calls), redis)
    server.tool(tool)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(show_banner=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
