"""Finds the files of clients on this machine, and the servers in them; and the servers that plugins bring with them.

Plugins are also extensions and bundles. Nothing is written into their files, because an update replaces them.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mcpguard.clients.catalog import CLIENTS, DEV_CONTAINER, LOCAL, PROJECT, SERVERS, Client, Hook, Plugins
from mcpguard.clients.entries import Entry, Layout, entries
from mcpguard.clients.launcher import is_same
from mcpguard.documents.document import Dialect
from mcpguard.documents.document import read as parsed
from mcpguard.documents.model import Unreadable, plain
from mcpguard.errors import ConfigError, McpguardError
from mcpguard.files import read_at_once
from mcpguard.light_typing import Any, Final, NamedTuple
from mcpguard.text.redaction import redacted

MAX_BYTES: Final = 64 * 1024 * 1024
"""The largest file that is read. Claude Code's file, with the history of its projects, has some megabytes."""


class Machine(NamedTuple):
    """The account whose clients are looked for.

    Attributes:
        home: Its home folder.
        environ: The environment. Variables that move a client's folder are obeyed.
        system: `sys.platform`.
    """

    home: Path
    environ: Mapping[str, str]
    system: str = sys.platform

    @classmethod
    def this(cls) -> "Machine":
        """This account on this machine.

        Raises:
            ConfigError: The account has no home folder.
        """
        try:
            return cls(Path.home(), os.environ)
        except RuntimeError as error:
            raise ConfigError("this account has no home folder", "set HOME to the folder that your clients use") from error

    @property
    def project(self) -> Path | None:
        """The working folder, unless it is the home folder or no longer exists."""
        try:
            folder = Path.cwd()
        except OSError:
            return None
        return None if is_same(folder, self.home) else folder

    def base(self, name: str) -> Path | None:
        """The folder that a base in a pattern stands for; None if this system has none.

        `appdata` is the folder of desktop programs; `xdg` and `dotconfig` are that of programs that use `~/.config`, the first
        on every system. `roaming` and `local` exist only on Windows. `claude` holds Claude Code's `.claude.json`,
        `claude_folder` its settings.
        """
        is_windows, is_mac = self.system == "win32", self.system == "darwin"
        dotconfig = self._named("XDG_CONFIG_HOME", self.home / ".config")
        roaming = self._named("APPDATA", self.home / "AppData/Roaming")
        library = self.home / "Library/Application Support"
        found: dict[str, Path | None] = {
            "home": self.home,
            "appdata": roaming if is_windows else library if is_mac else dotconfig,
            "roaming": roaming if is_windows else None,
            "local": self._named("LOCALAPPDATA", self.home / "AppData/Local") if is_windows else None,
            "xdg": dotconfig,
            "dotconfig": None if is_windows else self.home / ".config" if is_mac else dotconfig,
            "claude": self._named("CLAUDE_CONFIG_DIR", self.home),
            "claude_folder": self._named("CLAUDE_CONFIG_DIR", self.home / ".claude"),
            "codex": self._named("CODEX_HOME", self.home / ".codex"),
            "copilot": self._named("COPILOT_HOME", self.home / ".copilot"),
            "etc": None if is_windows else Path("/etc"),
            "claude_managed": None
            if is_windows
            else Path("/Library/Application Support/ClaudeCode" if is_mac else "/etc/claude-code"),
        }
        return found[name]

    def _named(self, variable: str, usual: Path) -> Path:
        named = Path(self.environ.get(variable) or usual)
        return named if named.is_absolute() else usual

    def paths(self, pattern: str, project: Path | None = None) -> list[Path]:
        """The paths that a pattern stands for. A pattern without `*` has one path, whether it exists or not."""
        name, _, rest = pattern.partition("/")
        base = project if name == "{project}" else self.base(name.strip("{}"))
        if base is None:
            return []
        if "*" not in rest:
            return [base / rest]
        try:
            return sorted(base.glob(rest))
        except PermissionError:  # the base is in a folder that may not be looked into
            return []


class Source(NamedTuple):
    """A file in which a client keeps servers.

    Attributes:
        client: The client.
        scope: Who uses the servers: see `Location`.
        file: The file.
        layout: Where the entries are.
        dialect: What the client can read.
        project: The project of a `local` scope; empty for other scopes.
        folder: The project's folder of a `project` scope, or the folder of a plugin; None for other scopes.
        plugin: The plugin that brings the servers; empty for a client's own file. mcpguard never edits a plugin's file.
    """

    client: Client
    scope: str
    file: Path
    layout: Layout
    dialect: Dialect
    project: str = ""
    folder: Path | None = None
    plugin: str = ""

    @property
    def is_of_container(self) -> bool:
        """Whether its servers start in a dev container."""
        return self.layout == DEV_CONTAINER

    @property
    def start(self) -> Path:
        """Where the servers start, if the file tells: in its project. Else the working folder."""
        return self.folder or Path(self.project)

    @property
    def place(self) -> str:
        """The client, the scope and the file, for a message."""
        scope = f"plugin {self.plugin}" if self.plugin else f"{self.scope} scope"
        scope = f"{scope}, {self.project}" if self.project else scope
        return f"{self.client.title} ({scope}), {self.file}"


class HookFile(NamedTuple):
    """A file in which a client's hook is, whether the file exists or not.

    Attributes:
        client: The client.
        hook: Its hook.
        file: The file.
        project: The project for which it is; None for the account's file.
    """

    client: Client
    hook: Hook
    file: Path
    project: Path | None


class FileFault(McpguardError):
    """A file of a client cannot be used."""


def sources(machine: Machine, clients: Iterable[Client] = CLIENTS, project: Path | None = None) -> list[Source]:
    """The existing files in which clients keep servers.

    Args:
        machine: The account.
        clients: The clients to look for.
        project: Use the files of this project and the account's servers in this project, instead of the account's files.
    """
    found: list[Source] = []
    for client in clients:
        for location in client.locations:
            is_wanted = location.scope == LOCAL or (location.scope == PROJECT) == (project is not None)
            for file in filter(os.path.lexists, machine.paths(location.pattern, project) if is_wanted else ()):
                source = Source(client, location.scope, file, location.layout, location.dialect, folder=project)
                found += _local(source) if location.scope == LOCAL else [source]
    return found


def may_exist(file: Path) -> bool:
    """Whether there is a file or a link, or the system does not say, such as without permission. Then `read` says why."""
    try:
        os.lstat(file)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        pass
    return True


def _local(source: Source) -> Iterator[Source]:
    """The projects in Claude Code's own file that have servers."""
    try:
        projects = json.loads(read_at_once(source.file, MAX_BYTES).decode("utf-8-sig"))["projects"]
        named = [key for key, value in projects.items() if isinstance(value, dict) and value.get("mcpServers")]
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return  # the same file in the user's scope is reported, if it cannot be read
    for key in named:
        if source.folder is None or is_same(key, source.folder):
            yield source._replace(layout=Layout(("projects", key, "mcpServers")), project=key, folder=None)


def client_paths(machine: Machine, client: Client, project: Path | None = None) -> Iterator[Path]:
    """Where a client's files would be, whether they exist or not."""
    for location in client.locations:
        if (location.scope == PROJECT) == (project is not None):
            yield from machine.paths(location.pattern, project)


def off_by(machine: Machine, switch: str, project: Path | None = None, *, plugin: str = "", server: str = "") -> str:
    """The setting of a client's file that switches something off: see `Hook.off`; empty if it is not switched off.

    A switch for servers is never on for a plugin alone.
    """
    if not server and "{server}" in switch:
        return ""
    pattern, *keys, value = switch.split(" | ")
    value = value.replace('"{server}"', json.dumps(server)).replace("{home}", f"/{machine.home.as_posix().lstrip('/')}")
    keys = [key.replace("{plugin}", plugin).replace("{server}", server) for key in keys]
    for file in machine.paths(pattern.replace("{plugin}", plugin), project):
        found = content_of(file, *keys)
        if found is not None and (value == "any" or json.loads(value) in (found if isinstance(found, list) else [found])):
            return f"{file} has {'.'.join(keys)} = {value}"
    return ""


def content_of(file: Path, *keys: str) -> Any:
    """The value of a JSON or TOML file of a client, or with keys a value in it; None if it has none or cannot be read."""
    try:
        found: Any = plain(parsed(read(file), Dialect.TOML if file.suffix == ".toml" else Dialect.JSONC).root)
    except (FileFault, Unreadable):
        return None
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def is_used(machine: Machine, client: Client) -> bool:
    """Whether the account has a file or a folder of the client."""
    paths = [*client_paths(machine, client), *(one.file for one in hook_files(machine, [client]))]
    return any(os.path.lexists(path) or (path.parent != machine.home and os.path.isdir(path.parent)) for path in paths)  # noqa: PTH112


def hook_files(machine: Machine, clients: Iterable[Client] = CLIENTS, project: Path | None = None) -> list[HookFile]:
    """The file with the hook of each client that has one, for the account or for a project."""
    hooks = [(client, client.hook) for client in clients if client.hook]
    files = [machine.paths(hook.project if project else hook.user, project)[0] for _, hook in hooks]
    return [HookFile(*one, file, project) for one, file in zip(hooks, files, strict=True)]


def read(file: Path) -> bytes:
    """Read a client's file.

    Raises:
        FileFault: It cannot be read.
    """
    try:
        data = read_at_once(file, MAX_BYTES + 1)
    except OSError as error:
        raise FileFault(f"{file}: cannot be read: {error.strerror or error}", _hint(file)) from error
    except ValueError as error:  # a plugin names it, with a U+0000 or half a character
        raise FileFault(f"{os.fspath(file)!a}: not a path") from error
    if len(data) > MAX_BYTES:
        raise FileFault(f"{file}: over {MAX_BYTES >> 20} MiB", "check that it is the client's file")
    return data


def _hint(file: Path) -> str:
    """What to do about a file that cannot be read. `Path` would raise without permission."""
    if os.path.islink(file):  # noqa: PTH114
        return "check where the link leads"
    if os.path.exists(file) and not os.path.isfile(file):  # noqa: PTH110, PTH113
        return "put a file in its place"
    return "check who may read the file"


def entries_of(source: Source, data: bytes) -> list[Entry]:
    """The servers in a client's file.

    Raises:
        FileFault: The client cannot read the file either.
    """
    try:
        return entries(data, source.layout, source.dialect)
    except Unreadable as error:
        raise unreadable(source.file, error) from error


def readable_entries(source: Source) -> list[Entry]:
    """The servers in a client's file; none if it cannot be read."""
    try:
        return entries_of(source, read(source.file))
    except FileFault:
        return []


def unreadable(file: Path, error: Unreadable) -> FileFault:
    """The fault for a file that does not parse, or that cannot be edited."""
    if not error.line:
        return FileFault(redacted(f"{file}: {error.message}"), error.hint)
    return FileFault(redacted(f"{file}:{error.line}:{error.column}: {error.message}"), "fix the file, then run this again")


_MANIFESTS: Final = (*(one.plugins.manifest for one in CLIENTS if one.plugins), ".github/plugin/plugin.json")
_SERVER_FILES: Final = (".mcp.json", ".github/mcp.json", "mcp.json")
"""Where the servers are if the manifest names no file."""

_FOLDERS: Final = ("installPath", "cache_path", "pluginUri")
"""The members of a register that name a plugin's folder."""

_BUNDLE: Final = Layout(("server", "mcp_config"), is_single=True)


def plugin_sources(machine: Machine, clients: Iterable[Client] = CLIENTS, project: Path | None = None) -> Iterator[Source]:
    """The files with the servers of plugins that are not switched off.

    Args:
        machine: The account.
        clients: The clients whose plugins are looked for.
        project: Give the plugins of this project instead of the account's.
    """
    for client, kind in [(client, client.plugins) for client in clients if client.plugins]:
        for folder in _folders(machine, kind, project):
            is_cached = folder.parents[2].name == "cache" if len(folder.parents) > 2 else False
            plugin = f"{folder.parent.name}@{folder.parents[1].name}" if is_cached else folder.name
            if not any(off_by(machine, switch, plugin=plugin) for switch in kind.off):
                for file, layout in _files(folder, kind):
                    yield Source(client, "plugin", file, layout, Dialect.JSONC, folder=folder, plugin=plugin)


def of_plugin(machine: Machine, source: Source, entry: Entry, *, replaced: bool = True) -> Entry:
    """An entry of a plugin with its name in the client. It is disabled if it is switched off, or also if it is replaced."""
    kind = source.client.plugins
    assert kind  # noqa: S101 - see `plugin_sources`
    name = kind.server.replace("{plugin}", source.plugin.partition("@")[0]).replace("{server}", entry.name)
    switches = [switch for switch in kind.off if replaced or not switch.endswith(" | any")]
    off = any(off_by(machine, switch, plugin=source.plugin, server=name) for switch in switches)
    return entry._replace(name=name, kind="disabled" if off else entry.kind, may_start=entry.may_start and not off)


def missing_files(machine: Machine, clients: Iterable[Client]) -> list[Source]:
    """Codex's own file if it does not exist, but should: a plugin brings a server that an entry of its own would guard."""
    found = []
    for client in clients:
        location = client.locations[0]
        if client.key == "codex" and not may_exist(file := machine.paths(location.pattern)[0]):
            brought = [(source, entry) for source in plugin_sources(machine, [client]) for entry in readable_entries(source)]
            entries = [of_plugin(machine, source, entry) for source, entry in brought]
            if any(entry.kind == "stdio" for entry in entries):
                found.append(Source(client, location.scope, file, location.layout, location.dialect))
    return found


def _folders(machine: Machine, kind: Plugins, project: Path | None) -> list[Path]:
    """The folders of plugins that are installed: of each, one version."""
    listed = list(_registered(content_of(machine.paths(kind.register)[0]))) if kind.register else []
    if listed or project:
        place = str(project) if project else None
        return [folder for folder, of_project, is_on in listed if is_on and of_project == place]
    newest: dict[Path, Path] = {}
    for pattern in kind.folders:
        for folder in machine.paths(pattern):
            plugin = folder.parent if pattern.endswith("/*/*/*") else folder
            if os.path.isdir(folder) and (plugin not in newest or _age(folder) > _age(newest[plugin])):  # noqa: PTH112
                newest[plugin] = folder
    return list(newest.values())


def _age(folder: Path) -> tuple[bool, list[int], float]:
    """Sorts versions as Codex does: `local` is newer than all, and no version older than all."""
    numbers = re.findall(r"\d+", folder.name) if re.match(r"v?\d+\.", folder.name) else []
    return folder.name == "local", [int(number) for number in numbers], os.lstat(folder).st_mtime


def _registered(value: Any) -> Iterator[tuple[Path, str | None, bool]]:
    """The folders that a register names, each with its project, and whether it is switched on."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    place = next((value[key] for key in _FOLDERS if isinstance(value.get(key), str)), "") if isinstance(value, dict) else ""
    if place:
        from urllib.parse import unquote  # takes milliseconds to load, and most clients have no register

        path = Path(unquote(re.sub(r"^file://(/(?=[A-Za-z](?::|%3A)))?", "", place)))
        yield path, value.get("projectPath"), value.get("enabled") is not False
    for item in items:
        yield from _registered(item)


def _files(folder: Path, kind: Plugins) -> Iterator[tuple[Path, Layout]]:
    """The files of a plugin that have servers."""
    manifests = [folder / name for name in (kind.manifest, *_MANIFESTS)]
    manifest = next((file for file in manifests if os.path.isfile(file)), None)  # noqa: PTH113
    value = content_of(manifest) if manifest else {}
    servers = value.get("mcpServers") if isinstance(value, dict) else None
    if manifest and (kind.is_bundle or isinstance(servers, dict) or value is None):  # one that is damaged is told
        yield manifest, _BUNDLE if kind.is_bundle else SERVERS
    names = [servers] if isinstance(servers, str) else servers if isinstance(servers, list) else []
    named = [folder / name for name in names if isinstance(name, str)]
    usual = [folder / name for name in _SERVER_FILES if os.path.isfile(folder / name)]  # noqa: PTH113
    for file in () if kind.is_bundle else named or usual:
        found = content_of(file)
        yield file, Layout(()) if isinstance(found, dict) and "mcpServers" not in found else SERVERS
