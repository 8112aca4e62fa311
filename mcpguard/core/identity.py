"""Who is calling: a user, an agent, and the server that is meant.

A missing identity never means a skipped limit: every part has a value, and where it comes from is recorded beside it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mcpguard.errors import ConfigError

KNOWN_CLIENTS: Final = {
    "claude-ai": "Claude Desktop",
    "claude-code": "Claude Code",
    "codex-mcp-client": "Codex",
    "cursor-vscode": "Cursor",
    "gemini-cli-mcp-client": "Gemini CLI",
    "inspector-cli": "MCP Inspector",
    "inspector-client": "MCP Inspector",
    "mcp-inspector": "MCP Inspector",
    "windsurf-client": "Windsurf",
}
"""What clients call themselves in `clientInfo`, and how people know them. Names that are not here stay as they are."""

TIERS: Final = ("interactive", "subagent", "background", "api")
"""The usual tiers; others are allowed."""

UNKNOWN_CLIENT: Final = "unknown"


@dataclass(frozen=True, slots=True)
class Identity:
    """What is configured of who is calling.

    Attributes:
        user: The user's name.
        user_source: Where it comes from: `jwt`, `config` or `os`.
        server: The server's name.
        client: The agent's first part; None if it is to be taken from `clientInfo`.
        tier: Its second part.
        name: Its third part.
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
    client: str | None = None
    tier: str = "interactive"
    name: str = "default"
    agent_source: str = "default"
    roles: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    trust_client_info: bool = True
    trust_meta: bool = False
    email: str | None = None
    act: tuple[str, ...] = ()

    def agent(self, client_name: str | None, meta_agent: str | None = None) -> tuple[str, str]:
        """The agent of one call as `client::tier::name`, and where it comes from.

        Args:
            client_name: What the client calls itself in `clientInfo`, if it does.
            meta_agent: What the call's `_meta["mcpguard/agent"]` says, if it does.

        Returns:
            The agent and `jwt`, `config`, `clientInfo`, `meta` or `default`.
        """
        if meta_agent is not None and self.trust_meta and self.agent_source != "jwt":
            parts = meta_agent.split("::")
            if len(parts) == 3 and all(parts):
                return meta_agent, "meta"
        client, source = self.client, self.agent_source
        if client is None and client_name and self.trust_client_info:
            client, source = escape_part(KNOWN_CLIENTS.get(client_name, client_name)), "clientInfo"
        return f"{client or UNKNOWN_CLIENT}::{self.tier}::{self.name}", source


def escape_part(text: str) -> str:
    r"""One part of an agent, with what would read as a separator escaped. No two texts have one form, and none ends in `:`.

    >>> escape_part("a::subagent"), escape_part("a:b")
    ('a:\\:\\subagent', 'a:b')
    """
    if "::" in text or "\\" in text or text.startswith(":") or text.endswith(":"):
        return text.replace("\\", "\\\\").replace(":", ":\\")
    return text


def parse_agent(text: str, *, where: str) -> dict[str, str]:
    """The parts that a configured agent gives, as keyword arguments of `Identity`.

    Args:
        text: `client::tier::name`, in which an empty part is one that is not given.
        where: How an error names the place.

    Raises:
        ConfigError: The text does not have three parts, or has a `*` in one.
    """
    parts = text.split("::")
    if len(parts) != 3:
        raise ConfigError(
            f"{where}: {text!r} does not have three parts",
            "an agent is client::tier::name; a part may be left empty: ::subagent::Explore",
        )
    if "*" in text:
        raise ConfigError(f"{where}: {text!r} is a pattern", "an agent has a name of its own; patterns are for rules")
    given = {key: part for key, part in zip(("client", "tier", "name"), parts, strict=True) if part}
    return given | {"agent_source": "config"} if given else {}


_LAUNCHERS: Final = frozenset(
    [
        "bash",
        "bun",
        "bunx",
        "cmd",
        "deno",
        "docker",
        "dotnet",
        "env",
        "java",
        "nice",
        "node",
        "nodejs",
        "npm",
        "npx",
        "pipx",
        "pnpm",
        "pnpx",
        "podman",
        "poetry",
        "py",
        "pypy",
        "python",
        "sh",
        "sudo",
        "ts-node",
        "tsx",
        "uv",
        "uvx",
        "yarn",
        "zsh",
    ]
)
_SUBCOMMANDS: Final = frozenset(["/c", "dlx", "exec", "run", "tool", "x"])
_WITH_VALUE: Final = frozenset(
    [
        "--build-arg",
        "--cwd",
        "--directory",
        "--env",
        "--env-file",
        "--from",
        "--import",
        "--index-url",
        "--loader",
        "--mount",
        "--name",
        "--network",
        "--package",
        "--platform",
        "--project",
        "--python",
        "--require",
        "--user",
        "--volume",
        "--with",
        "--with-editable",
        "--workdir",
        "-C",
        "-e",
        "-p",
        "-r",
        "-u",
        "-v",
        "-w",
    ]
)
_GENERIC: Final = frozenset(
    ["__main__", "app", "bin", "build", "cli", "dist", "index", "lib", "main", "mcp", "out", "server", "src", "start"]
)
_EXTENSION = re.compile(r"\.(?:bat|cjs|cmd|exe|jar|js|mjs|mts|py|pyz|sh|ts)$", re.IGNORECASE)


def server_name(command: Sequence[str]) -> str:
    """A name for the server that `command` starts, without launchers, options, versions and folders.

    >>> server_name(["npx", "-y", "@modelcontextprotocol/server-everything@2026.7.1", "stdio"])
    'server-everything'
    >>> server_name(["node", "/srv/crm/dist/index.js"]), server_name(["docker", "run", "-i", "--rm", "mcp/git:latest"])
    ('crm', 'git')
    """
    words = list(command)
    while words and _is_launcher(words[0]):
        words.pop(0)
        while words and (words[0].startswith("-") or words[0] in _SUBCOMMANDS or re.match(r"\w+=", words[0])):
            option = words.pop(0)
            if option in {"-m", "-jar"} and words:
                return _bare(words[0]) or "server"
            if option in {"-c", "-lc", "--command", "--eval"}:
                return "server"
            if option in _WITH_VALUE and words:
                words.pop(0)
    return (_bare(words[0]) if words else "") or _bare(command[0]) or "server"


def _is_launcher(word: str) -> bool:
    name = _EXTENSION.sub("", re.split(r"[/\\]", word)[-1]).lower()
    return re.sub(r"[0-9.]+$", "", name) in _LAUNCHERS


def _bare(word: str) -> str:
    parts = [part for part in re.split(r"[/\\]", word) if part not in {"", ".", ".."}]
    if not parts:
        return ""
    last = parts.pop()
    last = re.split(r"(?<=.)@|==|>=|~=|\[|:(?=[\w.-]+$)", last)[0]
    names = [_EXTENSION.sub("", last), *reversed(parts)]
    return next((name for name in names if name.lower() not in _GENERIC and not name.startswith("@")), names[0])
