"""The recipes in `docs/recipes.md` do what the page says, and clients see the messages that it quotes."""

import re

from tests.build import Talk, call_line, identity
from tests.pages import DOCS, block, chapter

PAGE = DOCS["recipes.md"]


def quoted(title: str) -> str:
    (found,) = re.findall(r"^> (.*)$", chapter(PAGE, title), re.MULTILINE)
    return str(found)


def talk(title: str, **who: str) -> Talk:
    """A conversation of Alice under the policy of a recipe."""
    return Talk(block("toml", chapter(PAGE, title)), who=identity(**who))  # type: ignore[arg-type]


def message(one: Talk) -> str:
    """What the client was told last."""
    return str(one.to_client[-1]["error"]["message"])


def test_an_expensive_report_takes_more_of_the_budget_than_a_search() -> None:
    one = talk("An expensive report")
    assert one.client_calls("generate_report", *range(6)) == [*(f"forwarded {at}" for at in range(5)), "answered 5: 429"]
    assert message(one) == quoted("An expensive report")

    other = talk("An expensive report")
    other.client_calls("generate_report", *range(4))
    assert other.client(call_line("export_orders", 4), call_line("search", 5)) == ["forwarded 4", "forwarded 5"]
    assert other.client(call_line("generate_report", 6), call_line("search", 7)) == ["forwarded 7", "answered 6: 429"]


def test_a_flaky_api_is_closed_after_three_errors_until_the_first_is_a_minute_old() -> None:
    one = talk("A flaky API", server="weather")
    for at in range(3):
        assert one.client_calls("forecast", at) == [f"forwarded {at}"]
        one.answer(at, content=[], isError=True)
    assert one.client_calls("forecast", 3) == ["answered 3: 429"]
    assert message(one) == quoted("A flaky API")
    assert one.client_calls("alerts", 4) == ["forwarded 4"], "other tools stay open"
    one.time.pass_s(60)
    assert one.client_calls("forecast", 5) == ["forwarded 5"]


def test_a_third_page_waits_until_one_is_closed_and_is_denied_after_twenty_seconds() -> None:
    one = talk("A browser that can open two pages at once", server="browser")
    lines = [call_line("open_page", at, _meta={"progressToken": at}) for at in range(4)]
    assert one.client(*lines) == ["forwarded 0", "forwarded 1"]
    assert sorted(one.pass_ms(1000)) == [f"told {at}: waiting for another call to end, 1 s" for at in (2, 3)]
    one.answer(0, content=[])
    assert one.attend() == ["forwarded 2"]
    assert one.pass_ms(20_000)[-1] == "answered 3: 429"
    assert message(one) == quoted("A browser that can open two pages at once")


def test_a_call_is_repeated_five_times_at_most_except_by_a_polling_tool() -> None:
    one = talk("An agent that repeats itself")
    asked = one.client_calls("search_customers", *range(6), arguments={"q": "x"})
    assert asked == [*(f"forwarded {at}" for at in range(5)), "answered 5: 429"]
    assert message(one) == quoted("An agent that repeats itself")
    assert one.client_calls("search_customers", 6, arguments={"q": "y"}) == ["forwarded 6"]
    assert one.client_calls("get_status", *range(7, 17)) == [f"forwarded {at}" for at in range(7, 17)]


def test_twelve_calls_of_a_night_job_take_five_seconds_and_none_is_denied() -> None:
    one = talk("A night job that may wait", agent="Cursor::background::nightly")
    assert one.client_calls("search_customers", *range(12)) == ["forwarded 0", "forwarded 1"]
    assert one.pass_ms(4999) == [f"forwarded {at}" for at in range(2, 10)]
    assert one.pass_ms(1) == ["forwarded 10", "forwarded 11"]


def test_calls_of_a_night_job_that_cannot_be_served_in_time_are_denied() -> None:
    one = talk("A night job that may wait", agent="Cursor::background::nightly")
    answers = one.client_calls("search_customers", *range(70))
    assert [answer for answer in answers if "429" in answer] == [f"answered {at}: 429" for at in range(62, 70)]
    assert message(one) == quoted("A night job that may wait")
    assert "60" in chapter(PAGE, "A night job that may wait")
