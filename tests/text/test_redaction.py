import pytest

from mcpguard.text.redaction import holds_token, redacted

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
