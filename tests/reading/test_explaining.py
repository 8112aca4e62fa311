"""Explaining a call: who calls, what each rule is to the call, and what the counters still allow."""

import contextlib
import getpass
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mcpguard import config
from mcpguard.config import Settings
from mcpguard.errors import ConfigError, Unauthenticated
from mcpguard.identity.caller import Identity
from mcpguard.policy.model import Call, Policy
from mcpguard.policy.parse import STARTER, parse
from mcpguard.reading.explaining import Explanation, caller, explain, never_matched
from mcpguard.session.verdict import Verdict
from mcpguard.stores.memory import MemoryStore
from mcpguard.wire.arguments import args_hash
from tests import provider
from tests.build import Session, call_line, identity
from tests.end_to_end.host import rule
from tests.provider import jwk, key_set, token, write_token

RULES = (
    rule("100/1h", user="*", tool="echo")
    + rule("3/1h", user="alice@acme.com", tool="echo")
    + rule("50/90m", tool="echo")
    + rule("5/1m", tool="report")
    + rule("2/1h", name="all agents", agent="*::interactive::*", mode="observe")
)


class Home:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.policy = parse(RULES)
        self.warnings: list[str] = []

    def settings(self) -> Settings:
        return config.load({"MCPGUARD_HOME": str(self.folder)})

    def configure(self, text: str) -> None:
        (self.folder / "config.toml").write_text(text)

    def damage(self) -> None:
        Path(self.settings().database_path).write_bytes(b"something else, and longer than a header" * 10)

    def call(self, tool: str, times: int = 1, who: Identity | None = None) -> list[str]:
        """Let a wrapper decide calls; the decisions."""
        settings = self.settings()
        with contextlib.closing(settings.open_store()) as store:
            session = Session(store, self.policy, who=who, namespace=settings.namespace)
            return session.decisions(tool, times)

    def caller(self, **more: Any) -> Identity:
        given: dict[str, Any] = {"user": None, "agent": None, "token": None, "roles": (), "scopes": ()}
        return caller(self.settings(), **given | more, notify=self.warnings.append)

    def explain(
        self, tool: str = "echo", who: Identity | None = None, server: str | None = "crm", arguments: object = None
    ) -> Explanation:
        how: dict[str, Any] = {"tool": tool, "server": server, "arguments": arguments, "notify": self.warnings.append}
        places = {"user": "--user", "agent": "config.toml"}
        return explain(self.settings(), self.policy, who or identity(), places=places, **how)

    def verdict(self, tool: str = "echo", who: Identity | None = None) -> Verdict:
        """What the next call would get."""
        found = self.explain(tool, who).verdict
        assert found
        return found

    def never_matched(self, policy: Policy | None = None) -> list[str]:
        return never_matched(policy or self.policy, self.settings())


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def counts(found: Explanation) -> set[int]:
    return {room.used for rooms in found.headrooms.values() for room in rooms}


# A call


def test_each_rule_applies_is_overridden_or_does_not_match(home: Home) -> None:
    found = home.explain()
    assert [one.status for one in found.matches] == ["overridden", "applies", "applies", "no match", "applies"]
    assert (found.matches[0].winner, found.matches[0].narrower_in) == (1, ("user",))
    assert found.matches[3].reason == "the tool is not report"
    assert found.call == Call("alice@acme.com", "Claude Code::interactive::default", "crm", "echo")


def test_the_limits_of_the_rules_that_apply_show_what_the_counters_hold(home: Home) -> None:
    home.call("echo", 2)
    found = home.explain().headrooms
    assert sorted(found) == [1, 2, 4]
    (left,), (observed,) = found[1], found[4]
    assert (left.reported.limit, left.reported.window, left.used, left.remaining, left.retry_after_us) == (3, "1h", 2, 1, 0)
    assert (observed.used, observed.remaining) == (2, 0)
    assert observed.retry_after_us is not None
    assert 0 < observed.retry_after_us <= 3600 * 1_000_000


def test_explaining_says_what_the_next_call_gets_and_counts_nothing(home: Home) -> None:
    home.call("echo", 2)
    assert [home.verdict().decision for _ in range(3)] == ["would_deny"] * 3
    assert home.call("echo", 2) == ["would_deny", "rate_limited"]
    verdict = home.verdict()
    assert verdict.reported is not None
    assert (verdict.decision, verdict.reported.limit, verdict.reported.axis) == ("rate_limited", 3, "user")


def test_without_a_store_all_counters_are_empty_and_no_store_is_made(home: Home) -> None:
    found = home.explain()
    assert (counts(found), found.failure, home.verdict().decision) == ({0}, "", "allowed")
    assert list(home.folder.iterdir()) == []


def test_a_damaged_store_is_reported_and_the_rules_are_explained_all_the_same(home: Home) -> None:
    home.call("echo", 2)
    home.damage()
    found = home.explain()
    assert (bool(found.failure), found.verdict) == (True, None)
    assert [one.status for one in found.matches] == ["overridden", "applies", "applies", "no match", "applies"]


def test_the_counters_of_another_namespace_are_not_read(home: Home) -> None:
    home.call("echo", 2)
    home.configure('[store]\nnamespace = "other"\n')
    assert counts(home.explain()) == {0}
    assert home.explain(server=None).call.server == ""


def test_a_server_that_is_not_given_is_the_one_that_had_the_last_call_of_the_tool(home: Home) -> None:
    for server in ("crm", "erp"):
        home.call("echo", who=identity(server=server))
    home.call("report", who=identity(server="files"))
    found = home.explain(server=None)
    assert (found.call.server, found.sources["server"]) == ("erp", "audit")
    assert home.explain("nothing", server=None).sources["server"] == "unknown"
    assert home.explain(server="crm").sources["server"] == "config"


def test_rules_for_scopes_see_the_scopes_of_the_caller(home: Home) -> None:
    home.policy = parse(rule("deny", tool="d") + rule("20/1h", tool="d", scope="admin.users"))
    for scopes, decision in (((), "denied"), (("admin.users",), "allowed")):
        assert home.verdict("d", identity(scopes=scopes)).decision == decision


def test_the_places_of_what_is_configured_are_named(home: Home) -> None:
    sources = home.explain().sources
    assert (sources["user_from"], sources["agent_from"]) == ("--user", "config.toml")
    sources = home.explain(who=Identity("alice", "os", "crm")).sources
    assert sources == sources | {"user": "os", "agent": "default"}
    assert not {"user_from", "agent_from"} & set(sources)


def test_an_agent_whose_tier_no_rule_matches_is_warned_of(home: Home) -> None:
    home.policy = parse(rule("2/1h", agent="*::interactive::*"))
    home.explain(who=identity(agent="a::interactve::b"))
    assert home.warnings == ["no rule matches agents of the tier interactve, so nothing limits their calls; check the spelling"]


def test_of_a_built_in_tool_is_told_what_a_hook_does_not_do(home: Home) -> None:
    home.policy = parse(STARTER + rule("2/1h", tool="Bash", wait="5s"))
    home.explain(tool="Bash", server="built-in")
    assert home.warnings == ["line 24: rule 5 (tool=Bash): a hook decides calls of built-in tools: it makes no call wait"]


# Caps, cost, errors, arguments and waits


def beyond(home: Home, text: str, *tools: str) -> MemoryStore:
    """Let a store in memory, which `explain` reads, decide calls, which stay in flight."""
    home.policy = parse(text)
    store = MemoryStore()
    session = Session(store, home.policy, namespace="default")
    for tool in tools:
        session.call(tool)
    opened = contextlib.nullcontext(store)
    settings = SimpleNamespace(
        namespace="default", jwt=None, address=SimpleNamespace(exists=lambda: True), read_store=lambda: opened
    )
    home.settings = lambda: settings  # type: ignore[method-assign, assignment, return-value]
    return store


def test_the_limits_of_a_rule_are_those_of_its_place_in_the_policy(home: Home) -> None:
    beyond(home, rule("1/1h", tool="other") + rule("4/1h", tool="echo", concurrent=2), "echo", "echo", "echo")
    found = home.explain()
    left = [(room.reported.limit_text, room.used, room.remaining) for room in found.headrooms[1]]
    assert left == [("4/1h", 2, 2), ("2-in-flight", 2, 0)]
    assert (home.verdict().decision, home.verdict().reason, found.is_held) == ("rate_limited", "concurrent", False)


def test_a_call_that_would_wait_for_room_is_told(home: Home) -> None:
    cap = rule(tool="echo", concurrent=1, wait="5s")
    beyond(home, cap, "echo")
    assert home.explain().is_held
    assert not home.explain("other").is_held
    beyond(home, cap + rule("1/1h", tool="echo"), "echo")
    assert not home.explain().is_held


OF_ARGUMENTS = rule("2/1h", tool="echo", per=["user", "arguments"])


def test_counters_of_arguments_are_found_by_the_stores_key_and_without_arguments_nothing_is_known(home: Home) -> None:
    store = beyond(home, OF_ARGUMENTS)
    session = Session(store, home.policy, namespace="default")
    (request,) = session.charges("echo")
    digest = args_hash({"a": 1, "b": 2.0}, store.args_key).hex()
    request.plan = home.policy.plan(request.call).of_arguments(digest)
    store.decide([request], session.journal)
    for arguments, used in (({"b": 2, "a": 1}, 1), ({"a": 1}, 0), ({}, 0)):
        found = home.explain(arguments=arguments)
        ((left,),) = found.headrooms.values()
        assert (left.is_known, left.used, found.verdict is None) == (True, used, False)
    unknown = home.explain()
    assert ([room.is_known for room in unknown.headrooms[0]], unknown.verdict) == ([False], None)


def test_a_reader_of_a_store_knows_its_key(home: Home) -> None:
    home.call("echo")
    with contextlib.closing(home.settings().open_store()) as store, home.settings().read_store() as reader:
        assert len(reader.args_key) == 32
        assert reader.args_key == store.args_key


# Who calls


def test_the_caller_is_who_a_wrapper_here_would_serve(home: Home) -> None:
    def told(**more: str) -> tuple[str, ...]:
        who = home.caller(**more)
        return who.user, who.user_source, *who.agent(None)

    assert told() == (getpass.getuser(), "os", "unknown::interactive::default", "default")
    home.configure('[identity]\nuser = "carol"\nagent = "A::b::c"\n')
    assert told() == ("carol", "config", "A::b::c", "config")
    assert told(user="bob", agent="::api::") == ("bob", "config", "unknown::api::default", "config")
    assert home.warnings == []


def test_what_can_name_the_agent_otherwise_is_told(home: Home) -> None:
    open_ = "a client fills in its own name"
    assert home.explain(who=home.caller(agent="::api::")).agent_open == open_
    assert home.explain(who=home.caller(agent="A::b::c")).agent_open == ""
    home.configure("[identity]\ntrust_client_info = false\n")
    assert home.explain(who=home.caller()).agent_open == ""


def test_where_no_token_names_the_user_given_roles_and_scopes_are_warned_of_and_a_token_is_an_error(home: Home) -> None:
    who = home.caller(roles=("a",), scopes=("s",))
    assert (who.roles, who.scopes) == (("a",), ("s",))
    assert home.warnings == ["no call has roles or scopes here: configure [identity.jwt] in config.toml"]
    with pytest.raises(ConfigError, match="no token names the user here"):
        home.caller(token="")


# Where a token names the user


@pytest.fixture
def verified(home: Home, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Writes a token of alice with more claims, in a home where tokens name the users."""
    monkeypatch.delenv("MCPGUARD_TOKEN", raising=False)
    keys = home.folder / "keys.json"
    keys.write_bytes(key_set(jwk()))
    file = provider.settings(home.folder, keys, agent_claim="agent")

    def write(**claims: Any) -> None:
        write_token(file, token(**claims))

    write(scope="admin.users", agent="Claude Code::api::nightly")
    return write


@pytest.mark.parametrize("option", [None, ""], ids=["usual", "asked for"])
def test_user_scopes_and_agent_are_those_of_the_token(home: Home, verified: Callable[..., None], option: str | None) -> None:
    who = home.caller(token=option)
    assert (who.user, who.user_source, who.scopes) == ("alice", "jwt", ("admin.users",))
    assert who.agent(None) == ("Claude Code::api::nightly", "jwt")


def test_an_agent_that_the_token_names_cannot_be_replaced(home: Home, verified: Callable[..., None]) -> None:
    assert home.caller(agent="::api::nightly").agent(None)[0] == "Claude Code::api::nightly"
    assert home.warnings == []
    assert home.caller(agent="Claude Code::subagent::Explore").agent(None)[0] == "Claude Code::api::nightly"
    assert home.warnings == ["--agent: a call has another one, Claude Code::api::nightly, since the token names it"]


def test_the_parts_of_the_agent_that_the_token_does_not_name_are_given(home: Home, verified: Callable[..., None]) -> None:
    for claims, agent in (({"agent": "nightly"}, "Codex::background::nightly"), ({}, "Codex::background::x")):
        verified(**claims)
        assert home.caller(agent="Codex::background::x").agent(None)[0] == agent
        assert len(home.warnings) == 1  # of the first, whose name is another


def test_no_token_is_read_for_a_given_user_and_given_scopes_replace_its_own(home: Home, verified: Callable[..., None]) -> None:
    who = home.caller(user="bob")
    assert (who.user, who.user_source, who.scopes) == ("bob", "config", ())
    assert home.caller(user="bob", scopes=("admin.users",)).scopes == ("admin.users",)
    assert home.explain(who=who).agent_open == "the user's token may name another in agent"
    assert home.caller(scopes=("read",)).scopes == ("read",)
    assert home.warnings == []


def test_a_given_token_file_comes_first(home: Home, verified: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    other = home.folder / "other"
    write_token(other, token(sub="bob"))
    monkeypatch.setenv("MCPGUARD_TOKEN", token(sub="carol"))
    bob = home.caller(token=str(other))
    assert (bob.user, bob.scopes) == ("bob", ())
    assert home.caller().user == "carol"


def test_a_token_that_names_nobody_is_the_error_that_a_call_would_get(home: Home, verified: Callable[..., None]) -> None:
    verified(exp=1000)
    told = f"every call is denied with 401: the token in {home.folder / 'token'} expired at 1970-01-01T00:16:40Z"
    with pytest.raises(Unauthenticated) as raised:
        home.caller()
    assert (raised.value.message, raised.value.hint) == (told, "get a new token; the next call uses it, without a restart")


def test_a_token_in_place_of_its_file_is_not_repeated(home: Home, verified: Callable[..., None]) -> None:
    text = token()
    with pytest.raises(ConfigError, match="--token holds a token where a path belongs") as raised:
        home.caller(token=text)
    assert text not in raised.value.message + raised.value.hint


# Rules that no call has matched


@pytest.mark.parametrize(
    ("rules", "unmatched"),
    [
        (("tool = 'echo'", "tool = 'nothing'", "tool = 'ech*'\nconcurrent = 2"), [2]),
        (("role = 'dev'", "role = 'admin'"), [2]),
        (("scope = 'admin'",), []),  # the audit has no scopes
        (("tool = 'invalid'",), [1]),  # a row that is not a call
        (("tool = 'elsewhere'",), [1]),  # a call of another namespace
    ],
)
def test_rules_that_matched_no_call_in_the_audit_are_named(home: Home, rules: tuple[str, ...], unmatched: list[int]) -> None:
    policy = parse("".join(f"[[rule]]\n{rule}\nlimit = '5/1m'\n" for rule in rules))
    assert home.never_matched(policy) == []
    home.call("echo", who=identity(roles=("dev",)))
    with contextlib.closing(home.settings().open_store()) as store:
        assert [one.decision for one in Session(store, home.policy).refuse(call_line("invalid", None))] == ["invalid"]
    home.configure('[store]\nnamespace = "other"\n')
    home.call("elsewhere")
    home.configure("")
    lines = [f"line {found.line}: rule {at + 1} ({found.text})" for at, found in enumerate(policy.rules)]
    told = "has matched none of the calls in the audit log"
    assert home.never_matched(policy) == [f"{lines[number - 1]} {told}" for number in unmatched]


def test_a_store_that_cannot_be_read_names_no_rule(home: Home) -> None:
    home.call("report")
    home.damage()
    assert home.never_matched() == []


def test_only_the_newest_calls_are_looked_at(home: Home) -> None:
    home.call("report")
    home.call("echo", 2)
    told = [line.rpartition(" has ")[2] for line in never_matched(home.policy, home.settings(), newest=2)]
    assert told == ["matched none of the newest 2 calls in the audit log"]
