"""A stdio MCP server that answers every request.

STUB_IN and STUB_OUT: files that get the bytes that it reads and writes.
Tools: `echo` answers its `text`, `big` as many bytes as `bytes` says, `sleep` after `seconds`, and says so on stderr; `die`
exits with `code`; any other answers "ok".
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

kept = [Path(os.environ.get(name) or os.devnull).open("ab", buffering=0) for name in ("STUB_IN", "STUB_OUT")]  # noqa: SIM115 - until the end
lock = threading.Lock()


def put(request: dict[str, Any], **answer: object) -> None:
    data = json.dumps({"jsonrpc": "2.0", "id": request["id"], **answer}, ensure_ascii=False).encode() + b"\n"
    with lock:
        kept[1].write(data)
        while data:
            data = data[os.write(1, data) :]


def call(request: dict[str, Any]) -> None:
    name, given = request["params"].get("name"), request["params"].get("arguments") or {}
    text = {"echo": given.get("text", ""), "big": "x" * given.get("bytes", 0)}.get(name, "ok")
    if name == "sleep":
        os.write(2, b"sleeps\n")
        time.sleep(given["seconds"])
    elif name == "die":
        os._exit(given["code"])
    put(request, result={"content": [{"type": "text", "text": text}], "isError": False})


def answer(request: dict[str, Any]) -> None:
    method = request.get("method")
    if "id" not in request:
        return
    if method == "initialize":
        info = {"capabilities": {"tools": {}}, "serverInfo": {"name": "stub", "version": "1"}}
        put(request, result={"protocolVersion": request["params"]["protocolVersion"], **info})
    elif method == "tools/list":
        put(request, result={"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in ("echo", "report")]})
    elif method != "tools/call":
        put(request, result={})
    elif request["params"].get("name") == "sleep":
        threading.Thread(target=call, args=(request,)).start()
    else:
        call(request)


if __name__ == "__main__":
    rest = b""
    while chunk := os.read(0, 1 << 16):
        kept[0].write(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            answer(json.loads(line))
    sys.exit(0)
