import pytest

from mcpguard.core.masking import masked, masked_output, secrets_of
from tests.core.test_redaction import TOKEN


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
