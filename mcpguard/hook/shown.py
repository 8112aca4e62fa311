"""What a client's hook shows of a call, and the form in which the client takes a denial.

Several clients run hooks that were written for another one. Each input is told apart by its members, so that only the hook for
the client itself decides a call.

Sources: what Claude Code 2.1.332, Codex 0.171.0, Copilot CLI 1.0.102 and Gemini CLI 0.61.0 gave their hooks, and how they took
the answers; for Cursor its documentation, cursor.com/docs/hooks.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping

from mcpguard.identity.client_agents import HOOKS, noted_agent, storable
from mcpguard.light_typing import Any, Final, NamedTuple
from mcpguard.limiter.sliding import Counts
from mcpguard.policy.model import BUILT_IN, server_named

Given = Mapping[str, Any]
"""The object that a hook receives."""


class ShownCall(NamedTuple):
    """A call.

    Attributes:
        server: The server's name, or `BUILT_IN`; empty if only a list of the client's servers can tell where `tool` parts.
        tool: The tool's name as the server knows it; as Copilot CLI's `SERVER-TOOL` if `server` is empty.
        arguments: Its arguments.
        agent: The agent, see `client_agents.noted_agent`.
        call_id: The call's id; empty if the client does not tell it.
        has_failed: Whether the call is over, and has failed. Else it is about to be made.
        words: The words of the server's command, if the client shows it.
    """

    server: str
    tool: str
    arguments: object
    agent: str = ""
    call_id: str = ""
    has_failed: bool = False
    words: tuple[str, ...] = ()


class ClientHook(NamedTuple):
    """The deciding hook of a client.

    Attributes:
        title: The client's name in agents.
        shown: The call in an input; None if there is none, or if another client or another hook of this one decides it.
        denial: The answer that stops a call, from the reason for the model.
        counts: What rules may count: errors only if the client tells of calls that fail. Never calls in flight: no client tells
            of each end, such as that of a call that its user refuses after the hook has let it pass.
    """

    title: str
    shown: Callable[[Given], ShownCall | None]
    denial: Callable[[str], Mapping[str, object]]
    counts: frozenset[Counts] = frozenset({"calls", "cost", "errors"})


def _of_event(given: Given, before: str, failed: str = "") -> bool | None:
    """Whether an input is that of a call that has failed, by its event; None for another event."""
    event = given.get("hook_event_name")
    return event == failed if event in {before, failed} else None


def _claude_code(given: Given) -> ShownCall | None:
    has_failed = _of_event(given, "PreToolUse", "PostToolUseFailure")
    is_of_copilot = "timestamp" in given and "tool_use_id" not in given  # early versions of Claude Code told no id, either
    if has_failed is None or is_of_copilot or "turn_id" in given or "cursor_version" in given:  # the last two: Codex, Cursor
        return None
    server, name = given.get("mcp_server"), _text(given, "tool_name")
    named = _text(server, "name") if isinstance(server, dict) else ""
    beginning = f"mcp__{re.sub('[^A-Za-z0-9_-]', '_', named)}__"
    is_named = named and name.startswith(beginning)
    parts = (server_named(named), name.removeprefix(beginning)) if is_named else _parts(name)
    agent = noted_agent(HOOKS["claude-code"], given)
    return ShownCall(*parts, given.get("tool_input"), agent, _text(given, "tool_use_id"), has_failed) if name else None


def _codex(given: Given) -> ShownCall | None:
    name = _text(given, "tool_name")
    if _of_event(given, "PreToolUse") is None or "turn_id" not in given or not name:
        return None
    agent = noted_agent(HOOKS["codex"], given)
    return ShownCall(*_parts(name), given.get("tool_input"), agent, _text(given, "tool_use_id"))


def _copilot(given: Given) -> ShownCall | None:
    name = _text(given, "toolName")
    if not name or "serverName" in given or "toolResult" in given or "hook_event_name" in given:
        return None
    server = "" if "-" in name else BUILT_IN
    return ShownCall(server, name, given.get("toolArgs"), noted_agent(HOOKS["copilot"], given), has_failed="error" in given)


def _gemini(given: Given) -> ShownCall | None:
    is_over = _of_event(given, "BeforeTool", "AfterTool")
    answer, server = given.get("tool_response"), given.get("mcp_context")
    name = _text(given, "tool_name")
    if is_over is None or not name or (is_over and not (isinstance(answer, dict) and answer.get("error"))):
        return None
    if not isinstance(server, dict):
        return ShownCall(BUILT_IN, name, given.get("tool_input"), has_failed=is_over)
    args = server.get("args")
    words = (_text(server, "command"), *(map(str, args) if isinstance(args, list) else ()))
    parts = server_named(_text(server, "server_name")), _text(server, "tool_name") or name
    return ShownCall(*parts, given.get("tool_input"), has_failed=is_over, words=words)


def _cursor(given: Given) -> ShownCall | None:
    name, arguments = _text(given, "tool_name"), given.get("tool_input")
    if "cursor_version" not in given or not name:
        return None
    if given.get("hook_event_name") == "beforeMCPExecution":
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        server = server_named(_text(given, "mcp_server_name") or "unknown")
        return ShownCall(server, name, arguments, words=_words(_text(given, "command")))
    has_failed = _of_event(given, "preToolUse", "postToolUseFailure")
    if has_failed is None or name.startswith("MCP:"):
        return None
    return ShownCall(BUILT_IN, name, arguments, call_id=_text(given, "tool_use_id"), has_failed=has_failed)


def _parts(name: str) -> tuple[str, str]:
    """The server and the tool in `mcp__SERVER__TOOL`; for another name `BUILT_IN` and the name."""
    mcp, _, rest = name.partition("__")
    server, _, tool = rest.partition("__")
    return (server_named(server), tool) if mcp == "mcp" and server and tool else (BUILT_IN, name)


def copilot_parts(name: str, servers: Collection[str]) -> list[tuple[str, str]]:
    """The servers and tools that Copilot CLI's `SERVER-TOOL` may mean, the likeliest first.

    Args:
        name: The name.
        servers: The servers that Copilot CLI knows. A server's name and a tool's may have hyphens.
    """
    ends = [at for at, char in enumerate(name) if char == "-"][::-1]
    splits = [(name[:at], name[at + 1 :]) for at in ends if at and name[at + 1 :]]
    known = [parts for parts in splits if parts[0] in servers]
    return [(server_named(server), tool) for server, tool in known or splits] or [(BUILT_IN, name)]


def _words(command: str) -> tuple[str, ...]:
    """The words of a command line; none if it is not one."""
    import shlex  # only for Cursor

    try:
        return tuple(shlex.split(command))
    except ValueError:
        return ()


def _text(given: Given, member: str) -> str:
    value = given.get(member)
    return storable(value) if isinstance(value, str) else ""


def _permission(reason: str) -> Mapping[str, object]:
    return {"permissionDecision": "deny", "permissionDecisionReason": reason}


def _pre_tool_use(reason: str) -> Mapping[str, object]:
    return {"hookSpecificOutput": {"hookEventName": "PreToolUse", **_permission(reason)}}


_NO_ERRORS: Final = frozenset[Counts]({"calls", "cost"})

CLIENTS: Final = {
    "claude-code": ClientHook("Claude Code", _claude_code, _pre_tool_use),
    "codex": ClientHook("Codex", _codex, _pre_tool_use, _NO_ERRORS),  # it tells of no call that fails
    "copilot": ClientHook("GitHub Copilot CLI", _copilot, _permission),
    "cursor": ClientHook(
        "Cursor", _cursor, lambda reason: {"permission": "deny", "user_message": reason, "agent_message": reason}
    ),
    "gemini": ClientHook("Gemini CLI", _gemini, lambda reason: {"decision": "deny", "reason": reason}),
}
"""The deciding hooks, by the name of their command, `mcpguard hook NAME --enforce`."""
