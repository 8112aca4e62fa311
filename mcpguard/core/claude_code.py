"""Claude Code's agents: a hook notes which agent makes a call, and the note is joined to the call by its id.

All agents of Claude Code use one connection, and a call does not name its agent. But the hook before the call receives the
agent and a `tool_use_id`, and the call's `_meta` has the same `tool_use_id`.

Source: the hooks reference at code.claude.com/docs/en/hooks, common input fields and PreToolUse.
"""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple, TypeGuard

from mcpguard.core import meta
from mcpguard.core.agent import DEFAULT, Agent, escape_part
from mcpguard.core.digest import cut
from mcpguard.core.identity import KNOWN_CLIENTS

NOTE_KEPT_US: Final = 3600 * 1_000_000
"""A note is kept for an hour, because a call may wait that long for the user's permission."""

_CLIENT: Final = KNOWN_CLIENTS["claude-code"]
_MCP_TOOL: Final = "mcp__"
_IS_ID = re.compile(r"[!#-\[\]-~]{1,256}")  # printable ASCII, and nothing that JSON escapes


class AgentNote(NamedTuple):
    """Which agent makes a call: `client::tier::name`."""

    tool_use_id: str
    agent: str


def agent_note(hook_input: object) -> AgentNote | None:
    """The note from a PreToolUse hook's input.

    Args:
        hook_input: The JSON value that the hook received. Members of an unexpected type count as missing.

    Returns:
        A note if a subagent, or a session that was started as a named agent, calls an MCP tool; else None, because a call
        without a note is the main agent's.
    """
    if not isinstance(hook_input, dict):
        return None
    tool, call_id = hook_input.get("tool_name"), hook_input.get("tool_use_id")
    if not (isinstance(tool, str) and tool.startswith(_MCP_TOOL) and _is_id(call_id)):
        return None
    kind = hook_input.get("agent_type")
    name = cut(escape_part(kind)) if isinstance(kind, str) and kind else DEFAULT.name
    tier = "subagent" if hook_input.get("agent_id") else DEFAULT.tier
    agent = Agent(_CLIENT, tier, name)
    return AgentNote(call_id, str(agent)) if agent[1:] != DEFAULT[1:] else None


def tool_use_id(of_call: Mapping[str, object]) -> str | None:
    """The `tool_use_id` in a call's `_meta`; None if there is none, or not a valid one."""
    value = of_call.get(meta.TOOL_USE_ID)
    return value if _is_id(value) else None


def _is_id(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and _IS_ID.fullmatch(value) is not None
