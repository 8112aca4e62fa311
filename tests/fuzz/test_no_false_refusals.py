"""What real clients write passes byte for byte, and so does what is odd and means one thing only."""

import json
from pathlib import Path

import pytest

from tests.fuzz.oracle import Wire, check

CORPUS = sorted((Path(__file__).parent.parent / "corpus").glob("*.jsonl"))


META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "claude-ai", "version": "0.1.0"},
    "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}, "url": {}}},
    "progressToken": 1,
    "claudecode/toolUseId": "toolu_01",
    "vscode.conversationId": "c",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}
CONTENT = {"type": "text", "text": "Name: é\u2028"}

NOTHING: dict[str, object] = {}
URI: dict[str, object] = {"uri": "file:///a?b=%00"}
TASK_ID: dict[str, object] = {"taskId": "t"}
PAGE: dict[str, object] = {"cursor": "c"}
CHANGED = [f"notifications/{what}/list_changed" for what in ("prompts", "resources", "roots", "tools")]
MESSAGES: dict[str, dict[str, object]] = {
    **dict.fromkeys(("ping", "resources/templates/list", "roots/list", "server/discover", ""), NOTHING),
    **dict.fromkeys(("notifications/initialized", *CHANGED), NOTHING),
    **dict.fromkeys(("prompts/list", "resources/list", "tasks/list", "tools/list"), PAGE),
    **dict.fromkeys(("resources/read", "resources/subscribe", "resources/unsubscribe", "notifications/resources/updated"), URI),
    **dict.fromkeys(("tasks/cancel", "tasks/get", "tasks/result"), TASK_ID),
    "completion/complete": {"ref": {"type": "ref/prompt", "name": "p"}, "argument": {"name": "a", "value": ""}, "context": {}},
    "elicitation/create": {"mode": "form", "message": "", "requestedSchema": {"type": "object", "properties": {"Name": {}}}},
    "initialize": {"protocolVersion": "2025-11-25", "capabilities": {"roots": {}}, "clientInfo": {"name": "c", "version": "1"}},
    "logging/setLevel": {"level": "debug"},
    "prompts/get": {"name": "p", "arguments": {"Name": "x"}},
    "sampling/createMessage": {"messages": [{"role": "user", "content": CONTENT}], "maxTokens": 1, "tools": [{"name": "t"}]},
    "subscriptions/listen": {"notifications": {"toolsListChanged": True, "resourceSubscriptions": ["file:///a"]}},
    "tasks/update": TASK_ID | {"inputResponses": {"a": {"action": "accept", "content": {"Name": 1, "name": 2}}}},
    "tools/call": {"name": "open", "arguments": {"name": "x", "Name": "y"}, "task": {"ttl": 60000}},
    "x-vendor/anything": {"method": "tools/call", "params": {"name": "closed"}, "id": 7, "uri": ""},
    "notifications/cancelled": {"requestId": 1, "reason": "r"},
    "notifications/elicitation/complete": {"elicitationId": "e"},
    "notifications/message": {"level": "info", "logger": "l", "data": {"Name": 1}},
    "notifications/progress": {"progressToken": 1, "progress": 0.5, "total": 1, "message": "m"},
    "notifications/subscriptions/acknowledged": {"notifications": {}},
    "notifications/tasks/status": TASK_ID | {"status": "working", "createdAt": "2025-11-25T10:30:00Z", "ttl": 60000},
}
"""The parameters of every method of every version."""

ODD = {
    "an error without an id": '{"jsonrpc":"2.0","error":{"code":-32700,"message":"Parse error"}}',
    "an error with a null id": '{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"Parse error"}}',
    "a result that is no object": '{"id":1,"result":[1,{"id":1,"id":2,"ID":3}]}',
    "keys in other letters below the first level": '{"id":1,"method":"x","params":{"a":{"Name":1,"name":2,"NAME":3}}}',
    "keys that come twice below the first level": '{"id":1,"method":"x","params":{"a":[{"k":1,"k":2}]}}',
    "keys that come twice in an error": '{"id":1,"error":{"code":1,"code":2,"Code":3,"message":""}}',
    "odd keys below the first level": r'{"id":1,"result":{"a\u0000":1,"\ud800":2,"__proto__":{}}}',
    "null params": '{"id":1,"method":"x","params":null}',
    "text for params": '{"id":1,"method":"x","params":"y"}',
    "an id beyond 2^53": '{"id":9007199254740993,"method":"tools/call","params":{"name":"a"}}',
    "an id with escapes": r'{"id":"\u0000\ud800\"\\","method":"ping"}',
    "numbers of all kinds": '{"id":1,"method":"x","params":{"a":[1e400,-1E+2,-0,0.0,1e-400,-0e0,1.50]}}',
    "numbers of many digits": f'{{"id":1,"method":"x","params":{{"a":[{"1" * 400}.5,{"9" * 5000},-{"8" * 4301}]}}}}',
    "every escape": r'{"id":1,"method":"x","params":{"a":"\"\\\/\b\f\n\r\t\u0000\u2028\uD83D\uDE00\ud800\udc00\ufeff"}}',
    "every kind of character": '{"id":1,"method":"x","params":{"a":"\x7f\x80\xa0\u200b\u202e\ufeff\ufffe\uffff\U0010ffff"}}',
    "half a surrogate pair in arguments": r'{"id":1,"method":"tools/call","params":{"name":"a","arguments":{"a":"\ud800"}}}',
    "arguments that are null": '{"id":1,"method":"tools/call","params":{"name":"a","arguments":null}}',
    "arguments that are a list": '{"id":1,"method":"tools/call","params":{"name":"a","arguments":[]}}',
    "a requestState that is a number": f'{{"id":1,"method":"tools/call","params":{{"name":"a","requestState":{"9" * 5000}}}}}',
    "spaces of all kinds": ' \t{ \t"id"\t: 1 , "method" :\t"x" ,"params":\t{ } } \t',
    "unknown keys": '{"id":1,"method":"x","trace":1,"meta":2,"naïve":3,"ﬁ":4,"":5}',
}


def passes(line: bytes) -> None:
    wire = check(line)
    assert wire.to_client == []
    assert wire.to_server == [line + b"\n"]


def recorded(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_recorded_answers_are_read_and_leave_nothing_open(path: Path) -> None:
    wire = Wire()
    for frame in recorded(path):
        if frame["from"] == "client":
            wire.write(frame["frame"].encode() + b"\n")
        else:
            wire.answer(frame["frame"].encode() + b"\n")
    assert wire.machine.server_exited("server exited with status 0", 0) == b""
    assert not wire.machine.in_flight.by_id


@pytest.mark.parametrize("method", MESSAGES)
def test_every_request_and_notification_of_every_version_passes(method: str) -> None:
    for message in ({"id": "é", "method": method}, {"method": method}):
        for params in (MESSAGES[method], MESSAGES[method] | {"_meta": META}):
            if "id" in message or method != "tools/call":
                passes(json.dumps({"jsonrpc": "2.0", **message, "params": params}).encode())


@pytest.mark.parametrize("line", ODD.values(), ids=ODD)
def test_what_is_odd_and_means_one_thing_only_passes(line: str) -> None:
    passes(line.encode())


def test_a_member_of_a_batch_passes_as_it_was_written() -> None:
    members = [line.replace('"id":1,', f'"id":{at},').encode() for at, line in enumerate(ODD.values())]
    assert check(b"[" + b" ,\t".join(members) + b"]").to_server == [line.strip(b" \t") + b"\n" for line in members]
