"""What the call log says, as lines of text.

A record of the log is one or more lines, which take effect together. A line is a tab-separated list whose first field names its
kind. No field holds a tab or a line break: texts are JSON without spaces, in ASCII, or a request's id as strict JSON has it.

| kind | fields |
|---|---|
| `+` | an audit row: the fields of `Row`, then when it was charged (in store time) and what, as `charges` has it |
| `=` | a counter: id, window in µs, label |
| `o` | an outcome: row number, outcome, duration in µs |
| `m` | admissions counted elsewhere, to be merged: counter id, window in µs, the log's numbers |
| `r` | a counter that was emptied: id |
| `n` | a hook's note: see `notes` |
| `t` | a name that `adopt` must not count twice, wall-clock time |
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final

from mcpguard.core.audit import Outcome, Row, compact
from mcpguard.core.limiter import Limit, State
from mcpguard.core.policy import Counter

ROW: Final = "+"
COUNTER: Final = "="
OUTCOME: Final = "o"
MERGED: Final = "m"
EMPTIED: Final = "r"
ONCE: Final = "t"

NO_LABEL: Final = ""
"""Of a counter that was charged by a log whose database was removed, which had its label."""

MAX_DETAIL_CHARS: Final = 1024 * 1024
"""The longest detail of a row, which holds a call's arguments if the audit keeps them in full."""


RECORD_CHARS: Final = 256 * 1024
"""How long a record becomes whose lines may as well stand in several."""


def records(groups: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Groups of lines in as few records as hold them, each with the number of its rows. No group is divided."""
    together: list[str] = []
    chars = 0
    for group in groups:
        chars += len(group) + 1
        if together and chars > RECORD_CHARS:
            yield _record(together)
            together, chars = [], len(group) + 1
        together.append(group)
    if together:
        yield _record(together)


def _record(groups: Sequence[str]) -> tuple[str, int]:
    text = "\n".join(groups)
    return text, text.count(f"\n{ROW}") + text.startswith(ROW)


def _kept(detail: str) -> str:
    """A row's detail as it is kept: without arguments that are longer than a record should be."""
    if len(detail) <= MAX_DETAIL_CHARS:
        return detail
    members = json.loads(detail)
    members["arguments"] = f"not kept: {len(detail)} characters are too long for the store"
    return compact(members)


def row_line(row: Row, charged_us: int | None = None, charged: str = "") -> str:
    """An audit row, with when and what its call was charged on."""
    time_us, seq, decision, context, reported, request_id, args_hash, trace_id, counted, remaining, retry, repeats, detail = row
    return (
        f"+\t{time_us}\t{seq}\t{decision}\t{context}\t{reported or ''}\t{request_id or ''}\t"
        f"{args_hash.hex() if args_hash else ''}\t{trace_id or ''}\t{'' if counted is None else counted}\t"
        f"{'' if remaining is None else remaining}\t{'' if retry is None else retry}\t{'' if repeats is None else repeats}\t"
        f"{_kept(detail) if detail else ''}\t{'' if charged_us is None else charged_us}\t{charged}"
    )


def read_row(fields: Sequence[str]) -> Row:
    """The row of a line, split at its tabs."""
    (
        _,
        time_us,
        seq,
        decision,
        context,
        reported,
        request_id,
        args_hash,
        trace_id,
        counted,
        remaining,
        retry,
        repeats,
        detail,
        *_,
    ) = fields
    return Row(
        int(time_us),
        int(seq),
        decision,
        context,
        reported or None,
        request_id or None,
        bytes.fromhex(args_hash) if args_hash else None,
        trace_id or None,
        _number(counted),
        _number(remaining),
        _number(retry),
        _number(repeats),
        detail or None,
    )


def _number(text: str) -> int | None:
    return int(text) if text else None


@lru_cache(maxsize=512)
def charges(counters: Sequence[Counter], charged: Sequence[Limit]) -> str:
    """What a call was charged on: `[[counter id, window in µs, n], …]`, n being the limit that it was charged by."""
    return compact([(counters[limit.counter].id, limit.window_us, limit.n) for limit in charged])


@lru_cache(maxsize=512)
def read_charges(text: str) -> tuple[tuple[int, int, int], ...]:
    """What `charges` wrote."""
    return tuple((key, window_us, n) for key, window_us, n in json.loads(text))


def counter_line(counter: Counter) -> str:
    """A counter, so that it can be listed by what it counts."""
    return f"{COUNTER}\t{counter.id}\t{counter.window_us}\t{counter.label}"


def outcome_line(outcome: Outcome) -> str:
    """How a forwarded call ended."""
    return f"{OUTCOME}\t{outcome.row_id}\t{outcome.outcome}\t{outcome.duration_us}"


def merged_line(counter: Counter, log: State) -> str:
    """Admissions that were counted elsewhere, in store time."""
    return f"{MERGED}\t{counter.id}\t{counter.window_us}\t{','.join(map(str, log))}"


def emptied_line(counter_id: int) -> str:
    """A counter that was emptied."""
    return f"{EMPTIED}\t{counter_id}"


def once_line(once: str, wall_us: int) -> str:
    """The name of admissions that must not be counted twice."""
    return f"{ONCE}\t{once}\t{wall_us}"
