"""A server whose calls take the time that their arguments say, several at once, and fail if they say so.

Its argument is a file. There it notes when each call begins and ends, by the clock of the machine.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would take a tenth of the time in which this server starts
    from typing import Any

log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
never = threading.Event()


def note(what: str, request_id: Any) -> None:
    os.write(log, json.dumps([time.monotonic_ns() // 1000, what, request_id]).encode() + b"\n")


def answer(request_id: Any, arguments: dict[str, Any]) -> None:
    never.wait(arguments.get("ms", 0) / 1000)
    note("end", request_id)
    result = {"content": [], "isError": bool(arguments.get("fail"))}
    os.write(1, json.dumps({"jsonrpc": "2.0", "id": request_id, "result": result}).encode() + b"\n")


for line in sys.stdin.buffer:
    message = json.loads(line)
    if message.get("method") == "tools/call":
        note("begin", message["id"])
        threading.Thread(target=answer, args=(message["id"], message["params"]["arguments"]), daemon=True).start()
