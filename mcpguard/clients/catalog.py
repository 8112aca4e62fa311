"""The clients: where each keeps its servers and its hooks, and how it applies a change.

A pattern of a path begins with a base in braces, see `discovery.Machine.base`. It may contain `*`. A pattern whose base does
not exist on this system is skipped.
"""

from typing import Final, NamedTuple

from mcpguard.clients.documents import Dialect
from mcpguard.clients.entries import Layout

PROJECT: Final = "project"
LOCAL: Final = "local"
"""The scope of Claude Code's servers that one account uses in one project. They are in the account's file."""

_SERVERS: Final = Layout(("mcpServers",))

DEV_CONTAINER: Final = Layout(("customizations", "vscode", "mcp", "servers"))
"""In a dev container's file. Its servers start in the container, so the programs that it names need not be on this machine."""


class Place(NamedTuple):
    """Files in which a client keeps servers.

    Attributes:
        scope: `user`, `project`, or another word for who uses the servers.
        patterns: The paths. All files that exist are used.
        layout: Where the entries are in a file.
        dialect: What the client can read.
    """

    scope: str
    patterns: tuple[str, ...]
    layout: Layout = _SERVERS
    dialect: Dialect = Dialect.JSON


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
        places: The files with its servers.
        after: What its user does so that a change applies.
        hook: Its hook; None if it has none that mcpguard can use.
        rewrites: Whether the client, while it runs, writes its own copy of the file back.
    """

    key: str
    title: str
    places: tuple[Place, ...]
    after: str
    hook: Hook | None = None
    rewrites: bool = False


_VSCODE_FOLDERS: Final = ("{appdata}/Code/User", "{home}/.vscode-server/data/User")
_INSIDERS_FOLDERS: Final = ("{appdata}/Code - Insiders/User", "{home}/.vscode-server-insiders/data/User")
_CLINE_FILE: Final = "User/globalStorage/saoudrizwan.claude-dev/settings/cline_mcp_settings.json"
_CLINE: Final = Layout(("mcpServers",), nested="transport")
_CONTINUE: Final = Layout(("mcpServers",), is_list=True)
_OPENCODE: Final = Layout(("mcp",), args=None)


def _vscode(scope: str, *folders: str) -> tuple[Place, Place]:
    """The places of a VS Code profile: `mcp.json`, and the settings that held the servers before it."""
    files, settings = (tuple(f"{folder}/{name}" for folder in folders) for name in ("mcp.json", "settings.json"))
    return (
        Place(scope, files, Layout(("servers",)), Dialect.JSONC),
        Place(scope, settings, Layout(("mcp", "servers")), Dialect.JSONC),
    )


CLIENTS: Final = (
    Client(
        "claude-desktop",
        "Claude Desktop",
        (
            Place(
                "user",
                (
                    "{appdata}/Claude/claude_desktop_config.json",
                    "{local}/Packages/Claude_*/LocalCache/Roaming/Claude/claude_desktop_config.json",
                ),
            ),
        ),
        "start Claude Desktop",
        rewrites=True,
    ),
    Client(
        "claude-code",
        "Claude Code",
        (
            Place("user", ("{claude}/.claude.json",)),
            Place(LOCAL, ("{claude}/.claude.json",)),
            Place(PROJECT, ("{project}/.mcp.json",)),
        ),
        "start a new session; Claude Code may ask you to approve a changed server of a project",
        Hook("{claude_folder}/settings.json", "{project}/.claude/settings.local.json", "PreToolUse"),
    ),
    Client(
        "codex",
        "Codex",
        (
            Place("user", ("{codex}/config.toml",), Layout(("mcp_servers",)), Dialect.TOML),
            Place(PROJECT, ("{project}/.codex/config.toml",), Layout(("mcp_servers",)), Dialect.TOML),
        ),
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
        (Place("user", ("{home}/.cursor/mcp.json",)), Place(PROJECT, ("{project}/.cursor/mcp.json",))),
        "switch the server off and on in Cursor's settings, or restart Cursor",
    ),
    Client(
        "vscode",
        "VS Code",
        (
            *_vscode("user", *_VSCODE_FOLDERS),
            *_vscode("profile", *(f"{folder}/profiles/*" for folder in _VSCODE_FOLDERS)),
            *_vscode("insiders", *_INSIDERS_FOLDERS, *(f"{folder}/profiles/*" for folder in _INSIDERS_FOLDERS)),
            *_vscode(PROJECT, "{project}/.vscode"),
            Place(
                PROJECT,
                ("{project}/.devcontainer/devcontainer.json", "{project}/.devcontainer.json"),
                DEV_CONTAINER,
                Dialect.JSONC,
            ),
            Place(PROJECT, ("{project}/.mcp.json",), dialect=Dialect.JSONC),
        ),
        "restart the server (MCP: List Servers), and trust it again when VS Code asks",
    ),
    Client(
        "copilot",
        "Copilot CLI",
        (
            Place("user", ("{copilot}/mcp-config.json",), dialect=Dialect.JSONC),
            Place(PROJECT, ("{project}/.mcp.json", "{project}/.github/mcp.json"), dialect=Dialect.JSONC),
        ),
        "start a new session",
        Hook("{copilot}/hooks/mcpguard.json", "{project}/.github/hooks/mcpguard.json", "preMcpToolCall", is_matched=False),
    ),
    Client(
        "windsurf",
        "Windsurf",
        (Place("user", ("{home}/.codeium/windsurf/mcp_config.json", "{home}/.codeium/mcp_config.json")),),
        "press Refresh in the list of MCP servers",
    ),
    Client(
        "zed",
        "Zed",
        (
            Place(
                "user",
                ("{dotconfig}/zed/settings.json", "{roaming}/Zed/settings.json"),
                Layout(("context_servers",)),
                Dialect.JSONC,
            ),
            Place(PROJECT, ("{project}/.zed/settings.json",), Layout(("context_servers",)), Dialect.JSONC),
        ),
        "nothing: Zed restarts a changed server by itself",
    ),
    Client(
        "gemini",
        "Gemini CLI",
        (
            Place("user", ("{home}/.gemini/settings.json",), dialect=Dialect.JSON_WITH_COMMENTS),
            Place(PROJECT, ("{project}/.gemini/settings.json",), dialect=Dialect.JSON_WITH_COMMENTS),
        ),
        "enter /mcp reload, or restart Gemini CLI",
    ),
    Client(
        "qwen",
        "Qwen Code",
        (
            Place("user", ("{home}/.qwen/settings.json",), dialect=Dialect.JSON_WITH_COMMENTS),
            Place(PROJECT, ("{project}/.qwen/settings.json",), dialect=Dialect.JSON_WITH_COMMENTS),
        ),
        "restart Qwen Code",
    ),
    Client(
        "opencode",
        "opencode",
        (
            Place("user", ("{xdg}/opencode/opencode.json", "{xdg}/opencode/opencode.jsonc"), _OPENCODE, Dialect.JSONC),
            Place(
                PROJECT,
                (
                    "{project}/opencode.json",
                    "{project}/opencode.jsonc",
                    "{project}/.opencode/opencode.json",
                    "{project}/.opencode/opencode.jsonc",
                ),
                _OPENCODE,
                Dialect.JSONC,
            ),
        ),
        "restart opencode",
    ),
    Client(
        "cline",
        "Cline",
        (
            Place(
                "user",
                (
                    *(f"{{appdata}}/{app}/{_CLINE_FILE}" for app in ("Code", "Code - Insiders", "Cursor", "Windsurf")),
                    f"{{home}}/.vscode-server/data/{_CLINE_FILE}",
                    "{home}/.cline/data/settings/cline_mcp_settings.json",
                    "{home}/.cline/mcp.json",
                ),
                _CLINE,
            ),
        ),
        "nothing: Cline reconnects by itself",
    ),
    Client(
        "continue",
        "Continue",
        (
            Place("user", ("{home}/.continue/config.yaml",), _CONTINUE, Dialect.YAML),
            Place("user", ("{home}/.continue/mcpServers/*.json",)),
            Place("user", ("{home}/.continue/mcpServers/*.y*ml",), _CONTINUE, Dialect.YAML),
            Place(PROJECT, ("{project}/.continue/mcpServers/*.json",)),
            Place(PROJECT, ("{project}/.continue/mcpServers/*.y*ml",), _CONTINUE, Dialect.YAML),
        ),
        "nothing: Continue reads the file when it changes",
    ),
    Client(
        "goose",
        "Goose",
        (
            Place(
                "user",
                ("{dotconfig}/goose/config.yaml", "{roaming}/Block/goose/config/config.yaml"),
                Layout(("extensions",), command="cmd"),
                Dialect.YAML,
            ),
        ),
        "restart Goose",
    ),
    Client(
        "kiro",
        "Kiro",
        (Place("user", ("{home}/.kiro/settings/mcp.json",)), Place(PROJECT, ("{project}/.kiro/settings/mcp.json",))),
        "nothing: Kiro reconnects by itself",
    ),
    Client(
        "amazon-q",
        "Amazon Q",
        (
            Place("user", ("{home}/.aws/amazonq/mcp.json", "{home}/.aws/amazonq/agents/default.json")),
            Place(PROJECT, ("{project}/.amazonq/mcp.json",)),
        ),
        "start a new session",
    ),
    Client(
        "lm-studio",
        "LM Studio",
        (Place("user", ("{home}/.lmstudio/mcp.json",)),),
        "nothing: LM Studio reads the file when it changes",
    ),
)
"""The clients, in the order in which they are listed."""

BY_KEY: Final = {client.key: client for client in CLIENTS}
