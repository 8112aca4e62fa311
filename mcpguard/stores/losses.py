"""Tells the reader of a store what is lost, or damaged, while all else is read."""

from collections.abc import Callable

from mcpguard.errors import StoreUnavailable
from mcpguard.light_typing import Final

_NAMED_ROWS: Final = 100
"""How many damaged rows are named."""


class Losses:
    """What was told of the losses of a store, so that each is told once.

    Args:
        where: The store, for messages.
        notify: Is told a line for each loss. Without it a damaged row is an error.
    """

    def __init__(self, where: str, notify: Callable[[str], None] | None) -> None:
        self._where = where
        self._notify = notify
        self._told: set[str] = set()

    def tell(self, lost: str) -> None:
        """Tell what is lost, if that was not told before. An empty text tells nothing."""
        if lost and self._notify is not None and lost not in self._told:
            self._told.add(lost)
            self._notify(lost)

    def skip(self, row_id: int) -> None:
        """Tell that a row is damaged, and left out.

        Raises:
            StoreUnavailable: Nobody is told.
        """
        if self._notify is None:
            hint = "mcpguard audit tail and export leave it out"
            raise StoreUnavailable(f"row {row_id} of {self._where} is damaged", hint)
        if len(self._told) <= _NAMED_ROWS:
            what = "is damaged" if len(self._told) < _NAMED_ROWS else "and others are damaged"
            self.tell(f"row {row_id} of {self._where} {what}, and left out")
