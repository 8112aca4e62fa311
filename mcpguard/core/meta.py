"""The members of a call's `_meta` that are read."""

from typing import Final

AGENT: Final = "mcpguard/agent"
"""The agent that the call itself names."""

CLIENT_INFO: Final = "io.modelcontextprotocol/clientInfo"
"""The client's `clientInfo`, in every request of a protocol version without a handshake."""

TOOL_USE_ID: Final = "claudecode/toolUseId"
"""The id of the call, which Claude Code's hooks are given, too."""

TRACEPARENT: Final = "traceparent"
"""The trace that the call belongs to, as W3C Trace Context writes it."""

READ: Final = frozenset({AGENT, CLIENT_INFO, TOOL_USE_ID, TRACEPARENT})
