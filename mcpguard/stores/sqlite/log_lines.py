"""The lines of text that records of the call log consist of.

All lines of a record take effect together. The fields of a line are separated by tabs; the first one is its kind. No field has
a tab or a line break in it: texts are compact ASCII JSON.

| kind | fields |
|---|---|
| `+` | an audit row: the fields of `Row`, then the store time of the charge and the counters charged, see `charges` |
| `=` | a counter: id, window in µs, label |
| `o` | equal outcomes of consecutive rows: number of the first row, outcome, durations in µs, separated by commas |
| `c` | a charge without a row, of a call that failed: its store time and the counters charged, see `charges` |
| `p` | a place that a call in flight takes: counter id, call id, owner, label; see `in_flight` |
| `f` | a place that is free again: counter id, call id |
| `m` | a log of an outage, to be merged into a counter: counter id, window in µs, the log's numbers, the store time |
| `r` | a reset counter: id |
| `n` | an agent note: see `notes` |
| `t` | the id of a write-back that was counted, see `Recoverable.adopt`; wall-clock time |
"""

import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Final, NamedTuple, Self

from mcpguard.limiter.plan import Counter, Plan
from mcpguard.limiter.sliding import Decision, Limit, State, fail
from mcpguard.session.audit import Outcome, Row, cut_id, fragment
from mcpguard.session.verdict import DecisionRequest, Ending, Verdict
from mcpguard.stores.sqlite.log_records import IN_TEXT, NO_CHARGE, Charge
from mcpguard.text.printing import compact

ROW: Final = "+"
COUNTER: Final = "="
OUTCOME: Final = "o"
CHARGED: Final = "c"
TAKEN: Final = "p"
FREED: Final = "f"
MERGED: Final = "m"
EMPTIED: Final = "r"
WRITTEN_BACK: Final = "t"

NO_LABEL: Final = ""
"""The label of a counter whose label was lost with a removed database."""

MAX_DETAIL_CHARS: Final = 1024 * 1024
"""The longest detail of a row. It holds the call's arguments if the audit log keeps them in full."""


_LATER_ROW: Final = f"\n{ROW}"

_CHANGING: Final = re.compile(rf"^(?!{OUTCOME}|\{ROW}.*\t$)", re.MULTILINE)
"""A line that changes more than the audit: not an outcome, and not a row that was not charged."""

RECORD_CHARS: Final = 256 * 1024
"""About how long a record becomes if its groups of lines can be spread over several records."""


def records(groups: Sequence[str]) -> list[tuple[str, int, Charge]]:
    """Put groups of lines into records: of each the text, how many rows it has, and what it changes. No group is split."""
    texts: list[str] = []
    together, chars = 0, 0  # the groups from `together` on fit into one record
    for at, group in enumerate(groups):
        chars += len(group) + 1
        if chars > RECORD_CHARS and at > together:
            texts.append("\n".join(groups[together:at]))
            together, chars = at, len(group) + 1
    texts.append("\n".join(groups[together:]))
    return [(text, rows_in(text), IN_TEXT if _CHANGING.search(text) else NO_CHARGE) for text in texts]


def rows_in(text: str) -> int:
    """How many audit rows a record has."""
    return text.count(_LATER_ROW) + (text[0] == ROW)


def _kept(detail: str) -> str:
    """A row's detail, without arguments that are too long."""
    if len(detail) <= MAX_DETAIL_CHARS:
        return detail
    members = json.loads(detail)
    members["arguments"] = f"not kept: {len(detail)} characters are too long for the store"
    return compact(members)


def row_line(row: Row, charged_us: int | None = None, charged: str = "") -> str:
    """The line of an audit row, with the time of the charge and the counters charged."""
    time_us, seq, decision, context, reported, request_id, args_hash, trace_id, counted, remaining, retry, repeats, detail = row
    return (
        f"+\t{time_us}\t{seq}\t{decision}\t{context}\t{reported or ''}\t{request_id or ''}\t"
        f"{args_hash.hex() if args_hash else ''}\t{trace_id or ''}\t{'' if counted is None else counted}\t"
        f"{'' if remaining is None else remaining}\t{'' if retry is None else retry}\t{'' if repeats is None else repeats}\t"
        f"{_kept(detail) if detail else ''}\t{'' if charged_us is None else charged_us}\t{charged}"
    )


class PlanTexts(NamedTuple):
    """The texts that the lines of admitted calls with one plan have in common.

    Attributes:
        plan: The plan. Its limits are all charged.
        charged: The counters charged; see `charges`.
        reported: Each limit, as the row has it.
    """

    plan: Plan
    charged: str
    reported: Sequence[str]

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """The texts of a plan."""
        return cls(plan, charges(plan.counters, plan.limits), [fragment(one) for one in plan.reported])


def admitted_line(request: DecisionRequest, verdict: Verdict, texts: PlanTexts, time_us: int, seq: int, charged_us: int) -> str:
    """The line that `row_line` makes of the row of a call that its limits admitted, in half the time.

    Args:
        request: The call.
        verdict: Its verdict, which has no exceeded limits.
        texts: The texts of its plan.
        time_us: Wall-clock time.
        seq: The row's number in its session.
        charged_us: The store time of the charge.
    """
    reported = texts.reported[verdict.limit or 0]
    args_hash = request.args_hash.hex() if request.args_hash else ""
    detail = _kept(compact(request.detail)) if request.detail else ""
    return (
        f"+\t{time_us}\t{seq}\tallowed\t{request.context}\t{reported}\t{cut_id(request.request_id)}\t{args_hash}\t"
        f"{request.trace_id or ''}\t{verdict.count}\t{verdict.remaining}\t\t\t{detail}\t{charged_us}\t{texts.charged}"
    )


def read_row(fields: Sequence[str]) -> Row:
    """The row in a line's fields."""
    _, time_us, seq, decision, context, reported, request_id, args_hash, trace_id, *numbers, detail, _, _ = fields
    counted, remaining, retry_ms, repeats = map(_number, numbers)
    texts = decision, context, reported or None, request_id or None
    more = bytes.fromhex(args_hash) if args_hash else None, trace_id or None
    return Row(int(time_us), int(seq), *texts, *more, counted, remaining, retry_ms, repeats, detail or None)


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


def charge_texts(text: str) -> list[str]:
    """The parts of what `charges` returns, one for each counter."""
    return text[2:-2].split("],[")


def read_limit(text: str) -> tuple[int, int, int]:
    """Window in µs, n of the limit and cost: what one of the `charge_texts` has after the id."""
    window_us, n, *cost = map(int, text.split(","))
    return window_us, n, cost[0] if cost else 1


def counter_line(counter: Counter) -> str:
    """The line of a counter's label."""
    return f"{COUNTER}\t{counter.id}\t{counter.window_us}\t{counter.label}"


def outcome_lines(outcomes: Iterable[Outcome]) -> list[str]:
    """The lines of outcomes."""
    runs: list[list[Outcome]] = []
    for one in sorted(outcomes, key=itemgetter(0)):
        last = runs[-1][-1] if runs else None
        if last and last.row_id + 1 == one.row_id and last.outcome == one.outcome:
            runs[-1].append(one)
        else:
            runs.append([one])
    return [f"{OUTCOME}\t{run[0].row_id}\t{run[0].outcome}\t{','.join([str(one.duration_us) for one in run])}" for run in runs]


def outcomes_in(text: str) -> int:
    """How many outcomes a record has. Those have records of their own."""
    return text.count(",") + text.count("\n") + 1 if text[0] == OUTCOME else 0


def read_outcomes(fields: Sequence[str]) -> tuple[int, str, list[int]]:
    """The id of the first row, the outcome, and the durations in µs in a line's fields."""
    _, first, outcome, durations = fields
    return int(first), outcome, list(map(int, durations.split(",")))


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
