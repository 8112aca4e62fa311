"""The loop from the server to the client bounds what is unread."""

from types import SimpleNamespace
from typing import Any

import pytest

from mcpguard.relay import downstream
from mcpguard.relay.answers_queue import AnswersQueue
from mcpguard.relay.downstream import Downstream


def test_the_loop_reads_answers_if_much_is_unread_and_waits_for_the_session_if_too_much_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(downstream, "MUCH_UNREAD_BYTES", 100)
    monkeypatch.setattr(downstream, "MAX_UNREAD_BYTES", 200)
    chunks = [bytes(100), bytes(1), bytes(99), bytes(1), b""]
    waited: list[bool] = []
    stream: Any = SimpleNamespace(read=lambda: chunks.pop(0))
    output: Any = SimpleNamespace(relay=lambda chunk, observe: observe(chunk))
    dispatcher: Any = SimpleNamespace(session=None, read_answers=lambda most_bytes, waits: waited.append(waits))
    Downstream(stream, output, AnswersQueue(), dispatcher).run(lambda: None)
    assert waited == [False, False, True]
