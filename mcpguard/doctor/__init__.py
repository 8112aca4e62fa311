"""Checks an installation: settings, policy, store, identity, keys, PATH, and a server behind mcpguard."""

from mcpguard.errors import McpguardError
from mcpguard.light_typing import NamedTuple
from mcpguard.text.redaction import masked


class Check(NamedTuple):
    """The result of a check, without secrets.

    Attributes:
        check: What was checked, in a word or two.
        ok: Whether it is as it should be.
        detail: One line: what was found.
        hint: One line: how to fix it. If `ok`, advice; empty if there is none.
    """

    check: str
    ok: bool
    detail: str
    hint: str = ""

    @property
    def is_advice(self) -> bool:
        """Whether nothing is broken, but something could be better."""
        return self.ok and bool(self.hint)


def good(check: str, detail: str) -> Check:
    """A check that found nothing to fix."""
    return Check(check, ok=True, detail=masked(detail))


def advice(check: str, detail: str, hint: str) -> Check:
    """A check that found something that could be better."""
    return Check(check, ok=True, detail=masked(detail), hint=masked(hint))


def failed(check: str, detail: str, hint: str) -> Check:
    """A check that found something broken."""
    return Check(check, ok=False, detail=masked(detail), hint=masked(hint))


def failed_by(check: str, error: McpguardError) -> Check:
    """A check that an error ended."""
    return failed(check, error.message, error.hint)


def size(count_bytes: int) -> str:
    """A number of bytes.

    >>> size(900), size(9_000_000), size(2_500_000_000)
    ('0.9 kB', '9.0 MB', '2.5 GB')
    """
    unit, factor = next(((unit, factor) for unit, factor in (("GB", 1e9), ("MB", 1e6)) if count_bytes >= factor), ("kB", 1e3))
    return f"{count_bytes / factor:.1f} {unit}"
