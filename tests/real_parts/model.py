"""A scripted model on the loopback interface: it speaks the Responses API and chat completions.

The main agent calls `search_customers`, starts a subagent, and waits for it. The subagent calls `search_customers`. An agent
calls each tool once, if its client offers the tool.
"""

import itertools
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Self

MAIN_PROMPT = "Be the main agent."
SUBAGENT_PROMPT = "Be the subagent."

_SEARCH = ("search_customers", {"query": "acme"})
_SPAWN = ("spawn_agent", {"message": SUBAGENT_PROMPT, "agent_type": "explorer"})  # Codex
_WAIT = ("wait_agent", {"timeout_ms": 60_000})  # Codex
_TASK = (  # Copilot CLI
    "task",
    {"prompt": SUBAGENT_PROMPT, "agent_type": "general-purpose", "name": "one", "description": "search", "mode": "sync"},
)


class Model(ThreadingHTTPServer):
    """Serves while it is entered."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    numbers: ClassVar[Iterator[int]] = itertools.count()

    def log_message(self, *_: object) -> None:
        """Do not print."""

    def do_GET(self) -> None:
        self._send("application/json", json.dumps({"object": "list", "data": [], "models": []}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        number = next(self.numbers)
        events = _response(body, number) if self.path.endswith("/responses") else _completion(body, number)
        self._send("text/event-stream", "".join(events))

    def _send(self, kind: str, text: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


def _next_call(said: object, tools: list[str], called: list[str]) -> tuple[str, dict[str, Any]] | None:
    """The tool that an agent calls next, by its offered name, and the arguments; None if the agent has finished."""
    is_main = MAIN_PROMPT in json.dumps(said)
    for name, arguments in (_SEARCH, _SPAWN, _WAIT, _TASK) if is_main else (_SEARCH,):
        offered = [tool for tool in tools if tool == name or (name == _SEARCH[0] and tool.endswith(name))]
        if offered and offered[0] not in called:
            return offered[0], arguments
    return None


def _response(body: dict[str, Any], number: int) -> list[str]:
    """The events of the Responses API. Codex offers the tools of an MCP server as a namespace."""
    tools: dict[str, str | None] = {}
    for tool in body.get("tools", []):
        if tool["type"] == "namespace":
            tools |= {inner["name"]: tool["name"] for inner in tool["tools"]}
        elif "name" in tool:
            tools[tool["name"]] = None
    called = [item["name"] for item in body["input"] if item["type"] == "function_call"]
    call = _next_call(body["input"], [*tools], called)
    item: dict[str, Any] = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Done."}]}
    if call:
        name, arguments = call
        if name == _WAIT[0]:
            (spawned,) = [item["call_id"] for item in body["input"] if item.get("name") == _SPAWN[0]]
            outputs = {item["call_id"]: item["output"] for item in body["input"] if item["type"] == "function_call_output"}
            arguments = arguments | {"targets": [json.loads(outputs[spawned])["agent_id"]]}
        item = {"type": "function_call", "call_id": f"call_{number}", "name": name, "arguments": json.dumps(arguments)}
        item |= {"namespace": tools[name]} if tools[name] else {}
    used = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {"id": f"r{number}"}},
        {"type": "response.output_item.done", "output_index": 0, "item": {"id": f"i{number}"} | item},
        {"type": "response.completed", "response": {"id": f"r{number}", "usage": used}},
    ]
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events]


def _completion(body: dict[str, Any], number: int) -> list[str]:
    """The chunks of a chat completion."""
    tools = [tool["function"]["name"] for tool in body.get("tools", []) if "function" in tool]
    messages = [message for message in body["messages"] if message["role"] != "system"]
    called = [call["function"]["name"] for message in messages for call in message.get("tool_calls") or []]
    call = _next_call(messages, tools, called)
    delta: dict[str, Any] = {"role": "assistant", "content": "Done."}
    if call:
        function = {"name": call[0], "arguments": json.dumps(call[1])}
        tool_call = {"index": 0, "id": f"call_{number}", "type": "function", "function": function}
        delta = {"role": "assistant", "content": None, "tool_calls": [tool_call]}
    chunk = {"id": f"c{number}", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
    choices = [
        {"index": 0, "delta": delta, "finish_reason": None},
        {"index": 0, "delta": {}, "finish_reason": "tool_calls" if call else "stop"},
    ]
    return [*(f"data: {json.dumps(chunk | {'choices': [choice]})}\n\n" for choice in choices), "data: [DONE]\n\n"]
