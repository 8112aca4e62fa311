from pathlib import Path

import pytest

from mcpguard.config import Settings, load
from mcpguard.errors import ConfigError
from mcpguard.identity.claims import Expected
from mcpguard.identity.jwt_settings import ALGORITHMS, JwtSettings
from mcpguard.urls import shown_url, url_problem
from tests.provider import token

URL = "https://idp.acme.com/.well-known/jwks.json"
LEAST = f'[identity.jwt]\nissuer = "https://idp.acme.com/"\naudience = "crm-mcp"\njwks = "{URL}"\n'


def loaded(home: Path, text: str, environ: dict[str, str] | None = None, **options: str) -> Settings:
    (home / "config.toml").write_bytes(text.encode())
    return load({"MCPGUARD_HOME": str(home)} | (environ or {}), **options)


def refusal(home: Path, text: str, environ: dict[str, str] | None = None, **options: str) -> tuple[str, str]:
    with pytest.raises(ConfigError) as caught:
        loaded(home, text, environ, **options)
    assert "\n" not in caught.value.message
    assert caught.value.exit_status == (2 if caught.value.message.startswith("--") else 78)
    return caught.value.message, caught.value.hint


def test_users_are_verified_only_if_that_is_configured_and_issuer_audience_and_jwks_are_enough(tmp_path: Path) -> None:
    assert loaded(tmp_path, '[identity]\nuser = "alice"').jwt is None
    expected = Expected("https://idp.acme.com/", ("crm-mcp",), "sub", "roles", None)
    assert loaded(tmp_path, LEAST).jwt == JwtSettings(expected, URL, ("RS256",), None, tmp_path)


def test_every_setting_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USERPROFILE"):  # Windows has the latter
        monkeypatch.setenv(name, str(tmp_path / "alice"))
    text = """
        [identity.jwt]
        issuer = "https://idp.acme.com/realms/acme"
        audience = ["crm", "erp"]
        jwks = "keys.json"
        token_file = "~/token"
        algorithms = ["ES256", "EdDSA"]
        user_claim = "email"
        roles_claim = "realm_access.roles"
        agent_claim = "agent"
    """
    expected = Expected("https://idp.acme.com/realms/acme", ("crm", "erp"), "email", "realm_access.roles", "agent")
    files = tmp_path / "keys.json", tmp_path / "alice" / "token"
    assert loaded(tmp_path, text).jwt == JwtSettings(expected, files[0], ("ES256", "EdDSA"), files[1], tmp_path)


@pytest.mark.parametrize("missing", ["issuer", "audience", "jwks"])
def test_a_missing_required_setting_is_an_error_with_an_example(tmp_path: Path, missing: str) -> None:
    text = "\n".join(line for line in LEAST.splitlines() if not line.startswith(missing))
    message, hint = refusal(tmp_path, text)
    assert message == f"{tmp_path / 'config.toml'}: identity.jwt: no {missing}"
    assert hint.startswith(f'write {missing} = "')


EMPTY_OR_NO_TEXT = [
    *("algorithms = []", "user_claim = ''", "agent_claim = ' '", "roles_claim = ['a']", "token_file = 7"),
    *("audience = ['crm', 7]", "issuer = ['a']", "jwks = ['https://idp.acme.com/?k=s3cret']"),
]


def with_line(line: str) -> str:
    """The least settings, with a line in place of that of its key."""
    key = line.partition(" ")[0]
    return "\n".join([*(one for one in LEAST.splitlines() if one.partition(" ")[0] != key), line, ""])


@pytest.mark.parametrize(
    ("line", "what", "hint"),
    [
        ("audiences = 1", "unknown setting", "did you mean audience?"),
        ("algorithm = 'ES256'", "unknown setting", "did you mean algorithms?"),
        ("leeway = 5", "unknown setting", "use one of: issuer audience jwks token_file algorithms"),
        ("algorithms = ['none']", "'none' is not allowed", f"use one of: {' '.join(ALGORITHMS)}"),
        ("algorithms = ['RS256', 'HS512']", "'HS512' is not allowed", "use one of: "),
        ("algorithms = 'rs256'", "'rs256' is not allowed", "use one of: "),
        *((f"{line}", "this is empty or not text", f'write {line.partition(" ")[0]} = "…"') for line in EMPTY_OR_NO_TEXT),
        *(
            pytest.param(line, "the home or working folder for ~nosuchuser/x does not exist", "", marks=pytest.mark.posix)
            for line in ("token_file = '~nosuchuser/x'", "jwks = '~nosuchuser/x'")  # Windows has a folder for each name
        ),
    ],
)
def test_an_invalid_setting_is_an_error_that_names_it(tmp_path: Path, line: str, what: str, hint: str) -> None:
    message, told = refusal(tmp_path, with_line(line))
    assert message == f"{tmp_path / 'config.toml'}: identity.jwt.{line.partition(' ')[0]}: {what}"
    assert told.startswith(hint)


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("[identity]\njwt = 'x'", "'identity.jwt' is not a table", "write [identity.jwt] above its settings"),
        ("identity = 7", "'identity' is not a table", "write [identity] above its settings"),
        (LEAST.replace("[identity.jwt]", '["identity.jwt"]'), "identity.jwt: unknown setting", "did you mean identity?"),
        ("[identity.jtw]", "identity.jtw: unknown setting", "did you mean jwt?"),
    ],
)
def test_another_table_or_value_in_place_of_the_table_is_an_error(tmp_path: Path, text: str, what: str, hint: str) -> None:
    assert refusal(tmp_path, text) == (f"{tmp_path / 'config.toml'}: {what}", hint)


HTTP = ("http://idp.acme.com/keys", "http://127.0.0.1.acme.com/keys", "http://localhost.acme.com/keys", "http://127.1/")
NO_URLS = ("https://", "https://a:99999/", "https://[::1", "https://a.com/a b", "https://a.com/\x00", "https://a.com/ké")
URLS = {
    "": ("https://idp.acme.com:8443/keys?a=b", "http://127.0.0.1:8080/keys", "http://localhost/keys", "http://[::1]/"),
    "only https is trusted, or http on this machine": HTTP,
    "this is neither an https URL nor a file": ("ftp://127.0.0.1/keys", "file://host/keys.json"),
    "this is not a URL": NO_URLS,
    "a URL must not contain a user or a password": ("https://user:s3cret@a.com/keys", "https://s3cret@a.com/keys"),
}


@pytest.mark.parametrize(("url", "why"), [(url, why) for why, urls in URLS.items() for url in urls])
def test_keys_are_fetched_by_https_or_on_this_machine_and_no_password_is_repeated(tmp_path: Path, url: str, why: str) -> None:
    assert url_problem(url) == why
    if why and url.isprintable():
        message, _ = refusal(tmp_path, with_line(f'jwks = "{url}"'))
        assert message == f"{tmp_path / 'config.toml'}: identity.jwt.jwks: {why}"
        assert "s3cret" not in message


@pytest.mark.parametrize(
    ("jwks", "file"),
    [
        ("/etc/my keys.json", "/etc/my keys.json"),
        ("file:///etc/my%20keys.json", "/etc/my keys.json"),
        ("file:///C:/my%20keys.json", "C:/my keys.json"),  # elsewhere than on Windows a relative path
    ],
)
def test_keys_can_be_in_a_file(tmp_path: Path, jwks: str, file: str) -> None:
    found = loaded(tmp_path, with_line(f'jwks = "{jwks}"')).jwt
    assert found
    assert found.jwks == tmp_path / file


def test_with_verified_users_nothing_else_can_name_the_user(tmp_path: Path) -> None:
    file, bob = tmp_path / "config.toml", {"MCPGUARD_USER": "bob"}
    told = "only a verified token may name the user here", f"leave it out, or remove [identity.jwt] from {file}"
    for place, (message, hint) in {
        "--user": refusal(tmp_path, LEAST, bob, user="alice"),
        "MCPGUARD_USER": refusal(tmp_path, LEAST, bob),
        f"{file}: identity.user": refusal(tmp_path, f'[identity]\nuser = "alice"\n{LEAST}'),
    }.items():
        assert (message, hint) == (f"{place}: {told[0]}", told[1])
    assert loaded(tmp_path, LEAST, {"MCPGUARD_USER": ""}).user is None


@pytest.mark.parametrize("key", ["token_file", "jwks", "audience"])
@pytest.mark.parametrize("form", ['"{}"', '"Bearer {}"', '"~/{}"', '"""{}\n"""', '["{}"]', '{{token = "{}"}}'])
@pytest.mark.parametrize("is_cut", [False, True], ids=["whole", "cut"])
def test_a_token_in_another_place_is_refused_and_not_repeated(tmp_path: Path, key: str, form: str, *, is_cut: bool) -> None:
    text = token()
    if is_cut:
        text = text[: text.rindex(".") - 9]
    message, hint = refusal(tmp_path, with_line(f"{key} = {form.format(text)}"))
    assert message == f"{tmp_path / 'config.toml'}: identity.jwt.{key} holds a token, which does not belong here"
    assert not [part for part in text.split(".") if part in message + hint]


@pytest.mark.parametrize("name", ["my.token.file", "a.b.c", "eyJhbGciOiJSUzI1NiJ9", "alice@acme.com", "~/.config/acme/to.ken"])
def test_a_path_with_dots_is_not_taken_for_a_token(tmp_path: Path, name: str) -> None:
    found = loaded(tmp_path, f'{LEAST}token_file = "{name}"\n').jwt
    assert found
    assert found.token_file


def test_the_repr_of_settings_has_no_url(tmp_path: Path) -> None:
    assert "idp.acme.com/.well-known" not in repr(loaded(tmp_path, LEAST).jwt)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://idp.acme.com/keys", "https://idp.acme.com/keys"),
        ("https://idp.acme.com:8443/a/b?k=s3cret#s3cret", "https://idp.acme.com:8443/a/b"),
        ("https://u:s3cret@idp.acme.com/", "https://idp.acme.com/"),
        ("http://[::1]:80", "http://[::1]:80"),
    ],
)
def test_a_shown_url_has_scheme_host_and_path_only(url: str, shown: str) -> None:
    assert shown_url(url) == shown
