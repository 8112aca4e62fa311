"""A scripted model on the loopback interface: it speaks the Responses API, chat completions and Anthropic's Messages API.

Each agent makes the calls of its script in order, as far as its client offers the tools. By default the main agent calls
`search_customers`, starts a subagent, and waits for it; the subagent calls `search_customers`.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests import web_server
from tests.web_server import reply

MAIN_PROMPT = "Be the main agent."
SUBAGENT_PROMPT = "Be the subagent."

_SEARCH = ("search_customers", {"query": "acme"})
_SPAWN = ("spawn_agent", {"message": SUBAGENT_PROMPT, "agent_type": "explorer"})  # Codex
_WAIT = ("wait_agent", {"timeout_ms": 60_000})  # Codex
_TASK = (  # Copilot CLI
    "task",
    {"prompt": SUBAGENT_PROMPT, "agent_type": "general-purpose", "name": "one", "description": "search", "mode": "sync"},
)

Script = Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]]
"""The calls of each agent, by its prompt: a tool's name, or the end of its name, and the arguments."""

SEARCHES: Script = {MAIN_PROMPT: (_SEARCH, _SPAWN, _WAIT, _TASK), SUBAGENT_PROMPT: (_SEARCH,)}


class Model:
    """What the agents of a test talk to."""

    def __init__(self, root: str, script: Script) -> None:
        self.root, self.url = root, f"{root}/v1"
        self.said = ""  # all that the agents have sent
        self._script = script
        self._numbers = itertools.count()

    def next_call(self, said: object, tools: Sequence[str], calls: int) -> tuple[str, Mapping[str, Any]] | None:
        """What an agent calls next after so many calls, of the tools that its client offers; None if it has finished."""
        text = json.dumps(said)
        self.said += text
        plan = next((plan for prompt, plan in self._script.items() if prompt in text), ())
        ends = [(next((tool for tool in tools if tool.endswith(name)), ""), arguments) for name, arguments in plan]
        return next(iter([one for one in ends if one[0]][calls:]), None)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        if handler.command == "GET":
            reply(handler, 200, {"content-type": "application/json"}, b'{"object": "list", "data": [], "models": []}')
            return
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        forms = {"/responses": _response, "/completions": _completion}
        form = next((form for end, form in forms.items() if handler.path.endswith(end)), _message)
        events = "".join(form(self, body, next(self._numbers)))
        reply(handler, 200, {"content-type": "text/event-stream"}, events.encode())


@contextmanager
def serving(script: Script = SEARCHES) -> Iterator[Model]:
    with web_server.serving(lambda handler: model.answer(handler)) as server:
        model = Model(f"http://127.0.0.1:{server.server_port}", script)
        yield model


def _response(model: Model, body: dict[str, Any], number: int) -> list[str]:
    """The events of the Responses API. Codex offers the tools of an MCP server as a namespace."""
    tools: dict[str, str | None] = {}
    for tool in body.get("tools", []):
        if tool["type"] == "namespace":
            tools |= {inner["name"]: tool["name"] for inner in tool["tools"]}
        elif "name" in tool:
            tools[tool["name"]] = None
    calls = sum(item["type"] == "function_call" for item in body["input"])
    call = model.next_call(body["input"], [*tools], calls)
    item: dict[str, Any] = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Done."}]}
    if call:
        name, arguments = call
        if name == _WAIT[0]:
            (spawned,) = [item["call_id"] for item in body["input"] if item.get("name") == _SPAWN[0]]
            outputs = {item["call_id"]: item["output"] for item in body["input"] if item["type"] == "function_call_output"}
            arguments = {**arguments, "targets": [json.loads(outputs[spawned])["agent_id"]]}
        item = {"type": "function_call", "call_id": f"call_{number}", "name": name, "arguments": json.dumps(arguments)}
        item |= {"namespace": tools[name]} if tools[name] else {}
    used = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {"id": f"r{number}"}},
        {"type": "response.output_item.done", "output_index": 0, "item": {"id": f"i{number}"} | item},
        {"type": "response.completed", "response": {"id": f"r{number}", "usage": used}},
    ]
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events]


def _completion(model: Model, body: dict[str, Any], number: int) -> list[str]:
    tools = [tool["function"]["name"] for tool in body.get("tools", []) if "function" in tool]
    messages = [message for message in body["messages"] if message["role"] != "system"]
    call = model.next_call(messages, tools, sum(len(message.get("tool_calls") or ()) for message in messages))
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


def _message(model: Model, body: dict[str, Any], number: int) -> list[str]:
    """The events of a message. Claude Code also asks the model for the results of its WebSearch."""
    contents = [
        content for message in body["messages"] if isinstance(message["content"], list) for content in message["content"]
    ]
    calls = sum(content["type"] == "tool_use" for content in contents)
    call = model.next_call(body["messages"], [str(tool.get("name")) for tool in body.get("tools", [])], calls)
    block: dict[str, Any] = {"type": "text", "text": ""}
    delta: dict[str, Any] = {"type": "text_delta", "text": "Done."}
    if call:
        block = {"type": "tool_use", "id": f"toolu_{number}", "name": call[0], "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(call[1])}
    head = {"id": f"m{number}", "type": "message", "role": "assistant", "model": body["model"], "content": []}
    head |= {"stop_reason": None, "usage": {"input_tokens": 1, "output_tokens": 1}}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": head},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use" if call else "end_turn"}, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    ]
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events]
