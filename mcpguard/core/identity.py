"""Who is calling: a user, an agent, and the server that is meant.

A missing identity never means a skipped limit: every part has a value, and where it comes from is recorded beside it.
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

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

TIERS: Final = ("interactive", "subagent", "background", "api")
"""The usual tiers, the first of which is that of an agent whose tier nobody names; others are allowed."""

UNKNOWN_CLIENT: Final = "unknown"
DEFAULT_NAME: Final = "default"


class Identity(NamedTuple):
    """What is configured of who is calling.

    Attributes:
        user: The user's name.
        user_source: Where it comes from: `jwt`, `config` or `os`.
        server: The server's name.
        client: The agent's first part, escaped; None if it is to be found out.
        tier: Its second part, likewise.
        name: Its third part, likewise.
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
    tier: str | None = None
    name: str | None = None
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
        return None not in (self.client, self.tier, self.name)

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
        if meta_agent is not None and self.trust_meta and self.agent_source != "jwt" and _has_three_parts(meta_agent):
            return meta_agent, "meta"
        parts = [self.client, self.tier, self.name]
        source = self.agent_source
        if noted is not None and not self.has_whole_agent and _has_three_parts(noted):
            parts = [own or theirs for own, theirs in zip(parts, noted.split("::"), strict=True)]
            source = "hook"
        elif self.client is None and client_name and self.trust_client_info:
            parts[0], source = escape_part(known_client(client_name)), "clientInfo"
        defaults = (UNKNOWN_CLIENT, TIERS[0], DEFAULT_NAME)
        return "::".join(own or default for own, default in zip(parts, defaults, strict=True)), source


def known_client(name: str) -> str:
    """How people know the client that calls itself `name`.

    >>> known_client("claude-ai"), known_client("gemini-cli-mcp-client-crm"), known_client("my-own")
    ('Claude Desktop', 'Gemini CLI', 'my-own')
    """
    beginning = next((known for start, known in _KNOWN_BEGINNINGS.items() if name.startswith(start)), name)
    return KNOWN_CLIENTS.get(name, beginning)


def _has_three_parts(agent: str) -> bool:
    parts = agent.split("::")
    return len(parts) == 3 and all(parts)


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
    "bash bun bunx cmd deno docker dotnet env go java nice node nodejs npm npx perl php pipx pnpm pnpx podman poetry py pypy"
    " python ruby sh sudo ts-node tsx uv uvx yarn zsh".split()
)
_SUBCOMMANDS: Final = {
    "bun": ("run", "x"),
    "cmd": ("/c",),
    "deno": ("run",),
    "docker": ("container", "run"),
    "dotnet": ("exec", "run"),
    "go": ("run",),
    "npm": ("exec", "run", "x"),
    "pipx": ("run",),
    "pnpm": ("dlx", "exec", "run"),
    "podman": ("container", "run"),
    "poetry": ("run",),
    "uv": ("run", "tool", "x"),
    "yarn": ("dlx", "exec", "run"),
}
_CONTAINER: Final = "-a -c -e -h -l -m -p -u -v -w"
_SHORT_WITH_VALUE: Final = {
    launcher: frozenset(options.split())
    for launcher, options in {
        "docker": _CONTAINER,
        "podman": _CONTAINER,
        "env": "-C -u",
        "java": "-cp -classpath -p",
        "nice": "-n",
        "node": "-C -r",
        "npm": "-C -w",
        "npx": "-p -w",
        "perl": "-I",
        "php": "-c -d",
        "pnpm": "-C -F",
        "poetry": "-C -P",
        "pypy": "-W -X",
        "python": "-W -X",
        "ruby": "-C -I -r",
        "sudo": "-C -g -h -p -u",
        "uv": "-b -c -f -i -p -w",
        "uvx": "-b -c -f -i -p -w",
    }.items()
}
"""Short options that take a value; one letter means another thing to each launcher."""

_LONG_WITH_VALUE: Final = frozenset(
    "--add-host --build-arg --cap-add --cap-drop --class-path --config --constraints --cpus --cwd --device --directory"
    " --dns --entrypoint --env --env-file --extra --filter --from --gpus --group --header --host --hostname --import"
    " --import-map --index --index-url --ipc --label --link --loader --log-driver --log-opt --memory --module-path --mount"
    " --name --net --network --package --pid --platform --prefix --project --publish --pull --python --registry --require"
    " --restart --runtime --security-opt --shm-size --spec --tmpfs --ulimit --user --userns --volume --volumes-from --with"
    " --with-editable --with-requirements --workdir --workspace".split()
)
_SCRIPTING: Final = frozenset("-e -p".split())
_INLINE: Final = {
    **dict.fromkeys("bun node nodejs perl ruby ts-node tsx".split(), _SCRIPTING),
    "php": frozenset(["-r"]),
}
_INLINE_ANYWHERE: Final = frozenset("-c -lc -ic --command --eval --print".split())
"""Options after which the program itself stands on the command line."""

_SECRET_OPTION = re.compile(r"--(?!no-)\S*(?:auth|credential|key|passw|secret|token)[^\s=]*", re.IGNORECASE)
"""A long option whose value is nobody's name."""

_GENERIC: Final = frozenset("__main__ app bin build cli cmd dist index lib main mcp mod out server src start".split())
_EXTENSION = re.compile(r"\.(?:bat|cjs|cmd|dll|exe|git|go|jar|js|mjs|mts|php|pl|py|pyz|rb|sh|ts)$", re.IGNORECASE)
_SCHEME = re.compile(r"(?:npm|jsr|github|gitlab|bitbucket|gist|file|git|https?|ssh|git\+\w+):(?://)?")
_USER_INFO = re.compile(r"(?<=://)[^/@]*@")
_VERSION = re.compile(r"(?<=.)@|[=<>~!]=|[<>\[;]|:(?=[\w.-]+$)")


def server_name(command: Sequence[str]) -> str:
    """A name for the server that `command` starts, without launchers, options, versions and folders.

    >>> server_name(["npx", "-y", "@modelcontextprotocol/server-everything@2026.7.1", "stdio"])
    'server-everything'
    >>> server_name(["node", "/srv/crm/dist/index.js"]), server_name(["docker", "run", "-i", "--rm", "mcp/git:latest"])
    ('crm', 'git')
    """
    words = list(command)
    while words and (launcher := _launcher(words[0])):
        words.pop(0)
        with_value = _LONG_WITH_VALUE | _SHORT_WITH_VALUE.get(launcher, frozenset())
        ahead = _SUBCOMMANDS.get(launcher, ())
        while words and (words[0].startswith("-") or words[0] in ahead or re.match(r"\w+=", words[0])):
            option = words.pop(0)
            if option in with_value or _SECRET_OPTION.fullmatch(option):
                del words[:1]
            elif option in {"-m", "--module", "-jar"} and words:
                return _bare(words[0]) or "server"
            elif option in _INLINE_ANYWHERE or option in _INLINE.get(launcher, ()):
                return "server"
    return (_bare(words[0]) if words else "") or _bare(command[0]) or "server"


def _launcher(word: str) -> str:
    """The launcher that a word names, without its folder, extension and version; empty if it is none."""
    name = _EXTENSION.sub("", re.split(r"[/\\]", word)[-1]).lower()
    name = re.sub(r"[0-9.]+$", "", name)
    return name if name in _LAUNCHERS else ""


def _bare(word: str) -> str:
    """What a path, package, image or URL is called."""
    word = _USER_INFO.sub("", word)
    scheme = _SCHEME.match(word)
    if scheme:
        word = re.split(r"[#?]", word[scheme.end() :])[0]
    parts = [part for part in re.split(r"[/\\]", word) if part not in {"", ".", ".."}]
    if not parts:
        return ""
    *folders, last = [_VERSION.split(part)[0] for part in parts]
    last = last.split("#")[0]
    bare = _EXTENSION.sub("", last)
    if bare != last:
        bare = re.sub(r"(?<=.)-v?[0-9]+(?:\.[0-9]+)+.*$", "", bare)  # crm-1.2.3.jar
    names = [bare, *reversed(folders)]
    return next((name for name in names if name.lower() not in {"", *_GENERIC} and not name.startswith("@")), names[0])
