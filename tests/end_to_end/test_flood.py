"""A client that floods its wrapper: nobody else's calls wait or fail for it, and neither audit nor disk is overrun."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mcpguard.files import size_bytes

from .host import Host, Message, audit, call, lines, script, total
from .outages import codes, settings

FRAMES = 20_000
AT_ONCE = 500
MOST_MB = 24


def refused(number: int) -> Message:
    return call(number, f"{number}-" + "n" * 200) | {"params": {"name": 5, f"x{number}": "n" * 200}}


def limited(number: int) -> Message:
    return call(number, "search", {"n": number})


def closed(number: int) -> Message:
    return call(number, "drop", {"n": number})


def uncounted(number: int) -> Message:
    return call(number, f"free {number} " + "n" * 200)


@pytest.mark.parametrize("frame", [refused, limited, closed, uncounted])
def test_a_flood_of_one_client_neither_delays_nor_denies_another_and_keeps_within_its_bounds(
    tmp_path: Path, frame: Callable[[int], Message]
) -> None:
    settings(tmp_path, "deny", limit="5/1h", timeout_ms=2000)
    with (tmp_path / "config.toml").open("a") as file:
        file.write(f"[audit]\nmax_mb = {MOST_MB}\n")
    largest = 0
    with Host(tmp_path, *script("obedient")) as flooder, Host(tmp_path, *script("obedient")) as other:
        assert codes(other, 5) == [200] * 5
        for at in range(0, FRAMES, AT_ONCE):
            with flooder.sending(lines([frame(number) for number in range(at, at + AT_ONCE)])):
                for _ in range(AT_ONCE):
                    flooder.message()
            assert codes(other, 1, "free") == [200]
            largest = max(largest, sum(map(size_bytes, tmp_path.glob("mcpguard.db*"))))
        assert codes(other, 1) == [429]
        assert flooder.end() == other.end() == 0
        assert "unavailable" not in flooder.err + other.err
        assert len(flooder.err) < 50_000
    assert largest < MOST_MB * 1.1 * 2**20
    rows = audit(tmp_path)
    if frame is not uncounted:  # whose rows are those of calls that went on, which make room for newer ones
        assert [row["request_id"] for row in rows if row["decision"] == "allowed" and row["tool"] == "search"] != []
        assert sum(total(rows, word) for word in ("invalid", "rate_limited", "denied")) == FRAMES + 1
