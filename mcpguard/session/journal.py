"""The journal of a session: which denials share an audit row, and how many calls a loop has made."""

from collections.abc import Collection, Iterable, Sequence

from mcpguard.light_typing import Final, NamedTuple
from mcpguard.limiter.plan import Counter, Plan
from mcpguard.session.audit import Row, audit_id, for_several, row, summed
from mcpguard.session.verdict import REFUSED, DecisionRequest, Verdict

STORM_US: Final = 1_000_000
"""Equal denials within this time share a row. So do denials of one kind, if the kind has `KIND_STORMS` already."""

KIND_STORMS: Final = 32
"""How many storms of one kind a session has at once. Further denials of the kind share a row, which sums them up. So a kind has
at most so many rows a second, and a client that makes up a name for every call needs hours to fill the audit's 256 MB. Without
this bound it needs half a minute."""

_MAX_DENIALS: Final = 4096
"""Counters whose denials a session counts. If there are more, all are counted anew."""

_StormKey = tuple[str, str, str | None, object]
"""What equal denials have in common: their context, their decision, the limit as a row names it, and the reason in the request:
why a frame was refused, or why a call was dropped while it waited."""

_DenialKind = tuple[str, str]
"""What the denials of one kind have in common: their decision, and the axis of the limit, empty if no limit made it."""


class _Storm(NamedTuple):
    """Denials that share rows.

    Attributes:
        kind: Their kind.
        since_us: When their newest row was written.
        first_id: The id of their first row.
        shared: How many rows they have after that.
        waiting: How many denials wait for the next row.
        last: The last of these denials, or what they have in common.
    """

    kind: _DenialKind
    since_us: int
    first_id: str
    shared: int = 0
    waiting: int = 0
    last: Row | None = None

    @property
    def next_id(self) -> str:
        """The id of the next row. It is known before the row has a number, so that a denial can name the row that counts it."""
        return f"{self.first_id}.{self.shared + 1}"


class Journal:
    """What a session remembers in order to write its audit rows, in bounded memory whatever names a client makes up.

    - The number of its newest row.
    - Its storms: equal denials, which share a row; and the denials of a kind that has too many storms, which share one, too.
    - Its denials on each counter since the last admission, which show how many calls a loop has made.

    Args:
        session: 16 hex digits that no other session has.

    Attributes:
        seq: The number of the newest row.
    """

    def __init__(self, session: str) -> None:
        self.session = session
        self.seq = 0
        self._storms: dict[_StormKey | _DenialKind, _Storm] = {}  # by their kind, if a kind has too many
        self._denials: dict[int, int] = {}  # by counter, since the last admission
        self._before = 0, self._storms, self._denials  # what `take_back` restores

    def rows(
        self,
        requests: Sequence[DecisionRequest],
        verdicts: Sequence[Verdict],
        time_us: int,
        *,
        are_forwarded_written: bool = False,
    ) -> list[Row]:
        """The rows to write for requests that were just decided. Completes the verdicts.

        Args:
            requests: The requests.
            verdicts: Their verdicts; see `row`.
            time_us: Wall-clock time.
            are_forwarded_written: Whether the store has written the rows of forwarded calls, in order, with the numbers from
                `seq + 1` on. They are not returned.

        Returns:
            In order, a row for each verdict except held calls, and denials that wait for a shared row.
        """
        self.begin()
        for verdict in verdicts if are_forwarded_written else ():
            if verdict.forwards:
                self.seq += 1
                verdict.has_own_row, verdict.audit_id = True, audit_id(self.session, self.seq)
        found = []
        for request, verdict in zip(requests, verdicts, strict=True):
            if are_forwarded_written and verdict.forwards:
                self._count_denials(verdict)
            else:
                found.append(self.row(request, verdict, time_us))
        return [one for one in found if one is not None]

    def begin(self) -> None:
        """Begin the rows of a transaction, which `take_back` undoes."""
        self._before = self.seq, self._storms.copy(), self._denials.copy()  # hardly ever is there anything to copy

    def row(self, request: DecisionRequest, verdict: Verdict, time_us: int) -> Row | None:
        """The row to write for a request that was just decided; None for a denial that waits for a shared row, or a held call.

        Completes the verdict: sets `audit_id`, `has_own_row` and a denial's `count`. `rows` does this for several requests.
        """
        decision = verdict.decision
        if decision == "held":
            return None
        if decision != "allowed" or self._denials:
            self._count_denials(verdict)
        one = row(request, verdict, time_us, self.seq + 1)
        if decision in REFUSED and not self._gets_own_row(one, verdict, request.detail.get("reason")):
            return None
        self.seq += 1
        verdict.has_own_row, verdict.audit_id = True, audit_id(self.session, self.seq)
        return one

    def take_back(self) -> None:
        """Undo what was done since `begin`, because the transaction with its rows has failed."""
        self.seq, self._storms, self._denials = self._before

    def flush(self, time_us: int, *, all_of_them: bool = False) -> list[Row]:
        """The rows of storms whose newest row is a second old, or of all storms. Each has the time of its last denial."""
        rows: list[Row] = []
        for key, storm in list(self._storms.items()):
            if all_of_them or not 0 <= time_us - storm.since_us < STORM_US:
                del self._storms[key]
                if storm.last:
                    self.seq += 1
                    rows.append(for_several(storm.last, self.seq, storm.next_id, storm.waiting, is_sum=key == storm.kind))
                    self._storms[key] = _Storm(storm.kind, time_us, storm.first_id, storm.shared + 1)
        return rows

    @property
    def has_no_denials(self) -> bool:
        """Whether `denials_on` is 0 for each counter."""
        return not self._denials

    def denials_on(self, counter: Counter) -> int:
        """This session's denials on a counter since its last admission."""
        return self._denials.get(counter.id, 0)

    @property
    def is_waiting(self) -> bool:
        """Whether `flush` has rows to return, or something to forget, now or later."""
        return bool(self._storms)

    def _gets_own_row(self, one: Row, verdict: Verdict, reason: object) -> bool:
        """Whether a denial has a row of its own. If not, it waits for the next row of its storm or kind.

        Args:
            one: Its row.
            verdict: Its verdict.
            reason: The reason in its request.
        """
        kind = one.decision, verdict.reported.axis if verdict.reported else ""
        key: _StormKey | _DenialKind = one.context, one.decision, one.reported, reason
        storm = self._storms.get(key)
        if storm is None and sum(other.kind == kind for other in self._storms.values()) >= KIND_STORMS:
            key, storm = kind, self._storms.get(kind)
        if storm is None or not (storm.waiting or one.time_us - storm.since_us < STORM_US):
            self._storms[key] = _Storm(kind, one.time_us, audit_id(self.session, one.seq))
            return True
        last = summed(storm.last or one, one) if key == kind else one
        self._storms[key] = storm._replace(waiting=storm.waiting + 1, last=last)
        verdict.audit_id = storm.next_id
        return False

    def _count_denials(self, verdict: Verdict) -> None:
        """Count a denial on each counter without room, or forget the denials on the counters of an admitted call.

        The denials on the counter of the limit that decided are added to the verdict's count. A call that only rules in observe
        mode would deny is an admission on the counters that it was charged on. On the others without room it is a denial.
        """
        plan, decision = verdict.plan, verdict.decision
        if decision == "allowed":
            self._forget_denials(plan, range(len(plan.counters)))
        elif decision in {"rate_limited", "would_deny"}:
            if len(self._denials) > _MAX_DENIALS:
                self._denials.clear()
            charged: set[int] = set()
            if decision == "would_deny":
                without_room = verdict.rules_without_room
                charged = {limit.counter for limit in plan.limits if limit.rule not in without_room and limit.n}
                self._forget_denials(plan, charged)
                if verdict.count is not None and verdict.limit is not None and plan.limits[verdict.limit].counter in charged:
                    verdict.count += 1
            for counter_id, is_reported in _without_room(verdict, charged).items():
                self._denials[counter_id] = self._denials.get(counter_id, 0) + 1
                if is_reported and verdict.count is not None:
                    verdict.count += self._denials[counter_id]

    def _forget_denials(self, plan: Plan, charged: Iterable[int]) -> None:
        """Forget the denials on counters that were charged."""
        for counter in charged:
            self._denials.pop(plan.counters[counter].id, None)


def _without_room(verdict: Verdict, charged: Collection[int]) -> dict[int, bool]:
    """The counters without room that were not charged, by id; and whether the limit that decided has the counter."""
    found: dict[int, bool] = {}  # several limits may have the same counter
    for at, _ in verdict.exceeded:
        limit = verdict.plan.limits[at]
        if limit.n and limit.counter not in charged:
            counter_id = verdict.plan.counters[limit.counter].id
            found[counter_id] = found.get(counter_id, False) or at == verdict.limit
    return found
