"""The members of a call's `_meta` that mcpguard reads."""

from typing import Final

AGENT: Final = "mcpguard/agent"
"""The agent, as the client names it."""

CLIENT_INFO: Final = "io.modelcontextprotocol/clientInfo"
"""The client's `clientInfo`, in every request of a protocol version without a handshake."""

TOOL_USE_ID: Final = "claudecode/toolUseId"
"""Claude Code's id of the call. Its hooks receive the same id."""

TRACEPARENT: Final = "traceparent"
"""The trace that the call belongs to, as W3C Trace Context writes it."""

READ: Final = frozenset({AGENT, CLIENT_INFO, TOOL_USE_ID, TRACEPARENT})
