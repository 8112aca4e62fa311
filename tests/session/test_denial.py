"""Denials as the client gets them, to the letter."""

import pytest

from mcpguard.errors import PolicyError, Unauthenticated
from mcpguard.identity.caller import Identity
from mcpguard.limiter.plan import Reported
from mcpguard.policy.model import Call
from mcpguard.session import denial
from mcpguard.session.verdict import DecisionRequest, Verdict
from mcpguard.wire.meta import CLIENT_INFO
from tests.build import Talk, call_line, exceeding, request

ALICE = Call("alice@acme.com", "Claude Code::interactive::default", "crm", "search_customers")
HUNDRED = Reported("user", "user=alice@acme.com tool=search_customers", 100, "1h")


def limited(wait_us: int, reported: Reported = HUNDRED) -> Verdict:
    verdict = exceeding("rate_limited", (reported, wait_us), count=101, remaining=0)
    verdict.audit_id = "s-1"
    return verdict


def describe(call: Call, verdict: Verdict, reason: str = "", why: str = "") -> tuple[int, str, dict[str, object]]:
    request = DecisionRequest(call, verdict.plan, "")
    request.explain(reason, why)
    return denial.describe(request, verdict)


def test_an_error_has_the_documented_form_with_its_members_in_order_on_one_line() -> None:
    expected = (
        '{"jsonrpc":"2.0","id":7,"error":{"code":429,"message":"Tool search_customers rate limit exceeded for user '
        'alice@acme.com: 100 calls per 1h. Retry in 847 seconds.","data":{"reason":"rate_limited","axis":"user","limit":100,'
        '"window":"1h","retry_after_seconds":847,"retry_after_ms":846213,"tool":"search_customers","user":"alice@acme.com",'
        '"agent":"Claude Code::interactive::default","rule":"user=alice@acme.com tool=search_customers","audit_id":"s-1",'
        '"exceeded":[{"axis":"user","rule":"user=alice@acme.com tool=search_customers","limit":100,"window":"1h",'
        '"retry_after_ms":846213}]}}}\n'
    )
    assert denial.error("7", *describe(ALICE, limited(846_212_001))).decode() == expected


@pytest.mark.parametrize(
    ("wait_us", "ms", "seconds", "words"),
    [
        (1, 1, 1, "Retry in 1 second."),
        (1_000_000, 1000, 1, "Retry in 1 second."),
        (1_000_001, 1001, 2, "Retry in 2 seconds."),
        (3_600_000_000, 3_600_000, 3600, "Retry in 3600 seconds."),
    ],
)
def test_waits_are_rounded_up_and_up_again(wait_us: int, ms: int, seconds: int, words: str) -> None:
    _, message, data = describe(ALICE, limited(wait_us))
    assert (data["retry_after_ms"], data["retry_after_seconds"]) == (ms, seconds)
    assert message.endswith(words)


@pytest.mark.parametrize(
    ("axis", "user", "words"),
    [
        ("tool", "alice", "exceeded for all users together: 1 call per 1m."),
        ("agent", "alice", "for agent Claude Code::interactive::default: 1 call per 1m."),
        ("user", "alice", "for user alice: 1 call per 1m."),
        ("user", "", "for a user without a name: 1 call per 1m."),
    ],
)
def test_a_message_names_whose_limit_is_exceeded(axis: str, user: str, words: str) -> None:
    assert words in describe(ALICE._replace(user=user), limited(1, Reported(axis, "", 1, "1m")))[1]


def test_a_denied_tool_is_403_without_a_retry_time() -> None:
    closed = Reported("tool", "tool=search_customers", None, None)
    verdict = exceeding("denied", (HUNDRED, 1500), (closed, None), at=1)
    verdict.audit_id = "s-2"
    code, message, data = describe(ALICE, verdict)
    assert code == 403
    assert message == "Tool search_customers is denied by policy for all users together. Waiting does not help."
    exceeded = data.pop("exceeded")
    assert exceeded == [HUNDRED.members() | {"retry_after_ms": 2}, {"axis": "tool", "rule": "tool=search_customers"}]
    names = {"tool": "search_customers", "user": "alice@acme.com", "agent": "Claude Code::interactive::default"}
    assert data == {"reason": "denied", "axis": "tool", **names, "rule": "tool=search_customers", "audit_id": "s-2"}


def test_other_denials_are_401_and_503_with_their_reasons() -> None:
    code, message, data = describe(ALICE, Verdict("unauthenticated"), "unauthenticated", "the token has expired.")
    assert (code, data["axis"], data["reason"]) == (401, "user", "unauthenticated")
    assert "user" not in data
    assert message == "Tool search_customers was not called: the token has expired."
    code, message, data = describe(ALICE, Verdict("unavailable"), "store_unavailable", "the store is gone.")
    assert (code, data["reason"]) == (503, "store_unavailable")
    assert not {"axis", "audit_id", "exceeded"} & data.keys()


def test_long_names_are_cut_and_control_characters_escaped_in_messages() -> None:
    odd = ALICE._replace(tool="\x1b[2J" + "x" * 300, user="a\nb")
    _, message, data = describe(odd, limited(1))
    assert message.startswith("Tool \\x1b[2Jxxx")
    assert message.isprintable()
    assert "for user a\\nb:" in message
    assert len(message) < 700
    assert str(data["tool"]).startswith("\x1b[2J")


POLICY = '[[rule]]\ntool = "search"\nlimit = "1/1m"\n'


def test_a_denial_as_a_tool_result_has_the_same_message_and_data() -> None:
    error, result = Talk(POLICY, denials="error"), Talk(POLICY, denials="result")
    for talk in (error, result):
        talk.client_calls("search", 1, 2)
    (as_error,), (as_result,) = error.to_client, result.to_client
    said, meta = {"type": "text", "text": as_error["error"]["message"]}, {"mcpguard/denial": as_error["error"]["data"]}
    expected = {"content": [said], "isError": True, "resultType": "complete", "_meta": meta}
    assert as_result == {"jsonrpc": "2.0", "id": 2, "result": expected}


def forms(talk: Talk) -> list[str]:
    return [form for reply in talk.to_client for form in ("error", "result") if form in reply]


def called(request_id: int, name: object = None) -> bytes:
    """A call that itself says which client makes it, as those without a handshake do."""
    return call_line("search", request_id, **({} if name is None else {"_meta": {CLIENT_INFO: {"name": name}}}))


def greeted(name: object) -> bytes:
    return request("initialize", f"hello {name}", clientInfo={"name": name, "version": "1"})


NAMES = [
    *(("mcp", "result"), ("fastmcp", "result"), ("stdio: npx", "result"), ("qwen-cli-mcp-client-crm", "result")),
    *(("claude-code", "error"), ("codex-mcp-client", "result"), ("my-own", "error"), ("MCP", "error"), ("mcp ", "error")),
    *(("crm", "result"), ("CRM", "error"), ("erp", "error")),  # `crm` is the server
]


@pytest.mark.parametrize(("name", "form"), NAMES)
def test_by_default_only_clients_known_to_lose_errors_get_a_result(name: str, form: str) -> None:
    by_handshake, by_call = Talk(POLICY), Talk(POLICY)
    by_handshake.client(greeted(name), called(1), called(2))
    by_call.client(called(1), called(2, name))
    assert forms(by_handshake) == forms(by_call) == [form]


@pytest.mark.parametrize("name", [None, "", 7, ["mcp"]])
def test_a_client_without_a_name_gets_the_error(name: object) -> None:
    silent, nameless = (Talk(POLICY, who=Identity("alice", "os", "")) for _ in range(2))  # a server without a name
    silent.client(called(1), called(2))
    nameless.client(greeted(name), called(1), called(2, name))
    assert forms(silent) == forms(nameless) == ["error"]


def test_the_client_name_in_a_call_takes_precedence_over_the_handshake() -> None:
    talk = Talk(POLICY)
    talk.client(greeted("mcp"), called(1), called(2), called(3, "zed"), called(4))
    talk.client(greeted("zed"), called(5), called(6, "mcp"), called(7))
    assert forms(talk) == ["result", "error", "result", "error", "result", "error"]


def test_a_client_name_that_follows_a_call_does_not_change_the_form_of_its_denial() -> None:
    talk = Talk(POLICY)
    talk.client(called(1), called(2), greeted("mcp"), called(3), greeted("zed"))
    assert forms(talk) == ["error", "result"]


@pytest.mark.parametrize("denials", ["error", "result"])
def test_a_configured_form_applies_to_every_client(denials: str) -> None:
    talk = Talk(POLICY, denials=denials)
    talk.client(called(1), called(2), greeted("mcp"), called(3), called(4, "zed"), called(5, "fastmcp"))
    assert forms(talk) == [denials] * 4


def test_without_trust_in_client_info_the_name_still_selects_the_form() -> None:
    talk = Talk(POLICY, who=Identity("alice", "os", "crm", trust_client_info=False))
    talk.client(greeted("mcp"), called(1), called(2), called(3, "zed"))
    assert forms(talk) == ["result", "error"]
    assert {record["agent"] for record in talk.records} == {"unknown::interactive::default"}


@pytest.mark.parametrize("reason", ["rate_limited", "denied", "unauthenticated", "policy_invalid"])
def test_every_kind_of_denial_has_the_form_for_the_client(reason: str) -> None:
    policies: dict[str, str | PolicyError] = {
        "denied": '[[rule]]\ntool = "search"\nlimit = "deny"\n',
        "policy_invalid": PolicyError("policy.toml: line 3: not TOML"),
    }
    talk = Talk(policies.get(reason, POLICY))
    if reason == "unauthenticated":
        talk.identify(Unauthenticated("there is no token", "write one"))
    talk.client(called(1), called(2, "mcp"))
    assert talk.to_client[-1]["result"]["_meta"]["mcpguard/denial"]["reason"] == reason


@pytest.mark.parametrize("denials", ["auto", "result"])
def test_a_call_for_a_task_always_gets_the_error(denials: str) -> None:
    talk = Talk(POLICY, denials=denials)
    talk.client(greeted("mcp"), call_line("search", 1))
    talk.client(call_line("search", 2, task={"ttl": 1}), call_line("search", 3, task=None))
    assert forms(talk) == ["error", "result"]
