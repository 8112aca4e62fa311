"""Who is calling: a user, an agent, and the server that is meant.

A missing identity never means a skipped limit: every part has a value, and where it comes from is recorded beside it.
"""

from typing import Final, NamedTuple

from mcpguard.core.agent import DEFAULT, Agent, escape_part
from mcpguard.errors import ConfigError

KNOWN_CLIENTS: Final = {
    "@librechat/api-client": "LibreChat",
    "amp-mcp-client": "Amp",
    "antigravity-client": "Antigravity",
    "claude-ai": "Claude Desktop",
    "claude-code": "Claude Code",
    "codex-mcp-client": "Codex",
    "com.raycast.macos": "Raycast",
    "continue-cli-client": "Continue",
    "continue-client": "Continue",
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
    "Roo-Code": "Roo Code",
    "Visual Studio Code": "VS Code",
    "Visual Studio Code - Insiders": "VS Code",
    "warp": "Warp",
    "windsurf-client": "Windsurf",
    "zed": "Zed",
}
"""What clients call themselves in `clientInfo`, and how people know them. Names that are not here stay as they are."""

_KNOWN_BEGINNINGS: Final = {
    "gemini-cli-mcp-client-": "Gemini CLI",
    "local-agent-mode-": "Claude Desktop",
}
"""Clients that put the server's name behind their own."""


class Identity(NamedTuple):
    """What is configured of who is calling.

    Attributes:
        user: The user's name.
        user_source: Where it comes from: `jwt`, `config` or `os`.
        server: The server's name.
        agent_parts: The agent as far as it is known; `clientInfo`, a hook or a default fills its empty parts.
        agent_source: `jwt` if the verified token gave any part, `config` if any was configured, else `default`.
        roles: The verified token's roles.
        scopes: The verified token's scopes.
        email: The verified token's e-mail address.
        act: The verified token's actors, first delegator first, the one that calls last.
        trust_client_info: Whether a client that names itself is believed.
        trust_meta: Whether a call that names its agent is believed.
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

    @property
    def has_whole_agent(self) -> bool:
        """Whether every part of the agent is configured, so that neither `clientInfo` nor a hook can fill one."""
        return all(self.agent_parts)

    def agent(self, client_name: str | None, meta_agent: str | None = None, noted: str | None = None) -> tuple[str, str]:
        """The agent of one call as `client::tier::name`, and where it comes from.

        What is configured stays; a hook's note fills the parts that are not. Only the client is taken from `clientInfo`.

        Args:
            client_name: What the client calls itself in `clientInfo`, if it does.
            meta_agent: What the call's `_meta["mcpguard/agent"]` says, if it does.
            noted: The agent that a hook noted for this call, if one did.

        Returns:
            The agent, and the last to have filled a part of it: `jwt`, `config`, `clientInfo`, `meta`, `hook` or `default`.
        """
        if meta_agent is not None and self.trust_meta and self.agent_source != "jwt" and Agent.parse(meta_agent):
            return meta_agent, "meta"
        agent, source = self.agent_parts, self.agent_source
        note = Agent.parse(noted) if noted is not None and not self.has_whole_agent else None
        if note is not None:
            agent, source = agent.or_else(note), "hook"
        elif not agent.client and client_name and self.trust_client_info:
            agent, source = agent._replace(client=escape_part(known_client(client_name))), "clientInfo"
        return str(agent.or_else(DEFAULT)), source


def known_client(name: str) -> str:
    """How people know the client that calls itself `name`.

    >>> known_client("claude-ai"), known_client("gemini-cli-mcp-client-crm"), known_client("my-own")
    ('Claude Desktop', 'Gemini CLI', 'my-own')
    """
    beginning = next((known for start, known in _KNOWN_BEGINNINGS.items() if name.startswith(start)), name)
    return KNOWN_CLIENTS.get(name, beginning)


def parse_agent(text: str, *, where: str) -> Agent:
    """The parts of the agent that are configured.

    Args:
        text: `client::tier::name`, in which an empty part is one that is not configured.
        where: How an error names the place.

    Raises:
        ConfigError: The text does not have three parts, or has a `*` in one.
    """
    agent = Agent.split(text)
    if agent is None:
        raise ConfigError(
            f"{where}: {text!r} does not have three parts",
            "an agent is client::tier::name; a part may be left empty: ::subagent::Explore",
        )
    if "*" in text:
        raise ConfigError(f"{where}: {text!r} is a pattern", "an agent has a name of its own; patterns are for rules")
    return agent
