"""A server that notes each message that it gets, and does nothing but what the notification `do` says.

Its argument is the file for its notes. `params` of `do`: `write`, a list of texts to write, one after another; `end`, the
status to exit with; `close`, to close its input.
"""

import json
import os
import sys
import threading

notes = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
never = threading.Event()

for line in sys.stdin.buffer:
    message = json.loads(line)
    if message.get("method") != "do":
        os.write(notes, line)
        continue
    for text in message["params"].get("write", ()):
        os.write(1, text.encode())
    if "end" in message["params"]:
        os._exit(message["params"]["end"])
    if "close" in message["params"]:
        os.close(0)
        never.wait()
