"""What one session remembers to write its audit: when equal denials share a row, and how long a loop has gone on."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from mcpguard.core.audit import Row, fragment, row
from mcpguard.core.policy import Plan
from mcpguard.core.verdict import Charge, Verdict

STORM_US: Final = 1_000_000
"""Equal denials within this time share a row."""

_REFUSED: Final = frozenset({"rate_limited", "denied", "unauthenticated", "invalid", "unavailable"})
"""The decisions that may come in storms."""

_MAX_REMEMBERED: Final = 4096
"""Storms that a session remembers, and counters that it was denied on. Beyond it storms get their rows at once, and denials
are counted anew."""


class _Storm(NamedTuple):
    since_us: int
    audit_id: str
    waiting: int = 0
    last: Row | None = None


class Journal:
    """What one session remembers to write its audit.

    That is the number of its newest row; its storms, which are equal denials that share a row; and, to tell how long a loop has
    gone on, its denials on each counter since the last admission.

    Args:
        session: 16 hex digits that no other session has.

    Attributes:
        seq: The number of the newest row.
        tally: How many calls got which decision, by decision and axis.
    """

    def __init__(self, session: str) -> None:
        self.session = session
        self.seq = 0
        self.tally: Counter[tuple[str, str]] = Counter()
        self._storms: dict[tuple[str, str, str | None], _Storm] = {}
        self._denials: dict[int, int] = {}
        self._before: list[tuple[dict[Any, Any], Any, Any]] = []  # what `take_back` restores: a mapping, a key, its value
        self._seq_before = 0

    def rows(self, charges: Sequence[Charge], verdicts: Sequence[Verdict], time_us: int) -> list[Row]:
        """The rows to write for charges that were just decided; completes the verdicts.

        Args:
            charges: What was asked.
            verdicts: What became of each. `audit_id`, `news` and a denial's `count` are set here.
            time_us: Wall-clock time.
        """
        rows: list[Row] = []
        self._before.clear()
        self._seq_before = self.seq
        for charge, verdict in zip(charges, verdicts, strict=True):
            if verdict.decision not in _REFUSED:
                rows.append(row(charge, verdict, time_us, self.seq + 1))
                self._note(charge, verdict)
                continue
            self._count(charge, verdict)
            one = row(charge, verdict, time_us, self.seq + 1)
            if self._is_news(one, verdict):
                rows.append(one)
                self._number(verdict)
                self._set(self._storms, (one.context, one.decision, one.reported), _Storm(time_us, verdict.audit_id))
        if len(self._storms) > _MAX_REMEMBERED:
            rows += self.flush(time_us, all_of_them=True)
        return rows

    def wrote(self, charge: Charge, verdict: Verdict) -> None:
        """Note that the row of a charge that was not refused, the one with the number `seq + 1`, is in the store.

        For a store that cannot know before it has written; `rows` does the same for all that it returns.
        """
        self._before.clear()
        self._seq_before = self.seq
        self._note(charge, verdict)

    def _note(self, charge: Charge, verdict: Verdict) -> None:
        self._count(charge, verdict)
        self._number(verdict)

    def _number(self, verdict: Verdict) -> None:
        self.seq += 1
        verdict.news = True
        verdict.audit_id = f"{self.session}-{self.seq}"

    def take_back(self) -> None:
        """Undo what the last call of `rows` did: the transaction that its rows were for has failed."""
        self.seq = self._seq_before
        while self._before:
            mapping, key, value = self._before.pop()
            if value is None:
                del mapping[key]
            else:
                mapping[key] = value

    def _set(self, mapping: dict[Any, Any], key: object, value: object) -> None:
        """Set a member, or remove it with None, so that it can be taken back."""
        self._before.append((mapping, key, mapping.get(key)))
        if value is None:
            del mapping[key]
        else:
            mapping[key] = value

    def flush(self, time_us: int, *, all_of_them: bool = False) -> list[Row]:
        """The rows of the storms that have waited for a second, or of all."""
        rows = []
        for key, storm in list(self._storms.items()):
            if not all_of_them and 0 <= time_us - storm.since_us < STORM_US:
                continue
            if storm.last is None:
                self._set(self._storms, key, None)
                continue
            self.seq += 1
            rows.append(storm.last._replace(time_us=time_us, seq=self.seq, repeats=storm.waiting))
            self._set(self._storms, key, _Storm(time_us, f"{self.session}-{self.seq}"))
        return rows

    @property
    def is_waiting(self) -> bool:
        """Whether there are denials that no row tells of yet, or storms to be forgotten."""
        return bool(self._storms)

    def remembered(self, charge: Charge, time_us: int) -> tuple[list[bool], list[int]] | None:
        """What `rows` would go by, for a store that decides and writes rows elsewhere.

        Returns:
            For each limit whether a denial by it would share a row, and the denials on its counter so far; for a charge that
            is decided already, whether it would share a row. None if there is nothing to remember.
        """
        if not (self._storms or self._denials):
            return None
        plan = charge.plan
        if charge.decided is not None:
            return [self._is_storm((charge.context, charge.decided, None), time_us)], []
        words = ["rate_limited" if limit.n else "denied" for limit in plan.limits]
        return (
            [
                self._is_storm((charge.context, word, fragment(reported)), time_us)
                for word, reported in zip(words, plan.reported, strict=True)
            ],
            [self._denials.get(plan.counters[limit.counter].id, 0) if limit.n else 0 for limit in plan.limits],
        )

    def _is_storm(self, key: tuple[str, str, str | None], time_us: int) -> bool:
        storm = self._storms.get(key)
        return storm is not None and (storm.waiting > 0 or time_us - storm.since_us < STORM_US)

    def _is_news(self, one: Row, verdict: Verdict) -> bool:
        key = (one.context, one.decision, one.reported)
        if not self._is_storm(key, one.time_us):
            return True
        storm = self._storms[key]
        self._set(self._storms, key, _Storm(storm.since_us, storm.audit_id, storm.waiting + 1, one))
        verdict.audit_id = storm.audit_id
        return False

    def _count(self, charge: Charge, verdict: Verdict) -> None:
        axis = str(charge.detail.get("axis", ""))  # of a denial that no limit made
        if verdict.reported and verdict.decision != "allowed":
            axis = verdict.reported.axis
        self._set(self.tally, (verdict.decision, axis), self.tally[verdict.decision, axis] + 1)
        if verdict.decision == "rate_limited":
            self._count_denial(charge.plan, verdict)
        elif self._denials and verdict.decision in {"allowed", "would_deny"}:
            for counter in charge.plan.counters:
                if counter.id in self._denials:
                    self._set(self._denials, counter.id, None)

    def _count_denial(self, plan: Plan, verdict: Verdict) -> None:
        """Count a denial on each counter that had no room, and into the verdict's count those on the counter that it names."""
        if len(self._denials) > _MAX_REMEMBERED:
            for counter_id in list(self._denials):
                self._set(self._denials, counter_id, None)
        refusing = {reported for reported, _ in verdict.exceeded}
        is_named: dict[int, bool] = {}  # by counter; several limits may have one
        for limit, reported in zip(plan.limits, plan.reported, strict=True):
            if reported in refusing and limit.n:
                counter_id = plan.counters[limit.counter].id
                is_named[counter_id] = is_named.get(counter_id, False) or reported == verdict.reported
        for counter_id, named in is_named.items():
            self._set(self._denials, counter_id, self._denials.get(counter_id, 0) + 1)
            if named and verdict.count is not None:
                verdict.count += self._denials[counter_id]
