"""The clients: where each keeps its servers and its hooks, and how it applies a change.

A pattern of a path begins with a base in braces, see `discovery.Machine.base`. It may contain `*`. A pattern whose base does
not exist on this system is skipped.
"""

from typing import Final, NamedTuple

from mcpguard.clients.entries import Layout
from mcpguard.documents.document import Dialect

PROJECT: Final = "project"
LOCAL: Final = "local"
"""The scope of Claude Code's servers that one account uses in one project. They are in the account's file."""

_SERVERS: Final = Layout(("mcpServers",))

DEV_CONTAINER: Final = Layout(("customizations", "vscode", "mcp", "servers"))
"""In a dev container's file. Its servers start in the container, so the programs that it names need not be on this machine."""


class Location(NamedTuple):
    """Files in which a client keeps servers.

    Attributes:
        pattern: Their path. All files that exist are used.
        scope: `user`, `project`, or another word for who uses the servers.
        layout: Where the entries are in a file.
        dialect: What the client can read.
    """

    pattern: str
    scope: str
    layout: Layout
    dialect: Dialect


class Hook(NamedTuple):
    """A hook that tells mcpguard which agent makes a call.

    Attributes:
        user: The file for all projects.
        project: The file of one project.
        event: The client's name for the event before a call.
        after: What its user does so that the hook is used, if that is not what a change of a server needs.
        is_matched: Whether the client's form of a hook has a matcher. Copilot CLI's form has none.
    """

    user: str
    project: str
    event: str
    after: str = ""
    is_matched: bool = True


class Client(NamedTuple):
    """A client.

    Attributes:
        key: Its name on the command line.
        title: Its usual name.
        locations: The files with its servers.
        after: What its user does so that a change applies.
        hook: Its hook; None if it has none that mcpguard can use.
        processes: The names of its processes on Linux, macOS and Windows, if it writes its own copy of the file back while it
            runs. Else empty.
    """

    key: str
    title: str
    locations: tuple[Location, ...]
    after: str
    hook: Hook | None = None
    processes: tuple[str, ...] = ()


def _files(
    *patterns: str, layout: Layout = _SERVERS, dialect: Dialect = Dialect.JSON, scope: str = "user"
) -> tuple[Location, ...]:
    """Files of one form. Those in a project are of its scope."""
    return tuple(
        Location(pattern, PROJECT if pattern.startswith("{project}/") else scope, layout, dialect) for pattern in patterns
    )


def _vscode(scope: str, folder: str) -> tuple[Location, ...]:
    """The files of a VS Code profile: `mcp.json`, and the settings that held the servers before it."""
    return (
        *_files(f"{folder}/mcp.json", layout=Layout(("servers",)), dialect=Dialect.JSONC, scope=scope),
        *_files(f"{folder}/settings.json", layout=Layout(("mcp", "servers")), dialect=Dialect.JSONC, scope=scope),
    )


_CLINE_FILE: Final = "User/globalStorage/saoudrizwan.claude-dev/settings/cline_mcp_settings.json"
_CONTINUE: Final = Layout(("mcpServers",), is_list=True)

CLIENTS: Final = (
    Client(
        "claude-desktop",
        "Claude Desktop",
        _files(
            "{appdata}/Claude/claude_desktop_config.json",
            "{local}/Packages/Claude_*/LocalCache/Roaming/Claude/claude_desktop_config.json",
        ),
        "start Claude Desktop",
        processes=("claude-desktop", "Claude", "Claude.exe"),  # Claude Code's is `claude`
    ),
    Client(
        "claude-code",
        "Claude Code",
        (
            *_files("{claude}/.claude.json"),
            *_files("{claude}/.claude.json", scope=LOCAL),
            *_files("{project}/.mcp.json"),
        ),
        "start a new session; Claude Code may ask you to approve a changed server of a project",
        Hook("{claude_folder}/settings.json", "{project}/.claude/settings.local.json", "PreToolUse"),
    ),
    Client(
        "codex",
        "Codex",
        _files("{codex}/config.toml", "{project}/.codex/config.toml", layout=Layout(("mcp_servers",)), dialect=Dialect.TOML),
        "start a new session",
        Hook(
            "{codex}/hooks.json",
            "{project}/.codex/hooks.json",
            "PreToolUse",
            "start a new session, enter /hooks, and trust the hook",
        ),
    ),
    Client(
        "cursor",
        "Cursor",
        _files("{home}/.cursor/mcp.json", "{project}/.cursor/mcp.json"),
        "switch the server off and on in Cursor's settings, or restart Cursor",
    ),
    Client(
        "vscode",
        "VS Code",
        (
            *_vscode("user", "{appdata}/Code/User"),
            *_vscode("user", "{home}/.vscode-server/data/User"),
            *_vscode("profile", "{appdata}/Code/User/profiles/*"),
            *_vscode("profile", "{home}/.vscode-server/data/User/profiles/*"),
            *_vscode("insiders", "{appdata}/Code - Insiders/User"),
            *_vscode("insiders", "{home}/.vscode-server-insiders/data/User"),
            *_vscode("insiders", "{appdata}/Code - Insiders/User/profiles/*"),
            *_vscode("insiders", "{home}/.vscode-server-insiders/data/User/profiles/*"),
            *_vscode(PROJECT, "{project}/.vscode"),
            *_files(
                "{project}/.devcontainer/devcontainer.json",
                "{project}/.devcontainer.json",
                layout=DEV_CONTAINER,
                dialect=Dialect.JSONC,
            ),
            *_files("{project}/.mcp.json", dialect=Dialect.JSONC),
        ),
        "restart the server (MCP: List Servers), and trust it again when VS Code asks",
    ),
    Client(
        "copilot",
        "Copilot CLI",
        _files("{copilot}/mcp-config.json", "{project}/.mcp.json", "{project}/.github/mcp.json", dialect=Dialect.JSONC),
        "start a new session",
        Hook("{copilot}/hooks/mcpguard.json", "{project}/.github/hooks/mcpguard.json", "preMcpToolCall", is_matched=False),
    ),
    Client(
        "windsurf",
        "Windsurf",
        _files("{home}/.codeium/windsurf/mcp_config.json", "{home}/.codeium/mcp_config.json"),
        "press Refresh in the list of MCP servers",
    ),
    Client(
        "zed",
        "Zed",
        _files(
            "{dotconfig}/zed/settings.json",
            "{roaming}/Zed/settings.json",
            "{project}/.zed/settings.json",
            layout=Layout(("context_servers",)),
            dialect=Dialect.JSONC,
        ),
        "nothing: Zed restarts a changed server by itself",
    ),
    Client(
        "gemini",
        "Gemini CLI",
        _files("{home}/.gemini/settings.json", "{project}/.gemini/settings.json", dialect=Dialect.JSONC),
        "enter /mcp reload, or restart Gemini CLI",
    ),
    Client(
        "qwen",
        "Qwen Code",
        _files("{home}/.qwen/settings.json", "{project}/.qwen/settings.json", dialect=Dialect.JSONC),
        "restart Qwen Code",
    ),
    Client(
        "opencode",
        "opencode",
        _files(
            "{xdg}/opencode/opencode.json",
            "{xdg}/opencode/opencode.jsonc",
            "{project}/opencode.json",
            "{project}/opencode.jsonc",
            "{project}/.opencode/opencode.json",
            "{project}/.opencode/opencode.jsonc",
            layout=Layout(("mcp",), args=None),
            dialect=Dialect.JSONC,
        ),
        "restart opencode",
    ),
    Client(
        "cline",
        "Cline",
        _files(
            *(f"{{appdata}}/{app}/{_CLINE_FILE}" for app in ("Code", "Code - Insiders", "Cursor", "Windsurf")),
            f"{{home}}/.vscode-server/data/{_CLINE_FILE}",
            "{home}/.cline/data/settings/cline_mcp_settings.json",
            "{home}/.cline/mcp.json",
            layout=Layout(("mcpServers",), nested="transport"),
        ),
        "nothing: Cline reconnects by itself",
    ),
    Client(
        "continue",
        "Continue",
        (
            *_files("{home}/.continue/config.yaml", layout=_CONTINUE, dialect=Dialect.YAML),
            *_files("{home}/.continue/mcpServers/*.json", "{project}/.continue/mcpServers/*.json"),
            *_files(
                "{home}/.continue/mcpServers/*.y*ml",
                "{project}/.continue/mcpServers/*.y*ml",
                layout=_CONTINUE,
                dialect=Dialect.YAML,
            ),
        ),
        "nothing: Continue reads the file when it changes",
    ),
    Client(
        "goose",
        "Goose",
        _files(
            "{dotconfig}/goose/config.yaml",
            "{roaming}/Block/goose/config/config.yaml",
            layout=Layout(("extensions",), command="cmd"),
            dialect=Dialect.YAML,
        ),
        "restart Goose",
    ),
    Client(
        "kiro",
        "Kiro",
        _files("{home}/.kiro/settings/mcp.json", "{project}/.kiro/settings/mcp.json"),
        "nothing: Kiro reconnects by itself",
    ),
    Client(
        "lm-studio",
        "LM Studio",
        _files("{home}/.lmstudio/mcp.json"),
        "nothing: LM Studio reads the file when it changes",
    ),
)
"""The clients, in the order in which they are listed."""

BY_KEY: Final = {client.key: client for client in CLIENTS}
