"""Files and settings: where they lie, and what they may say."""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from mcpguard.core.redaction import holds_token
from mcpguard.errors import ConfigError
from mcpguard.files import named_path, read_at_once
from mcpguard.stores.address import address, has_password
from mcpguard.stores.api import Address, Options
from mcpguard.stores.sqlite.address import SqliteAddress

if TYPE_CHECKING:  # loaded where it is configured
    from mcpguard.auth.settings import JwtSettings
    from mcpguard.stores.api import Readable, Store

PATIENCE_MS: Final = 5000
"""How long a command waits for the store, at least. Nobody's call waits for a command."""


class Settings(NamedTuple):
    """What `config.toml`, the environment and the options come to.

    Attributes:
        policy: The policy file.
        policy_named: Whether somebody named it: then it must exist.
        database: The account's own store.
        store: The URL of another one; empty if there is none.
        store_password: Its password, if that does not stand in the URL.
        namespace: Counters and audit are per namespace.
        timeout_ms: How long a call waits for the store.
        on_unavailable: `local`, `deny` or `allow`.
        durability: `normal` or `full`.
        user: The configured user; None for the account's.
        agent: The configured agent; None if there is none.
        jwt: How users are verified; None if they are not.
        trust_client_info: Whether a client that names itself is believed.
        trust_meta: Whether a call that names its agent is believed.
        denials: `auto`, `error` or `result`.
        quiet: Whether a running guard says nothing but errors.
        max_frame_bytes: The longest line that is accepted from a client.
        keep_us: How long audit rows are kept.
        max_mb: How much of the store a namespace may take before its oldest audit rows go.
        arguments: What the audit keeps of a call's arguments: `hash`, `none` or `full`.
        file: `config.toml`, which may be missing; None if these come from elsewhere.
        warnings: What whoever starts a guard with these should know.
    """

    policy: Path
    policy_named: bool
    database: Path
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
    max_frame_bytes: int = 10 * 1024 * 1024
    keep_us: int = 30 * 86400 * 1_000_000
    max_mb: int = 256
    arguments: str = "hash"
    file: Path | None = None
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Without its secrets: the password, and an address that may hold one."""
        return f"<settings with the policy {self.policy}>"

    @property
    def address(self) -> Address:
        """Where the store is.

        Raises:
            ConfigError: The URL names no store.
        """
        return address(self.store, self.store_password) if self.store else SqliteAddress(self.database)

    @property
    def files(self) -> list[Path]:
        """The files that decide what is allowed: whoever can change one of them can lift a limit."""
        store = self.address
        return [self.policy, *([self.file] if self.file else []), *([store.path] if isinstance(store, SqliteAddress) else [])]

    def open_store(self, *, least_timeout_ms: int = 0) -> "Store":
        """Open the store that the settings name; it is made if it is missing.

        Args:
            least_timeout_ms: Wait at least as long as this.

        Raises:
            ConfigError: The URL names no store.
            StoreUnavailable: It cannot be used.
        """
        return self.address.open(self._store_options(least_timeout_ms))

    def read_store(self) -> "Readable":
        """Open the store that the settings name, which exists, for a command to read. Raises as `open_store` does."""
        return self.address.read(self._store_options(PATIENCE_MS))

    def _store_options(self, least_timeout_ms: int) -> Options:
        return Options(
            namespace=self.namespace,
            timeout_ms=max(self.timeout_ms, least_timeout_ms),
            durability=self.durability,
            keep_us=self.keep_us,
            max_bytes=self.max_mb * 1024 * 1024,
        )


class Folders(NamedTuple):
    """Where the account's files are: `config` has what people edit, `state` what the program keeps."""

    config: Path
    state: Path

    @property
    def config_file(self) -> Path:
        """Settings of this machine."""
        return self.config / "config.toml"

    @property
    def policy_file(self) -> Path:
        """The policy."""
        return self.config / "policy.toml"

    @property
    def database(self) -> Path:
        """Counters and audit."""
        return self.state / "mcpguard.db"


def folders(environ: Mapping[str, str]) -> Folders:
    """The account's places, or all in the one folder that `MCPGUARD_HOME` names.

    XDG variables do not count: MCP clients do not pass them on, and one account must have one policy.
    """
    home = environ.get("MCPGUARD_HOME")
    if home:
        place = named_path(home, where="MCPGUARD_HOME")
        return Folders(place, place)
    from platformdirs import PlatformDirs

    hidden = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith("XDG_")}
    try:
        places = PlatformDirs("mcpguard", appauthor=False)
        return Folders(Path(places.user_config_dir), Path(places.user_state_dir))
    except RuntimeError as error:  # no HOME, and no entry for this account
        raise ConfigError("this account has no home folder", "name a folder for its files with MCPGUARD_HOME") from error
    finally:
        os.environ.update(hidden)


_TABLES: Final[dict[str, tuple[str, ...]]] = {
    "": ("denials", "quiet", "max_frame_bytes"),
    "store": ("url", "namespace", "timeout_ms", "on_unavailable", "durability"),
    "identity": ("user", "agent", "trust_client_info", "trust_meta"),
    "identity.jwt": ("issuer", "audience", "jwks", "token_file", "algorithms", "user_claim", "roles_claim", "agent_claim"),
    "audit": ("keep", "max_mb", "arguments"),
}
_CHOICES: Final = {
    "denials": ("auto", "error", "result"),
    "on_unavailable": ("local", "deny", "allow"),
    "durability": ("normal", "full"),
    "arguments": ("hash", "none", "full"),
}
_SWITCHES: Final = ("quiet", "trust_client_info", "trust_meta")
_WORDS: Final = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_NAMES: Final = ("user", "agent", "server", "namespace")
_RANGES: Final = {"timeout_ms": (1, 60_000), "max_mb": (1, 1_000_000), "max_frame_bytes": (1024, 1 << 30)}


def load(environ: Mapping[str, str], **options: str | None) -> Settings:
    """Settings from options, the environment and `config.toml`, the first that has one.

    Args:
        environ: The environment.
        options: `config`, `policy`, `store`, `user`, `agent`, `denials`, as the command line has them; of `server` it is only
            seen to that it is a name.

    Raises:
        ConfigError: One of them cannot be.
    """
    places = folders(environ)
    named = options.get("config") or environ.get("MCPGUARD_CONFIG")
    option = "--config" if options.get("config") else "MCPGUARD_CONFIG"
    file = named_path(named, where=option) if named else places.config_file
    values = _read(file, places.state, must_exist=bool(named))
    if "jwt" in values:
        _refuse_another_user(file, values, {"--user": options.get("user"), "MCPGUARD_USER": environ.get("MCPGUARD_USER")})
    for key in ("store", "user", "agent", "denials", "policy", "namespace"):
        given = options.get(key) or environ.get(f"MCPGUARD_{key.upper()}")
        if given:
            values[key] = given
    if "denials" in values:
        _setting("denials", values["denials"], "denials")
    if word := environ.get("MCPGUARD_QUIET"):
        values["quiet"] = _switch(word, where="MCPGUARD_QUIET")
    server = options.get("server") or environ.get("MCPGUARD_SERVER")
    for key, name in {**values, "server": server}.items():
        if key in _NAMES and holds_token(str(name)):  # it would stand in every audit row
            raise ConfigError(f"{key} holds a token where a name belongs", "only [identity.jwt] takes users from tokens")
    policy = values.pop("policy", None)
    option = "--policy" if options.get("policy") else "MCPGUARD_POLICY"
    return Settings(
        policy=named_path(str(policy), where=option) if policy else places.policy_file,
        policy_named=policy is not None,
        database=places.database,
        store_password=environ.get("MCPGUARD_STORE_PASSWORD", ""),
        file=file,
        warnings=_warnings(file, store=options.get("store")),
        **values,  # type: ignore[arg-type]
    )


def _switch(word: str, *, where: str) -> bool:
    """Whether a variable switches something on.

    Raises:
        ConfigError: It says neither.
    """
    if (found := _WORDS.get(word.lower())) is None:
        raise ConfigError(f"{where}: {word!r} is neither 1 nor 0", f"{where}=1")
    return found


def _warnings(file: Path, *, store: str | None) -> tuple[str, ...]:
    if not store or not has_password(store):
        return ()
    places = f"{file} (mode 0600) or MCPGUARD_STORE"
    return (f"--store holds a password, which other accounts can see in the list of processes: put the URL into {places}",)


def _refuse_another_user(file: Path, values: Mapping[str, object], given: Mapping[str, str | None]) -> None:
    """Refuse a configured user where tokens name the user: whoever set both expects one of them to do what it does not."""
    places = {**given, f"{file}: identity.user": values.get("user")}
    named = next((place for place, user in places.items() if user), None)
    if named is not None:
        hint = f"leave it out, or remove [identity.jwt] from {file}"
        raise ConfigError(f"{named}: only a verified token may name the user here", hint)


def _read(file: Path, state: Path, *, must_exist: bool) -> dict[str, object]:
    data = _toml(file, must_exist=must_exist)
    identity = data.get("identity")
    nested = {"identity.jwt": identity.pop("jwt")} if isinstance(identity, dict) and "jwt" in identity else {}
    verifies = bool(nested)
    values: dict[str, object] = {}
    for name, known in _TABLES.items():
        tables = nested if "." in name else data
        table = tables.pop(name, {}) if name else {key: data.pop(key) for key in known if key in data}
        if not isinstance(table, dict):
            raise ConfigError(f"{file}: {name!r} is not a table", f"write [{name}] above its settings")
        for key in table:
            if key not in known:
                where = f"{file}: {name}.{key}" if name else f"{file}: {key}"
                inner = [other.removeprefix(f"{name}.") for other in _TABLES if other.startswith(f"{name}.")]
                raise ConfigError(f"{where}: unknown setting", _nearest(key, [*known, *inner]))
        if name == "identity.jwt" and verifies:
            from mcpguard.auth import settings as jwt_settings

            values["jwt"] = jwt_settings.read(table, file=file, state=state)
        else:
            for key, value in table.items():
                values |= _setting(key, value, f"{file}: {name}.{key}" if name else f"{file}: {key}")
    for key in data:
        outer = [name for name in _TABLES if "." not in name]
        raise ConfigError(f"{file}: {key}: unknown setting", _nearest(key, [*outer, *_TABLES[""]]))
    return values


def _toml(file: Path, *, must_exist: bool) -> dict[str, object]:
    try:
        text = read_at_once(file).decode()
        if text.startswith("\ufeff"):
            raise ConfigError(f"{file}: begins with a byte order mark", "save it as UTF-8 without one")
        import tomllib  # loaded before the server is started, so only where there is a file

        return tomllib.loads(text)
    except FileNotFoundError:
        if must_exist:
            raise ConfigError(f"{file}: no such file", "check --config or MCPGUARD_CONFIG") from None
        return {}
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}", "it is a file in TOML") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8", "it is a file in TOML, saved as UTF-8") from error
    except (ValueError, RecursionError) as error:  # a number too long to convert is no TOMLDecodeError, nor is deep nesting
        raise ConfigError(f"{file}: not TOML: {error}", "text stands in quotes, tables in [brackets]") from error


def _setting(key: str, value: object, where: str) -> dict[str, object]:
    if key in _CHOICES and value not in _CHOICES[key]:
        raise ConfigError(f"{where}: {value!r} is none of {', '.join(_CHOICES[key])}", _nearest(str(value), _CHOICES[key]))
    if key in _RANGES:
        low, high = _RANGES[key]
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            usual = Settings._field_defaults[key]
            raise ConfigError(f"{where}: {value!r} is not a number from {low} to {high}", f"{key} = {usual}")
    elif key in _SWITCHES:
        if not isinstance(value, bool):
            raise ConfigError(f"{where}: {value!r} is neither true nor false", f"{key} = false")
    elif not isinstance(value, str) or not value:
        shown = "this" if key == "url" else repr(value)  # it may hold a password
        raise ConfigError(f"{where}: {shown} is not text", f'{key} = "…"')
    if key == "keep":
        return {"keep_us": span_us(str(value), where=where)}
    return {"store" if key == "url" else key: value}


_UNIT_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}  # as a policy's; its parser is loaded later


def span_us(text: str, *, where: str) -> int:
    """A span of time such as `30d` in microseconds.

    Raises:
        ConfigError: It is none.
    """
    match = re.fullmatch(r"([0-9]{1,6})([smhdw])", text)
    if not match or not int(match[1]):
        raise ConfigError(f"{where}: {text!r} is not a span of time", "a number and one of s m h d w: 30d")
    return int(match[1]) * _UNIT_SECONDS[match[2]] * 1_000_000


def _nearest(word: str, known: "tuple[str, ...] | list[str]") -> str:
    import difflib  # on the way to an error only

    near = difflib.get_close_matches(word, known, 1, 0.5)
    return f"did you mean {near[0]}?" if near else f"known: {' '.join(key for key in known if key)}"


def account() -> str:
    """The name of the account that we run under, or its number if it has no name. No variable can say otherwise on POSIX."""
    if sys.platform == "win32":
        import getpass

        return getpass.getuser()
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
