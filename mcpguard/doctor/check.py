"""The result of a check."""

from typing import NamedTuple

from mcpguard.errors import McpguardError
from mcpguard.text.masking import masked


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
