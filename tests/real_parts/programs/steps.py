"""What every Python client here does: the steps of a job, each with what was seen meanwhile, written to stdout as JSON.

A job is `{"client": name, "root": path, "sessions": [{"command", "args", "env", "mode", "steps": [...]}]}`. It runs in
environments with different SDKs, so nothing of them is imported here.
"""

import abc
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio

Answer = dict[str, Any]
STEP_S = 30.0
"""Only what hangs takes this long."""


class Seen:
    """What the server sent of its own accord since the last step began."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.clear()

    def clear(self) -> None:
        self.progress: list[float] = []
        self.asked: list[str] = []
        self.logged: list[str] = []
        self.updated: list[str] = []
        self._news = anyio.Event()

    def note(self, kind: str, value: object) -> None:
        getattr(self, kind).append(value)
        self._news.set()

    async def until(self, kind: str, times: int = 1) -> None:
        while len(getattr(self, kind)) < times:
            self._news = anyio.Event()
            await self._news.wait()

    def report(self) -> Answer:
        return {kind: getattr(self, kind) for kind in ("progress", "asked", "logged", "updated") if getattr(self, kind)}


def told(result: Any) -> Answer:
    """What a call's result says, of either generation of the SDK."""
    text = "\n".join(block.text for block in result.content if block.type == "text")
    is_error = result.is_error if hasattr(result, "is_error") else result.isError
    return {"text": text, "is_error": is_error, "denial": (result.meta or {}).get("mcpguard/denial")}


class OnSdk(abc.ABC):
    """What the clients of all SDKs have in common.

    Each adds `error`, `version`, `set_level`, `subscribed` and `task`.
    """

    error: type[Exception]  # which a response with an error raises

    def __init__(self, client: Any, seen: Seen) -> None:
        self.client = client
        self.seen = seen

    async def note(self, progress: float, total: float | None, message: str | None) -> None:
        self.seen.note("progress", progress)

    async def tools(self) -> list[str]:
        return [tool.name for tool in (await self.client.list_tools()).tools]

    async def call(self, tool: str, arguments: Answer) -> Answer:
        return await self.answered(self.client.call_tool(tool, arguments, progress_callback=self.note))

    async def answered(self, result: Awaitable[Any]) -> Answer:
        """What a result says, or the error in its place."""
        try:
            return told(await result)
        except self.error as error:
            found: Any = getattr(error, "error", error)  # the SDK 1.x has it inside
            return {"code": found.code, "message": found.message, "data": found.data}

    async def cancel(self, tool: str, arguments: Answer) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.call, tool, arguments)
            await self.seen.until("progress")
            tasks.cancel_scope.cancel()

    @abc.abstractmethod
    async def task(self, tool: str, arguments: Answer) -> Answer:
        """Call a tool as a task; returns what the result says."""


def callbacks(types: Any, seen: Seen) -> dict[str, Any]:
    """What a client answers the server's requests, as both generations of the SDK take it; `types` are the SDK's."""

    async def elicit(context: object, params: object) -> Any:
        seen.note("asked", "elicitation/create")
        return types.ElicitResult(action="accept", content={"name": "Ann"})

    async def sample(context: object, params: object) -> Any:
        seen.note("asked", "sampling/createMessage")
        content = types.TextContent(type="text", text="sampled")
        return types.CreateMessageResult(role="assistant", content=content, model="none")

    async def roots(context: object) -> Any:
        seen.note("asked", "roots/list")
        return types.ListRootsResult.model_validate({"roots": [{"uri": f"file://{seen.root}"}]})

    async def log(params: Any) -> None:
        seen.note("logged", str(params.data))

    answers = {"elicitation_callback": elicit, "sampling_callback": sample, "list_roots_callback": roots}
    return {**answers, "logging_callback": log}


Connect = Callable[[Answer, str, Seen], AbstractAsyncContextManager[Any]]


async def _held(session: Any, seen: Seen, step: Answer) -> Answer:
    """Call a tool that reports progress and then waits until another is called."""
    answers: list[Answer] = []

    async def call() -> None:
        answers.append(await session.call(step["tool"], step["arguments"]))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await seen.until("progress", step["arguments"]["steps"])
        await session.call(step["then"], {})
    return answers[0]


async def _step(session: Any, seen: Seen, step: Answer) -> Any:
    tool, arguments = step.get("tool", ""), step.get("arguments", {})
    match step["do"]:
        case "list":
            return {"tools": await session.tools()}
        case "call":
            return await session.call(tool, arguments)
        case "hold":
            return await _held(session, seen, step)
        case "cancel":
            await session.cancel(tool, arguments)
            return {"cancelled": True}
        case "log":
            if "level" in step:
                await session.set_level(step["level"])
            answer = await session.call(tool, arguments)
            await seen.until("logged")
            return answer
        case "subscribe":
            async with session.subscribed(step["uri"]):
                answer = await session.call(tool, arguments)
                await seen.until("updated")
            return answer
        case "task":
            return await session.task(tool, arguments)
        case other:
            raise ValueError(other)


async def _session(connect: Connect, spec: Answer, client: str, root: str) -> Answer:
    seen = Seen(root)
    answers: list[Answer] = []
    async with connect(spec, client, seen) as session:
        for step in spec["steps"]:
            seen.clear()
            try:
                with anyio.fail_after(STEP_S):
                    answer = await _step(session, seen, step)
            except Exception as error:
                answer = {"failed": repr(error)}
            answers.append(answer | seen.report())
        return {"version": session.version, "answers": answers}


def main(connect: Connect) -> None:
    """Run the job in the file that the first argument names."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))

    async def run() -> list[Answer]:
        return [await _session(connect, spec, job["client"], job["root"]) for spec in job["sessions"]]

    sys.stdout.write(json.dumps(anyio.run(run)) + "\n")
