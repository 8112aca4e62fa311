"""Which agent a call is taken for, as a conversation; and that what a client says of itself loosens nothing."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.identity.caller import Identity
from mcpguard.policy.model import Call, Policy
from mcpguard.policy.parse import parse
from mcpguard.wire.frames import HEAVY_PARTS
from tests.build import Talk, call_line, request
from tests.recorded_hooks import CODEX, COPILOT

UNNAMED = Identity("alice", "os", "crm", claude_session="s")
INFO = "io.modelcontextprotocol/clientInfo"
EXPLORE = "Claude Code::subagent::Explore"
ONE_FOR_EXPLORE = f'[[rule]]\nagent = "{EXPLORE}"\nlimit = "1/1m"\n'


def called(name: str, **params: Any) -> bytes:
    return call_line("x", name, **params)


def after_the_handshake(name: str) -> Talk:
    talk = Talk(who=UNNAMED)
    talk.client(request("initialize", 0, clientInfo={"name": name}))
    return talk


def by_id(tool_use_id: object, **meta: Any) -> dict[str, Any]:
    return {"_meta": {"claudecode/toolUseId": tool_use_id, "progressToken": 1} | meta}


def agents(talk: Talk) -> list[tuple[object, object]]:
    return [(record["agent"], record["agent_source"]) for record in talk.records]


def test_a_hooks_note_names_the_agent_of_its_call_only() -> None:
    talk = Talk(ONE_FOR_EXPLORE, who=UNNAMED)
    talk.client(request("initialize", 0, clientInfo={"name": "claude-code"}))
    noted = {"s t1": EXPLORE, "s t2": EXPLORE}
    talk.client(called("a", **by_id("t1")), called("b", **by_id("t2")), called("c", **by_id("t3")), called("d"), noted=noted)
    assert [reply["id"] for reply in talk.to_client] == ["b"]
    main = ("Claude Code::interactive::default", "clientInfo")
    assert agents(talk) == [(EXPLORE, "hook"), (EXPLORE, "hook"), main, main]


def test_only_the_id_in_the_calls_meta_is_used() -> None:
    talk = Talk(ONE_FOR_EXPLORE, who=UNNAMED)
    noted = {"s t1": EXPLORE}
    talk.client(called("a", arguments={"_meta": {"claudecode/toolUseId": "t1"}}), noted=noted)
    talk.client(called("b", arguments={"claudecode/toolUseId": "t1"}, _meta={"x": {"claudecode/toolUseId": "t1"}}), noted=noted)
    assert agents(talk) == [("unknown::interactive::default", "default")] * 2


IN_FULL = '{"id":"a","method":"tools/call","params":{"name":"x","_meta":{"claudecode/toolUseId":"t1"}}}'
WRITTEN_ODDLY = [
    IN_FULL.replace("claudecode/", "claudecode\\/"),
    IN_FULL.replace("claudecode", "\\u0063laudecode"),
    IN_FULL.replace('"t1"', '"\\u0074\\u0031"'),
    IN_FULL.replace("_meta", "\\u005fmeta"),
    IN_FULL.replace("tools/call", "tools\\/call"),
    IN_FULL.replace(":", "\t:\r "),
    IN_FULL.replace('"name":"x"', '"arguments":{"_meta":{"claudecode/toolUseId":"t2"}},"name":"x"'),
    IN_FULL.replace('"t1"', '"t2","claudecode/toolUseId":"t1"'),
    IN_FULL.replace('"t1"', '"t1","big":"%s"' % ("x" * 10_000)),
    "[" + IN_FULL + "]",
]


@pytest.mark.parametrize("line", WRITTEN_ODDLY, ids=range(len(WRITTEN_ODDLY)))
@pytest.mark.parametrize("heavy", [False, True], ids=["light", "heavy"])
@pytest.mark.no_cover
def test_the_note_of_a_call_is_looked_up_by_its_id_in_any_spelling(line: str, heavy: bool) -> None:
    if heavy:
        line = line.replace('"method"', '"more":[%s0],"method"' % ("[]," * HEAVY_PARTS))
    talk = Talk(who=UNNAMED)
    talk.client(line.encode(), noted={"s t1": EXPLORE, "s t2": "a::b::c"})
    assert talk.looked_up == ["s t1"]
    assert agents(talk) == [(EXPLORE, "hook")]


def test_each_of_many_calls_has_the_agent_of_its_own_note() -> None:
    talk = Talk(who=UNNAMED)
    noted = {f"s t{at}": f"a::b::{at}" for at in range(900)}
    decoys = {"decoys": [{"_meta": {"claudecode/toolUseId": f"decoy{at}"}} for at in range(1000)]}
    batch = b"[" + b",".join(called(f"b{at}", **by_id(f"t{at}")) for at in range(600)) + b"]"
    single = [called(f"s{at}", arguments=decoys, **by_id(f"t{at}")) for at in range(600, 620)]
    lines = [called("first", arguments=decoys), batch, *single, called("last", **by_id("t899"))]
    talk.client(*lines, noted=noted)
    assert talk.looked_up == [f"s t{at}" for at in (*range(620), 899)]
    named = [str(agent).rpartition("::")[2] for agent, _ in agents(talk)]
    assert named == ["default", *map(str, range(620)), "899"]


def test_no_note_is_looked_up_without_an_id() -> None:
    calls = [called("a"), called("b", **by_id("t 1")), called("c", **by_id("t1")), called("d", **by_id("t1"))]
    forwarded = ["forwarded a", "forwarded b", "forwarded c", "forwarded d"]
    talk = Talk(who=UNNAMED)
    assert talk.client(*calls[:2]) == forwarded[:2]
    assert talk.looked_up == []
    assert talk.client(*calls[2:]) == forwarded[2:]
    assert talk.looked_up == ["s t1"] * 2


def test_a_note_counts_for_one_call_though_two_have_its_id() -> None:
    talk = Talk(who=UNNAMED)
    talk.client(called("a", **by_id("t1")), called("b", **by_id("t1")), noted={"s t1": EXPLORE})
    assert agents(talk) == [(EXPLORE, "hook"), ("unknown::interactive::default", "default")]


def test_a_held_call_stays_its_subagents() -> None:
    talk = Talk(ONE_FOR_EXPLORE.replace("limit", "wait = '1m'\nlimit"), who=UNNAMED)
    talk.client(called("a", **by_id("t1")), called("b", **by_id("t2")), noted={"s t1": EXPLORE, "s t2": EXPLORE})
    assert talk.pass_ms(60_000)[-1] == "forwarded b"
    assert agents(talk) == [(EXPLORE, "hook"), (EXPLORE, "hook")]


def test_codexs_main_agent_has_no_note_whatever_one_says() -> None:
    talk = after_the_handshake("codex-mcp-client")
    stale = {f"{CODEX_SESSION} call_54_main": "Codex::subagent::explorer"}
    talk.client(request("tools/call", 1, **CODEX["main"]["params"]), noted=stale)
    assert agents(talk) == [CODEX_MAIN]


CODEX_SESSION = "01a21980-a1a1-7341-8cf2-a8366b38779c"
CLI = "GitHub Copilot CLI"
CODEX_MAIN = ("Codex::background::default", "meta")
CODEX_SUBAGENT = ("Codex::subagent::default", "meta")


@pytest.mark.parametrize("heavy", [False, True], ids=["light", "heavy"])
def test_a_call_of_codexs_subagent_has_its_tier_without_a_hook(heavy: bool) -> None:
    talk = after_the_handshake("codex-mcp-client")
    more: dict[str, Any] = {"more": [[]] * (HEAVY_PARTS + 1)} if heavy else {}
    calls = [CODEX["main"]["params"], CODEX["subagent"]["params"]] * 2
    talk.client(*[request("tools/call", at, **params, **more) for at, params in enumerate(calls, 1)])
    assert agents(talk) == [CODEX_MAIN, CODEX_SUBAGENT] * 2
    assert talk.looked_up == [f"{CODEX_SESSION} call_54_main", f"{CODEX_SESSION} call_58_sub"] * 2


@pytest.mark.parametrize(
    ("recorded", "key", "main", "subagent"),
    [
        (CODEX, f"{CODEX_SESSION} call_58_sub", CODEX_MAIN, "Codex::subagent::explorer"),
        (COPILOT, "call_68_sub", (f"{CLI}::interactive::default", "clientInfo"), f"{CLI}::subagent::general-purpose"),
    ],
    ids=["codex", "copilot"],
)
def test_a_hooks_note_names_a_recorded_calls_subagent(recorded: Any, key: str, main: tuple[str, str], subagent: str) -> None:
    talk = after_the_handshake("codex-mcp-client" if recorded is CODEX else "")  # Copilot CLI names itself in each call
    calls = [request("tools/call", at, **recorded[who]["params"]) for at, who in enumerate(("main", "subagent"), 1)]
    talk.client(*calls, noted={key: subagent})
    assert agents(talk) == [main, (subagent, "hook")]


NAMES: list[object] = [
    *(None, 7, {"name": "claude-code"}, ["claude-code"], "", "x" * 10_000, "::".join("x" * 3000), "👩‍👩‍👧‍👦" * 50),
    *("\x00\x1b[2J\r\n\x7f\u202e", "\ud800", "*", "*::*::*", "::subagent::", "\\"),
]
HOSTILE: list[object] = [None, 7, True, [], "claude-code", {}, *({"name": name} for name in NAMES)]


@pytest.mark.parametrize("info", HOSTILE, ids=lambda info: ascii(info)[:30])
@pytest.mark.parametrize("way", ["initialize", "meta"])
def test_any_client_info_gives_an_agent_of_three_parts_that_is_limited(way: str, info: object) -> None:
    talk = Talk('[[rule]]\nuser = "*"\nagent = "*::interactive::*"\nlimit = "1/1m"\n', who=UNNAMED)
    params: dict[str, Any] = {"_meta": {INFO: info}} if way == "meta" else {}
    talk.client(*([] if params else [request("initialize", 0, clientInfo=info)]), called("a", **params), called("b", **params))
    assert [record["decision"] for record in talk.records] == ["allowed", "rate_limited"]
    assert len(talk.to_client) == 1
    assert len(str(talk.records[0]["agent"]).encode(errors="surrogatepass")) <= 300
    json.dumps(talk.records)
    (charge,) = talk.requests(called("c", **params))
    assert charge.call.agent.split("::")[1:] == ["interactive", "default"]


def test_a_new_handshake_renames_the_client_and_a_calls_meta_only_for_that_call() -> None:
    talk = Talk(who=UNNAMED)
    info = {"_meta": {INFO: {"name": "zed"}}}
    batch = b"[" + b",".join([called("a", **info), called("b"), request("initialize", 1, clientInfo={"name": "goose"})]) + b"]"
    talk.client(called("first", **info), request("initialize", 0, clientInfo={"name": "claude-ai"}), batch, called("c"))
    talk.client(request("initialize", 2, capabilities={}), called("d"), called("e", **info), called("f"))
    names = [str(agent).partition("::")[0] for agent, _ in agents(talk)]
    assert names == ["Zed", "Zed", "Claude Desktop", "Goose", "unknown", "Zed", "unknown"]


# What a client says of itself loosens nothing

names = st.sampled_from(["claude-ai", "claude-code", "x", "*", "a::subagent::b", "subagent", "", "\\", ":"])
patterns = {
    "user": st.sampled_from(["*", "alice", "a*"]),
    "tool": st.sampled_from(["*", "search", "s*"]),
    "server": st.sampled_from(["*", "crm", "c*"]),
    "agent": st.sampled_from(["*::*::*", "*::interactive::*", "Claude Code::*::*", EXPLORE, "x::interactive::default"]),
    "role": st.sampled_from(["admin", "*"]),
}
rules = st.fixed_dictionaries(
    {"limit": st.sampled_from(["1/1m", "2/1h", "deny", "unlimited"])},
    optional={**patterns, "per": st.lists(st.sampled_from(["user", "tool", "server", "agent"]), unique=True)},
)


def written(tables: list[dict[str, object]]) -> Policy:
    """A policy of these rules, but for those that could not stand beside the ones before them."""
    seen: dict[str, str] = {}
    for table in tables:
        body = "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
        per = table.get("per", [key for key in ("user", "agent", "tool", "server") if key in table])
        assert isinstance(per, list)
        split = {*per, *(["server"] if "tool" in per else [])}
        key = json.dumps([sorted((k, str(v)) for k, v in table.items() if k not in {"per", "limit"}), sorted(split)])
        seen.setdefault(key, f"[[rule]]\n{body}")
    return parse("mode = 'enforce'\n" + "".join(seen.values()))


def limits_without_agents(policy: Policy, agent: str) -> list[object]:
    """What a call has to pass by rules that neither select on an agent nor are split by it."""
    call = Call("alice", agent, "crm", "search", ("admin",))
    applying = [rule for rule, _ in policy.applying(call) if "agent" not in rule.selectors and "agent" not in rule.per]
    plan = Policy(tuple(applying)).plan(call)
    return [(plan.limits[at], plan.reported[at], plan.counters) for at in range(len(plan.limits))]


told = st.tuples(*(st.sampled_from([None, one]) for one in ("a::api::b", EXPLORE, "subagent")))


@given(st.lists(rules, max_size=6), names, names | st.just("codex-mcp-client"), told)
def test_no_self_reported_agent_loosens_another_limit(tables: list[dict[str, object]], one: str, other: str, told: Any) -> None:
    policy = written(tables)
    plain, _ = UNNAMED.agent(one)
    said, _ = Identity("alice", "os", "crm", trust_meta=True).agent(other, *told)
    assert limits_without_agents(policy, plain) == limits_without_agents(policy, said)
