"""The server's process, on this system: `ServerProcess`, and `spawn`, which starts one."""

import sys

if sys.platform == "win32":
    from mcpguard.relay.process_windows import ServerProcess, spawn
else:
    from mcpguard.relay.process_posix import ServerProcess, spawn

__all__ = ["ServerProcess", "spawn"]
