import pytest

from mcpguard.session import opening
from mcpguard.session.opening import Opening
from mcpguard.wire.frames import read
from tests.build import call_line, request

PING = request("ping", 7)
NOTIFICATION = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'
RESPONSE = b'{"jsonrpc":"2.0","id":1,"result":{}}'


def test_messages_that_are_not_calls_pass_and_are_kept_for_the_session() -> None:
    one = Opening()
    assert one.forward(read([PING, NOTIFICATION]), 5) == PING + b"\n" + NOTIFICATION + b"\n"
    assert one.forward(read([RESPONSE]), 6) == RESPONSE + b"\n"
    assert one.passed == [(read([PING, NOTIFICATION]), 5), (read([RESPONSE]), 6)]


@pytest.mark.parametrize("line", [call_line("search"), b"no JSON", PING], ids=["call", "refusal", "id used again"])
def test_what_the_session_has_to_judge_waits_with_all_that_the_client_wrote_with_it(line: bytes) -> None:
    one = Opening()
    assert one.forward(read([PING]), 5)
    assert one.forward(read([NOTIFICATION, line]), 6) is None
    assert [now_us for _, now_us in one.passed] == [5]


def test_messages_wait_once_many_bytes_have_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MAX_BYTES", 2 * len(NOTIFICATION + b"\n"))
    one = Opening()
    assert one.forward(read([NOTIFICATION, NOTIFICATION]), 5)
    assert one.forward(read([NOTIFICATION]), 6) is None
