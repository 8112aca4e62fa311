"""The journal of a session: which denials share an audit row, and how many calls a loop has made."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from mcpguard.light_typing import Final, NamedTuple
from mcpguard.limiter.plan import Plan
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


_Storms = Mapping[_StormKey | _DenialKind, _Storm]
"""Storms, by what equal denials have in common; by their kind, if the kind has too many."""

_State = tuple[int, _Storms, Mapping[int, int]]
"""What a journal remembers: the number of its newest row, its storms, and its denials on each counter since the last admission.
It is never changed, only replaced."""


class Journal:
    """What a session remembers in order to write its audit rows, in bounded memory whatever names a client makes up.

    - The number of its newest row.
    - Its storms: equal denials, which share a row; and the denials of a kind that has too many storms, which share one, too.
    - Its denials on each counter since the last admission, which show how many calls a loop has made.

    Args:
        session: 16 hex digits that no other session has.

    Attributes:
        state: All that it remembers. If a transaction with its rows fails, put the state back that was there before.
    """

    def __init__(self, session: str) -> None:
        self.session = session
        self.state: _State = (0, {}, {})

    @property
    def seq(self) -> int:
        """The number of the newest row."""
        return self.state[0]

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
        if are_forwarded_written:
            forwarded = [one for one in verdicts if one.forwards]
            for seq, verdict in enumerate(forwarded, self.seq + 1):
                verdict.has_own_row, verdict.audit_id = True, audit_id(self.session, seq)
            self.state = self.seq + len(forwarded), *self.state[1:]
        found = []
        for request, verdict in zip(requests, verdicts, strict=True):
            if are_forwarded_written and verdict.forwards:
                self.state = *self.state[:2], _counted(verdict, self.state[2])
            else:
                found.append(self.row(request, verdict, time_us))
        return [one for one in found if one is not None]

    def row(self, request: DecisionRequest, verdict: Verdict, time_us: int) -> Row | None:
        """The row to write for a request that was just decided; None for a denial that waits for a shared row, or a held call.

        Completes the verdict: sets `audit_id`, `has_own_row` and a denial's `count`. `rows` does this for several requests.
        """
        decision = verdict.decision
        if decision == "held":
            return None
        seq, storms, denials = self.state
        if decision != "allowed" or denials:
            denials = _counted(verdict, denials)
        one = row(request, verdict, time_us, seq + 1)
        shared_id = ""
        if decision in REFUSED:
            storms, shared_id = self._joined(storms, one, verdict, request.detail.get("reason"))
        verdict.audit_id = shared_id or audit_id(self.session, one.seq)
        verdict.has_own_row = not shared_id
        self.state = seq if shared_id else one.seq, storms, denials
        return None if shared_id else one

    def flush(self, time_us: int, *, all_of_them: bool = False) -> list[Row]:
        """The rows of storms whose newest row is a second old, or of all storms. Each has the time of its last denial."""
        rows: list[Row] = []
        seq, storms, denials = self.state
        left = dict(storms)
        for key, storm in storms.items():
            if all_of_them or not 0 <= time_us - storm.since_us < STORM_US:
                del left[key]
                if storm.last:
                    seq += 1
                    rows.append(for_several(storm.last, seq, storm.next_id, storm.waiting, is_sum=key == storm.kind))
                    left[key] = _Storm(storm.kind, time_us, storm.first_id, storm.shared + 1)
        self.state = seq, left, denials
        return rows

    @property
    def denials(self) -> Mapping[int, int]:
        """This session's denials on each counter since its last admission."""
        return self.state[2]

    @property
    def is_waiting(self) -> bool:
        """Whether `flush` has rows to return, or something to forget, now or later."""
        return bool(self.state[1])

    def _joined(self, storms: _Storms, one: Row, verdict: Verdict, reason: object) -> tuple[_Storms, str]:
        """The storms with a denial, and the id of the row that it waits for; empty if it has a row of its own.

        Args:
            storms: The storms before it.
            one: Its row.
            verdict: Its verdict.
            reason: The reason in its request.
        """
        kind = one.decision, verdict.reported.axis if verdict.reported else ""
        key: _StormKey | _DenialKind = one.context, one.decision, one.reported, reason
        storm = storms.get(key)
        if storm is None and sum(other.kind == kind for other in storms.values()) >= KIND_STORMS:
            key, storm = kind, storms.get(kind)
        if storm is None or not (storm.waiting or one.time_us - storm.since_us < STORM_US):
            return {**storms, key: _Storm(kind, one.time_us, audit_id(self.session, one.seq))}, ""
        last = summed(storm.last or one, one) if key == kind else one
        return {**storms, key: storm._replace(waiting=storm.waiting + 1, last=last)}, storm.next_id


def _counted(verdict: Verdict, denials: Mapping[int, int]) -> Mapping[int, int]:
    """The denials on each counter, after a verdict: one more on those without room, none on those of an admitted call.

    The denials on the counter of the limit that decided are added to the verdict's count. A call that only rules in observe
    mode would deny is an admission on the counters that it was charged on. On the others without room it is a denial.
    """
    plan, decision = verdict.plan, verdict.decision
    if decision == "allowed":
        return _without(denials, plan, range(len(plan.counters)))
    if decision not in {"rate_limited", "would_deny"}:
        return denials
    after = dict(denials) if len(denials) <= _MAX_DENIALS else {}
    charged: set[int] = set()
    if decision == "would_deny":
        without_room = verdict.rules_without_room
        charged = {limit.counter for limit in plan.limits if limit.rule not in without_room and limit.n}
        after = _without(after, plan, charged)
        if verdict.count is not None and verdict.limit is not None and plan.limits[verdict.limit].counter in charged:
            verdict.count += 1
    for counter_id, is_reported in _without_room(verdict, charged).items():
        after[counter_id] = after.get(counter_id, 0) + 1
        if is_reported and verdict.count is not None:
            verdict.count += after[counter_id]
    return after


def _without(denials: Mapping[int, int], plan: Plan, charged: Iterable[int]) -> dict[int, int]:
    """The denials, without those on counters that were charged."""
    ids = {plan.counters[counter].id for counter in charged}
    return {key: n for key, n in denials.items() if key not in ids}


def _without_room(verdict: Verdict, charged: Collection[int]) -> dict[int, bool]:
    """The counters without room that were not charged, by id; and whether the limit that decided has the counter."""
    found: dict[int, bool] = {}  # several limits may have the same counter
    for at, _ in verdict.exceeded:
        limit = verdict.plan.limits[at]
        if limit.n and limit.counter not in charged:
            counter_id = verdict.plan.counters[limit.counter].id
            found[counter_id] = found.get(counter_id, False) or at == verdict.limit
    return found
