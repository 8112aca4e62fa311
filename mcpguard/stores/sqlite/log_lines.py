"""The lines of text that records of the call log consist of.

All lines of a record take effect together. The fields of a line are separated by tabs; the first one is its kind. No field has
a tab or a line break in it: texts are compact ASCII JSON.

| kind | fields |
|---|---|
| `+` | an audit row: the fields of `Row`, then the store time of the charge and the counters charged, see `charges` |
| `=` | a counter: id, window in µs, label |
| `o` | an outcome: row id, outcome, duration in µs |
| `c` | a charge without a row, of a call that failed: its store time and the counters charged, see `charges` |
| `p` | a place that a call in flight takes: counter id, call id, owner, label; see `places` |
| `f` | a place that is free again: counter id, call id |
| `m` | a log of an outage, to be merged into a counter: counter id, window in µs, the log's numbers, the store time |
| `r` | a reset counter: id |
| `n` | a note: namespace as JSON, key, text as JSON, wall-clock time; without a text it removes the note; see `call_log` |
| `t` | the id of a write-back that was counted, see `Recoverable.adopt`; wall-clock time |
"""

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache

from mcpguard.light_typing import Final
from mcpguard.limiter.plan import Counter, Plan
from mcpguard.limiter.sliding import Decision, Limit, State, fail
from mcpguard.session.audit import Outcome, Row
from mcpguard.session.verdict import Ending
from mcpguard.stores.sqlite import call_log
from mcpguard.text.printing import compact

ROW: Final = call_log.ROW
COUNTER: Final = "="
OUTCOME: Final = "o"
CHARGED: Final = "c"
TAKEN: Final = "p"
FREED: Final = "f"
MERGED: Final = "m"
EMPTIED: Final = "r"
WRITTEN_BACK: Final = "t"
CHARGING: Final = frozenset({ROW, CHARGED})
"""The lines that may charge counters. Their last two fields tell when, and which."""

NO_LABEL: Final = ""
"""The label of a counter whose label was lost with a removed database."""

MAX_DETAIL_CHARS: Final = 1024 * 1024
"""The longest detail of a row. It holds the call's arguments if the audit log keeps them in full."""


def shortened(detail: str, most_chars: int = MAX_DETAIL_CHARS, where: str = "the store") -> str:
    """A row's detail, without its arguments if it is longer than this."""
    if len(detail) <= most_chars:
        return detail
    members = json.loads(detail)
    if "arguments" in members:
        members["arguments"] = f"not kept: {len(detail)} characters are too long for {where}"
    return compact(members)


def row_line(row: Row, charged_us: int | None = None, charged: str = "") -> str:
    """The line of an audit row, with the time of the charge and the counters charged."""
    time_us, seq, decision, context, reported, request_id, args_hash, trace_id, counted, remaining, retry, repeats, detail = row
    return (
        f"+\t{time_us}\t{seq}\t{decision}\t{context}\t{reported or ''}\t{request_id or ''}\t"
        f"{args_hash.hex() if args_hash else ''}\t{trace_id or ''}\t{'' if counted is None else counted}\t"
        f"{'' if remaining is None else remaining}\t{'' if retry is None else retry}\t{'' if repeats is None else repeats}\t"
        f"{shortened(detail) if detail else ''}\t{'' if charged_us is None else charged_us}\t{charged}"
    )


def read_row(fields: Sequence[str]) -> Row:
    """The row in a line's fields."""
    _, time_us, seq, decision, context, reported, request_id, args_hash, trace_id, *numbers, detail, _, _ = fields
    counted, remaining, retry_ms, repeats = map(_number, numbers)
    texts = decision, context, reported or None, request_id or None
    more = bytes.fromhex(args_hash) if args_hash else None, trace_id or None
    values = (int(time_us), int(seq), *texts, *more, counted, remaining, retry_ms, repeats, detail or None)
    return tuple.__new__(Row, values)  # half the time of `Row(…)`


def _number(text: str) -> int | None:
    return int(text) if text else None


@lru_cache(maxsize=512)
def charges(counters: Sequence[Counter], charged: Sequence[Limit]) -> str:
    """The counters that a call was charged on, as JSON: `[[counter id, window in µs, n of the limit], …]`.

    A cost other than 1 is a fourth member. Caps are left out. Empty if there are no other limits.
    """
    charged = [limit for limit in charged if limit.window_us]
    costs = [() if limit.cost == 1 else (limit.cost,) for limit in charged]
    values = [(counters[limit.counter].id, limit.window_us, limit.n, *cost) for limit, cost in zip(charged, costs, strict=True)]
    return compact(values) if values else ""


@lru_cache(maxsize=1024)
def all_charges(plan: Plan) -> str:
    """The `charges` of a call on all limits of its plan."""
    return charges(plan.counters, plan.limits)


@lru_cache(maxsize=128)
def read_charges(text: str) -> list[tuple[int, int, int, int]]:
    """Id, window in µs, n of the limit and cost of each counter in what `charges` returns.

    >>> read_charges("[[11,60,5],[12,70,9,4]]")
    [(11, 60, 5, 1), (12, 70, 9, 4)]
    """
    return [(key, window_us, n, cost[0] if cost else 1) for key, window_us, n, *cost in json.loads(text)]


def counter_line(counter: Counter) -> str:
    """The line of a counter's label."""
    return f"{COUNTER}\t{counter.id}\t{counter.window_us}\t{counter.label}"


def outcome_line(outcome: Outcome) -> str:
    """The line of an outcome."""
    return f"{OUTCOME}\t{outcome.row_id}\t{outcome.outcome}\t{outcome.duration_us}"


def outcomes(texts: Iterable[str]) -> dict[int, tuple[str, int]]:
    """The outcomes that records tell, by row id, with durations in microseconds; the first of each stands."""
    found: dict[int, tuple[str, int]] = {}
    for line in (line for text in texts if text[0] == OUTCOME for line in text.split("\n")):
        _, row_id, outcome, duration_us = line.split("\t")
        found.setdefault(int(row_id), (outcome, int(duration_us)))
    return found


def outcomes_in(text: str) -> int:
    """How many outcomes a record has. Those have records of their own."""
    return text.count("\n") + 1 if text[0] == OUTCOME else 0


def charged_line(charged_us: int, charged: str) -> str:
    """The line of a charge without a row."""
    return f"{CHARGED}\t{charged_us}\t{charged}"


def taken_line(counter: Counter, call_id: int, owner: str) -> str:
    """The line of a place that a call in flight takes."""
    return f"{TAKEN}\t{counter.id}\t{call_id}\t{owner}\t{counter.label}"


def freed_line(counter_id: int, call_id: int) -> str:
    """The line of a place that is free again."""
    return f"{FREED}\t{counter_id}\t{call_id}"


def decision_lines(row: Row, counters: Sequence[Counter], decision: Decision, row_id: int, owner: str) -> str:
    """The lines of a decision: the labels of the counters that were empty before it, its row, and the places that it takes."""
    if not decision.charged:
        return row_line(row)
    labels, places, charged_us = "", "", None
    for limit in decision.charged:
        counter, log = counters[limit.counter], decision.states[limit.counter]
        if not limit.window_us:
            places += f"\n{taken_line(counter, row_id, owner)}"
            continue
        charged_us = log[-2]
        if log[2:] == (limit.cost,):
            labels += f"{counter_line(counter)}\n"
    return labels + row_line(row, charged_us, charges(counters, decision.charged)) + places


def ending_lines(ending: Ending, states: Sequence[State], now_us: int) -> str:
    """The lines of a call that has ended: the places that it held, and the errors that it is counted as. May be empty.

    Args:
        ending: The call.
        states: The states of its counters.
        now_us: The store's time.
    """
    row_id, plan, failed = ending
    held = [one for one, state in zip(plan.counters, states, strict=True) if not one.window_us and row_id in state]
    lines = [freed_line(counter.id, row_id) for counter in held]
    after, charged = fail(plan.limits, states, now_us) if failed else ((), ())
    for limit in charged:  # each has the time of its own counter
        log = after[limit.counter]
        if log[2:] == (1,):
            lines.append(counter_line(plan.counters[limit.counter]))
        lines.append(charged_line(log[-2], charges(plan.counters, (limit,))))
    return "\n".join(lines)


def merged_line(counter: Counter, log: State, now_us: int) -> str:
    """The line of a log to be merged into a counter; its times are store times, as `now_us` is."""
    return f"{MERGED}\t{counter.id}\t{counter.window_us}\t{','.join(map(str, log))}\t{now_us}"


def emptied_line(counter_id: int) -> str:
    """The line of a reset counter."""
    return f"{EMPTIED}\t{counter_id}"


def written_back_line(write_back_id: str, wall_us: int) -> str:
    """The line of a write-back that was counted."""
    return f"{WRITTEN_BACK}\t{write_back_id}\t{wall_us}"
