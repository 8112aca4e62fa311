"""An MCP server that costs next to nothing, so that what is measured is what stands in front of it.

It blocks on stdin, finds a call's id with one regular expression, and answers each call with one write, as the SDKs'
servers do. Tools: `echo` answers a constant; `stream` sends notifications before it answers:

    {"frame_bytes": 65536, "frames": 1000}

makes 1,000 notifications of 65,536 bytes each (newline included).
"""

import json
import os
import re

ID = re.compile(rb'"id"\s*:\s*("[^"]*"|-?\d+)')
ECHO_HEAD = b'{"jsonrpc":"2.0","id":'
ECHO_TAIL = b',"result":{"content":[{"type":"text","text":"3 customers, 1 open invoice"}],"isError":false}}\n'
STREAM_HEAD = b'{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"'
STREAM_TAIL = b'"}}\n'


def write_all(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def stream(frame_bytes: int, frames: int) -> None:
    frame = STREAM_HEAD + b"x" * (frame_bytes - len(STREAM_HEAD) - len(STREAM_TAIL)) + STREAM_TAIL
    for _ in range(frames):
        write_all(frame)


def answer_otherwise(line: bytes) -> bytes:
    """Answer what is not a call of `echo`: rare, so read properly."""
    message = json.loads(line)
    method = message.get("method")
    params = message.get("params", {})
    if "id" not in message or method is None:
        return b""
    result: dict[str, object]
    if method == "initialize":
        result = {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "bench", "version": "1"},
        }
    elif method == "tools/list":
        result = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in ("echo", "stream")]}
    elif method == "ping":
        result = {}
    elif method == "tools/call" and params["name"] == "stream":
        stream(**params["arguments"])
        result = {"content": [{"type": "text", "text": "stream complete"}], "isError": False}
    else:
        error = {"code": -32601, "message": "Method not found"}
        return json.dumps({"jsonrpc": "2.0", "id": message["id"], "error": error}).encode() + b"\n"
    return json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode() + b"\n"


def main() -> None:
    rest = b""
    while data := os.read(0, 65536):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if b'"tools/call"' in line and b'"stream"' not in line and (found := ID.search(line)):
                write_all(ECHO_HEAD + found[1] + ECHO_TAIL)
            elif line:
                write_all(answer_otherwise(line))


if __name__ == "__main__":
    main()
