import pytest

from mcpguard.text.redaction import holds_token, masked, masked_output, masked_words, redacted, secrets_of

TOKEN = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"
SPACED = "eyAiYWxnIjogIkVTMjU2IiB9.e30.c2ln"


@pytest.mark.parametrize("token", [TOKEN, SPACED, TOKEN[:50], TOKEN.rpartition(".")[0]])
@pytest.mark.parametrize(
    "text", ["{}", "Bearer {}", "/home/alice/{}: no such file", "'{}'", "a {} and {}", "identity.jwt.{}: unknown setting"]
)
def test_a_token_is_removed_from_a_text_even_if_it_is_cut_short(token: str, text: str) -> None:
    told = text.format(token, token)
    assert redacted(told) == text.format("(a token)", "(a token)")
    assert holds_token(told)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "~/.config/acme/token",
        "policy.toml: line 3",
        "alice.smith@acme.com",
        "abcdefghi.toml",
        "identity.jwt.token_file: unknown setting",
        "Claude Code::subagent::Explore",
    ],
)
def test_texts_without_tokens_stay_unchanged(text: str) -> None:
    assert redacted(text) == text
    assert not holds_token(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("redis://alice:s3c@ret@host/0 does not answer", "redis://***@host/0 does not answer"),
        ("https://s3cret@host/a and https://host/a@b", "https://***@host/a and https://host/a@b"),
        ("Authorization: Bearer abcdefgh.12", "Authorization: Bearer ***"),
        (f"the token {TOKEN}", "the token (a token)"),
        ("identity.jwt.token_file: unknown setting", "identity.jwt.token_file: unknown setting"),
        ("the basic settings of the bearer", "the basic settings of the bearer"),
    ],
)
def test_passwords_in_urls_and_credentials_are_masked(text: str, told: str) -> None:
    assert masked(text) == told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("api_key=s3cret is invalid", "api_key=*** is invalid"),
        ('{"access-token": "s3cret", "a": 1}', '{"access-token": "***", "a": 1}'),
        ("https://acme.com/?token=s3cret&a=1", "https://acme.com/?token=***&a=1"),
        ("CRM_PASSWORD: s3cret", "CRM_PASSWORD: ***"),
        ("the value tango77-long, not tango77", "the value ***, not ***"),
        ("cannot reach redis://u:s3cret@host", "cannot reach redis://***@host"),
        ("no such file: crm.js", "no such file: crm.js"),
    ],
)
def test_values_whose_names_say_that_they_are_secret_are_masked_in_output(text: str, told: str) -> None:
    assert masked_output(text, ["tango77", "tango77-long"]) == told


def test_the_secrets_of_a_command_are_found_by_their_names() -> None:
    command = (
        "crm --api-key first-s3cret --port 8080 --auth-token=second-s3cret -e CRM_TOKEN=third-s3cret --token on a=b".split()
    )
    environ = {"GITHUB_TOKEN": "fourth-s3cret", "HOME": "/home/alice", "AUTH": "yes"}
    assert sorted(secrets_of(command, environ)) == ["first-s3cret", "fourth-s3cret", "second-s3cret", "third-s3cret"]


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("npx -y @acme/crm@1.2 --port 8080 /home/alice", None),
        ("crm --api-key s3cret --port 8080", "crm --api-key *** --port 8080"),
        ("crm --no-auth --stdio", None),
        ("crm --auth-token=s3cret --token on", "crm --auth-token=*** --token ***"),
        ("docker run -e CRM_PASS=s3cret -e LOG=1 -e TOKEN crm", "docker run -e CRM_PASS=*** -e LOG=*** -e TOKEN crm"),
        ("redis://u:s3cret@host/0", "redis://***@host/0"),
        ("mcp-remote https://crm.acme.com/sse?key=s3cret&a=1", "mcp-remote https://crm.acme.com/sse?key=***&a=1"),
        ("crm sk-proj-abcdefghijklmnopqrstuvwx1", "crm sk-proj-***"),
        ("/opt/abcdefghijklmnopqrstuvwx1/crm", None),
    ],
)
def test_secrets_in_the_words_of_a_command_are_masked(command: str, shown: str | None) -> None:
    assert " ".join(masked_words(command.split())) == (shown or command)


def test_secrets_in_a_word_with_spaces_are_masked() -> None:
    code = "cd /srv && CRM_KEY=s3cret exec crm --token 's3cret' --port 1 -H 'Authorization: Bearer s3cret'"
    assert masked_words(["sh", "-c", code, "-H", "X-Api-Key: s3cret"]) == [
        "sh",
        "-c",
        "cd /srv && CRM_KEY=*** exec crm --token '***' --port 1 -H 'Authorization: ***'",
        "-H",
        "X-Api-Key: ***",
    ]


@pytest.mark.parametrize("text", ["a-" * 100_000, "token-" * 40_000, "A" * 200_000, "://" * 70_000, "--token " * 30_000])
def test_the_time_is_proportional_to_the_length_of_a_word(text: str) -> None:
    assert masked_words([text])  # patterns that look ahead from every place would need hours
