"""What one session remembers to write its audit: when denials share a row, and how long a loop has gone on."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeGuard

from mcpguard.core.audit import Row, audit_id, fragment, row, sum_of, summed
from mcpguard.core.policy.model import Plan
from mcpguard.core.verdict import REFUSED, DecisionRequest, Verdict

STORM_US: Final = 1_000_000
"""Equal denials within this time share a row; so do denials of one kind that are beyond the kind's budget."""

BURST_BYTES: Final = 64 * 1024
REFILL_BYTES_PER_S: Final = 2 * 1024
"""A kind's budget: what the rows of its denials may take at once, and what is added to that each second.

The first is about a hundred rows, which show what a flood is made of. The second is three rows of the usual size, so that three
loops at once each keep their row a second. Beyond its budget a kind has one row a second, which sums it up. So a client that
makes up a name for every call needs about a day to fill the audit's 256 MB; without a budget, half a minute.
"""

ROW_BYTES: Final = 256
"""What a row takes beside its context, its detail and the request's id: numbers, the limit, its place in an index."""

_MAX_STORMS: Final = 1024
"""Storms that a session remembers. While it has as many, further denials are summed up by kind. Where `flush` is called each
second, budgets allow for fewer."""

_MAX_DENIALS: Final = 4096
"""Counters that a session remembers to have been denied on. Beyond it denials are counted anew."""

_Key = tuple[str, str, str | None]
"""What equal denials have in common: their context, their decision, and the limit as a row names it."""

_Kind = tuple[str, str]
"""What the denials of one kind have in common: their decision, and the axis of the limit; empty where none has made it."""


class _Storm(NamedTuple):
    kind: _Kind
    since_us: int
    audit_id: str
    waiting: int = 0
    last: Row | None = None


class _Budget(NamedTuple):
    left_bytes: int
    at_us: int


class Journal:
    """What one session remembers to write its audit.

    That is the number of its newest row; its storms, which are equal denials that share a row; what is left of each kind's
    budget, beyond which denials of one kind share a row though they differ in names; and, to tell how long a loop has gone on,
    its denials on each counter since the last admission. All of it is bounded, whatever a client calls things.

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
        self._storms: dict[_Key, _Storm] = {}
        self._sums: dict[_Kind, _Storm] = {}  # the same of what is beyond a budget
        self._budgets: dict[_Kind, _Budget] = {}  # one that is not here is full
        self._denials: dict[int, int] = {}
        self._before: list[tuple[dict[Any, Any], Any, Any]] = []  # what `take_back` restores: a mapping, a key, its value
        self._seq_before = 0

    def rows(self, requests: Sequence[DecisionRequest], verdicts: Sequence[Verdict], time_us: int) -> list[Row]:
        """The rows to write for requests that were just decided; completes the verdicts.

        Args:
            requests: What was asked.
            verdicts: What became of each. `audit_id`, `has_own_row` and a denial's `count` are set here.
            time_us: Wall-clock time.

        Returns:
            A row for each verdict that is news, in order.
        """
        rows: list[Row] = []
        self._before.clear()
        self._seq_before = self.seq
        is_full = self._is_full
        for request, verdict in zip(requests, verdicts, strict=True):
            self._count(request, verdict)
            one = row(request, verdict, time_us, self.seq + 1)
            if verdict.decision not in REFUSED or self._gets_own_row(one, verdict, is_full=is_full):
                rows.append(one)
                self._number(verdict)
        return rows

    def wrote(self, request: DecisionRequest, verdict: Verdict) -> None:
        """Note that the row of a charge that was not refused, the one with the number `seq + 1`, is in the store.

        For a store that cannot know before it has written; `rows` does the same for all that it returns.
        """
        self._before.clear()
        self._seq_before = self.seq
        self._count(request, verdict)
        self._number(verdict)

    def _number(self, verdict: Verdict) -> None:
        self.seq += 1
        verdict.has_own_row = True
        verdict.audit_id = self._newest_id

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
        """The rows of the storms that have waited for a second, or of all.

        One that its kind's budget does not allow for becomes a part of the kind's row.
        """
        rows: list[Row] = []
        for key, storm in self._due(self._storms, time_us, all_of_them=all_of_them):
            del self._storms[key]
            if storm.last and self._pay(storm.kind, storm.last, time_us):
                rows.append(self._repeated(storm.last, storm.waiting, time_us))
                self._storms[key] = _Storm(storm.kind, time_us, self._newest_id)
            elif storm.last:
                self._sum_up(storm.kind, storm.last, storm.waiting)
        for kind, storm in self._due(self._sums, time_us, all_of_them=all_of_them):
            del self._sums[kind]
            if storm.last:
                rows.append(self._repeated(sum_of(storm.last), storm.waiting, time_us))
                self._sums[kind] = _Storm(kind, time_us, self._newest_id)
        for kind in list(self._budgets):
            if self._left(kind, time_us) == BURST_BYTES:
                del self._budgets[kind]
        return rows

    def _due(self, storms: dict[Any, _Storm], time_us: int, *, all_of_them: bool) -> list[tuple[Any, _Storm]]:
        return [one for one in storms.items() if all_of_them or not 0 <= time_us - one[1].since_us < STORM_US]

    def _repeated(self, last: Row, times: int, time_us: int) -> Row:
        self.seq += 1
        return last._replace(time_us=time_us, seq=self.seq, repeats=times)

    @property
    def _newest_id(self) -> str:
        return audit_id(self.session, self.seq)

    @property
    def is_waiting(self) -> bool:
        """Whether there are denials that no row tells of yet, or something to be forgotten."""
        return bool(self._storms or self._sums or self._budgets)

    def remembered(self, request: DecisionRequest, time_us: int) -> tuple[list[bool], list[int]] | None:
        """What `rows` would go by, for a store that decides and writes rows elsewhere.

        Returns:
            For each limit whether a denial by it would share a row, and the denials on its counter so far; for a charge that
            is decided already, whether it would share a row. None if there is nothing to remember.
        """
        if not (self._storms or self._denials):
            return None
        plan = request.plan
        if request.decided is not None:
            return [_goes_on(self._storms.get((request.context, request.decided, None)), time_us)], []
        words = ["rate_limited" if limit.n else "denied" for limit in plan.limits]
        return (
            [
                _goes_on(self._storms.get((request.context, word, fragment(reported))), time_us)
                for word, reported in zip(words, plan.reported, strict=True)
            ],
            [self._denials.get(plan.counters[limit.counter].id, 0) if limit.n else 0 for limit in plan.limits],
        )

    def allowance(self, time_us: int) -> tuple[int, int, dict[str, int], dict[str, bool]] | None:
        """How many denials that share no row yet may have one of their own, for a store that decides and writes rows elsewhere.

        Returns:
            What a row takes beside its texts; a whole budget; what is left of those that are not whole; and
            the kinds whose denials beyond their budget share a row that there is. A kind is named by decision and axis. None
            if a session that begins has no more.
        """
        if not self.is_waiting:
            return None
        left = {} if self._is_full else {" ".join(kind): self._left(kind, time_us) for kind in self._budgets}
        sums = {" ".join(kind): True for kind, storm in self._sums.items() if _goes_on(storm, time_us)}
        return ROW_BYTES, 0 if self._is_full else BURST_BYTES, left, sums

    @property
    def _is_full(self) -> bool:
        return len(self._storms) >= _MAX_STORMS

    def _gets_own_row(self, one: Row, verdict: Verdict, *, is_full: bool) -> bool:
        """Whether a denial has a row of its own; if not, it waits for the next row of its storm."""
        kind = one.decision, verdict.reported.axis if verdict.reported else ""
        key = one.context, one.decision, one.reported
        new = _Storm(kind, one.time_us, audit_id(self.session, one.seq))
        storm = self._storms.get(key)
        if _goes_on(storm, one.time_us):
            self._set(self._storms, key, storm._replace(waiting=storm.waiting + 1, last=one))
        elif not is_full and self._pay(kind, one, one.time_us):
            self._set(self._storms, key, new)
            return True
        else:
            storm = self._sums.get(kind)
            if not _goes_on(storm, one.time_us):
                self._set(self._sums, kind, new)
                return True
            self._sum_up(kind, one, 1)
        verdict.audit_id = storm.audit_id
        return False

    def _sum_up(self, kind: _Kind, one: Row, times: int) -> None:
        """Let a row that is beyond its kind's budget wait, as many times, for the kind's next row."""
        sum_ = self._sums.get(kind) or _Storm(kind, one.time_us - STORM_US, "")
        self._set(self._sums, kind, sum_._replace(waiting=sum_.waiting + times, last=summed(sum_.last or one, one)))

    def _pay(self, kind: _Kind, one: Row, time_us: int) -> bool:
        """Take a row from its kind's budget; False, and nothing is taken, if there is too little left."""
        texts = f"{one.context}{one.detail or ''}{one.request_id or ''}"
        left = self._left(kind, time_us) - ROW_BYTES - len(texts.encode())
        if left < 0:
            return False
        self._set(self._budgets, kind, _Budget(left, time_us))
        return True

    def _left(self, kind: _Kind, time_us: int) -> int:
        """What is left of a kind's budget. It is whole after the clock was set back."""
        budget = self._budgets.get(kind)
        if budget is None or time_us < budget.at_us:
            return BURST_BYTES
        return min(BURST_BYTES, budget.left_bytes + (time_us - budget.at_us) * REFILL_BYTES_PER_S // 1_000_000)

    def _count(self, request: DecisionRequest, verdict: Verdict) -> None:
        axis = str(request.detail.get("axis", ""))  # of a denial that no limit made
        if verdict.reported and verdict.decision != "allowed":
            axis = verdict.reported.axis
        self._set(self.tally, (verdict.decision, axis), self.tally[verdict.decision, axis] + 1)
        if verdict.decision == "rate_limited":
            self._count_denial(request.plan, verdict)
        elif self._denials and verdict.decision in {"allowed", "would_deny"}:
            for counter in request.plan.counters:
                if counter.id in self._denials:
                    self._set(self._denials, counter.id, None)

    def _count_denial(self, plan: Plan, verdict: Verdict) -> None:
        """Count a denial on each counter that had no room, and into the verdict's count those on the counter that it names."""
        if len(self._denials) > _MAX_DENIALS:
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


def _goes_on(storm: _Storm | None, time_us: int) -> TypeGuard[_Storm]:
    """Whether a denial would share a storm's next row."""
    return storm is not None and (storm.waiting > 0 or time_us - storm.since_us < STORM_US)
