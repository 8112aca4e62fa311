import json
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cli.command import mcpguard, objects, output
from tests.redis_servers import running

from .host import Host, Message, all_said, audit, call, lines, policy, rule, script, serving, sqlite_url, total

SEARCHES = rule("100/1h", user="*", tool="search_customers")


def reached(log: Path) -> list[list[str | int]]:
    """Id and tool of each call that a server has had."""
    return [json.loads(line) for line in log.read_text().splitlines()]


def call_them_all(host: Host, requests: list[Message]) -> list[Message]:
    """Write all requests without waiting, and read all answers."""
    with host.sending(lines(requests)):
        return [host.message() for _ in requests]


def test_of_a_loop_of_3000_calls_exactly_100_reach_the_server_and_the_others_are_told_when_to_come_back(tmp_path: Path) -> None:
    log = tmp_path / "calls"
    with serving(tmp_path, *script("obedient", log), rules=SEARCHES, options=["--user", "alice@acme.com"]) as host:
        answers = call_them_all(host, [call(number, "search_customers") for number in range(3000)])
    assert reached(log) == [[number, "search_customers"] for number in range(100)]
    assert sorted(answer["id"] for answer in answers) == list(range(3000))
    assert {answer["id"] for answer in answers if "result" in answer} == set(range(100))
    errors = [answer["error"] for answer in answers if "error" in answer]
    assert {(one["code"], one["data"]["axis"], one["data"]["user"]) for one in errors} == {(429, "user", "alice@acme.com")}
    assert all(3_500_000 < one["data"]["retry_after_ms"] <= 3_600_000 * 65 / 64 for one in errors)
    rows = audit(tmp_path)
    assert total(rows, "rate_limited") == 2900
    found = Counter((row["decision"], row.get("outcome")) for row in rows if row["decision"] == "allowed")
    assert found == {("allowed", "ok"): 100}
    assert [row["seq"] for row in rows] == list(range(2, len(rows) + 2))  # the first one tells of the policy
    assert sum(file.stat().st_size for file in tmp_path.glob("mcpguard.db")) < 500_000


@pytest.fixture(params=["SQLite", "Redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "SQLite":
        yield sqlite_url(tmp_path / "mcpguard.db")
        return
    with running(tmp_path / "redis") as server:
        yield server.url


def test_wrappers_that_share_a_store_admit_no_more_than_one_would(tmp_path: Path, store: str) -> None:
    log = tmp_path / "calls"

    def loop(name: int) -> list[Message]:
        """With Redis, each wrapper may be on a machine of its own."""
        home = tmp_path / str(name)
        policy(home, SEARCHES)
        requests = [call(f"{name}-{number}", "search_customers") for number in range(300)]
        with serving(home, *script("obedient", log), options=["--user", "alice", "--server", "crm", "--store", store]) as host:
            return call_them_all(host, requests)

    with ThreadPoolExecutor(3) as pool:
        answers = [answer for some in pool.map(loop, range(3)) for answer in some]
    admitted = {answer["id"] for answer in answers if "result" in answer}
    assert {str(request_id) for request_id, _ in reached(log)} == admitted
    assert len(admitted) == len(reached(log)) == 100
    assert Counter(answer["error"]["code"] for answer in answers if "error" in answer) == {429: 800}
    reset = mcpguard(tmp_path, "reset", "--yes", MCPGUARD_STORE=store)
    assert reset.stdout == "user=alice tool=search_customers server=crm: 100 calls in the last hour\n1 counter reset\n"
    done = mcpguard(tmp_path, "audit", "tail", "-n", "100000", "--json", MCPGUARD_STORE=store)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert (total(rows, "allowed"), total(rows, "rate_limited")) == (100, 800)


def test_wrappers_that_are_killed_while_they_decide_admit_not_one_too_many_and_lose_no_row(tmp_path: Path) -> None:
    policy(tmp_path, rule("1000/1h", user="*"))
    log = tmp_path / "calls"
    command, options = script("obedient", log), ["--user", "alice"]

    def survivor(name: int) -> None:
        with serving(tmp_path, *command, options=options) as host:
            for number in range(300):
                host.call(f"{name}-{number}", "search")

    def victim(name: int) -> None:
        dice = random.Random(name)  # noqa: S311 - a seed, not a secret
        for life in range(4):
            with Host(tmp_path, *command, options=options) as host:
                for number in range(dice.randrange(100)):
                    host.call(f"{name}-{life}-{number}", "search")
                host.send(*(call(f"{name}-{life}-last-{number}", "search") for number in range(20)))
                host.kill()
                assert host.nobody_is_left()

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(victim if name % 2 else survivor, name) for name in range(8)]:
            done.result()
    said = all_said(tmp_path)
    assert "unavailable" not in said, said
    rows = [row["request_id"] for row in audit(tmp_path) if row["decision"] == "allowed"]
    calls = [request_id for request_id, _ in reached(log)]
    assert len(rows) == 1000, said
    assert len(calls) == len({*calls})
    assert {*calls} <= {*rows}, said


RULES = (
    rule(tool="hang", concurrent=1)
    + rule("1/1h", tool="fail", count="errors")
    + rule("10/1h", tool="report", count="cost")
    + '[[cost]]\ntool = "report"\ncost = 4\n\n'
    + rule("1/1h", tool="poll", per=["arguments"])
    + rule("1/1s", tool="turn", wait="20s")
)


def reason(answer: Message) -> str:
    return str(answer["error"]["data"]["reason"]) if "data" in answer.get("error", {}) else ""


def test_calls_in_flight_errors_cost_and_equal_arguments_are_counted_over_all_wrappers(tmp_path: Path) -> None:
    with Host(tmp_path, *script("obedient"), rules=RULES) as one, Host(tmp_path, *script("obedient")) as other:
        one.send(call("in flight", "hang"))
        one.notification("notifications/hanging")
        assert reason(other.call(1, "hang")) == "concurrent"
        assert one.call(2, "fail")["error"]["code"] == -32603
        assert reason(other.call(2, "fail")) == "failing"
        for host in (one, other):
            assert "result" in host.call(3, "report")
        assert reason(one.call(4, "report")) == "rate_limited"
        assert "result" in one.call(5, "poll", {"page": 1})
        assert "result" in other.call(5, "poll", {"page": 2})
        assert reason(other.call(6, "poll", {"page": 1})) == "rate_limited"
        one.kill()
        one.wait()
        other.send(call(7, "hang"))
        other.notification("notifications/hanging")


def test_a_call_that_waits_is_forwarded_when_there_is_room_and_others_pass_it(tmp_path: Path) -> None:
    with serving(tmp_path, rules=RULES) as host:
        host.send(call(1, "turn"), call(2, "turn"), call(3, "free"))
        assert [host.message()["id"] for _ in range(3)] == [1, 3, 2]
    (waited,) = (row["waited_ms"] for row in host.audit() if "waited_ms" in row)
    assert 0 < waited <= 20_000


TWO = {"MCPGUARD_NAMESPACE": "two"}
WHO = ("--user", "alice", "--server", "crm")


def calls(home: Path, env: dict[str, str], *tools: str) -> list[int]:
    """How calls in a namespace are answered: 200, or the error's code."""
    with serving(home, options=WHO, env=env) as host:
        answers = [host.call(at, tool) for at, tool in enumerate(tools)]
    return [answer.get("error", {}).get("code", 200) for answer in answers]


def test_each_has_counters_and_an_audit_of_its_own_for_calls_and_commands(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[store]\nnamespace = "one"\n')
    policy(tmp_path, rule("1/1h", user="*", tool="*") + rule("deny", tool="never"))
    assert calls(tmp_path, {}, "search", "search", "never") == [200, 429, 403]
    assert calls(tmp_path, TWO, "search") == [200]
    for env, name, tools in (({}, "one", ["search", "search", "never"]), (TWO, "two", ["search"])):
        rows = objects(tmp_path, "audit", "tail", "--json", "-n", "100", **env)
        assert {row["namespace"] for row in rows} == {name}
        assert [row["tool"] for row in rows if "tool" in row] == tools
    assert "1 counter reset" in output(tmp_path, "reset", "--yes", **TWO)
    for env, count in (({}, 1), (TWO, 0)):
        found = json.loads(output(tmp_path, "policy", "explain", *WHO, "--tool", "search", "--json", **env))
        assert [left["count"] for one in found["rules"] for left in one["limits"]] == [count]
    assert calls(tmp_path, TWO, "search") == [200]
    assert calls(tmp_path, {}, "search") == [429]
    assert "has matched none" not in output(tmp_path, "policy", "check")
    assert "rule 2 (tool=never) has matched none" in output(tmp_path, "policy", "check", **TWO)
