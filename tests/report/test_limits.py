from mcpguard.core.policy.parse import parse
from mcpguard.report.limits import suggested, unreached
from tests.report.test_gather import of, stored

POLICY = '[[rule]]\nuser = "*"\nlimit = ["5/1m", "1000/1h"]\n\n[[rule]]\ntool = "a b"\nper = []\nlimit = "100/1d"\n'


def test_a_limit_that_denied_a_call_or_would_have_is_reached() -> None:
    for decision in ("rate_limited", "would_deny"):
        uses = of(stored(0, decision)).limits
        assert [one.rate.text for one in unreached(parse(POLICY), uses)] == ["1h", "1d"]


def test_a_limit_never_reached_has_a_suggestion_above_its_largest_use() -> None:
    uses = of(stored(0, "allowed", counted=1), stored(1, "allowed", counted=2)).limits
    first, second, _ = unreached(parse(POLICY), uses)
    assert (first.peak, first.suggested) == (2, 4)
    assert first.command == "mcpguard policy set --user '*' 4/1m 1000/1h"
    assert (second.peak, second.suggested, second.command) == (0, None, "")


def test_no_limit_is_suggested_that_is_as_high_as_the_present_one() -> None:
    first, *_ = unreached(parse(POLICY), of(stored(0, "allowed", counted=3)).limits)
    assert (first.peak, first.suggested) == (3, None)


def test_a_suggestion_is_never_below_twice_the_use() -> None:
    for peak in range(1, 5000):
        assert 2 * peak <= suggested(peak) <= 2.7 * peak
