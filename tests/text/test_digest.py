"""Names that are cut."""

from mcpguard.text.digest import cut


def test_a_name_longer_than_256_bytes_is_cut_with_a_hash() -> None:
    for whole in ("", "a" * 256, "é" * 128, "\U0001f600" * 64):
        assert cut(whole) == whole
    for long in ("a" * 257, "é" * 129, "\U0001f600" * 65, "a" * 100_000, "\ud800" * 100):
        short = cut(long)
        assert len(short.encode()) <= 256
        assert long.startswith(short[: short.index("…")])
        assert len(short.split("…#")[1]) == 16


def test_long_names_that_differ_only_at_the_end_are_cut_to_different_names() -> None:
    assert cut("a" * 300 + "b") != cut("a" * 300 + "c")
