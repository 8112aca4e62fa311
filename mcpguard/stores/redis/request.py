"""What the script that decides is sent."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from mcpguard.core.audit import Journal, compact, fragment, row
from mcpguard.core.policy import Counter, Plan
from mcpguard.core.verdict import Charge, Verdict

_UNDECIDED: Final = Verdict("allowed")


def counters_of(charges: Sequence[Charge]) -> list[Counter]:
    """The counters of all charges that are to be decided, each once."""
    if len(charges) == 1:
        return [] if charges[0].decided is not None else list(charges[0].plan.counters)
    found = {counter.id: counter for charge in charges if charge.decided is None for counter in charge.plan.counters}
    return list(found.values())


def arguments(charges: Sequence[Charge], counters: Sequence[Counter], journal: Journal, time_us: int) -> list[bytes | str]:
    """What `charge.lua` is told of each call."""
    place = {counter.id: at for at, counter in enumerate(counters, 1)}
    told: list[bytes | str] = []
    for charge in charges:
        remembered = journal.remembered(charge, time_us)
        told += (
            "[]" if charge.decided is not None else _plan(charge.plan, tuple(place[one.id] for one in charge.plan.counters)),
            "" if remembered is None else compact([list(map(int, remembered[0])), remembered[1]]),
            charge.decided or "",
            *row_members(charge),
        )
    return told


def row_members(charge: Charge) -> tuple[bytes | str, ...]:
    """The members of a charge's row that the decision does not change."""
    one = row(charge, _UNDECIDED, 0)
    return one.context, one.request_id or "", one.args_hash or b"", one.trace_id or "", one.detail or ""


@lru_cache(maxsize=512)
def _plan(plan: Plan, places: tuple[int, ...]) -> str:
    """A plan's limits as JSON: how many, the window, the script's counter (0: none), the rule, if only reported, its words."""
    return compact(
        [
            [limit.n, limit.window_us, places[limit.counter] if limit.n else 0, limit.rule, int(limit.observe), fragment(words)]
            for limit, words in zip(plan.limits, plan.reported, strict=True)
        ]
    )
