"""Real wrappers and hooks tell a real server, off every call's path."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w

from tests.alerts.test_notifier import WRITE, read
from tests.alerts.webhook import Webhook, webhook
from tests.hook.test_deciding import refusal
from tests.redis_servers import running

from .host import DEADLINE_S, Host, policy, rule, script, serving, until
from .outages import EagerHost, is_back, wait_for

LAST = {"mcpguard.relay.guard.MESSAGES_S": DEADLINE_S}
"""A wrapper that gives its last messages all the time that a busy machine may need."""


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with webhook() as found:
        yield found


def notify(home: Path, hook: Webhook, *others: dict[str, object], url: str = "", **more: object) -> None:
    """Tell the webhook and others, perhaps with a store at a URL."""
    store = {"store": {"url": url}} if url else {}
    (home / "config.toml").write_text(tomli_w.dumps({"notify": [{"webhook": hook.url} | more, *others]} | store))


@pytest.mark.waits
def test_a_loop_that_lasts_for_several_windows_over_two_wrappers_ends_in_one_message(tmp_path: Path, hook: Webhook) -> None:
    """The loop obeys the denials: that has a burst, and a pause of a window."""
    policy(tmp_path, rule("3/1s", user="*"))
    notify(tmp_path, hook)
    denials = 0
    with Host(tmp_path, *script("obedient"), tuned=LAST) as one, Host(tmp_path, *script("obedient"), tuned=LAST) as other:
        while denials < 4:
            for number, host in enumerate((one, other, one, other)):
                answer = host.call(f"{denials}-{number}", "echo")
                if "error" in answer:
                    denials += 1
                    time.sleep(answer["error"]["data"]["retry_after_ms"] / 1000)
        assert [one.end(), other.end()] == [0, 0]
    (message,) = hook.messages
    assert (message["event"], message["rule"], message["limit"], message["window"]) == ("denied", "user=*", 3, "1s")
    assert message["text"].startswith("rate_limited axis=user server=obedient ")
    assert "more" not in message["text"]
    told = json.loads((tmp_path / "notified.json").read_text())
    assert [more for _, _, more in told.values()] == [denials - 1], "summed up in the next message"


def test_a_warning_is_told_before_the_denials_and_only_to_those_who_want_it(tmp_path: Path, hook: Webhook) -> None:
    notify(tmp_path, hook, on=["warn"])
    with serving(tmp_path, rules=rule("4/1h", user="*", warn="50%"), tuned=LAST) as host:
        for number in range(6):
            host.call(number, "echo")
    assert host.err.count("warned axis=user ") == 1
    assert [(one["event"], one["count"], one["decision"]) for one in hook.messages] == [("warn", 2, "warned")]
    assert [row["warned"][0]["count"] for row in host.audit() if "warned" in row] == [2]


def test_a_webhook_that_hangs_delays_no_call_and_no_end_and_all_is_sent_after_that(tmp_path: Path, hook: Webhook) -> None:
    hook.answers.clear()
    notify(tmp_path, hook, {"command": [sys.executable, "-S", "-c", WRITE, str(tmp_path / "got")]})
    with serving(tmp_path, rules=rule("1/1h", user="*"), tuned={"mcpguard.relay.guard.MESSAGES_S": 0.0}) as host:
        host.call(1, "echo")
        host.call(2, "echo")
        until(lambda: bool(hook.got), "the message is being sent")
        assert host.call(3, "echo")["error"]["code"] == 429
    assert "not sent" not in host.err
    until(lambda: read(tmp_path / "got") == hook.messages, "the other message")


@pytest.mark.waits
def test_the_begin_and_the_end_of_an_outage_are_told_once_by_two_wrappers(tmp_path: Path, hook: Webhook) -> None:
    policy(tmp_path, rule("deny", tool="drop"))
    with running(tmp_path / "redis", "--appendonly", "yes") as server:
        notify(tmp_path, hook, url=server.url, on=["unavailable"])
        with EagerHost(tmp_path, tuned=LAST) as one, EagerHost(tmp_path, tuned=LAST) as other:
            for host in (one, other):
                host.call(1, "echo")
            server.kill()
            for host in (one, other):
                wait_for(host, "store unavailable")
            server.start()
            for host in (one, other):
                is_back(host)
            assert [one.end(), other.end()] == [0, 0]
    assert [one["decision"] for one in hook.messages] == ["store_lost", "store_back"]
    assert hook.messages[0]["text"].startswith("store unavailable: redis://127.0.0.1:")


def test_hooks_tell_a_denial_once_and_answer_without_waiting_for_that(tmp_path: Path, hook: Webhook) -> None:
    hook.answers.clear()
    policy(tmp_path, rule("deny", tool="Bash"))
    notify(tmp_path, hook)
    for number in range(3):
        assert "Bash" in refusal(tmp_path, "Bash", f"t{number}")
    until(lambda: bool(hook.got), "the message")
    hook.answers.set()
    assert [(one["event"], one["via"], one["tool"]) for one in hook.messages] == [("denied", "hook", "Bash")]


def test_a_message_that_cannot_be_sent_is_one_line(tmp_path: Path, hook: Webhook) -> None:
    hook.status = 403
    notify(tmp_path, hook)
    with serving(tmp_path, rules=rule("deny", tool="drop") + rule("deny", tool="fail"), tuned=LAST) as host:
        host.call(1, "drop")
        host.call(2, "fail")
    assert len(hook.got) == 2
    assert host.err.count("mcpguard: a message was not sent: webhook at 127.0.0.1: it answers with HTTP status 403 ") == 1
