import contextlib
import os
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from platformdirs.macos import MacOS
from platformdirs.unix import Unix

from mcpguard.config import Settings, load, span_us
from mcpguard.configured_identity import configured_identity
from mcpguard.errors import ConfigError
from mcpguard.identity.account import account_name, folders
from mcpguard.stores.address import SqliteAddress, has_password

if sys.platform != "win32":
    import pwd

DAY_US = 86_400_000_000
HOME = "USERPROFILE" if sys.platform == "win32" else "HOME"


def loaded(home: Path, text: str = "", environ: Mapping[str, str] | None = None, **options: str | None) -> Settings:
    """Settings of an account whose `config.toml` has this text."""
    (home / "config.toml").write_text(text)
    return load({"MCPGUARD_HOME": str(home)} | dict(environ or {}), **options)


def refusal(home: Path, text: str = "", environ: Mapping[str, str] | None = None, **options: str | None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        loaded(home, text, environ, **options)
    assert "\n" not in caught.value.message
    assert caught.value.exit_status == (2 if caught.value.message.startswith("--") else 78)
    return caught.value


def test_without_any_setting_everything_is_in_the_accounts_folder(tmp_path: Path) -> None:
    names = ("policy.toml", "mcpguard.db", "config.toml")
    policy, database, file = (str(tmp_path / name) for name in names)
    usual = Settings(policy_path=policy, policy_named=False, database_path=database, file_path=file)
    assert load({"MCPGUARD_HOME": str(tmp_path)})._replace(places={}) == usual


def test_every_setting_of_the_file_is_taken(tmp_path: Path) -> None:
    text = """
        denials = "result"
        quiet = true
        max_frame_bytes = 4096
        [store]
        url = "sqlite:///elsewhere/x.db"
        namespace = "team"
        timeout_ms = 100
        on_unavailable = "deny"
        durability = "full"
        [identity]
        user = "alice@acme.com"
        agent = "Claude Desktop::interactive::default"
        trust_client_info = false
        trust_meta = true
        [audit]
        keep = "2w"
        max_mb = 10
        arguments = "none"
    """
    tables = tomllib.loads(text)
    store, identity, audit = (tables.pop(name) for name in ("store", "identity", "audit"))
    store["store"] = store.pop("url")
    audit["keep_us"] = 14 * DAY_US if audit.pop("keep") == "2w" else None
    assert loaded(tmp_path, text) == loaded(tmp_path)._replace(**tables, **store, **identity, **audit)


def test_the_files_that_decide_are_the_policy_the_settings_and_the_store_if_it_is_one(tmp_path: Path) -> None:
    usual = [str(tmp_path / name) for name in ("policy.toml", "config.toml", "mcpguard.db")]
    assert loaded(tmp_path).files == usual
    policy = str(tmp_path / "p.toml")
    assert loaded(tmp_path, policy=policy, store="redis://localhost").files == [policy, usual[1]]


def test_a_file_of_keys_decides_who_calls(tmp_path: Path) -> None:
    table = '[identity.jwt]\nissuer = "https://idp.acme.com"\naudience = "mcp"\njwks = "{}keys.json"\n'
    assert loaded(tmp_path, table.format("")).files[-1] == str(tmp_path / "keys.json")
    assert loaded(tmp_path, table.format("https://idp.acme.com/")).files[-1] == str(tmp_path / "mcpguard.db")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("user", '[identity]\nuser = "error"'),
        ("agent", '[identity]\nagent = "error"'),
        ("store", '[store]\nurl = "error"'),
        ("namespace", '[store]\nnamespace = "error"'),
        ("denials", 'denials = "error"'),
    ],
)
def test_an_option_overrides_a_variable_and_a_variable_the_file(tmp_path: Path, key: str, text: str) -> None:
    variable = {f"MCPGUARD_{key.upper()}": "result"}
    assert getattr(loaded(tmp_path, text), key) == "error"
    assert getattr(loaded(tmp_path, text, variable), key) == "result"
    assert getattr(loaded(tmp_path, text, variable, **{key: "auto"}), key) == "auto"
    assert getattr(loaded(tmp_path, text, variable, **{key: None}), key) == "result"


@pytest.mark.parametrize("key", ["USER", "AGENT", "STORE", "DENIALS", "POLICY", "CONFIG", "NAMESPACE"])
def test_an_empty_variable_counts_as_not_set(tmp_path: Path, key: str) -> None:
    assert loaded(tmp_path, environ={f"MCPGUARD_{key}": ""}) == loaded(tmp_path)


NO_HOME = "the home or working folder for ~nosuchuser/x does not exist"


@pytest.mark.parametrize(
    ("name", "value", "told", "hint"),
    [
        # So Python decodes a byte that is not UTF-8
        ("MCPGUARD_NAMESPACE", "team\udcff", r"'team\udcff' is not UTF-8", "write MCPGUARD_NAMESPACE=team"),
        ("MCPGUARD_DENIALS", "both", "'both' is none of auto, error, result", "use one of: auto error result"),
        ("MCPGUARD_QUIET", "very", "'very' is neither 1 nor 0", "write MCPGUARD_QUIET=1"),
        ("MCPGUARD_OBSERVE", "very", "'very' is neither 1 nor 0", "write MCPGUARD_OBSERVE=1"),
        *(
            pytest.param(name, "~nosuchuser/x", NO_HOME, "write an absolute path", marks=pytest.mark.posix)
            for name in ("MCPGUARD_HOME", "MCPGUARD_CONFIG", "MCPGUARD_POLICY")  # Windows has such a folder for every name
        ),
    ],
)
def test_an_invalid_variable_is_reported_with_a_hint(tmp_path: Path, name: str, value: str, told: str, hint: str) -> None:
    error = refusal(tmp_path, environ={name: value})
    assert (error.message, error.hint) == (f"{name}: {told}", hint)


@pytest.mark.parametrize(
    ("word", "quiet"), [("1", True), ("TRUE", True), ("yes", True), ("0", False), ("off", False), ("", True)]
)
def test_a_variable_for_quiet_overrides_the_file(tmp_path: Path, word: str, quiet: bool) -> None:
    assert loaded(tmp_path, "quiet = true\n", {"MCPGUARD_QUIET": word}).quiet is quiet


def test_a_named_policy_must_exist_and_is_found_from_where_we_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other.toml"
    by_option = loaded(tmp_path, environ={"MCPGUARD_POLICY": str(other)}, policy="team.toml")
    assert (by_option.policy, by_option.policy_named) == (tmp_path / "team.toml", True)
    by_variable = loaded(tmp_path, environ={"MCPGUARD_POLICY": str(other)})
    assert (by_variable.policy, by_variable.policy_named) == (other, True)


def test_a_tilde_is_the_accounts_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME, str(tmp_path))
    assert Path(folders({"MCPGUARD_HOME": "~/guard"}).config) == tmp_path / "guard"
    assert load({"MCPGUARD_HOME": "~/guard", "MCPGUARD_POLICY": "~/p.toml"}).policy == tmp_path / "p.toml"


@pytest.mark.posix
def test_a_relative_path_is_refused_if_the_working_folder_was_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "the home or working folder for team.toml does not exist" in refusal(tmp_path, policy="team.toml").message


TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("key", "place"),
    [
        *((key, place) for key in ("user", "agent", "server", "policy", "config") for place in ("option", "variable")),
        ("namespace", "variable"),
        ("namespace", "store"),
        ("user", "identity"),
    ],
)
def test_a_token_where_something_else_belongs_is_refused_without_repeating_it(tmp_path: Path, key: str, place: str) -> None:
    given = {key: TOKEN} if place == "option" else {}
    environ = {f"MCPGUARD_{key.upper()}": TOKEN} if place == "variable" else {}
    error = refusal(tmp_path, "" if given or environ else f'[{place}]\n{key} = "{TOKEN}"', environ, **given)
    assert "holds a token where a " in error.message
    assert key in error.message.lower()
    assert not [part for part in TOKEN.split(".") if part in error.message + error.hint]


def test_another_file_of_settings_can_be_named(tmp_path: Path) -> None:
    for name in ("option", "variable"):
        (tmp_path / name).write_text(f'[identity]\nuser = "{name}"\n')
    variable = {"MCPGUARD_CONFIG": str(tmp_path / "variable")}
    assert loaded(tmp_path, '[identity]\nuser = "usual"', variable).user == "variable"
    assert loaded(tmp_path, "", variable, config=str(tmp_path / "option")).user == "option"


def test_a_file_of_settings_that_is_named_must_exist(tmp_path: Path) -> None:
    none, hint = str(tmp_path / "none.toml"), "give the name of a file that exists"
    by_option, by_variable = refusal(tmp_path, config=none), refusal(tmp_path, environ={"MCPGUARD_CONFIG": none})
    assert (by_option.message, by_option.hint) == (f"--config: {none}: no such file", hint)
    assert (by_variable.message, by_variable.hint) == (f"MCPGUARD_CONFIG: {none}: no such file", hint)


@pytest.mark.posix
def test_a_settings_file_that_is_a_link_to_no_file_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "config.toml").symlink_to(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="a link to a file that does not exist"):
        load({"MCPGUARD_HOME": str(tmp_path)})


def test_a_folder_is_no_file_of_settings(tmp_path: Path) -> None:
    error = refusal(tmp_path, config=str(tmp_path))
    why = "Permission denied" if sys.platform == "win32" else "Is a directory"
    assert (error.message, error.hint) == (f"{tmp_path}: cannot be read: {why}", "name a TOML file that this account may read")


@pytest.mark.posix
def test_nobody_waits_for_a_pipe_or_a_device_in_place_of_a_file_of_settings(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path, config=str(tmp_path / "pipe")).message.endswith(": cannot be read: a pipe, not a file")
    assert refusal(tmp_path, config="/dev/zero").message.endswith(": cannot be read: a device, not a file")


def test_the_empty_device_is_a_file_without_settings(tmp_path: Path) -> None:
    assert loaded(tmp_path, '[identity]\nuser = "usual"', config=os.devnull).user is None


NOT_TOML = "not TOML: ", "write text in quotes, and table names in [brackets]"


@pytest.mark.parametrize(
    ("content", "what", "hint"),
    [
        *((text, *NOT_TOML) for text in (b"[store", b"user = alice", b"a = 1\na = 2", b"a = " + b"9" * 5000)),
        *((text, *NOT_TOML) for text in (b"a = " + b"[" * 100_000, b"quiet = 0x" + b"f" * 5000)),
        (b"\xff\xfe", "not UTF-8", "save it as UTF-8"),
        (b'\xef\xbb\xbfdenials = "error"', "begins with a byte order mark", "save it as UTF-8 without one"),
    ],
    ids=range(8),
)
def test_a_file_of_settings_that_is_no_toml_says_so(tmp_path: Path, content: bytes, what: str, hint: str) -> None:
    (tmp_path / "odd.toml").write_bytes(content)
    error = refusal(tmp_path, config=str(tmp_path / "odd.toml"))
    assert error.message.startswith(f"{tmp_path / 'odd.toml'}: {what}")
    assert error.hint == hint


OUTAGE = "use one of: local deny allow"
FRAME = "write max_frame_bytes = 10485760"
HASH = 'did you mean arguments = "hash"?'
SPAN = 'write a number and one of s m h d w, such as "30d"'


TIMEOUT, MS = "is not a number from 1 to 60000", "write timeout_ms = 250"
DESKTOP = "[[notify]]\ndesktop = true\n"
NO_WAY = "not exactly one of command, webhook and desktop"
ONE_WAY = 'write one of desktop = true, webhook = "https://…" and command = ["…"]; for several ways, several [[notify]]'
NO_WORDS = "notify 1: command: this is not a list of words", 'write command = ["…"]'
EVENTS, ON = "is not a list of denied, warn, unavailable", 'write on = ["denied"]'


@pytest.mark.parametrize(
    ("text", "told", "hint"),
    [
        ("denial = 1", "denial: unknown setting", "did you mean denials?"),
        ("[stor]", "stor: unknown setting", "did you mean store?"),
        ("zzz = 1", "zzz: unknown setting", "use one of: store identity audit notify denials quiet max_frame_bytes"),
        ("[[rule]]\nlimit = '5/1m'", "rule: unknown setting", "write rule into policy.toml"),
        ("mode = 'observe'", "mode: unknown setting", "write mode into policy.toml"),
        ("user = 'alice'", "user: unknown setting", "write user below a line [identity]"),
        ("issuer = 'https://x'", "issuer: unknown setting", "write issuer below a line [identity.jwt]"),
        ("webhook = 'https://x'", "webhook: unknown setting", "write webhook below a line [[notify]]"),
        ("[store]\ntimeout = 1", "store.timeout: unknown setting", "did you mean timeout_ms?"),
        ("[audit]\nqqq = 1", "audit.qqq: unknown setting", "use one of: keep max_mb arguments"),
        ("[[notify]]\ndesk = true", "notify 1: desk: unknown setting", "did you mean desktop?"),
        ("store = 'x'", "'store' is not a table", "write [store] above its settings"),
        ("[notify]\ndesktop = true", "'notify' is not a table", "write [[notify]] above its settings"),
        ("notify = ['desktop']", "'notify' is not a table", "write [[notify]] above its settings"),
        ("denials = 'x'", "denials: 'x' is none of auto, error, result", "use one of: auto error result"),
        ("denials = ['error']", "denials: ['error'] is none of auto, error, result", 'did you mean denials = "error"?'),
        ("[store]\non_unavailable = 7", "store.on_unavailable: 7 is none of local, deny, allow", OUTAGE),
        ("[store]\non_unavailable = 'open'", "store.on_unavailable: 'open' is none of local, deny, allow", OUTAGE),
        ("[store]\ndurability = 1", "store.durability: 1 is none of normal, full", "use one of: normal full"),
        ("[audit]\narguments = 'hashs'", "audit.arguments: 'hashs' is none of hash, none, full", HASH),
        *((f"[store]\ntimeout_ms = {one}", f"store.timeout_ms: {one} {TIMEOUT}", MS) for one in ("0", "60001", "'5'", "1.5")),
        ("[store]\ntimeout_ms = true", f"store.timeout_ms: True {TIMEOUT}", MS),
        ("[audit]\nmax_mb = -1", "audit.max_mb: -1 is not a number from 1 to 1000000", "write max_mb = 256"),
        ("max_frame_bytes = 10", "max_frame_bytes: 10 is not a number from 1024 to 1073741824", FRAME),
        (
            "[identity]\ntrust_meta = 1",
            "identity.trust_meta: 1 is neither true nor false",
            "write trust_meta = true or trust_meta = false, without quotes",
        ),
        ("[identity]\nuser = ''", "identity.user: '' is empty", 'write user = "…"'),
        ("[identity]\nuser = 7", "identity.user: 7 is not text", 'write user = "…"'),
        ("[store]\nurl = ['redis://u:secret@h']", "store.url: this is not text", 'write url = "…"'),
        *((f"[audit]\nkeep = {one}", f"audit.keep: {one} is not a span of time", SPAN) for one in ("30", "'30'", "'0d'")),
        ("[[notify]]\non = ['denied']", f"notify 1: {NO_WAY}", ONE_WAY),
        ("[[notify]]\ndesktop = false", f"notify 1: {NO_WAY}", ONE_WAY),
        (f"{DESKTOP}{DESKTOP}command = ['x']", f"notify 2: {NO_WAY}", ONE_WAY),
        (
            "[[notify]]\ndesktop = 'yes'",
            "notify 1: desktop: 'yes' is neither true nor false",
            "write desktop = true or desktop = false, without quotes",
        ),
        *((f"{DESKTOP}on = {one}", f"notify 1: on: {one} {EVENTS}", ON) for one in ("'denied'", "[]", "['deny']")),
        *((f"[[notify]]\ncommand = {one}", *NO_WORDS) for one in ("'notify me'", "['a', 1]", "['']")),
        ("[[notify]]\nwebhook = ''", "notify 1: webhook: this is empty", 'write webhook = "…"'),
        ("[[notify]]\nwebhook = ['s3cret']", "notify 1: webhook: this is not text", 'write webhook = "…"'),
    ],
)
def test_an_invalid_setting_is_reported_with_a_hint(tmp_path: Path, text: str, told: str, hint: str) -> None:
    error = refusal(tmp_path, text)
    assert (error.message, error.hint) == (f"{tmp_path / 'config.toml'}: {told}", hint)


def test_the_ways_to_notify_are_taken_in_order_and_tell_all_events_unless_they_name_some(tmp_path: Path) -> None:
    text = "[[notify]]\ndesktop = true\n[[notify]]\non = ['warn']\ncommand = ['a', 'b c']\n[[notify]]\nwebhook = '{}'\n"
    url = "https://hooks.acme.com/s3cret"
    ways = loaded(tmp_path, text.format(url)).notify
    every = ("denied", "warn", "unavailable")
    assert [tuple(way) for way in ways] == [
        (every, (), ""),
        (("warn",), ("a", "b c"), ""),
        (every, (), url),
    ]
    assert [way.shown for way in ways] == ["desktop", "command a", "webhook at hooks.acme.com"]


@pytest.mark.parametrize(
    "url", ["http://hooks.acme.com/s3cret", "https://u:s3cret@acme.com/", "ftp://acme.com/s3cret", "s3cret", "https://[s3cret"]
)
def test_a_webhook_whose_messages_the_network_could_read_is_refused_and_not_repeated(tmp_path: Path, url: str) -> None:
    error = refusal(tmp_path, f"[[notify]]\nwebhook = '{url}'\n")
    assert error.message == f"{tmp_path / 'config.toml'}: notify 1: webhook: messages are not sent to this URL"
    assert "s3cret" not in str(error)
    assert loaded(tmp_path, "[[notify]]\nwebhook = 'http://localhost:1/x'\n").notify[0].webhook == "http://localhost:1/x"


@pytest.mark.parametrize(
    ("text", "us"),
    [
        *(("90m", 5_400_000_000), ("2w", 14 * DAY_US), ("604799395200s", 6999993 * DAY_US)),  # the most
        *((text, None) for text in ("1y", "1d ", "1000000w", "604799395201s", "9" * 5000 + "s", "１d")),
    ],
)
def test_a_span_of_time_has_a_bound(text: str, us: int | None) -> None:
    with contextlib.nullcontext() if us else pytest.raises(ConfigError):
        assert span_us(text, where="keep") == us


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///var/lib/x.db", "/var/lib/x.db"),
        ("sqlite:///with%20space/%C3%BC.db", "/with space/ü.db"),
        ("sqlite:///C:/Users/x.db", "C:/Users/x.db"),
        ("sqlite:///var/lib/x.db/", "/var/lib/x.db"),
        ("sqlite:////", "/"),
    ],
)
def test_a_sqlite_address_is_a_path(tmp_path: Path, url: str, path: str) -> None:
    assert loaded(tmp_path, store=url).address == SqliteAddress(path)


def test_a_sqlite_address_may_begin_in_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME, str(tmp_path))
    assert loaded(tmp_path, store="sqlite:///~/team.db").address == SqliteAddress(str(tmp_path / "team.db"))
    assert "does not exist" in refused_address(loaded(tmp_path, store="sqlite:///~nobody-here/team.db")).message


def refused_address(settings: Settings) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        _ = settings.address
    return caught.value


@pytest.mark.parametrize(
    "url", ["sqlite://relative.db", "sqlite:///", "sqlite:///a%00b.db", "/var/x.db", "postgres://user:s3cret@host/db", "x"]
)
def test_an_unknown_store_address_is_refused_without_repeating_its_password(tmp_path: Path, url: str) -> None:
    error = refused_address(loaded(tmp_path, store=url))
    assert "URL" in error.message
    assert "s3cret" not in error.message


def test_a_path_with_special_characters_is_kept_in_the_address(tmp_path: Path) -> None:
    home = tmp_path / ("a b%20c ü#" if sys.platform == "win32" else "a b%20c ü#?")
    home.mkdir()
    assert loaded(home).address == SqliteAddress(str(home / "mcpguard.db"))


URL = "sqlite:///absolute/path.db"


@pytest.mark.parametrize(
    ("given", "where", "hint", "status"),
    [
        ({"option": "odd"}, "--store", f"write --store {URL}", 2),
        ({"variable": "odd"}, "MCPGUARD_STORE", f"write MCPGUARD_STORE={URL}", 78),
        ({"file": "odd"}, "{file}: store.url", f'write url = "{URL}"', 78),
        ({"option": "odd", "variable": URL, "file": URL}, "--store", f"write --store {URL}", 2),
        ({"variable": "odd", "file": URL}, "MCPGUARD_STORE", f"write MCPGUARD_STORE={URL}", 78),
    ],
)
def test_an_invalid_store_is_reported_with_its_place(
    tmp_path: Path, given: dict[str, str], where: str, hint: str, status: int
) -> None:
    text = f'[store]\nurl = "{given["file"]}"' if "file" in given else ""
    error = refused_address(loaded(tmp_path, text, {"MCPGUARD_STORE": given.get("variable", "")}, store=given.get("option")))
    assert error.message == f"{where.format(file=tmp_path / 'config.toml')}: this is not a URL"
    assert (error.hint, error.exit_status) == (hint, status)


def test_an_invalid_agent_in_the_file_is_reported_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        configured_identity(loaded(tmp_path, '[identity]\nagent = "subagent"'), "crm")
    assert caught.value.message == f"{tmp_path / 'config.toml'}: identity.agent: 'subagent' does not have three parts"
    assert caught.value.exit_status == 78


@pytest.mark.posix
@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_the_usual_folders_are_those_of_platformdirs(tmp_path: Path, system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path)})
    monkeypatch.setattr(sys, "platform", system)
    places = (Unix if system == "linux" else MacOS)("mcpguard", appauthor=False)
    assert folders({}) == (places.user_config_dir, places.user_state_dir)


@pytest.mark.posix
def test_a_home_folder_at_the_root_is_not_named_with_two_slashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"HOME": "/"})
    monkeypatch.setattr(sys, "platform", "linux")
    assert folders({}) == ("/.config/mcpguard", "/.local/state/mcpguard")


def test_a_path_with_a_nul_character_is_refused(tmp_path: Path) -> None:
    jwt = '[identity.jwt]\nissuer = "i"\naudience = "a"\njwks = "keys.json"\ntoken_file = "a\\u0000b"'
    error = refusal(tmp_path, jwt)
    where = f"{tmp_path / 'config.toml'}: identity.jwt.token_file"
    path = str(tmp_path / "a\0b")
    assert error.message == f"{where}: {path!r} is not a path: it has a NUL character"
    assert error.hint == "write a path without it"


@pytest.mark.posix
def test_an_account_without_a_home_folder_is_told_how_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    with pytest.raises(ConfigError, match="this account has no home folder"):
        folders({})


@pytest.mark.posix
def test_an_account_without_a_name_is_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_711_000)
    assert account_name() == "4711000"


def test_the_account_is_the_systems_whatever_variables_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "mallory")
    assert account_name() == (pwd.getpwuid(os.getuid()).pw_name if sys.platform != "win32" else os.getlogin())


def test_the_repr_of_settings_has_no_secret(tmp_path: Path) -> None:
    settings = loaded(tmp_path, environ={"MCPGUARD_STORE": "redis://u:s3cret@x", "MCPGUARD_STORE_PASSWORD": "hidden"})
    assert settings.store_password == "hidden"
    assert not any(secret in repr(settings) for secret in ("s3cret", "hidden"))


WITH_PASSWORD = "redis://alice:S3cret@cache.acme.com/0"


def test_it_warns_of_a_password_on_the_command_line_without_repeating_it(tmp_path: Path) -> None:
    (warning,) = loaded(tmp_path, store=WITH_PASSWORD).warnings
    assert "--store holds a password" in warning
    assert f"{tmp_path / 'config.toml'}" in warning
    assert "S3cret" not in warning
    assert loaded(tmp_path, environ={"MCPGUARD_STORE": WITH_PASSWORD}).warnings == ()
    assert loaded(tmp_path, f'[store]\nurl = "{WITH_PASSWORD}"').warnings == ()
    assert loaded(tmp_path, f'[store]\nurl = "{WITH_PASSWORD}"', store="redis://cache.acme.com/0").warnings == ()


@pytest.mark.parametrize(
    ("url", "has"),
    [
        *((url, True) for url in ("redis://:x@host", "rediss://a:x@host:6380/0?ca_file=/b", "redis://a:x%40y@host")),
        *((url, True) for url in ("redis+cluster://a:x@one:1,two:2", "unix://a:x@/run/redis.sock")),
        *((url, False) for url in ("redis://host:6379/0", "redis://a@host:6379/0", "redis://a:@host", "no URL")),
        *(
            (url, False)
            for url in ("redis+cluster://one:1,two:2", "redis://host/0?password_file=/a:b@c", "sqlite:////a:b@c.db")
        ),
    ],
)
def test_whether_a_url_has_a_password(url: str, has: bool) -> None:
    assert has_password(url) is has
