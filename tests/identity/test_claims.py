from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.identity.caller import Agent, Identity
from mcpguard.identity.claims import LEEWAY_S, Expected, claim_at, identity, problems, time_of

NOW_S = 1_767_225_600
EXPECTED = Expected("https://idp.acme.com/", ("crm-mcp", "crm"))
GOOD: dict[str, Any] = {"iss": "https://idp.acme.com/", "aud": "crm-mcp", "sub": "alice", "exp": NOW_S + 60}
CONFIGURED = Identity("", "jwt", "crm", Agent("Mine", "api"), agent_source="config")


def naming(user_claim: str) -> Expected:
    return Expected(EXPECTED.issuer, EXPECTED.audience, user_claim)


def why(more: dict[str, Any] | None = None, expected: Expected = EXPECTED, *, now_s: float = NOW_S) -> list[str]:
    said = {name: value for name, value in (GOOD | (more or {})).items() if value is not ...}
    return [problem.message for problem in problems(said, expected, where="the token", renew="get a new one", now_s=now_s)]


def who(more: dict[str, Any] | None = None, **expected: Any) -> Identity:
    return identity(GOOD | (more or {}), Expected("i", ("a",), **expected), CONFIGURED)


def test_valid_claims_have_no_problem() -> None:
    assert why() == []
    assert why({"aud": ["other", "crm"], "nbf": NOW_S, "iat": NOW_S - 5.5, "exp": NOW_S + 0.5}) == []


UNEXPECTED: dict[str, list[dict[str, Any]]] = {
    "is not from the issuer https://idp.acme.com/": [{"iss": one} for one in (..., "https://idp.acme.com", [GOOD["iss"]])],
    "is not for the audience crm-mcp or crm": [{"aud": one} for one in (..., "crm-mcp ", ["CRM", 7, ["crm"]], {"crm": 1})],
    "does not say when it expires": [{"exp": ...}],
    "has no time in exp": [{"exp": one} for one in (str(NOW_S), True, NOW_S * 1000, float("inf"), float("nan"), 10**400)],
    "expired at 2025-12-31T23:59:30Z": [{"exp": NOW_S - LEEWAY_S}],
    "expired at 1970-01-01T00:00:00Z": [{"exp": 0}],
    "is not valid before 2026-01-01T00:00:31Z": [{"nbf": NOW_S + LEEWAY_S + 1}],
    "has no time in nbf": [{"nbf": "now"}],
    "was issued in the future: 2026-01-01T00:00:31Z": [{"iat": NOW_S + LEEWAY_S + 1}],
    "has no time in iat": [{"iat": -1}],
    "names no subject": [{"sub": one} for one in (..., "", " ", 7)],
}


@pytest.mark.parametrize(("message", "more"), [(message, more) for message in UNEXPECTED for more in UNEXPECTED[message]])
def test_each_unexpected_claim_is_a_problem(message: str, more: dict[str, Any]) -> None:
    assert why(more) == [f"the token {message}"]


def test_the_leeway_is_exact() -> None:
    assert why({"exp": NOW_S}, now_s=NOW_S + LEEWAY_S - 0.001) == []
    assert len(why({"exp": NOW_S}, now_s=NOW_S + LEEWAY_S)) == 1
    assert why({"nbf": NOW_S, "iat": NOW_S}, now_s=NOW_S - LEEWAY_S) == []
    assert len(why({"nbf": NOW_S, "iat": NOW_S}, now_s=NOW_S - LEEWAY_S - 0.001)) == 2


def test_all_problems_are_reported_each_with_a_hint() -> None:
    bad = {"email_verified": False, "exp": 1}
    found = list(problems(bad, Expected("i", ("a",), "email"), where="the token", renew="get a new one", now_s=NOW_S))
    assert len(found) == 5
    assert all(problem.hint for problem in found)


@pytest.mark.parametrize("email_verified", [False, "false", "False", 0])
def test_an_unverified_email_address_is_rejected(email_verified: object) -> None:
    said = {"email": "ceo@acme.com", "email_verified": email_verified}
    assert why(said, naming("email")) == ["the token has an email that is not verified"]
    assert who(said).email is None
    assert why(said) == []


@pytest.mark.parametrize("more", [{}, {"email_verified": True}, {"email_verified": "true"}])
def test_the_user_can_be_named_by_the_email_address(more: dict[str, Any]) -> None:
    said = {"email": "alice@acme.com", **more}
    assert why(said, naming("email")) == []
    found = who(said, user_claim="email")
    assert (found.user, found.email) == ("alice@acme.com", "alice@acme.com")


@pytest.mark.parametrize(
    ("claim", "said"),
    [*(("name", said) for said in ({}, {"name": ""}, {"name": 7}, {"name": ["alice"]})), ("email", {"email": 7})],
)
def test_a_token_without_the_users_claim_is_rejected(claim: str, said: dict[str, Any]) -> None:
    assert why(said, naming(claim)) == [f"the token has no text in its claim {claim}"]


def test_a_subject_is_required_whatever_claim_names_the_user() -> None:
    assert why({"name": "alice", "sub": ...}, naming("name")) == ["the token names no subject"]


def test_the_caller_is_named_by_the_claims_and_then_by_the_configuration() -> None:
    assert who() == Identity("alice", "jwt", "crm", Agent("Mine", "api"), agent_source="config")
    assert who({"ext": {"user": "al"}}, user_claim="ext.user").user == "al"
    assert who({"email": 7}).email is None


@pytest.mark.parametrize(
    ("said", "roles"),
    [
        ({"roles": ["dev", "ops"]}, ("dev", "ops")),
        ({"roles": "dev ops"}, ("dev ops",)),
        ({"roles": ["dev", 7, None, ""]}, ("dev",)),
        ({"roles": {"dev": 1}}, ()),
        ({}, ()),
    ],
)
def test_roles_are_read_from_a_text_or_a_list(said: dict[str, Any], roles: tuple[str, ...]) -> None:
    assert who(said).roles == roles


def test_a_claim_is_found_by_its_name_or_by_its_dotted_path() -> None:
    assert who({"realm_access": {"roles": ["dev"]}}, roles_claim="realm_access.roles").roles == ("dev",)
    assert who({"https://acme.com/roles": ["dev"]}, roles_claim="https://acme.com/roles").roles == ("dev",)
    assert claim_at({"a.b": 1, "a": {"b": 2}}, "a.b") == 1
    assert claim_at({"a": "text"}, "a.b") is None


@pytest.mark.parametrize(
    ("said", "scopes"),
    [
        ({"scope": "a b"}, ("a", "b")),
        ({"scope": ["a", "b c"]}, ("a", "b", "c")),
        ({"scp": ["a", "b"]}, ("a", "b")),
        ({"scp": "a b"}, ("a", "b")),
        ({"scope": "a b", "scp": "b c"}, ("a", "b", "c")),
        ({"scope": 7, "scp": None}, ()),
    ],
)
def test_scopes_are_the_words_in_scope_and_scp(said: dict[str, Any], scopes: tuple[str, ...]) -> None:
    assert who(said).scopes == scopes


@pytest.mark.parametrize(
    ("claim", "agent", "source"),
    [
        ("Batch::background::nightly", "Batch::background::nightly", "jwt"),
        ("::background::", "Mine::background::default", "jwt"),
        ("nightly", "Mine::api::nightly", "jwt"),
        ("a::b", "Mine::api::a:\\:\\b", "jwt"),
        ("a::b::c::d", "Mine::api::a:\\:\\b:\\:\\c:\\:\\d", "jwt"),
        *((nothing, "Mine::api::default", "config") for nothing in ("::::", "", 7, None)),
    ],
)
def test_a_claim_names_the_whole_agent_or_parts_of_it(claim: object, agent: str, source: str) -> None:
    found = who({"agent": claim}, agent_claim="agent")
    assert found.agent("claude-code", "x::y::z") == (agent, source)


def test_a_verified_agent_is_not_replaced_by_the_calls_meta() -> None:
    trusting = Identity("", "jwt", "crm", trust_meta=True)
    found = identity(GOOD | {"agent": "a::b::c"}, Expected("i", ("a",), agent_claim="agent"), trusting)
    assert found.agent("claude-code", "x::y::z") == ("a::b::c", "jwt")
    assert identity(GOOD, Expected("i", ("a",)), trusting).agent("claude-code", "x::y::z") == ("x::y::z", "meta")


@pytest.mark.parametrize(
    ("act", "actors"),
    [
        ({"sub": "c", "act": {"sub": "b", "act": {"sub": "a", "iss": "x"}}}, ("a", "b", "c")),
        ({"client_id": "b", "act": {"iss": "a"}}, ("a", "b")),
        ({"act": {"sub": 7}}, ("unknown", "unknown")),
        ("b", ()),
        (None, ()),
    ],
)
def test_the_chain_of_actors_begins_with_the_innermost(act: object, actors: tuple[str, ...]) -> None:
    assert who({"act": act}).act == actors


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda of: st.lists(of) | st.dictionaries(st.text(), of),
    max_leaves=10,
)
NAMES = st.sampled_from([*GOOD, "nbf", "iat", "email", "email_verified", "roles", "scope", "scp", "act", "agent", "a"])


@given(st.dictionaries(NAMES, JSON), st.sampled_from(["sub", "email", "a.b"]))
def test_any_claims_give_problems_or_a_user_with_a_name(said: dict[str, Any], user_claim: str) -> None:
    expected = Expected(EXPECTED.issuer, EXPECTED.audience, user_claim, agent_claim="agent")
    for more in ({}, GOOD, GOOD | {"email": "a@b.c"}):
        whole = more | said
        if not list(problems(whole, expected, where="the token", renew="", now_s=NOW_S)):
            found = identity(whole, expected, CONFIGURED)
            assert found.user.strip()
            assert found.agent(None)[0].count("::") >= 2


@given(JSON)
def test_a_time_is_a_number_from_year_1970_to_9999(value: object) -> None:
    found = time_of({"exp": value}, "exp")
    assert found is None or 0 <= found <= 253_402_300_799
