import pytest

from tests.missing import missing


def test_a_missing_program_skips_the_test_or_fails_it_if_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MCPGUARD_REQUIRE_ALL", raising=False)
    for required in ("", "MCPGUARD_REQUIRE_ALL"):
        with pytest.raises(pytest.skip.Exception, match="no npm here"):
            missing("no npm here", required=required)
    monkeypatch.setenv("MCPGUARD_REQUIRE_ALL", "1")
    with pytest.raises(pytest.fail.Exception, match="no npm here, which MCPGUARD_REQUIRE_ALL does not allow"):
        missing("no npm here", required="MCPGUARD_REQUIRE_ALL")
