"""A server that does what the names of its tools say, well or badly.

With a file's name as its argument it appends each call's id and tool there before it does anything about it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would take a tenth of the time in which this server starts
    from collections.abc import Callable
    from typing import Any

signal.signal(signal.SIGINT, signal.SIG_DFL)
log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600) if len(sys.argv) > 1 else -1


def write(data: bytes, fd: int = 1) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def send(message: dict[str, Any]) -> None:
    write(json.dumps({"jsonrpc": "2.0"} | message).encode() + b"\n")


def answer(request_id: Any, value: Any) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    send({"id": request_id, "result": {"content": [{"type": "text", "text": text}]}})


def leave(_: Any, arguments: dict[str, Any]) -> None:
    os._exit(arguments["status"])


def die(_: Any, arguments: dict[str, Any]) -> None:
    signal.raise_signal(getattr(signal, arguments["signal"]))


def hang(request_id: Any, _: dict[str, Any]) -> None:
    send({"method": "notifications/hanging", "params": {"id": request_id}})


def fail(request_id: Any, _: dict[str, Any]) -> None:
    send({"id": request_id, "error": {"code": -32603, "message": "it failed"}})


def big(request_id: Any, arguments: dict[str, Any]) -> None:
    write(b'{"jsonrpc":"2.0","id":%d,"result":{"text":"' % request_id)
    for number in range(arguments["mib"]):
        write(bytes([97 + number % 26]) * (1 << 20))
    write(b'"}}\n')


def variables(request_id: Any, _: dict[str, Any]) -> None:
    answer(request_id, dict(os.environ))


TOOLS: dict[str, Callable[[Any, dict[str, Any]], None]] = {
    tool.__name__: tool for tool in (leave, die, hang, fail, big, variables)
}


def main() -> None:
    for line in sys.stdin.buffer:
        message = json.loads(line)
        request_id, params = message.get("id"), message.get("params", {})
        if message.get("method") == "tools/call":
            if log >= 0:
                os.write(log, json.dumps([request_id, params["name"]]).encode() + b"\n")
            tool = TOOLS.get(params["name"])
            if tool:
                tool(request_id, params.get("arguments", {}))
            else:
                answer(request_id, line.decode())
        elif request_id is not None:
            answer(request_id, line.decode())
        else:
            send({"method": "notifications/seen", "params": {"line": line.decode()}})
    with contextlib.suppress(OSError):
        answer("last", "words")


main()
