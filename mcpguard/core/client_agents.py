"""How a client tells which of its agents makes a call: by a hook, or in the call's `_meta`.

All agents of a client may use one connection, and a call does not name its agent. But before each call the client runs a hook.
The hook receives the agent and the call's id, and leaves a note. The call has the same id in its `_meta`, so the note is joined
to the call.

Sources: for Claude Code the hooks reference at code.claude.com/docs/en/hooks; for Codex 0.171.0 and Copilot CLI 1.0.102 what
they gave their hooks and sent in calls, see `tests/recorded_hooks`.
"""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple, TypeGuard

from mcpguard.core import meta
from mcpguard.core.agent import DEFAULT, Agent, escape_part
from mcpguard.core.digest import cut
from mcpguard.core.identity import CODEX

NOTE_KEPT_US: Final = 3600 * 1_000_000
"""A note is kept for an hour, because a call may wait that long for the user's permission."""

SUBAGENT: Final = "subagent"
"""The tier of a subagent."""


class AgentHook(NamedTuple):
    """A client's hook: the members of its input.

    Attributes:
        client: The client's name in agents.
        mcp_call: In the input before a call of an MCP tool, these members are strings that begin so.
        call_id: The member with the call's id.
        agent_id: The member that only a subagent has.
        agent_type: The member with the agent's name.
        adds_id: Whether the hook adds the call's id to the call's `_meta`, because the client sends no id.
    """

    client: str
    mcp_call: Mapping[str, str]
    call_id: str
    agent_id: str
    agent_type: str
    adds_id: bool = False


_PRE_TOOL_USE: Final = {"hook_event_name": "PreToolUse", "tool_name": "mcp__"}

HOOKS: Final = {
    "claude-code": AgentHook("Claude Code", _PRE_TOOL_USE, "tool_use_id", "agent_id", "agent_type"),
    "codex": AgentHook(CODEX, _PRE_TOOL_USE, "tool_use_id", "agent_id", "agent_type"),
    "copilot": AgentHook(
        "GitHub Copilot CLI",
        {"serverName": "", "toolName": ""},
        call_id="toolCallId",
        agent_id="agentId",
        agent_type="agentType",
        adds_id=True,
    ),
}
"""The hooks by the name of their command, `mcpguard hook NAME`."""

_IS_ID = re.compile(r"[!#-\[\]-~]{1,256}")  # printable ASCII, and nothing that JSON escapes


class AgentNote(NamedTuple):
    """Which agent makes a call: `client::tier::name`."""

    call_id: str
    agent: str


def agent_note(hook: AgentHook, hook_input: object) -> AgentNote | None:
    """The note from a hook's input.

    Args:
        hook: The hook.
        hook_input: The JSON value that the hook received. Members of an unexpected type count as missing.

    Returns:
        A note if a subagent, or a session that was started as a named agent, calls an MCP tool; else None, because a call
        without a note is the main agent's. None also for the input of another client or another event.
    """
    if not isinstance(hook_input, dict):
        return None
    for member, beginning in hook.mcp_call.items():
        value = hook_input.get(member)
        if not (isinstance(value, str) and value.startswith(beginning)):
            return None
    one = hook_input.get(hook.call_id)
    if not _is_id(one):
        return None
    kind = hook_input.get(hook.agent_type)
    name = cut(escape_part(_storable(kind))) if isinstance(kind, str) and kind else DEFAULT.name
    agent = Agent(hook.client, SUBAGENT if hook_input.get(hook.agent_id) else DEFAULT.tier, name)
    return AgentNote(one, str(agent)) if agent[1:] != DEFAULT[1:] else None


def meta_with_id(hook_input: Mapping[str, object], one: str) -> dict[str, object] | None:
    """The call's `_meta` with the call's id added, for a hook that adds it.

    Args:
        hook_input: The object that the hook received. It has the call's `_meta`, unless that is empty.
        one: The call's id.

    Returns:
        The `_meta`; None if the given one is not an object, because the hook must not change it then.
    """
    given = hook_input.get("_meta")
    if given is None:
        return {meta.COPILOT_CALL_ID: one}
    return {**given, meta.COPILOT_CALL_ID: one} if isinstance(given, dict) else None


def call_id(call_meta: Mapping[str, object]) -> str | None:
    """The id by which a call is joined to its note: the call's id in its `_meta`.

    Returns:
        None if there is no id, or no valid one, or more than one. None also if Codex says that its main agent makes the call:
        then there is no note to look up.
    """
    if meta.CALL_IDS.isdisjoint(call_meta):  # so in most calls, and faster than what follows
        return None
    values = [call_meta[member] for member in meta.CALL_IDS if member in call_meta]
    if len(values) != 1 or _thread_source(call_meta) == "user":
        return None
    return values[0] if _is_id(values[0]) else None


def codex_tier(call_meta: Mapping[str, object]) -> str | None:
    """The tier that Codex reports in a call's `_meta`: `subagent`; None for the main agent's call."""
    return SUBAGENT if _thread_source(call_meta) == "subagent" else None


def _thread_source(call_meta: Mapping[str, object]) -> object:
    """Who started the thread that makes the call, as Codex says: `user` or `subagent`."""
    turn = call_meta.get(meta.CODEX_TURN)
    return turn.get("thread_source") if isinstance(turn, dict) else None


def _storable(text: str) -> str:
    """A text with its lone surrogates escaped, because no store can hold a note with one."""
    return text.encode(errors="backslashreplace").decode()


def _is_id(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and _IS_ID.fullmatch(value) is not None
