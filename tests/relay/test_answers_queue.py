import pytest

from mcpguard.relay.dispatch import AnswersQueue
from mcpguard.wire.answers import Line

ANSWER = b'{"id":1,"result":{}}\n'


def lines(unread: AnswersQueue) -> list[bytes]:
    return [line.frame.rstrip(b"\n") for found, _ in unread.take() for line in found]


def test_a_chunk_is_kept_until_it_is_taken() -> None:
    unread = AnswersQueue()
    assert unread.add(ANSWER, awaits_answers=True)
    assert unread.held_bytes == len(ANSWER)
    assert lines(unread) == [ANSWER[:-1]]
    assert (unread.held_bytes, lines(unread)) == (0, [])


def test_whole_frames_are_not_kept_while_no_request_is_in_flight() -> None:
    unread = AnswersQueue()
    assert not unread.add(ANSWER, awaits_answers=False)
    assert unread.held_bytes == 0


@pytest.mark.parametrize("cut", range(1, len(ANSWER) - 1))
def test_all_parts_of_a_frame_are_kept(cut: int) -> None:
    unread = AnswersQueue()
    assert unread.add(ANSWER[:cut], awaits_answers=False)
    assert unread.add(ANSWER[cut:], awaits_answers=False)
    assert lines(unread) == [ANSWER[:-1]]
    assert unread.add(ANSWER[:cut], awaits_answers=False)
    assert lines(unread) == []
    assert unread.add(ANSWER[cut:], awaits_answers=False)
    assert lines(unread) == [ANSWER[:-1]]


def test_the_end_of_a_frame_is_kept_even_if_it_comes_while_the_start_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    unread = AnswersQueue()
    unread.add(ANSWER[:5], awaits_answers=True)
    answer_lines = unread._answer_lines()
    feed = answer_lines.feed

    def feed_slowly(chunk: bytes) -> list[Line]:
        if chunk == ANSWER[:5]:
            assert unread.add(ANSWER[5:], awaits_answers=False)
        return feed(chunk)

    monkeypatch.setattr(answer_lines, "feed", feed_slowly)
    assert lines(unread) == [ANSWER[:-1]]


class InterruptedChunk(bytes):
    """A chunk that is taken, as by another thread, when its length is first asked for."""

    unread: AnswersQueue | None = None

    def __len__(self) -> int:
        unread, self.unread = self.unread, None
        if unread:
            list(unread.take())
        return super().__len__()


def test_the_bytes_held_are_exact_although_a_chunk_is_taken_while_it_is_added() -> None:
    chunk = InterruptedChunk(ANSWER)
    chunk.unread = unread = AnswersQueue()
    unread.add(chunk, awaits_answers=True)
    assert unread.held_bytes == 0


def test_an_unterminated_answer_at_the_end_of_the_stream_is_the_last_one() -> None:
    unread = AnswersQueue()
    unread.add(ANSWER[:-1], awaits_answers=True)
    assert lines(unread) == []
    assert unread.last() == [Line(ANSWER[:-1], True)]


def test_about_as_many_bytes_are_taken_as_asked_for() -> None:
    unread = AnswersQueue()
    for _ in range(5):
        unread.add(ANSWER, awaits_answers=True)
    assert len(list(unread.take(len(ANSWER) + 1))) == 2
    assert unread.held_bytes == 3 * len(ANSWER)
    assert len(list(unread.take())) == 3
