"""Checks the store: that it can be opened for writing, what it holds, and how much space is left."""

import contextlib
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mcpguard.config import PATIENCE_MS, Settings
from mcpguard.doctor import Check, advice, failed, failed_by, good, size
from mcpguard.errors import StoreUnavailable
from mcpguard.stores.address import SqliteAddress
from mcpguard.stores.api import AuditReader
from mcpguard.text.times import span_down
from mcpguard.urls import is_loopback

if TYPE_CHECKING:
    from mcpguard.stores.redis.url import RedisUrl

LEAST_FREE_BYTES: Final = 32 * 1024 * 1024
"""The least free space. A new store's call log alone takes 8 MiB."""


def checks(settings: Settings) -> Iterator[Check]:
    """Open the store as a wrapper does, and look at what it holds."""
    address = settings.address
    try:
        if isinstance(address, SqliteAddress):
            yield from _sqlite(settings, Path(address.path))
            return
        from mcpguard.stores.address import RedisAddress

        assert isinstance(address, RedisAddress)  # noqa: S101 - there is no third kind
        yield from _redis(settings, address.url)
    except StoreUnavailable as error:
        yield failed_by("store", error)


def _sqlite(settings: Settings, path: Path) -> Iterator[Check]:
    if not settings.address.exists():
        yield from _not_made_yet(path)
        return
    with settings.change_store() as store:
        store.append([])  # takes the lock that each call takes, and writes nothing
        oldest, warnings = _oldest(store), store.warnings
    files = [file for file in (path, *path.parent.glob(f"{glob.escape(path.name)}-*")) if file.is_file()]
    closed = [one for one in (*files, path.parent) if not os.access(one, os.W_OK)]
    if closed:
        yield failed("store", f"{closed[0]} cannot be written to", "give this account the right to write to it")
        return
    used = sum(file.stat().st_size for file in files)
    yield good("store", f"{path}: {size(used)}, {oldest}")
    for warning in warnings:
        hint = "if this happens again, check the disk, and whether another program changes these files"
        yield advice("store", warning, hint)
    yield from _space(path.parent, settings, used)


def _not_made_yet(path: Path) -> Iterator[Check]:
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir():
        yield failed("store", f"{path} cannot be made: {folder} is not a folder", "name another file with [store] url")
        return
    try:
        Path(tempfile.mkdtemp(prefix="mcpguard-", dir=folder)).rmdir()  # permissions do not tell what a sandbox forbids
    except OSError as error:
        hint = "give this account the right to write there, or name another file with [store] url"
        yield failed("store", f"{path} cannot be made: {folder} cannot be written to: {error.strerror}", hint)
    else:
        yield good("store", f"{path}: not made yet; the first server makes it")
        yield from _space(folder, None, 0)


def _space(folder: Path, settings: Settings | None, used: int) -> Iterator[Check]:
    free = shutil.disk_usage(folder).free
    may_grow = 0 if settings is None else max(0, settings.max_mb * 1024 * 1024 - used)
    detail = f"{size(free)} free in {folder}"
    if free < LEAST_FREE_BYTES:
        yield failed("space", detail, "free some space: without it no decision can be written down")
    elif free < may_grow:
        yield advice("space", f"{detail}, and the store may grow by {size(may_grow)}", "free some space, or lower audit.max_mb")
    else:
        yield good("space", detail)


def _oldest(store: AuditReader) -> str:
    first = next(store.entries(), None)
    if first is None:
        return "no rows yet"
    at_us = first.record["time_us"]
    return f"oldest row {span_down(time.time() - int(str(at_us)) / 1e6)} old"


def _redis(settings: Settings, url: "RedisUrl") -> Iterator[Check]:
    from mcpguard.stores.redis.layout import RedisKeys
    from mcpguard.stores.redis.link import Link

    timeout_s = PATIENCE_MS / 1000
    if url.password and not url.is_tls and not all(is_loopback(host) for host, _ in url.hosts):
        hint = "use rediss://, unless you trust everybody on the network between here and the server"
        yield advice("store", f"{url.shown} receives the password unencrypted", hint)
    with settings.change_store() as store:
        oldest, warnings = _oldest(store), store.warnings
    with contextlib.closing(Link(url, timeout_s=timeout_s, key=RedisKeys(settings.namespace).meta)) as link:
        begin_s = time.monotonic()
        replies = link.ask([("INFO",)])
        took_ms = (time.monotonic() - begin_s) * 1000
    lines = replies[0].decode(errors="replace").splitlines() if isinstance(replies[0], bytes) else []
    info = dict(line.split(":", 1) for line in lines if ":" in line)
    detail = f"{url.shown}, namespace {settings.namespace}: answers in {took_ms:.0f} ms, {oldest}"
    if took_ms > settings.timeout_ms:
        hint = f"raise store.timeout_ms, or use a nearer server: a call waits {settings.timeout_ms} ms at most"
        yield advice("store", detail, hint)
    else:
        yield good("store", detail)
    for warning in warnings:
        yield advice("store", warning, "change the setting on the server")
    used, most = (int(info.get(name, "0")) for name in ("used_memory", "maxmemory"))
    if used:
        detail = f"{size(used)} of memory used" + (f" of {size(most)}" if most else ", without a bound")
        if most and most - used < LEAST_FREE_BYTES:
            yield failed("space", detail, "raise maxmemory, or lower audit.max_mb")
        else:
            yield good("space", detail)
