"""The caller: the user, the agent `client::tier::name`, and the server that is called.

A missing identity never skips a limit, because every part has a value. The audit log has the sources of the values.
No other module knows how the three parts of an agent are written as one text.
"""

from collections.abc import Collection

from mcpguard.errors import ConfigError
from mcpguard.light_typing import Final, NamedTuple
from mcpguard.text.patterns import glob

CLAUDE_CODE: Final = "Claude Code"
CODEX: Final = "Codex"

KNOWN_CLIENTS: Final = {
    "@cline/core": "Cline",
    "@librechat/api-client": "LibreChat",
    "amp-mcp-client": "Amp",
    "antigravity-client": "Antigravity",
    "claude-ai": "Claude Desktop",
    "claude-code": CLAUDE_CODE,
    "codex-mcp-client": CODEX,
    "com.raycast.macos": "Raycast",
    "continue-cli-client": "Continue",
    "continue-client": "Continue",
    "copilot-cli": "GitHub Copilot CLI",
    "crush": "Crush",
    "cursor-vscode": "Cursor",
    "factory-cli": "Factory CLI",
    "gemini-cli-mcp-client": "Gemini CLI",
    "github-copilot-developer": "GitHub Copilot CLI",
    "goose": "Goose",
    "goose-cli": "Goose",
    "inspector-cli": "MCP Inspector",
    "inspector-client": "MCP Inspector",
    "jetbrains-ai-assistant-client": "JetBrains AI Assistant",
    "Kilo-Code": "Kilo Code",
    "mcp-inspector": "MCP Inspector",
    "opencode": "OpenCode",
    "Q-DEV-CLI": "Amazon Q Developer CLI",
    "qwen-cli-mcp-client": "Qwen Code",
    "Roo-Code": "Roo Code",
    "Visual Studio Code": "VS Code",
    "Visual Studio Code - Insiders": "VS Code",
    "warp": "Warp",
    "windsurf-client": "Windsurf",
    "zed": "Zed",
}
"""The names of clients in `clientInfo`, and their product names. Other names are used unchanged."""

_KNOWN_BEGINNINGS: Final = {
    "gemini-cli-mcp-client-": "Gemini CLI",
    "local-agent-mode-": "Claude Desktop",
    "qwen-cli-mcp-client-": "Qwen Code",
}
"""Clients that append the server's name to their own name in `clientInfo`."""


TIERS: Final = ("interactive", "subagent", "background", "api")
"""The usual tiers; others are allowed. The first is the default."""

_SEPARATOR: Final = "::"
_PARTS: Final = 3


class Agent(NamedTuple):
    """An agent, or a pattern for agents, in three parts. A part is escaped (`escape_part`), and empty if it is not known.

    >>> str(Agent("Claude Code", "subagent", "Explore"))
    'Claude Code::subagent::Explore'
    """

    client: str = ""
    tier: str = ""
    name: str = ""

    def __str__(self) -> str:
        return _SEPARATOR.join(self)

    @classmethod
    def split(cls, text: str) -> "Agent | None":
        """Parse an agent, whose parts may be empty; None unless the text has three parts."""
        parts = text.split(_SEPARATOR)
        return cls(*parts) if len(parts) == _PARTS else None

    @classmethod
    def parse(cls, text: str) -> "Agent | None":
        """Parse an agent; None unless the text has three parts, none of them empty."""
        agent = cls.split(text)
        return agent if agent and all(agent) else None

    def or_else(self, other: "Agent") -> "Agent":
        """This agent, with the other's parts where its own are empty."""
        return Agent(*[mine or theirs for mine, theirs in zip(self, other, strict=True)])


DEFAULT_AGENT: Final = Agent("unknown", TIERS[0], "default")
"""The values of parts that are not known."""


def escape_part(text: str) -> str:
    r"""One part of an agent, with `::` escaped. Different texts have different forms, and no form ends in `:`.

    >>> escape_part("a::subagent"), escape_part("a:b")
    ('a:\\:\\subagent', 'a:b')
    """
    if _SEPARATOR in text or "\\" in text or text.startswith(":") or text.endswith(":"):
        return text.replace("\\", "\\\\").replace(":", ":\\")
    return text


def agent_matches(pattern: str, text: str) -> bool:
    """Whether a pattern matches an agent, part by part: `*` does not cross `::`. False unless both texts have three parts."""
    # Lists are fastest, and this runs for each rule and caller
    patterns, parts = pattern.split(_SEPARATOR), text.split(_SEPARATOR)
    return len(patterns) == len(parts) == _PARTS and all(map(glob, patterns, parts))


def nearest(text: str, clients: Collection[str] = ()) -> Agent:
    """The agent pattern that a text without three parts was probably meant to be.

    Args:
        text: The text. A single word that is neither a tier nor a client is the name of an agent.
        clients: Known clients.

    >>> str(nearest("subagent")), str(nearest("Explore")), str(nearest("Cursor", ["Cursor"])), str(nearest("Cursor::"))
    ('*::subagent::*', '*::*::Explore', 'Cursor::*::*', 'Cursor::*::*')
    """
    parts = [part or "*" for part in text.split(_SEPARATOR)]
    if parts[0] in TIERS:
        parts.insert(0, "*")
    elif len(parts) == 1 and parts[0] not in clients:
        parts = ["*", "*", *parts]
    elif len(parts) == _PARTS - 1 and parts[1] not in (*TIERS, "*"):
        parts.insert(1, "*")
    return Agent(*[*parts, "*", "*"][:_PARTS])


class Identity(NamedTuple):
    """What is known about the caller before a call.

    Attributes:
        user: The user's name.
        user_source: The source of the user: `jwt`, `config` or `os`.
        server: The server's name.
        agent_parts: The agent. A hook's note, what the client says of itself, or a default fills its empty parts.
        agent_source: `jwt` if the verified token names a part, else `config` if a part is configured, else `default`.
        roles: The verified token's roles.
        scopes: The verified token's scopes.
        email: The verified token's e-mail address.
        act: The verified token's actors, first delegator first, the caller last.
        trust_client_info: Whether the client's name is taken from `clientInfo`, and the tier from what the client tells.
        trust_meta: Whether the agent is taken from a call's `_meta`.
        claude_session: What a note for a call of Claude Code names in place of a session; empty if not known.
        claude_tier: The tier of Claude Code's main agent; empty if not known.
        via: What decides the calls, if it is not `mcpguard run`: `hook`; else empty.
        session: The client's session that the calls belong to, unless a call tells another; empty if not known.
    """

    user: str
    user_source: str
    server: str
    agent_parts: Agent = Agent()
    agent_source: str = "default"
    roles: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    trust_client_info: bool = True
    trust_meta: bool = False
    email: str | None = None
    act: tuple[str, ...] = ()
    claude_session: str = ""
    claude_tier: str = ""
    via: str = ""
    session: str = ""

    def agent(
        self,
        client_name: str | None,
        meta_agent: str | None = None,
        noted: str | None = None,
        codex_tier: str | None = None,
    ) -> tuple[str, str]:
        """The agent of one call as `client::tier::name`, and its source.

        Configured parts stay. A hook's note fills the parts that it names. Then `clientInfo` fills the client, and Codex and
        Claude Code fill their own tier.

        Args:
            client_name: The client's name in `clientInfo`; None if it gave none.
            meta_agent: The agent in the call's `_meta["mcpguard/agent"]`; None if there is none.
            noted: The agent that a hook noted for this call; None if no hook did.
            codex_tier: The tier in the call's `_meta` if the client is Codex; None if there is none.

        Returns:
            The agent, and the last source that filled a part: `jwt`, `config`, `clientInfo`, `meta`, `hook` or `default`.
        """
        if meta_agent is not None and self.trust_meta and self.agent_source != "jwt" and Agent.parse(meta_agent):
            return meta_agent, "meta"
        agent, source = self.agent_parts, self.agent_source
        note = Agent.split(noted) if noted and not all(agent) else None
        if note and note.client and note.name:
            agent, source = agent.or_else(note), "hook"
        if client_name and self.trust_client_info:
            client = known_client(client_name)
            told = {CODEX: (codex_tier, "meta"), CLAUDE_CODE: (self.claude_tier, "clientInfo")}
            tier, tier_source = told.get(client, (None, ""))
            if not agent.client:
                agent, source = agent._replace(client=escape_part(client)), "clientInfo"
            if not agent.tier and tier:
                agent, source = agent._replace(tier=tier), "hook" if source == "hook" else tier_source
        return str(agent.or_else(DEFAULT_AGENT)), source


def known_client(name: str) -> str:
    """The product name of the client that calls itself `name`.

    >>> known_client("claude-ai"), known_client("gemini-cli-mcp-client-crm"), known_client("my-own")
    ('Claude Desktop', 'Gemini CLI', 'my-own')
    """
    if name in KNOWN_CLIENTS:
        return KNOWN_CLIENTS[name]
    return next((known for beginning, known in _KNOWN_BEGINNINGS.items() if name.startswith(beginning)), name)


def parse_agent(text: str, *, where: str) -> Agent:
    """Parse the configured agent.

    Args:
        text: `client::tier::name`. A part that is not configured is empty.
        where: How an error names the place.

    Raises:
        ConfigError: The text does not have three parts, or has a `*` in one.
    """
    agent = Agent.split(text)
    if agent is None:
        raise ConfigError(
            f"{where}: {text!r} does not have three parts",
            "write client::tier::name; a part may be empty: ::subagent::Explore",
        )
    if "*" in text:
        raise ConfigError(f"{where}: {text!r} is a pattern", "use exact names: only rules have patterns")
    return agent
