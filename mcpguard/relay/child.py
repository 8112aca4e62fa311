"""The server's process, on the system that this is: `Child`, and `spawn` which makes one."""

import sys

if sys.platform == "win32":
    from mcpguard.relay.windows import Child, spawn
else:
    from mcpguard.relay.posix import Child, spawn

__all__ = ["Child", "spawn"]
