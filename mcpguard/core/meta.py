"""The members of a call's `_meta` that are read."""

from typing import Final

AGENT: Final = "mcpguard/agent"
"""The agent that the call itself names."""

CLIENT_INFO: Final = "io.modelcontextprotocol/clientInfo"
"""The client, in every request where there is no handshake."""

TOOL_USE_ID: Final = "claudecode/toolUseId"
"""The id of the call that Claude Code's hooks are given, too."""

TRACEPARENT: Final = "traceparent"
"""The trace that the call belongs to, by W3C Trace Context."""

READ: Final = frozenset({AGENT, CLIENT_INFO, TOOL_USE_ID, TRACEPARENT})
