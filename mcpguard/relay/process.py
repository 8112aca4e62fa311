"""The server's process, on this system: `ServerProcess`; `spawn`, which starts one; and `end_by`, to end as it has."""

import sys

if sys.platform == "win32":
    from mcpguard.relay.process_windows import ServerProcess, end_by, spawn
else:
    from mcpguard.relay.process_posix import ServerProcess, end_by, spawn

__all__ = ["ServerProcess", "end_by", "spawn"]
