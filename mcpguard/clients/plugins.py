"""Finds the servers that plugins, extensions and bundles of clients bring with them.

Nothing is written into a plugin's files, because an update replaces them.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from mcpguard.clients.catalog import CLIENTS, SERVERS, Client, Plugins
from mcpguard.clients.discovery import Machine, Source, content_of, may_exist, off_by, readable_entries
from mcpguard.clients.entries import Entry, Layout
from mcpguard.documents.document import Dialect

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
