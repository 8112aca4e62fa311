"""The members of a call's `_meta` that mcpguard reads."""

from mcpguard.light_typing import Final

AGENT: Final = "mcpguard/agent"
"""The agent, as the client names it."""

CLIENT_INFO: Final = "io.modelcontextprotocol/clientInfo"
"""The client's `clientInfo`, in every request of a protocol version without a handshake."""

CODEX_TURN: Final = "x-codex-turn-metadata"
"""Codex's description of the turn that makes the call, an object."""

COPILOT_CALL_ID: Final = "mcpguard/toolCallId"
"""Copilot CLI's id of the call. Copilot CLI sends no id itself, so mcpguard's hook adds it."""

CLAUDE_CALL_ID: Final = "claudecode/toolUseId"
"""Claude Code's id of the call."""

CODEX_SESSION: Final = "sessionId"
"""Codex's id of the session, in each call. A subagent is in the session of its parent."""

CALL_IDS: Final = frozenset({CLAUDE_CALL_ID, "callId", COPILOT_CALL_ID})
"""The id of the call, in calls of Claude Code, Codex and Copilot CLI. The client's hook receives the same id."""

TRACEPARENT: Final = "traceparent"
"""The trace that the call belongs to, as W3C Trace Context writes it."""

PROGRESS_TOKEN: Final = "progressToken"  # noqa: S105 - no secret
"""The token of the progress notifications that the client asks for."""

OF_CALLER: Final = frozenset({AGENT, CLIENT_INFO, CODEX_SESSION, CODEX_TURN, TRACEPARENT}) | CALL_IDS
"""The members that tell who calls, in which session, or in which trace."""

READ: Final = OF_CALLER | {PROGRESS_TOKEN}
