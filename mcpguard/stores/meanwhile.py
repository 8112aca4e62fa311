"""What becomes of calls while their store does not answer."""

from collections.abc import Mapping, Sequence
from typing import Final

from mcpguard.core import limiter
from mcpguard.core.journal import Journal
from mcpguard.core.limiter import State
from mcpguard.core.policy import Plan
from mcpguard.core.verdict import Charge, Verdict, verdict
from mcpguard.errors import StoreUnavailable
from mcpguard.stores.base import decide_all
from mcpguard.stores.spool import Spool

MAX_COUNTERS: Final = 20_000
"""Counters that a wrapper keeps by itself in `local` mode. A call that needs one more is denied until there is room."""

FORGET_EVERY_US: Final = 1_000_000


class Meanwhile:
    """Decides without a store.

    Args:
        mode: `local` admits what the limits allow by its own counting, from the counters that were last seen; `deny` and
            `allow` do what they say. A tool that is closed stays closed, and a call that nothing counts goes through.
        spool: Gets the admissions and the audit rows.
    """

    def __init__(self, mode: str, spool: Spool) -> None:
        self._mode = mode
        self._spool = spool
        self._local: dict[int, State] = {}
        self._forget_us = 0

    def know(self, states: Mapping[int, State]) -> None:
        """Take over what a store last showed, by the clock of `decide`. What was known of other counters stays known."""
        if len(self._local) + len(states) > MAX_COUNTERS:
            self._local.clear()
        self._local |= states

    def decide(
        self, charges: Sequence[Charge], journal: Journal, *, failure: StoreUnavailable, now_us: int, time_us: int
    ) -> list[Verdict]:
        """Decide charges in order.

        Args:
            charges: What is asked.
            journal: The session's.
            failure: What the store has, for those who are denied for it.
            now_us: A monotone clock's reading.
            time_us: Wall-clock time.
        """
        one = self._locally if self._mode == "local" else self._without_counters
        verdicts = [one(charge, now_us) for charge in charges]
        for charge, found in zip(charges, verdicts, strict=True):
            if found.decision == "unavailable" and charge.decided is None:
                charge.detail = charge.detail | {"reason": "store_unavailable"}
                hint = f" ({failure.hint})" if failure.hint else ""
                charge.why = (
                    f"the store of counters is unavailable: {failure.message}{hint}. "
                    "Try again in some seconds; if that does not help, the store has to be mended."
                )
        handles = iter(self._spool.keep(journal.rows(charges, verdicts, time_us)))
        for found in verdicts:
            if found.news:
                found.row = next(handles)
        return verdicts

    def _locally(self, charge: Charge, now_us: int) -> Verdict:
        if not self._has_room(charge, now_us):
            return self._without_counters(charge, now_us)
        (found,), charged = decide_all([charge], self._local, now_us)
        self._spool.admit(charge, charged, now_us)
        return found

    def _has_room(self, charge: Charge, now_us: int) -> bool:
        """Whether the call's counters can be kept here."""
        if len(self._local) < MAX_COUNTERS or all(counter.id in self._local for counter in charge.plan.counters):
            return True
        if now_us >= self._forget_us:
            self._forget_us = now_us + FORGET_EVERY_US
            for key in self._spool.forget(now_us):
                self._local.pop(key, None)
        return len(self._local) < MAX_COUNTERS

    def _without_counters(self, charge: Charge, now_us: int) -> Verdict:
        """What can be said of a call without any counter."""
        if charge.decided:
            return Verdict(charge.decided)
        uncounted = [at for at, limit in enumerate(charge.plan.limits) if not limit.n]
        plan = Plan(tuple(charge.plan.limits[at] for at in uncounted), tuple(charge.plan.reported[at] for at in uncounted))
        found = verdict(plan, limiter.decide(plan.limits, (), now_us))
        if not found.forwards or not charge.plan.counters:
            return found
        return Verdict("allowed_unavailable" if self._mode == "allow" else "unavailable")
