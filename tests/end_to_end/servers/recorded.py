"""A server that lists the tools of a recorded list, a few on a page: `python -S recorded.py FILE`."""

import json
import sys

PAGE = 20

with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123 - pathlib takes long to load
    tools = [{"inputSchema": {"type": "object"}, **tool} for tool in json.load(file)["tools"]]
capabilities = {"tools": dict[str, object]()}
info = {"protocolVersion": "2025-06-18", "capabilities": capabilities, "serverInfo": {"name": "recorded", "version": "1"}}
for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    answer: dict[str, object] = {"error": {"code": -32601, "message": "no such method"}}
    if message["method"] == "initialize":
        answer = {"result": info}
    if message["method"] == "tools/list":
        begin = int(message.get("params", {}).get("cursor", 0))
        more = {"nextCursor": str(begin + PAGE)} if begin + PAGE < len(tools) else {}
        answer = {"result": {"tools": tools[begin : begin + PAGE], **more}}
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": message["id"], **answer}) + "\n")
    sys.stdout.flush()
