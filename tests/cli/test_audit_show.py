"""`audit show` explains one row: its rule, its counters then and now, and the command that changes the rule."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from mcpguard.cli.audit import show
from mcpguard.cli.usage import counter_text
from mcpguard.policy.model import Policy
from mcpguard.policy.parse import parse
from mcpguard.reading.explaining import Shown, explain_row
from mcpguard.session.verdict import Ending
from mcpguard.stores.memory import MemoryStore
from tests.build import WALL_US, Session, Time, identity
from tests.cli.command import ALICE, OBEDIENT, calls, complaint, mcpguard, output, unfolded
from tests.end_to_end.host import Host, audit, policy, rule

POLICY = (
    rule("1/1h", user="*", tool="echo")
    + rule("deny", tool="closed")
    + rule(["2/1m", "1/1h"], user="*", tool="watched", per=["user"], mode="observe")
)


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calls of some kinds, made once."""
    home = tmp_path_factory.mktemp("used")
    calls(home, "echo", 4, rules=POLICY)
    calls(home, "closed", 1)
    calls(home, "watched", 2)
    calls(home, "free", 1)
    return home


def row(home: Path, tool: str, at: int = -1) -> dict[str, Any]:
    return [one for one in audit(home) if one["tool"] == tool][at]


def shown(home: Path, row_id: str, *argv: str) -> str:
    return output(home, "audit", "show", row_id, *argv)


def test_a_denial_is_shown_with_its_rule_its_counter_then_and_now_and_the_command(home: Path) -> None:
    denial = row(home, "echo", 1)
    lines = shown(home, denial["id"]).splitlines()
    assert lines[:2] == [f"id:          {denial['id']}", f"time:        {denial['time']}"]
    assert "user:        alice@acme.com (--user, MCPGUARD_USER or config.toml)" in lines
    assert "decision:    rate_limited" in lines
    rest = lines[lines.index("Rule user=* tool=echo (axis user):") :]
    at = rest.index("    1/1h for user=alice@acme.com tool=echo server=crm")
    told = unfolded("\n".join(rest[1:at]))
    assert told == f"rule 1 of {home / 'policy.toml'}, line 1: Each user may call echo once an hour."
    assert rest[at + 1] == "      then: 1 used, 0 left, retry in 3,600 s, count 2 with denials"
    assert rest[at + 2].startswith("      now:  1 used, 0 left, retry in 3,")
    how = ["", "To change the rule, edit the limit in:", "    mcpguard policy set --user '*' --tool echo 1/1h"]
    assert rest[at + 3 :] == how


def test_a_denial_that_shares_a_row_names_the_row_and_the_first_one_stands_in_for_a_row_that_is_gone(home: Path) -> None:
    first, last = row(home, "echo", 1), row(home, "echo", 2)
    assert last["id"] == f"{first['id']}.1"
    assert f"id:          {last['id']}\n" in shown(home, last["id"])
    assert complaint(home, "audit", "show", f"{first['id']}.9", status=1).splitlines() == [
        f"mcpguard: no row has the id {first['id']}.9",
        f"hint: look at the row of the denials before it: mcpguard audit show {first['id']}",
    ]


def test_the_row_of_a_closed_tool_has_no_counter(home: Path) -> None:
    text = shown(home, row(home, "closed")["id"])
    assert "Nobody may call closed." in text
    assert "    deny: it counts nothing\n" in text
    assert text.endswith("    mcpguard policy set --tool closed deny\n")


def test_a_row_is_explained_as_json(home: Path) -> None:
    report = json.loads(shown(home, row(home, "watched")["id"], "--json"))
    assert report["commands"] == ["mcpguard policy set --user '*' --tool watched --per user 2/1m 1/1h"]
    assert report["row"] == row(home, "watched")
    in_force = json.loads(mcpguard(home, "policy", "show", "--json").stdout)["rules"]
    (told,) = report["rules"]
    assert (told["rule"], told["number"]) == ("user=* tool=watched per=user", in_force[2]["number"])
    assert told["now"].items() <= in_force[2].items()
    (limit,) = report["limits"]
    assert (limit["limit"], limit["window"]) == (1, "1h")
    assert limit["counter"] == "user=alice@acme.com tool=watched (counted together)"
    assert limit["then"] == {"used": 1, "remaining": 0, "count": 2, "retry_after_ms": limit["then"]["retry_after_ms"]}
    assert (limit["now"]["limit"], limit["now"]["used"], limit["now"]["remaining"]) == (1, 1, 0)


def test_a_row_that_no_rule_decided_says_so(home: Path) -> None:
    assert shown(home, row(home, "free")["id"]).endswith("\nNo rule decided.\n")


def test_the_axis_of_a_denial_that_no_limit_made_is_shown() -> None:
    record = {"id": "45732ae6c06cfb07-2", "namespace": "default", "decision": "unauthenticated", "axis": "user"}
    assert "\naxis:        user\n" in Kinds().told(record)


def test_a_rule_that_the_policy_no_longer_has_is_said_to_be_gone(home: Path) -> None:
    policy(home, rule("5/1m", tool="other"))
    text = shown(home, row(home, "echo", 1)["id"])
    assert f" not in {home / 'policy.toml'} now " in unfolded(text)
    assert text.endswith("    1/1h\n      then: 1 used, 0 left, retry in 3,600 s, count 2 with denials\n")


def test_the_command_names_the_policy_file_that_was_named(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "my policy.toml"
    other.write_text(POLICY, "utf-8")
    text = shown(home, row(home, "closed")["id"], "--policy", str(other))
    assert text.endswith(f"    mcpguard policy set --policy '{other}' --tool closed deny\n")


def test_the_word_last_stands_for_the_newest_row_that_tail_shows(home: Path) -> None:
    newest = mcpguard(home, "audit", "tail", "-n", "1").stdout.rpartition("id=")[2].strip()
    assert f"id:          {newest}\n" in shown(home, "last")
    with Host(home, *OBEDIENT, options=ALICE) as host:  # it writes a row that only names the policy
        host.end()
    assert f"id:          {newest}\n" in shown(home, "last")


def test_the_last_row_of_an_empty_log_is_reported_as_missing(tmp_path: Path) -> None:
    calls(tmp_path, "echo", 0)
    told = "mcpguard: the audit log has no rows yet\nhint: call a tool of a server that mcpguard guards\n"
    assert complaint(tmp_path, "audit", "show", "last", status=1) == told


@pytest.mark.parametrize("row_id", ["nonsense", "0123456789abcdef-1"])
def test_an_unknown_id_is_reported(home: Path, row_id: str) -> None:
    told = f"mcpguard: no row has the id {row_id}\nhint: look for it with mcpguard audit tail --json"
    assert complaint(home, "audit", "show", row_id, status=1).startswith(told)


# Caps, cost, errors and arguments

KINDS = (
    rule("9/1h", user="*", tool="echo", concurrent=1)
    + rule(["30/1h", "40/1d"], tool="sum", count="cost")
    + rule("2/1m", tool="sync", count="errors")
    + rule("1/10m", tool="loop", per=["user", "arguments"])
    + '[[cost]]\ntool = "sum"\ncost = 20\n'
)


class Kinds:
    """Sessions with a store in memory."""

    def __init__(self, text: str = KINDS) -> None:
        self.time = Time()
        self.store = MemoryStore(clock=self.time)
        self.policy = parse(text)
        self.session = Session(self.store, self.policy)

    def edited(self, text: str) -> "Kinds":
        """A session under another policy, whose calls are shown beside these counters."""
        other = Kinds(text)
        other.store = self.store
        return other

    def last(self, tool: str, times: int, *, failing: bool = False) -> dict[str, Any]:
        """The row of the last of some calls, which stay in flight unless they fail."""
        for _ in range(times):
            (request,) = self.session.charges(tool)
            if request.plan.is_split:
                request.plan = request.plan.of_arguments("ab" * 12)
            (verdict,) = self.store.decide([request], self.session.journal)
            if failing and verdict.forwards:
                self.store.settle([Ending(verdict.row_id or 0, request.plan, True)])
        (*_, last) = self.store.entries()
        return last.record

    def shown(self, record: dict[str, Any], policy: Policy | None = None) -> Shown:
        return explain_row(self.store, policy or self.policy, record, policy_option=[])

    def told(self, record: dict[str, Any], policy: Policy | None = None) -> str:
        """What is printed of a row."""
        with contextlib.redirect_stdout(io.StringIO()) as out:
            show.print_shown(self.shown(record, policy), policy or self.policy, "policy.toml")
        return out.getvalue()

    def limits(self, record: dict[str, Any]) -> Any:
        """The limits of a row as JSON."""
        return show.shown_as_json(self.shown(record), self.policy)["limits"]


def test_a_call_above_a_cap_shows_what_is_in_flight() -> None:
    kinds = Kinds()
    record = kinds.last("echo", 2)
    found = kinds.shown(record)
    (limit,) = found.limits
    assert (limit.reported.limit_text, limit.reported.counts, limit.retry_after_ms) == ("1-in-flight", "concurrent", None)
    assert found.commands == ["mcpguard policy set --user '*' --tool echo --concurrent 1 9/1h"]
    out = kinds.told(record)
    assert "1-in-flight for user=alice@acme.com tool=echo server=crm\n      then: 1 in flight, 0 left, count 2 with" in out
    assert "\n      now:  1 in flight, 0 left\n" in out
    assert "reason:      concurrent\n" in out
    (told,) = kinds.limits(record)
    assert (told["limit"], told["window"], told["counts"]) == (1, None, "concurrent")
    assert told["now"] == {"limit": 1, "used": 1, "remaining": 0, "retry_after_ms": None}


def test_a_limit_and_a_cap_of_one_rule_have_one_command() -> None:
    kinds = Kinds(KINDS.replace("9/1h", "1/1h"))
    found = kinds.shown(kinds.last("echo", 2))
    assert [limit.reported.limit_text for limit in found.limits] == ["1/1h", "1-in-flight"]
    assert [(one.text, one.at, one.limits) for one in found.rules] == [("user=* tool=echo", 0, [0, 1])]
    assert found.commands == ["mcpguard policy set --user '*' --tool echo --concurrent 1 1/1h"]


@pytest.mark.parametrize(
    ("tool", "times", "limit", "used", "wait_ms", "command"),
    [
        ("sum", 2, "30-units/1h", 20, 3_600_000, "--tool sum --count cost 30/1h 40/1d"),  # 10 are left, and it takes 20
        ("sync", 3, "2-errors/1m", 2, 60_000, "--tool sync --count errors 2/1m"),
    ],
)
def test_a_limit_on_cost_or_errors_shows_what_it_counts(
    tool: str, times: int, limit: str, used: int, wait_ms: int, command: str
) -> None:
    kinds = Kinds()
    found = kinds.shown(kinds.last(tool, times, failing=tool == "sync") | {"cost": 20})
    (then,), now = found.limits, found.counters[0]
    assert (then.reported.limit_text, then.retry_after_ms) == (limit, wait_ms)
    assert (now.used, now.retry_after_us) == (used, 1000 * wait_ms)
    assert found.commands == [f"mcpguard policy set {command}"]


def test_the_row_tells_what_a_limit_on_cost_had_left_for_the_one_that_decided_only() -> None:
    limits = rule(["30/1h", "35/1d"], tool="sum", count="cost")
    kinds = Kinds(f"{limits}[[cost]]\ncost = 10\n")
    kinds.last("sum", 3)
    dearer = kinds.edited(f"{limits}[[cost]]\ncost = 20\n")
    record = dearer.last("sum", 1)
    out = dearer.told(record)
    assert "30-units/1h for tool=sum server=crm\n      then: retry in 3,600 s\n      now:  30 used, 0 left" in out
    assert "35-units/1d for tool=sum server=crm\n      then: 30 used, 5 left, retry in 86,400 s" in out
    assert [one["then"]["used"] for one in dearer.limits(record)] == [None, 30]


@pytest.mark.parametrize(("now", "used"), [("2/60m", [2]), ("2/1m", [])], ids=["in another unit", "gone"])
def test_a_limit_is_known_by_its_window_and_of_one_that_is_gone_only_the_past_is_shown(now: str, used: list[int]) -> None:
    kinds = Kinds(rule("2/1h", tool="echo"))
    found = kinds.shown(kinds.last("echo", 3), parse(rule(now, tool="echo")))
    assert [one.used for one in found.counters.values()] == used
    assert found.commands == [f"mcpguard policy set --tool echo {now}"]


@pytest.mark.parametrize("counts", ["calls", "cost"])
def test_each_limit_that_had_no_room_for_a_call_is_told_to_be_full(counts: str) -> None:
    kinds = Kinds(rule(["2/1h", "2/1d"], tool="echo", count=counts))
    limits = kinds.limits(kinds.last("echo", 3))
    assert [(one["then"]["used"], one["then"]["remaining"]) for one in limits] == [(2, 0), (2, 0)]


def test_nothing_is_left_of_a_limit_that_was_lowered_below_what_its_counter_holds() -> None:
    kinds = Kinds(rule("3/1h", tool="echo"))
    denial = kinds.last("echo", 4)
    assert "now:  3 used, 0 left of 2, retry in" in kinds.told(denial, parse(rule("2/1h", tool="echo")))


def test_the_commands_of_several_rules_are_for_the_rules() -> None:
    kinds = Kinds(rule("1/1h", user="*") + rule("1/1h", tool="echo"))
    assert kinds.told(kinds.last("echo", 2)).splitlines()[-3:] == [
        "To change the rules, edit the limit in:",
        "    mcpguard policy set --user '*' 1/1h",
        "    mcpguard policy set --tool echo 1/1h",
    ]


def test_a_counter_of_arguments_is_not_guessed() -> None:
    kinds = Kinds()
    found = kinds.shown(kinds.last("loop", 2))
    assert (found.limits[0].reported.limit_text, found.counters) == ("1/10m", {})


def test_rules_with_the_same_text_are_told_apart_by_what_they_count() -> None:
    calls_only = rule("5/1h", tool="sync")
    kinds = Kinds(calls_only + rule("2/1m", tool="sync", count="errors"))
    found = kinds.shown(kinds.last("sync", 3, failing=True))
    assert [(one.text, one.at) for one in found.rules] == [("tool=sync", 1)]
    without = kinds.shown(kinds.last("sync", 1), parse(calls_only))
    assert [(one.text, one.at) for one in without.rules] == [("tool=sync", None)]
    assert (without.counters, without.commands) == ({}, [])


@pytest.mark.parametrize("closed_first", [True, False])
def test_a_rule_that_closes_a_tool_is_told_apart_from_a_limit_on_cost_with_the_same_text(closed_first: bool) -> None:
    rules = [rule("deny", tool="sum"), rule("5/1h", tool="sum", count="cost")]
    closed, cost = (0, 1) if closed_first else (1, 0)
    kinds = Kinds(rules[closed] + rules[cost] + "[[cost]]\ncost = 9\n")
    found = kinds.shown(kinds.last("sum", 1) | {"cost": 9})
    places = {found.limits[at].reported.limit_text: one.at for one in found.rules for at in one.limits}
    assert places == {"deny": closed, "5-units/1h": cost}
    assert len(found.counters) == 1
    of_both = {"mcpguard policy set --tool sum --count cost 5/1h", "mcpguard policy set --tool sum deny"}
    assert set(found.commands) == of_both


def flooded(kinds: Kinds, *tools: str) -> dict[str, Any]:
    """The row that sums up most of 400 denials of each of several families of tools."""
    for at in range(400):
        for tool in tools:
            kinds.session.call(f"{tool}{at}", 2)
    rows = kinds.session.journal.flush(WALL_US, all_of_them=True)
    kinds.store.append(rows)
    (*_, last) = kinds.store.entries()
    assert "tool" not in last.record
    return last.record


def test_a_row_for_denials_of_many_tools_has_a_limit_but_no_count_and_no_counter() -> None:
    kinds = Kinds(rule("1/1h", tool="*"))
    record = flooded(kinds, "a")
    assert kinds.shown(record).counters == {}
    end = "    1/1h\n\nTo change the rule, edit the limit in:\n    mcpguard policy set --tool '*' 1/1h\n"
    assert kinds.told(record).endswith(end)
    (told,) = kinds.limits(record)
    assert told["then"] == {"used": None, "remaining": None, "count": None, "retry_after_ms": None}


def test_a_row_for_denials_by_several_limits_says_that_it_does_not_tell_which() -> None:
    kinds = Kinds(rule("1/1h", tool="a*") + rule("1/1d", tool="b*"))
    assert kinds.told(flooded(kinds, "a", "b")).endswith("\nSeveral limits decided. The row does not tell which.\n")


def test_a_limit_per_session_is_told_apart_from_another_with_the_same_text_and_shows_its_sessions_counter() -> None:
    kinds = Kinds(rule("5/30d", user="*") + rule("2/session", user="*"))
    kinds.session = Session(kinds.store, kinds.policy, who=identity()._replace(session="abc123"))
    record = kinds.last("sync", 3)
    found = kinds.shown(record)
    assert [(one.text, one.at) for one in found.rules] == [("user=*", 1)]
    assert (found.limits[0].reported.limit_text, found.counters[0].used) == ("2/session", 2)
    assert counter_text(found.counters[0].counter.label) == "user=alice@acme.com session=abc123"  # type: ignore[union-attr]
    assert found.commands == ["mcpguard policy set --user '*' 2/session"]
    edited = kinds.edited(rule("deny", user="*") + rule("4/session", user="*"))
    assert edited.shown(record).counters[0].reported.limit == 4
