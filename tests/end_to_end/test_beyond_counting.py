"""What limits count beyond calls, over wrappers that share a store."""

from pathlib import Path

from .host import Host, Message, call, rule, script, serving

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
