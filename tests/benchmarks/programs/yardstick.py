"""A relay that never changes, so that mcpguard can be compared with it on any machine: `yardstick.py COMMAND...`.

For each line it does work like mcpguard's: it parses JSON, runs much Python code once, and appends to the file `ring` under a
lock. It answers calls of the tool `full` itself. A slow or busy machine slows both programs down, so the ratio of their times
stays the same. After a change of this file the references must be renewed.
"""

import fcntl
import hashlib
import json
import os
import sys
import threading

sys.path.insert(0, os.path.dirname(__file__))  # noqa: PTH120 - we run isolated

# Not used: mcpguard's start, too, consists mostly of imports
import argparse  # noqa: F401
import datetime  # noqa: F401
import random  # noqa: F401
import re
import sqlite3  # noqa: F401
import subprocess  # noqa: F401
import tempfile  # noqa: F401
import tomllib
from collections.abc import Mapping
from typing import NamedTuple

from least_relay import start  # type: ignore[import-not-found]

RING_BYTES = 8 * 1024 * 1024
RULE = """\
[[rule]]
user = "*"
tool = "echo"
limit = "100/1h"
"""
"""Parsed anew for each line. The parser is Python code of many functions, as mcpguard is. A loop would run at another speed: it
stays in the innermost caches, and processors differ in how much slower other code is."""

ID = re.compile(rb'"id"\s*:\s*(\d+)')

for _ in range(55):  # as many as mcpguard's start makes; how long that takes depends on the version of Python

    class Record(NamedTuple):
        name: str
        limit: str
        calls: int
        tools: tuple[str, ...]
        rule: Mapping[str, str] | None = None


def judge(line: bytes, fd: int, at: int) -> tuple[dict[str, object], int]:
    """The line's message, and where the next record is to be written."""
    message = json.loads(line)
    name = message.get("params", {}).get("name", "")
    limit = tomllib.loads(RULE)["rule"][0]["limit"]
    digest = hashlib.blake2b(line, digest_size=16).hexdigest()
    record = f"{at}\t{name}\t{digest}\t{limit}\n".encode().ljust(320)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.pread(fd, 64, at)
    os.pwrite(fd, record, at)
    fcntl.flock(fd, fcntl.LOCK_UN)
    return message, (at + len(record)) % RING_BYTES


def client_to_server(sink: int, writing: threading.Lock) -> None:
    fd = os.open("ring", os.O_RDWR | os.O_CREAT, 0o600)
    at = 0
    rest = b""
    while data := os.read(0, 65536):
        *lines, rest = (rest + data).split(b"\n")
        passed, denied = [], []
        for line in lines:
            message, at = judge(line, fd, at)
            if b'"full"' in line:
                error = {"code": 429, "message": "rate limit exceeded"}
                denied.append(json.dumps({"jsonrpc": "2.0", "id": message["id"], "error": error}).encode() + b"\n")
            else:
                passed.append(line + b"\n")
        write_all(sink, b"".join(passed))
        with writing:
            write_all(1, b"".join(denied))
    os.close(sink)


def server_to_client(source: int, writing: threading.Lock) -> None:
    while data := os.read(source, 65536):
        with writing:
            write_all(1, data)
        ID.findall(data)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def main(command: list[str]) -> None:
    server, to_server, from_server = start(command)
    writing = threading.Lock()
    threading.Thread(target=client_to_server, args=(to_server, writing), daemon=True).start()
    server_to_client(from_server, writing)
    _, status = os.waitpid(server, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


if __name__ == "__main__":
    main(sys.argv[1:])
