"""A session whose user a token names, or nobody."""

from mcpguard.errors import PolicyError, Unauthenticated
from mcpguard.identity.agent import Agent
from mcpguard.identity.caller import Identity
from tests.build import Talk, call_line, request

VERIFIED = Identity("", "jwt", "crm")
EXPIRED = Unauthenticated("the token in /t expired at 2026-01-01T00:00:00Z", "get a new one")


def test_without_a_verified_user_calls_are_denied_and_everything_else_passes() -> None:
    talk = Talk(PolicyError("broken"), who=VERIFIED)
    talk.identify(EXPIRED)
    assert talk.client(call_line("x", 1, requestState="s"), request("tools/list", 2), b"not json") == [
        "forwarded 2",
        "answered 1: 401",
        "answered None: -32700",
    ]
    error = talk.to_client[0]["error"]
    assert error["code"] == 401
    assert error["message"] == "Tool x was not called: the token in /t expired at 2026-01-01T00:00:00Z. Get a new one."
    assert {key: error["data"].get(key) for key in ("reason", "axis", "tool", "user")} == {
        "reason": "unauthenticated",
        "axis": "user",
        "tool": "x",
        "user": None,
    }
    assert talk.machine.tally["unauthenticated", "user"] == 1
    told = [(one["decision"], one.get("axis"), one.get("reason"), "user" in one, "user_source" in one) for one in talk.records]
    assert told == [
        ("unauthenticated", "user", EXPIRED.message, False, False),
        ("invalid", None, "not valid JSON", False, False),
    ]


def test_a_retry_that_was_denied_as_unauthenticated_stays_free() -> None:
    talk = Talk('[[rule]]\ntool = "*"\nlimit = "1/1m"\n', who=VERIFIED)
    alice = Identity("alice", "jwt", "crm")
    talk.identify(alice)
    assert talk.client(call_line("x", 1)) == ["forwarded 1"]
    talk.answer(1, resultType="input_required", requestState="s", inputRequests={})
    talk.identify(EXPIRED)
    assert talk.client(call_line("x", 2, requestState="s")) == ["answered 2: 401"]
    talk.identify(alice)
    assert talk.client(call_line("x", 3, requestState="s")) == ["forwarded 3"]
    assert [one["decision"] for one in talk.records] == ["allowed", "unauthenticated", "continued"]


def test_a_new_identity_replaces_the_previous_one_completely() -> None:
    talk = Talk('[[rule]]\nuser = "*"\nrole = "dev"\nlimit = "1/1m"\n', who=VERIFIED)
    alice = Identity("alice", "jwt", "crm", Agent(name="job"), "jwt", roles=("dev",), email="a@acme.com", act=("p", "q"))
    everybody: list[Identity | Unauthenticated] = [alice, EXPIRED, Identity("bob", "jwt", "crm"), alice]
    for at, found in enumerate(everybody):
        talk.identify(found)
        talk.client(call_line("x", at))
    shown = [
        [one.get(key) for key in ("decision", "user", "email", "roles", "act", "agent", "agent_source")] for one in talk.records
    ]
    nobody = "unknown::interactive::default"
    assert shown == [
        ["allowed", "alice", "a@acme.com", ["dev"], ["p", "q"], "unknown::interactive::job", "jwt"],
        ["unauthenticated", None, None, None, None, nobody, "default"],
        ["allowed", "bob", None, None, None, nobody, "default"],
        ["rate_limited", "alice", "a@acme.com", ["dev"], ["p", "q"], "unknown::interactive::job", "jwt"],
    ]


def test_long_names_of_a_token_are_cut_in_the_audit() -> None:
    talk = Talk(who=VERIFIED)
    talk.identify(Identity("u" * 999, "jwt", "crm", roles=("r" * 999,), email="e" * 999, act=("a" * 999,)))
    talk.client(call_line("x"))
    (one,) = talk.records
    names = [one["user"], one["email"], *one["roles"], *one["act"]]  # type: ignore[misc]
    assert [len(str(name).encode()) <= 256 for name in names] == [True] * 4
