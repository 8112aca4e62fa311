"""Tells the row ids of successive stores apart: a store that comes back without its data numbers its rows from the start."""

from collections.abc import Sequence
from typing import Final

from mcpguard.session.audit import Outcome
from mcpguard.session.verdict import Verdict

_ROW_ID_BITS: Final = 128
"""Row ids of all stores are below 2 to this power. The bits above it are the number of the store: 0 for the first one."""


class Generations:
    """Numbers the stores that one wrapper uses. A store is known by its `args_key`, which is made at random with the store.

    Attributes:
        args_key: The key of the store that was used last; empty before the first one.
        first_id: What is added to the row ids of this store; 0 for the first one.
    """

    def __init__(self) -> None:
        self.args_key = b""
        self.first_id = 0

    def begin(self, args_key: bytes) -> None:
        """Note the key of the store that is used from now on."""
        if self.args_key and args_key != self.args_key:
            self.first_id += 1 << _ROW_ID_BITS
        self.args_key = args_key

    def number_rows(self, verdicts: Sequence[Verdict]) -> None:
        """Put this store's number into the row ids of its verdicts."""
        for verdict in verdicts:
            if verdict.row_id is not None:
                verdict.row_id += self.first_id

    def in_this_store(self, row_id: int) -> int:
        """This store's own id of a row; less than 0 for a row of an earlier store, or in the write-behind buffer."""
        return row_id - self.first_id

    def of_this_store(self, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        """The outcomes of rows in this store, with its own row ids, and of rows in the write-behind buffer.

        Outcomes of rows in an earlier store are left out.
        """
        first = self.first_id
        if not first:
            return outcomes
        here = [outcome._replace(row_id=outcome.row_id - first) for outcome in outcomes if outcome.row_id >= first]
        return here + [outcome for outcome in outcomes if outcome.row_id < 0]
