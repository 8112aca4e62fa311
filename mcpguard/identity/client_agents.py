"""How a client tells which of its agents makes a call: by a hook, or in the call's `_meta`.

All agents of a client may use one connection, and a call does not name its agent. But before each call the client runs a hook.
The hook receives the agent and the call's id, and leaves a note. The call has the same id in its `_meta`, so the note is joined
to the call. A hook that decides calls writes into the note by which counters it has decided this one.

A note also has the client's session, by which rules may count. A server of Claude Code knows only the session in which it was
started, and after `--resume` not even that: so the note counts more than what the server knows.

Call ids may repeat: some model gateways count them. So a note belongs to a session of the client and counts for one call, and
the main agent's next call with its id replaces it. Claude Code sends no session with a call. Its variables tell a server the
session, but only the one in which the server was started: `/clear` begins another. They also tell the process, which stays.

Sources: for Claude Code the hooks reference at code.claude.com/docs/en/hooks; for Codex 0.171.0 and Copilot CLI 1.0.102 what
they gave their hooks and sent in calls, see `tests/recorded_hooks`.
"""

from collections.abc import Iterable, Mapping

from mcpguard.identity.caller import CLAUDE_CODE, CODEX, DEFAULT_AGENT, Agent, escape_part
from mcpguard.light_typing import Final, NamedTuple
from mcpguard.text.digest import blake2b, cut
from mcpguard.wire import meta

NOTE_KEPT_US: Final = 3600 * 1_000_000
"""A note is kept for an hour, because a call may wait that long for the user's permission."""

SUBAGENT: Final = "subagent"
"""The tier of a subagent."""

BACKGROUND: Final = "background"
"""The tier of a client that runs without a person."""

_CLAUDE_PROCESS: Final = "CLAUDE_CODE_MESSAGING_SOCKET"
"""The variable that names Claude Code's process to its hooks and servers. Seen in 2.1.332."""

_CLAUDE_SESSION: Final = "CLAUDE_CODE_SESSION_ID"
"""The variable that names the session to the servers that Claude Code starts in it, from 2.1.154 on."""


class AgentHook(NamedTuple):
    """A client's hook: the members of its input.

    Attributes:
        client: The client's name in agents.
        mcp_call: In the input before a call of an MCP tool, these members are strings that begin so.
        session: The member with the client's session; empty if the client's calls do not tell it.
        call_id: The member with the call's id.
        agent_id: The member that only a subagent has.
        agent_type: The member with the agent's name.
    """

    client: str
    mcp_call: Mapping[str, str]
    session: str
    call_id: str
    agent_id: str
    agent_type: str

    @property
    def adds_id(self) -> bool:
        """Whether the hook adds the call's id to the `_meta` of a subagent's call, because the client sends no id."""
        return not self.session


_PRE_TOOL_USE: Final = {"hook_event_name": "PreToolUse", "tool_name": "mcp__"}

HOOKS: Final = {
    "claude-code": AgentHook(CLAUDE_CODE, _PRE_TOOL_USE, "session_id", "tool_use_id", "agent_id", "agent_type"),
    "codex": AgentHook(CODEX, _PRE_TOOL_USE, "session_id", "tool_use_id", "agent_id", "agent_type"),
    "copilot": AgentHook("GitHub Copilot CLI", {"serverName": "", "toolName": ""}, "", "toolCallId", "agentId", "agentType"),
}
"""The hooks by the name of their command, `mcpguard hook NAME`."""

_HOOK_SESSIONS: Final = ("parentAgentId", "session_id", "sessionId", "conversation_id")
"""The members with the client's session in inputs of hooks: of subagents of Copilot CLI; of Claude Code, Codex and Gemini CLI;
of Copilot CLI; and of Cursor."""

_SESSION: Final = "session="
_UNDECIDED: Final = "undecided"

_NOT_IN_ID: Final = frozenset('" \\')
_MOST_ID_CHARS: Final = 256


class AgentNote(NamedTuple):
    """What a hook tells of a call.

    Attributes:
        key: Names the session and the call.
        text: The agent, see `noted_agent`; and after a NUL words: the client's session as `session=ID`, if it is known; and the
            limits by which the hook has decided the call, or `undecided`. Without a NUL it is not decided, either. An empty
            text removes the note that an earlier call with the same id has left.
    """

    key: str
    text: str

    @classmethod
    def of(cls, key: str, agent: str, session: str) -> "AgentNote":
        """The note of a call that the hook has not decided."""
        return cls(key, f"{agent}\0{_SESSION}{session} {_UNDECIDED}" if session else agent)

    def after_decision(self, limits: Iterable[tuple[int, int]]) -> "AgentNote":
        """The note of a call that the hook has counted on these limits: the ids of their counters, and their n."""
        agent, _, words = self.text.partition("\0")
        decided = [*words.split()[:1], *(f"{counter}/{n}" for counter, n in limits)]
        return self._replace(text=f"{agent}\0{' '.join(decided)}")


def agent_in(text: str) -> str:
    """The agent in a note's text; empty for the main agent."""
    return text.partition("\0")[0]


def session_in(text: str) -> str:
    """The client's session in a note's text; empty if it is not known."""
    first, _, _ = text.partition("\0")[2].partition(" ")
    return first.removeprefix(_SESSION) if first.startswith(_SESSION) else ""


def counted_by(text: str) -> frozenset[str] | None:
    """The limits in a note's text on which a hook has counted the call, as `COUNTER/N`; None if it has not decided it."""
    _, has_words, words = text.partition("\0")
    limits = frozenset(words.split())
    return limits if has_words and _UNDECIDED not in limits else None


def agent_note(hook: AgentHook, hook_input: object, environ: Mapping[str, str]) -> AgentNote | None:
    """The note from a hook's input.

    Args:
        hook: The hook.
        hook_input: The JSON value that the hook received. Members of an unexpected type count as missing.
        environ: The hook's environment.

    Returns:
        A note if the client calls an MCP tool. None for the input of another client or another event, if the session or the
        call has no valid id, and for a main agent's call to which the hook adds no id.
    """
    if not isinstance(hook_input, dict):
        return None
    for member, beginning in hook.mcp_call.items():
        value = hook_input.get(member)
        if not (isinstance(value, str) and value.startswith(beginning)):
            return None
    key, agent = call_key(hook, hook_input, environ), noted_agent(hook, hook_input)
    session = "" if hook.adds_id else hook_session(hook_input)  # calls without a note must have the same session
    return None if key is None or (hook.adds_id and not agent) else AgentNote.of(key, agent, session)


def call_key(hook: AgentHook, hook_input: Mapping[str, object], environ: Mapping[str, str]) -> str | None:
    """The key of the note about the call in a hook's input; None if its session or the call has no valid id."""
    call_id = hook_input.get(hook.call_id)
    if not hook.session:
        return valid_id(call_id) or None
    process = _process(environ) if hook.client == CLAUDE_CODE else ""
    return _joined(process or hook_input.get(hook.session), call_id)


def hook_session(hook_input: Mapping[str, object]) -> str:
    """The client's session in the input of a hook; empty if it is not told, or is no valid id.

    A subagent is in the session of its parent, which Copilot CLI tells apart from the subagent's own.
    """
    told = next((hook_input[member] for member in _HOOK_SESSIONS if member in hook_input), "")
    return valid_id(told)


def noted_agent(hook: AgentHook, hook_input: Mapping[str, object]) -> str:
    """The agent in a hook's input as `client::tier::name`, with an empty tier if it is not told; empty for the main agent."""
    kind = hook_input.get(hook.agent_type)
    name = cut(escape_part(storable(kind))) if isinstance(kind, str) and kind else DEFAULT_AGENT.name
    tier = SUBAGENT if hook_input.get(hook.agent_id) else ""
    return "" if not tier and name == DEFAULT_AGENT.name else str(Agent(hook.client, tier, name))


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


def note_key(call_meta: Mapping[str, object], claude_session: str) -> str | None:
    """The key of the note that a hook may have left for a call.

    Args:
        call_meta: The call's `_meta`.
        claude_session: See `claude_session`.

    Returns:
        None if the call or its session has no valid id, or if the call has more than one id.
    """
    members = [member for member in meta.CALL_IDS if member in call_meta]
    if len(members) != 1:
        return None
    one = call_meta[members[0]]
    if members[0] == meta.COPILOT_CALL_ID:  # only calls of subagents have it
        return valid_id(one) or None
    return _joined(claude_session if members[0] == meta.CLAUDE_CALL_ID else call_meta.get(meta.CODEX_SESSION), one)


def claude_session(environ: Mapping[str, str]) -> str:
    """What a server knows of the session of Claude Code that has started it; empty if it knows nothing.

    Args:
        environ: The server's environment.
    """
    return _process(environ) or environ.get(_CLAUDE_SESSION, "")


def told_session(environ: Mapping[str, str]) -> str:
    """The session of Claude Code in which a server was started; empty if it is not told, or is no valid id.

    Args:
        environ: The server's environment.
    """
    return valid_id(environ.get(_CLAUDE_SESSION))


def claude_tier(environ: Mapping[str, str]) -> str:
    """The tier of the main agent if Claude Code has started the server: `background` for `claude -p`; empty if not known.

    Args:
        environ: The server's environment.
    """
    return BACKGROUND if environ.get("CLAUDE_CODE_ENTRYPOINT") == "sdk-cli" else ""


def codex_tier(call_meta: Mapping[str, object]) -> str | None:
    """The tier that Codex reports in a call's `_meta`: `subagent`, or else `background` for `codex exec`; None for neither."""
    if _of_turn(call_meta, "thread_source") == "subagent":
        return SUBAGENT
    return BACKGROUND if _of_turn(call_meta, "turn_trigger") == "exec" else None


def is_codexs_main_agent(call_meta: Mapping[str, object]) -> bool:
    """Whether Codex reports in a call's `_meta` that its main agent makes the call."""
    return _of_turn(call_meta, "thread_source") == "user"


def _of_turn(call_meta: Mapping[str, object], member: str) -> object:
    turn = call_meta.get(meta.CODEX_TURN)
    return turn.get(member) if isinstance(turn, dict) else None


def _joined(session: object, call_id: object) -> str | None:
    """The key of a call's note; None unless both ids are valid. They have no spaces."""
    return f"{session} {call_id}" if valid_id(session) and valid_id(call_id) else None


def _process(environ: Mapping[str, str]) -> str:
    """The process of Claude Code in the form of an id; empty if it is not known. The variable is a path."""
    value = environ.get(_CLAUDE_PROCESS, "")
    return blake2b(value.encode(errors="surrogateescape"), digest_size=16).hexdigest() if value else ""


def storable(text: str) -> str:
    """A text with lone surrogates and NULs escaped: no store can hold the first, and a note's agent ends at the second."""
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\x00")


def valid_id(value: object) -> str:
    """A value if it is a valid id, a text of printable ASCII that has nothing that JSON escapes; else empty."""
    if not isinstance(value, str) or len(value) > _MOST_ID_CHARS:
        return ""
    return value if value.isascii() and value.isprintable() and _NOT_IN_ID.isdisjoint(value) else ""
