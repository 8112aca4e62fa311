"""Reads the settings: options, variables and `config.toml`."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence

from mcpguard.errors import ConfigError, StoreUnavailable, closest_word, did_you_mean
from mcpguard.files import absolute, read_at_once
from mcpguard.identity.account import folders
from mcpguard.light_typing import TYPE_CHECKING, Final, NamedTuple
from mcpguard.run_options import DENIALS
from mcpguard.text.redaction import holds_token
from mcpguard.text.times import SPAN, seconds_of

if TYPE_CHECKING:  # `run` reads its settings before it starts the server: a store's modules take 2 ms to load
    from pathlib import Path

    from mcpguard.alerts import Way
    from mcpguard.identity.jwt_settings import JwtSettings
    from mcpguard.stores.api import Address, Options, Readable, Store

PATIENCE_MS: Final = 5000
"""The shortest time that a command waits for the store. No call waits for a command."""


class Settings(NamedTuple):
    """The settings of options, variables and `config.toml` together.

    Attributes:
        policy_path: The policy file; see `policy`.
        policy_named: Whether an option or a variable names the policy file. Then the file must exist.
        database_path: The account's SQLite file, used if `store` is empty.
        store: The store's URL; empty for the account's SQLite file.
        store_password: The store's password, if it is not in the URL.
        namespace: The part of the store whose counters and audit log are used.
        timeout_ms: How long a call waits for the store at most.
        on_unavailable: `local`, `deny` or `allow`.
        durability: `normal` or `full`.
        user: The configured user; None for the OS account.
        agent: The configured agent; None if there is none.
        jwt: How users are verified; None if they are not verified.
        trust_client_info: Whether what the client tells of itself fills an empty client part and an empty tier.
        trust_meta: Whether a call may name its own agent.
        denials: `auto`, `error` or `result`.
        quiet: Whether `run` writes only errors to stderr.
        observe: Whether `run` decides and logs, but denies nothing. The file does not say so: a policy has a mode.
        max_frame_bytes: The longest line that is accepted from a client.
        keep_us: How long audit rows are kept.
        max_mb: The size of a namespace in the store beyond which its oldest audit rows are deleted.
        arguments: What the audit log keeps of a call's arguments: `hash`, `none` or `full`.
        file_path: `config.toml`, which may be missing; None if the settings do not come from `load`. See `file`.
        warnings: Warnings for the user who starts `run` with these settings.
        places: Where `policy`, `store`, `user`, `agent`, `namespace` and `denials` are set: an option, a variable, or a file
            and a key.
        notify: The ways to tell events.
    """

    policy_path: str
    policy_named: bool
    database_path: str
    store: str = ""
    store_password: str = ""
    namespace: str = "default"
    timeout_ms: int = 250
    on_unavailable: str = "local"
    durability: str = "normal"
    user: str | None = None
    agent: str | None = None
    jwt: "JwtSettings | None" = None
    trust_client_info: bool = True
    trust_meta: bool = False
    denials: str = "auto"
    quiet: bool = False
    observe: bool = False
    max_frame_bytes: int = 10 * 1024 * 1024
    keep_us: int = 30 * 86400 * 1_000_000
    max_mb: int = 256
    arguments: str = "hash"
    file_path: str | None = None
    warnings: tuple[str, ...] = ()
    places: Mapping[str, str] = {}
    notify: "tuple[Way, ...]" = ()

    def __repr__(self) -> str:
        """Name only the policy: the password and the store's URL are secret."""
        return f"<settings with the policy {self.policy}>"

    @property
    def policy(self) -> "Path":
        """The policy file."""
        return _path(self.policy_path)

    @property
    def file(self) -> "Path | None":
        """`config.toml`, which may be missing."""
        return None if self.file_path is None else _path(self.file_path)

    @property
    def address(self) -> "Address":
        """The address of the store.

        Raises:
            ConfigError: The URL is not the URL of a store.
        """
        from mcpguard.stores.address import SqliteAddress, address

        if not self.store:
            return SqliteAddress(self.database_path)
        try:
            return address(self.store, self.store_password)
        except ConfigError as error:
            where = self.places.get("store", "store")
            is_example = re.fullmatch(r"[a-z+]+://\S+", error.hint) is not None
            hint = f"write {written(where, 'url', error.hint)}" if is_example else error.hint
            raise ConfigError(error.message.replace("store: ", f"{where}: ", 1), hint) from error

    @property
    def files(self) -> list[str]:
        """The files that decide who calls and what is allowed. Whoever can change one of them can lift a limit."""
        from mcpguard.stores.address import SqliteAddress

        store, keys = self.address, self.jwt.jwks if self.jwt else None
        database = store.path if isinstance(store, SqliteAddress) else None
        key_file = None if isinstance(keys, str) or keys is None else str(keys)
        return [path for path in (self.policy_path, self.file_path, database, key_file) if path is not None]

    def open_store(self) -> "Store":
        """Open the store for `run`, and create it if it is missing.

        Raises:
            ConfigError: The URL is not the URL of a store.
            StoreUnavailable: The store cannot be used.
        """
        return self.address.open(self._store_options(0))

    @contextlib.contextmanager
    def change_store(self) -> "Iterator[Store]":
        """Open the store for a command, and close it at the end. Raises the errors of `open_store`.

        An error about a value in the store is `StoreUnavailable`, too, also if the command raises it.
        """
        with _damage_reported(self.address), contextlib.closing(self.address.open(self._store_options(PATIENCE_MS))) as store:
            yield store

    @contextlib.contextmanager
    def read_store(self) -> "Iterator[Readable]":
        """Open an existing store for a command to read, and close it at the end. Raises the errors of `change_store`.

        What cannot be read while all else is, is told on stderr.
        """
        options = self._store_options(PATIENCE_MS)
        with _damage_reported(self.address), contextlib.closing(self.address.read(options, _tell)) as store:
            yield store

    def prune_store(self, before_us: int) -> Iterator[int]:
        """Delete the audit rows from before a time in an existing store; see `Address.prune`."""
        return self.address.prune(self._store_options(PATIENCE_MS), before_us)

    def _store_options(self, least_timeout_ms: int) -> "Options":
        from mcpguard.stores.api import Options

        return Options(
            namespace=self.namespace,
            timeout_ms=max(self.timeout_ms, least_timeout_ms),
            durability=self.durability,
            keep_us=self.keep_us,
            max_bytes=self.max_mb * 1024 * 1024,
        )


def _tell(text: str) -> None:
    """Print a message of a command on stderr."""
    from mcpguard.text.printing import printable

    with contextlib.suppress(OSError, AttributeError):  # nobody reads it
        sys.stderr.write(printable(f"mcpguard: {text}") + "\n")


@contextlib.contextmanager
def _damage_reported(address: "Address") -> Iterator[None]:
    """Report an error about a value that was read from a store: if a disk has changed the value, no store notices that."""
    import struct  # not before the server is started

    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error) as error:
        hint = "report it, unless the store is damaged"
        raise StoreUnavailable(f"{address.shown} cannot be used: internal error: {error!r}", hint) from error


def _path(name: str) -> "Path":
    from pathlib import Path

    return Path(name)


def place(key: str, option: str | None, environ: Mapping[str, str]) -> str:
    """Where a setting is set: the option, the variable, or the settings file, by its usual name."""
    variable = f"MCPGUARD_{key.upper()}"
    return f"--{key}" if option else variable if environ.get(variable) else "config.toml"


def written(where: str, key: str, value: str) -> str:
    """How to write a value at the place that an error names.

    >>> [written(where, "url", "redis://a") for where in ("--store", "MCPGUARD_STORE", "config.toml: store.url")]
    ['--store redis://a', 'MCPGUARD_STORE=redis://a', 'url = "redis://a"']
    """
    if where.startswith("--"):
        return f"{where} {value}"
    return f"{where}={value}" if where.startswith("MCPGUARD_") else f'{key} = "{value}"'


EVENTS: Final = ("denied", "warn", "unavailable")
"""The events that `[[notify]]` tells."""

SettingKind = type | tuple[str, ...] | range | re.Pattern[str] | list[str]
"""What a setting can be: text, a truth value, one of some words, a number in a range, a span of time (`SPAN`); `object` if
others check it. A list: a list of some of these words, or of any words if it is empty."""

SETTINGS: Final[dict[str, dict[str, SettingKind]]] = {
    "": {"denials": DENIALS, "quiet": bool, "max_frame_bytes": range(1024, (1 << 30) + 1)},
    "store": {
        "url": str,
        "namespace": str,
        "timeout_ms": range(1, 60_001),
        "on_unavailable": ("local", "deny", "allow"),
        "durability": ("normal", "full"),
    },
    "identity": {"user": str, "agent": str, "trust_client_info": bool, "trust_meta": bool},
    "identity.jwt": dict.fromkeys(
        ("issuer", "audience", "jwks", "token_file", "algorithms", "user_claim", "roles_claim", "agent_claim"), object
    ),
    "audit": {"keep": SPAN, "max_mb": range(1, 1_000_001), "arguments": ("hash", "none", "full")},
    "notify": {"on": [*EVENTS], "command": [], "webhook": str, "desktop": bool},
}
"""The settings of each table of the file."""

LISTED: Final = ("notify",)
"""The tables of which the file may have several: `[[notify]]`."""

_IN_FILE: Final = {
    "store": "store.url",
    "user": "identity.user",
    "agent": "identity.agent",
    "namespace": "store.namespace",
    "denials": "denials",
}
"""The settings that an option or a variable can have, too, and their keys in the file."""

SWITCHES: Final = ("observe", "quiet")
"""The options of `run` without a value that a variable can stand for."""

_WORDS: Final = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_NAMES: Final = ("user", "agent", "server", "namespace")


def load(environ: Mapping[str, str], **options: str | None) -> Settings:
    """Read the settings. An option overrides a variable, and a variable overrides `config.toml`.

    Args:
        environ: The environment.
        options: The options `config`, `policy`, `store`, `user`, `agent` and `denials` of the command line. `server` is only
            checked.

    Raises:
        ConfigError: A setting is not valid.
    """

    def chosen(key: str) -> tuple[str | None, str]:
        """The value of an option or a variable, and which of them has it."""
        return options.get(key) or environ.get(f"MCPGUARD_{key.upper()}"), place(key, options.get(key), environ)

    accounts = folders(environ)
    named, where = chosen("config")
    file = absolute(named, where=where) if named else accounts.config_file
    values = _read(file, accounts.state, where=where if named else "")
    places = {key: f"{file}: {path}" for key, path in _IN_FILE.items()}
    for key in _IN_FILE:
        value, where = chosen(key)
        if value:
            values[key], places[key] = value, where
    if "jwt" in values and "user" in values:  # one of the two would have no effect
        hint = f"leave it out, or remove [identity.jwt] from {file}"
        raise ConfigError(f"{places['user']}: only a verified token may name the user here", hint)
    if any("\ud800" <= char <= "\udfff" for char in str(values.get("namespace", ""))):  # the bytes that are not UTF-8
        raise ConfigError(f"{places['namespace']}: {values['namespace']!r} is not UTF-8", "write MCPGUARD_NAMESPACE=team")
    _setting("denials", DENIALS, values.get("denials", "auto"), places["denials"])
    for key in SWITCHES:
        if (is_on := switch(f"MCPGUARD_{key.upper()}", environ)) is not None:
            values[key] = is_on
    server, places["server"] = chosen("server")
    for key, name in {**values, "server": server}.items():
        if key in _NAMES and holds_token(str(name)):  # it would be in every audit row
            hint = "configure [identity.jwt] to take users from tokens"
            raise ConfigError(f"{places[key]} holds a token where a name belongs", hint)
    policy, places["policy"] = chosen("policy")
    warnings: tuple[str, ...] = ()
    if store := options.get("store"):
        from mcpguard.stores.address import has_password

        seen = "which other accounts can see in the list of processes"
        told = f"--store holds a password, {seen}: put the URL into {file} (mode 0600) or MCPGUARD_STORE"
        warnings = (told,) if has_password(store) else ()
    return Settings(
        policy_path=absolute(policy, where=places["policy"]) if policy else accounts.policy_file,
        policy_named=bool(policy),
        database_path=accounts.database,
        store_password=environ.get("MCPGUARD_STORE_PASSWORD", ""),
        file_path=file,
        warnings=warnings,
        places=places,
        **values,  # type: ignore[arg-type]
    )


def switch(name: str, environ: Mapping[str, str]) -> bool | None:
    """The truth value of a variable; None if it is not set.

    Raises:
        ConfigError: The word is not one of `_WORDS`.
    """
    word = environ.get(name)
    if not word:
        return None
    if (found := _WORDS.get(word.lower())) is None:
        raise ConfigError(f"{name}: {word!r} is neither 1 nor 0", f"write {name}=1")
    return found


def _read(file: str, state: str, *, where: str) -> dict[str, object]:
    """The settings in a file. `where` is the option or variable that names it. If it is empty, the file may be missing."""
    values: dict[str, object] = {}
    waiting = [("", _toml(file, where=where))]
    ways: list[Way] = []
    for name, table in waiting:
        place = f"{file}: {name} {len(ways) + 1}: " if name in LISTED else f"{file}: {name}." if name else f"{file}: "
        inner = {key.rpartition(".")[2]: key for key in SETTINGS if key and key.rpartition(".")[0] == name}
        jwt = table if name == "identity.jwt" else None
        found: dict[str, object] = {}
        for key, value in table.items():
            if key in inner:
                waiting += [(inner[key], one) for one in _tables(inner[key], value, file)]
            elif key not in SETTINGS[name]:
                raise ConfigError(f"{place}{key}: unknown setting", _hint(key, name, [*inner, *SETTINGS[name]]))
            elif jwt is None:
                found |= _setting(key, SETTINGS[name][key], value, f"{place}{key}")
        if name in LISTED:
            from mcpguard.alerts import way

            ways.append(way(found, EVENTS, place.rstrip(": ")))
        else:
            values |= found
        if jwt is not None:
            from mcpguard.identity import jwt_settings

            values["jwt"] = jwt_settings.read(jwt, file=_path(file), state=_path(state))
    return values | {"notify": tuple(ways)}


def _tables(name: str, value: object, file: str) -> list[dict[str, object]]:
    """The table of a name, or the tables if the file may have several."""
    tables, header = (value, f"[[{name}]]") if name in LISTED else ([value], f"[{name}]")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{file}: {name!r} is not a table", f"write {header} above its settings")
    return tables


def _toml(file: str, *, where: str) -> dict[str, object]:
    try:
        text = read_at_once(file).decode()
        if text.startswith("\ufeff"):
            raise ConfigError(f"{file}: begins with a byte order mark", "save it as UTF-8 without one")
        import tomllib  # loaded before the server is started, so only if there is a file

        data = tomllib.loads(text)
        repr(data)  # fails now, and not in an error about it, if a hexadecimal number has too many digits
        return data
    except FileNotFoundError:
        if where:
            raise ConfigError(f"{where}: {file}: no such file", "give the name of a file that exists") from None
        if os.path.islink(file):  # noqa: PTH114 - no `pathlib` here
            raise ConfigError(f"{file}: a link to a file that does not exist", "correct the link, or remove it") from None
        return {}
    except OSError as error:
        hint = "name a TOML file that this account may read"
        raise ConfigError(f"{file}: cannot be read: {error.strerror}", hint) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8", "save it as UTF-8") from error
    except (ValueError, RecursionError) as error:  # a very long number, or deep nesting
        raise ConfigError(f"{file}: not TOML: {error}", "write text in quotes, and table names in [brackets]") from error


def _setting(key: str, kind: SettingKind, value: object, where: str) -> dict[str, object]:
    if kind is SPAN:
        return {"keep_us": span_us(value, where=where)}
    what, hint = "", ""
    if isinstance(kind, list):
        if (
            not isinstance(value, list)
            or not value
            or not all(one and isinstance(one, str) and one in (kind or value) for one in value)
        ):
            what, hint = f"is not a list of {', '.join(kind) or 'words'}", f'write {key} = ["{[*kind, "…"][0]}"]'
    elif isinstance(kind, tuple):
        if value not in kind:
            near = closest_word(str(value), kind)
            what = f"is none of {', '.join(kind)}"
            hint = f"did you mean {written(where, key, near)}?" if near else f"use one of: {' '.join(kind)}"
    elif isinstance(kind, range):
        if not isinstance(value, int) or isinstance(value, bool) or value not in kind:
            what, hint = f"is not a number from {kind[0]} to {kind[-1]}", f"write {key} = {Settings._field_defaults[key]}"
    elif kind is bool:
        if not isinstance(value, bool):
            what, hint = "is neither true nor false", f"write {key} = true or {key} = false, without quotes"
    elif not isinstance(value, str) or not value:
        what, hint = f"is {'empty' if value == '' else 'not text'}", f'write {key} = "…"'
    if what:
        shown = "this" if key in {"url", "webhook", "command"} else repr(value)  # it may hold a password
        raise ConfigError(f"{where}: {shown} {what}", hint)
    return {"store" if key == "url" else key: value}


_LONGEST_SPAN_S: Final = 999_999 * 604_800
"""In microseconds it fits into the 64 bits that a store has for a time."""


def span_us(text: object, *, where: str) -> int:
    """A span of time such as `30d` in microseconds.

    Raises:
        ConfigError: The text is not a span of time.
    """
    seconds = seconds_of(text)
    if not seconds or seconds > _LONGEST_SPAN_S:
        raise ConfigError(f"{where}: {text!r} is not a span of time", 'write a number and one of s m h d w, such as "30d"')
    return seconds * 1_000_000


def _hint(key: str, table: str, known: Sequence[str]) -> str:
    """How to write a setting that a table does not have; `known` are those that it has."""
    if not table and key in {"rule", "cost", "mode", "wait"}:
        return f"write {key} into policy.toml"
    other = "" if table else next((name for name, keys in SETTINGS.items() if key in keys), "")
    if other:
        return f"write {key} below a line {f'[[{other}]]' if other in LISTED else f'[{other}]'}"
    return did_you_mean(key, known)
