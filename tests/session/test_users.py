"""A session whose user a token names, or nobody."""

from mcpguard.errors import PolicyError, Unauthenticated
from mcpguard.identity.caller import Agent, Identity
from mcpguard.text.digest import cut
from tests.build import Talk, call_line, request

VERIFIED = Identity("", "jwt", "crm")
EXPIRED = Unauthenticated("the token in /t expired at 2026-01-01T00:00:00Z", "get a new one")


def test_without_a_verified_user_calls_are_denied_and_everything_else_passes() -> None:
    talk = Talk(PolicyError("broken"), who=VERIFIED)
    talk.identify(EXPIRED)
    came_out = talk.client(call_line("x", 1, requestState="s"), request("tools/list", 2), b"not json")
    assert came_out == ["forwarded 2", "answered 1: 401", "answered None: -32700"]
    error = talk.to_client[0]["error"]
    assert error["code"] == 401
    assert error["message"] == "Tool x was not called: the token in /t expired at 2026-01-01T00:00:00Z. Get a new one."
    members = ("reason", "axis", "tool", "user")
    assert [error["data"].get(key) for key in members] == ["unauthenticated", "user", "x", None]
    assert talk.machine.tally["unauthenticated", "user"] == 1
    told = [(one["decision"], one.get("axis"), one.get("reason")) for one in talk.records]
    assert told == [("unauthenticated", "user", EXPIRED.message), ("invalid", None, "not valid JSON")]
    assert not any({"user", "user_source"} & one.keys() for one in talk.records)


def test_a_retry_that_was_denied_as_unauthenticated_stays_free() -> None:
    talk = Talk('[[rule]]\ntool = "*"\nlimit = "1/1m"\n', who=VERIFIED)
    alice = Identity("alice", "jwt", "crm")
    talk.identify(alice)
    assert talk.client_calls("x", 1) == ["forwarded 1"]
    talk.ask_for_input(1, "s")
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
        talk.client_calls("x", at)
    members = ("decision", "user", "user_source", "email", "roles", "act", "agent", "agent_source")
    shown = [[one.get(key) for key in members] for one in talk.records]
    nobody = "unknown::interactive::default"
    assert shown == [
        ["allowed", "alice", "jwt", "a@acme.com", ["dev"], ["p", "q"], "unknown::interactive::job", "jwt"],
        ["unauthenticated", None, None, None, None, None, nobody, "default"],
        ["allowed", "bob", "jwt", None, None, None, nobody, "default"],
        ["rate_limited", "alice", "jwt", "a@acme.com", ["dev"], ["p", "q"], "unknown::interactive::job", "jwt"],
    ]


def test_long_names_are_cut_in_the_audit() -> None:
    user, server, tool, role, email, actor = (letter * 999 for letter in "abcdef")
    talk = Talk(who=Identity(user, "jwt", server, Agent("g" * 999), roles=(role,), email=email, act=(actor,)))
    talk.client(call_line(tool))
    (one,) = talk.records
    assert one["agent"] == cut(f"{'g' * 999}::interactive::default")
    assert [one[name] for name in ("user", "server", "tool", "email")] == [*map(cut, (user, server, tool, email))]
    assert (one["roles"], one["act"]) == ([cut(role)], [cut(actor)])
