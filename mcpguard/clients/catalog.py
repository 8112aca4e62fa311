"""The clients: where each keeps its servers and its hooks, and how it applies a change.

A pattern of a path begins with a base in braces, see `discovery.Machine.base`. It may contain `*`. A pattern whose base does
not exist on this system is skipped.
"""

import sys
from collections.abc import Callable

from mcpguard.clients.entries import Layout
from mcpguard.documents.document import Dialect
from mcpguard.light_typing import Any, Final, NamedTuple

PROJECT: Final = "project"
LOCAL: Final = "local"
"""The scope of Claude Code's servers that one account uses in one project. They are in the account's file."""

SERVERS: Final = Layout(("mcpServers",))
"""Where most clients and plugins keep their servers."""

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


HookForm = Callable[[str], dict[str, Any]]
"""Makes the entry of a hook from its command line."""


class HookEvent(NamedTuple):
    """An event for which a client runs a hook.

    Attributes:
        name: The client's name for it.
        form: The entry of the deciding hook.
        note: The entry of the hook that only leaves notes; None if that one has no entry for this event.
        closed: The members that are added to the hook if calls are denied while the store is away: the client denies if the
            hook fails.
        decides: Whether the hook decides calls here. If not, it leaves notes here, also beside the deciding one.
    """

    name: str
    form: HookForm
    note: HookForm | None = None
    closed: tuple[tuple[str, str], ...] = ()
    decides: bool = True


class Hook(NamedTuple):
    """A hook that decides calls, or tells mcpguard which agent makes a call.

    Attributes:
        user: The file for all projects.
        project: The file of one project.
        events: The events for which it runs. The first that decides shows the calls of MCP servers.
        after: What its user does so that the hook is used, if that is not what a change of a server needs.
        version: The `version` of a new file; None if it has none.
        misses: The calls that the client does not show.
        off: What makes the client skip all hooks, each as `FILE | KEY | … | VALUE`: the way to a value in a file, and the value
            as JSON, which may be an item of a list there; `any` for every value.
        dialect: What the client can read.
        trust: The file in which the client notes which hooks its user trusts; empty if it trusts all.
    """

    user: str
    project: str
    events: tuple[HookEvent, ...]
    after: str = ""
    version: int | None = None
    misses: str = ""
    off: tuple[str, ...] = ()
    dialect: Dialect = Dialect.JSON
    trust: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its events."""
        return tuple(event.name for event in self.events)

    @property
    def deciding(self) -> HookEvent:
        """The event that shows the calls of MCP servers."""
        return next(event for event in self.events if event.decides)

    @property
    def leaves_notes(self) -> bool:
        """Whether it can leave notes without deciding."""
        return any(event.note is not None for event in self.events)


class Plugins(NamedTuple):
    """Where a client keeps plugins, which bring servers with them.

    Attributes:
        folders: The folders of plugins, if no register names them. Of the versions of a plugin, the newest counts.
        manifest: The client's own manifest, in the folder of a plugin. Without it, that of another client is used.
        register: The file that names the folders; empty if there is none.
        server: The name of a server, from `{plugin}` and `{server}`.
        off: What switches a plugin or a server of it off, or replaces it, as for a hook. `{plugin}` and `{server}` stand for
            their names, `{home}` in a value for the home folder with a `/` before it, also on Windows.
        is_bundle: Whether a plugin is one server, which its manifest describes.
    """

    folders: tuple[str, ...]
    manifest: str
    register: str = ""
    server: str = "{server}"
    off: tuple[str, ...] = ()
    is_bundle: bool = False


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
        plugins: Where it keeps plugins; None if mcpguard knows of none.
        fills: Whether it puts a variable in place of `${A}` in arguments. Others leave that to the program.
    """

    key: str
    title: str
    locations: tuple[Location, ...]
    after: str
    hook: Hook | None = None
    processes: tuple[str, ...] = ()
    plugins: Plugins | None = None
    fills: bool = False


def _group(matcher: str, timeout: int = 5) -> HookForm:
    """The form of Claude Code, which others have taken over."""
    return lambda line: {"matcher": matcher, "hooks": [{"type": "command", "command": line, "timeout": timeout}]}


def _copilot_hook(line: str) -> dict[str, Any]:
    return {"type": "command", "powershell" if sys.platform == "win32" else "bash": line, "timeoutSec": 5}


def _cursor_hook(line: str) -> dict[str, Any]:
    return {"matcher": "^(?!MCP:)", "command": line, "timeout": 5}


_MCP: Final = _group("mcp__.*")
_ALL: Final = _group("*")
_ALL_MS: Final = _group("*", timeout=5000)


def _extensions(folder: str, manifest: str) -> Plugins:
    """The extensions of Gemini CLI and Qwen Code."""
    return Plugins(
        (f"{folder}/extensions/*",),
        manifest,
        off=(
            f'{folder}/extensions/extension-enablement.json | {{plugin}} | overrides | "!{{home}}/*"',
            f"{folder}/settings.json | mcpServers | {{server}} | any",
        ),
    )


def _files(
    *patterns: str, layout: Layout = SERVERS, dialect: Dialect = Dialect.JSON, scope: str = "user"
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
        plugins=Plugins(
            ("{appdata}/Claude/Claude Extensions/*", "{local}/Packages/Claude_*/LocalCache/Roaming/Claude/Claude Extensions/*"),
            "manifest.json",
            off=("{appdata}/Claude/Claude Extensions Settings/{plugin}.json | isEnabled | false",),
            is_bundle=True,
        ),
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
        Hook(
            "{claude_folder}/settings.json",
            "{project}/.claude/settings.local.json",
            (HookEvent("PreToolUse", _ALL, _MCP, (("onFailure", "block"),)), HookEvent("PostToolUseFailure", _ALL)),
            off=(
                "{claude_folder}/settings.json | disableAllHooks | true",
                "{project}/.claude/settings.json | disableAllHooks | true",
                "{project}/.claude/settings.local.json | disableAllHooks | true",
                "{claude_managed}/managed-settings.json | disableAllHooks | true",
                "{claude_managed}/managed-settings.json | allowManagedHooksOnly | true",
                '{claude_folder}/settings.json | env | MCPGUARD_OBSERVE | "1"',
                '{project}/.claude/settings.json | env | MCPGUARD_OBSERVE | "1"',
                '{project}/.claude/settings.local.json | env | MCPGUARD_OBSERVE | "1"',
            ),
        ),
        plugins=Plugins(
            ("{claude_folder}/plugins/cache/*/*/*",),
            ".claude-plugin/plugin.json",
            "{claude_folder}/plugins/installed_plugins.json",
            "plugin:{plugin}:{server}",
            (
                "{claude_folder}/settings.json | enabledPlugins | {plugin} | false",
                '{claude_folder}/settings.json | deniedMcpServers | {"serverName": "{server}"}',
            ),
        ),
        fills=True,
    ),
    Client(
        "codex",
        "Codex",
        _files("{codex}/config.toml", "{project}/.codex/config.toml", layout=Layout(("mcp_servers",)), dialect=Dialect.TOML),
        "start a new session",
        Hook(
            "{codex}/hooks.json",
            "{project}/.codex/hooks.json",
            (HookEvent("PreToolUse", _ALL, _MCP),),
            "start a new session, enter /hooks, and trust the hook",
            misses="hosted web search",
            off=(
                "{codex}/config.toml | features | hooks | false",
                "{project}/.codex/config.toml | features | hooks | false",
                "{etc}/codex/requirements.toml | allow_managed_hooks_only | true",
            ),
            trust="{codex}/config.toml",
        ),
        plugins=Plugins(
            ("{codex}/plugins/cache/*/*/*",),
            ".codex-plugin/plugin.json",
            off=(
                "{codex}/config.toml | plugins | {plugin} | enabled | false",
                "{codex}/config.toml | plugins | {plugin} | mcp_servers | {server} | enabled | false",
                "{codex}/config.toml | mcp_servers | {server} | any",
            ),
        ),
    ),
    Client(
        "cursor",
        "Cursor",
        _files("{home}/.cursor/mcp.json", "{project}/.cursor/mcp.json"),
        "switch the server off and on in Cursor's settings, or restart Cursor",
        Hook(  # as its documentation has it: it was not run
            "{home}/.cursor/hooks.json",
            "{project}/.cursor/hooks.json",
            (
                HookEvent("beforeMCPExecution", lambda line: {"command": line, "timeout": 5}),
                HookEvent("preToolUse", _cursor_hook),
                HookEvent("postToolUseFailure", _cursor_hook),
            ),
            "nothing: Cursor reads the file when it changes",
            version=1,
            misses="MCP servers of cloud agents",
        ),
        plugins=Plugins(("{home}/.cursor/plugins/cache/*/*/*", "{home}/.cursor/plugins/local/*"), ".cursor-plugin/plugin.json"),
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
        plugins=Plugins(
            ("{home}/.vscode/agent-plugins/*/*/*",),
            "plugin.json",
            "{home}/.vscode/agent-plugins/installed.json",
        ),
    ),
    Client(
        "copilot",
        "Copilot CLI",
        _files("{copilot}/mcp-config.json", "{project}/.mcp.json", "{project}/.github/mcp.json", dialect=Dialect.JSONC),
        "start a new session",
        Hook(
            "{copilot}/hooks/mcpguard.json",
            "{project}/.github/hooks/mcpguard.json",
            (
                HookEvent("preMcpToolCall", _copilot_hook, _copilot_hook, decides=False),
                HookEvent("preToolUse", _copilot_hook),
                HookEvent("postToolUseFailure", _copilot_hook),
            ),
            version=1,
            off=("{copilot}/settings.json | disableAllHooks | true", "{copilot}/config.json | disableAllHooks | true"),
        ),
        plugins=Plugins(
            ("{copilot}/installed-plugins/*/*",),
            ".plugin/plugin.json",
            "{copilot}/config.json",
        ),
        fills=True,
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
        Hook(
            "{home}/.gemini/settings.json",
            "{project}/.gemini/settings.json",
            (HookEvent("BeforeTool", _ALL_MS), HookEvent("AfterTool", _ALL_MS)),
            "restart Gemini CLI",
            off=(
                "{home}/.gemini/settings.json | hooksConfig | enabled | false",
                "{project}/.gemini/settings.json | hooksConfig | enabled | false",
            ),
            dialect=Dialect.JSONC,
        ),
        plugins=_extensions("{home}/.gemini", "gemini-extension.json"),
        fills=True,
    ),
    Client(
        "qwen",
        "Qwen Code",
        _files("{home}/.qwen/settings.json", "{project}/.qwen/settings.json", dialect=Dialect.JSONC),
        "restart Qwen Code",
        plugins=_extensions("{home}/.qwen", "qwen-extension.json"),
        fills=True,
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
