"""Nothing that some server would take for a call reaches it without a charge, whatever a client writes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpguard.wire import frames
from tests.fuzz.attacks import COUNTED, EXPOSED, HIDDEN
from tests.fuzz.grammar import Draw, stream
from tests.fuzz.oracle import check


@pytest.mark.parametrize("line", HIDDEN.values(), ids=HIDDEN)
def test_a_line_that_two_parsers_read_differently_does_not_arrive(line: bytes) -> None:
    assert check(line).to_server == []


@pytest.mark.parametrize("line", EXPOSED.values(), ids=EXPOSED)
def test_a_call_that_hides_in_another_message_is_run_by_no_parser(line: str) -> None:
    assert check(line.encode()).charged["closed"] == 0


@pytest.mark.parametrize("line", COUNTED.values(), ids=COUNTED)
def test_a_call_in_an_odd_spelling_arrives_and_is_paid_for(line: str) -> None:
    wire = check(line.encode())
    assert len(wire.to_server) == wire.charged.total() == 1


@pytest.mark.parametrize("line", [*HIDDEN.values(), *(line.encode() for line in (EXPOSED | COUNTED).values())])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r", b"\n\n \t\n", b" ", b","])
def test_what_stands_before_or_after_an_odd_line_changes_nothing_for_the_worse(line: bytes, line_end: bytes) -> None:
    call = b'{"jsonrpc":"2.0","id":77,"method":"tools/call","params":{"name":"open"}}'
    check(call + line_end + line + line_end + call, chunk_bytes=50)


streams = st.builds(lambda seed: stream(Draw(seed)), st.integers(0, 2**64 - 1))


@settings(max_examples=1000)  # planted faults were found within these
@given(
    streams, st.sampled_from([1, 7, 64, 1 << 16]), st.sampled_from([300, 1 << 20]), st.sampled_from(["hash", "full", "none"])
)
def test_every_parser_sees_what_was_judged_and_runs_what_was_charged(
    written: bytes, chunk_bytes: int, max_frame_bytes: int, arguments: str
) -> None:
    check(written, chunk_bytes=chunk_bytes, max_frame_bytes=max_frame_bytes, arguments=arguments)


@settings(max_examples=500)
@given(st.binary(max_size=200))
def test_bytes_without_any_sense_are_answered_and_do_no_harm(written: bytes) -> None:
    check(written, chunk_bytes=16)


@settings(max_examples=400)
@given(streams, st.sampled_from(["hash", "full", "none"]))
def test_every_parser_sees_what_was_judged_also_where_little_was_built(written: bytes, arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "is_heavy", lambda _: True)
        check(written, arguments=arguments)
