"""The audit row: its members, and the forms in which it is shown. `journal` decides which rows are written."""

import json
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

from mcpguard.light_typing import Any, Final, NamedTuple, get_args
from mcpguard.limiter.plan import Reported
from mcpguard.session.verdict import REFUSED, Decided, DecisionRequest, Verdict, reason
from mcpguard.text.digest import cut
from mcpguard.text.printing import compact, plural, quoted
from mcpguard.text.times import ms_up, rfc3339

_MAX_ID_CHARS: Final = 2048
"""Longer ids are cut. An id of `MAX_NAME_BYTES` fits, even if all of it is written in escapes."""

_SUMMED_UP: Final = "more of this kind, not kept one by one"

POLICY_AT_START: Final = "in force at the start"
"""The reason in the row that names the policy with which a session started."""

MAX_DENIED_CHARS: Final = 1024
"""The longest arguments that the row of a call in `REFUSED` has in full. Longer ones are cut, with a hash, because no limit
bounds how many such calls a client sends."""

MEMBERS: Final = (
    "id", "time", "time_us", "session", "seq", "namespace", "server", "via", "client_session", "request_id", "user",
    "user_source", "agent", "agent_source", "email", "roles", "tool", "args_hash", "arguments", "trace_id", "act", "decision",
    "axis", "rule", "limit", "window", "counts", "cost", "count", "remaining", "in_flight", "retry_after_ms", "exceeded",
    "warned", "repeats", "waited_ms", "reason", "policy", "outcome", "duration_ms",
)  # fmt: skip
"""The members of a record, in the order of the output."""


DECISIONS: Final = tuple(word for word in get_args(Decided) if word != "held")
"""The values of `decision` in a record."""

BY_RULES: Final = frozenset({"rate_limited", "would_deny", "denied"})
"""The decisions of rules that had no room for a call, or close its tool."""


class Row(NamedTuple):
    """The audit row of a decision, as a store keeps it.

    Attributes:
        time_us: Wall-clock time.
        seq: The row's number in its session, from 1, without gaps.
        decision: One of `Decided`.
        context: The caller and the tool: a JSON object, as text. Many rows have the same context.
        reported: The limit that decided: a JSON object, as text.
        request_id: The request's id as JSON text.
        args_hash: A keyed hash of the call's arguments.
        trace_id: 32 hex digits from the call's `traceparent`.
        counted: `count` in a record; see `Verdict.count`.
        remaining: Calls that the limit still admits.
        retry_after_ms: The wait after which the call has room, rounded up.
        repeats: How many denials the row sums up; None for the row of one decision.
        detail: The members of the record that few rows have: a JSON object, as text.
    """

    time_us: int
    seq: int
    decision: str
    context: str
    reported: str | None = None
    request_id: str | None = None
    args_hash: bytes | None = None
    trace_id: str | None = None
    counted: int | None = None
    remaining: int | None = None
    retry_after_ms: int | None = None
    repeats: int | None = None
    detail: str | None = None


OUTCOMES: Final = ("ok", "tool_error", "rpc_error", "cancelled", "no_answer", "unparsed")
"""How a forwarded call can end."""

ERRORS: Final = frozenset({"tool_error", "rpc_error"})
"""The outcomes that count as errors, in limits on errors and in statistics."""

FAILED: Final = ERRORS | {"cancelled", "no_answer"}
"""The outcomes of calls that did not succeed, as far as it is known."""


class Outcome(NamedTuple):
    """How a forwarded call ended: one of `OUTCOMES`. `row_id` is the store's id of the call's row."""

    row_id: int
    outcome: str
    duration_us: int


def row(request: DecisionRequest, verdict: Verdict, time_us: int, seq: int = 0) -> Row:
    """The row of a decided request."""
    decision, detail, limit, request_id = verdict.decision, request.detail, verdict.limit, request.request_id
    if decision != "allowed" or verdict.in_flight is not None or verdict.warned:
        detail = _detail(request, verdict)
    members = (
        time_us,
        seq,
        decision,
        request.context,
        None if limit is None else fragment(verdict.plan.reported[limit]),
        (request_id if len(request_id) <= _MAX_ID_CHARS else cut_id(request_id)) or None,
        request.args_hash,
        request.trace_id,
        verdict.count,
        verdict.remaining,
        None if verdict.retry_after_us is None else ms_up(verdict.retry_after_us),
        None,
        compact(detail) if detail else None,
    )
    return tuple.__new__(Row, members)  # half the time of `Row(…)`


def _detail(request: DecisionRequest, verdict: Verdict) -> dict[str, object]:
    detail = shortened(request.detail) if verdict.decision in REFUSED else request.detail
    if verdict.in_flight is not None:
        detail = detail | {"in_flight": verdict.in_flight}
    if len(verdict.exceeded) > 1:
        detail = detail | {"exceeded": verdict.without_room}
    if verdict.warned:
        detail = detail | {"warned": verdict.warnings}
    return detail


_NUMBER: Final = (int, type(None))
_TEXT: Final = (str, type(None))
_TYPES: Final = (
    (int,),
    (int,),
    (str,),
    (str,),
    _TEXT,
    _TEXT,
    (bytes, type(None)),
    _TEXT,
    *[_NUMBER] * 4,
    _TEXT,
    _TEXT,
    _NUMBER,
)
"""The types of a row's values, then of its outcome and its duration."""

_END_OF_TIME_US: Final = 253_402_300_800_000_000
"""The year 10000, which no time in a record can have."""


def is_whole(row: Row, outcome: str | None, duration_us: int | None) -> bool:
    """Whether a record can be made of what a store has of a row; not of one that a disk or another program has changed."""
    return (
        _are_right(tuple(map(type, (*row, outcome, duration_us))))
        and 0 <= row.time_us < _END_OF_TIME_US
        and whole_members(row.context, "namespace") is not None
        and (row.reported is None or whole_members(row.reported, "axis") is not None)
        and (row.detail is None or _is_object(row.detail))
    )


def whole_members(text: str, member: str) -> dict[str, object] | None:
    """The `members` of a text that a store has; None if it is damaged, which it is without this member."""
    try:
        found: object = members(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and member in found else None


@lru_cache(maxsize=512)
def _are_right(types: tuple[type, ...]) -> bool:
    return all(one in right for one, right in zip(types, _TYPES, strict=True))


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def audit_id(session: str, seq: int) -> str:
    """The id of a row in records and denials: its session and its number in the session."""
    return f"{session}-{seq}"


def session_of(row: Row) -> str:
    """The session that wrote a row."""
    return str(json.loads(row.context).get("session", ""))


def cut_id(request_id: str) -> str:
    """A request's id as rows have it: cut if it is too long."""
    return cut(request_id) if len(request_id) > _MAX_ID_CHARS else request_id


def shortened(detail: dict[str, object]) -> dict[str, object]:
    """The detail in the row of a refused call: with long arguments cut."""
    arguments = compact(detail["arguments"]) if "arguments" in detail else ""
    return detail | {"arguments": cut(arguments)} if len(arguments) > MAX_DENIED_CHARS else detail


def summed(one: Row, other: Row) -> Row:
    """A row with what two denials of one kind have in common: of different limits only the axis, since half a limit is none."""
    reported = one.reported
    if one.reported != other.reported:
        reported = compact({"axis": members(one.reported)["axis"]}) if one.reported and other.reported else None
    context, detail = _common(one.context, other.context), _common(one.detail or "{}", other.detail or "{}")
    return Row(other.time_us, other.seq, other.decision, context, reported, detail=detail)


def for_several(common: Row, seq: int, audit_id: str, repeats: int, *, is_sum: bool) -> Row:
    """The row for several denials.

    Args:
        common: The row of one of them, or what they have in common.
        seq: The row's number.
        audit_id: Its id, which does not have the number.
        repeats: How many denials it is for.
        is_sum: Whether they have different rows, so that the row says that it sums them up.
    """
    more = {"reason": _SUMMED_UP, "id": audit_id} if is_sum else {"id": audit_id}
    return common._replace(seq=seq, repeats=repeats, detail=compact(json.loads(common.detail or "{}") | more))


def _common(one: str, other: str) -> str:
    """The members that two JSON objects have in common."""
    if one == other:
        return one
    members, others = json.loads(one), json.loads(other)
    return compact({key: value for key, value in members.items() if key in others and others[key] == value})


@lru_cache(maxsize=512)
def fragment(reported: Reported) -> str:
    """The JSON text of a limit in a row."""
    return compact(reported.members())


@lru_cache(maxsize=4096)
def members(text: str) -> dict[str, object]:
    """The members in a row's `context` or `reported`. Do not change the result."""
    found: dict[str, object] = json.loads(text)
    return found


def axis_of(decision: str, reported: str | None, detail: str | None) -> str | None:
    """The axis in the record of a row with these values; None if it has none."""
    if reported:
        axis = members(reported).get("axis")
    else:  # a refusal that no limit made
        axis = json.loads(detail).get("axis") if detail and decision in REFUSED else None
    return None if axis is None else str(axis)


def record(row: Row, *, outcome: str | None = None, duration_us: int | None = None) -> dict[str, object]:
    """A row as `audit tail --json` prints it, without the members that do not apply."""
    context = members(row.context)
    session = str(context.get("session", ""))
    values: dict[str, object] = {
        "id": audit_id(session, row.seq),
        **context,
        **(members(row.reported) if row.reported else {}),
        **(json.loads(row.detail) if row.detail else {}),
        "time": rfc3339(row.time_us),
        "time_us": row.time_us,
        "seq": row.seq,
        "request_id": id_value(row.request_id),
        "args_hash": row.args_hash.hex() if row.args_hash else None,
        "decision": row.decision,
        "count": row.counted,
        "remaining": row.remaining,
        "retry_after_ms": row.retry_after_ms,
        "repeats": row.repeats,
        "outcome": outcome,
        "duration_ms": None if duration_us is None else duration_us / 1000,
    }
    if "tool" in context:
        values["trace_id"] = row.trace_id or f"{session}{row.seq:016x}"
    if row.decision in BY_RULES and "exceeded" not in values and "rule" in values:
        limit = {key: values[key] for key in ("axis", "rule", "limit", "window", "counts") if key in values}
        values["exceeded"] = [limit | ({} if row.retry_after_ms is None else {"retry_after_ms": row.retry_after_ms})]
    if row.decision in {"rate_limited", "would_deny"} and values.get("counts") is not None and "reason" not in values:
        why = reason(str(values["counts"]), row.retry_after_ms)
        if why != "rate_limited":
            values["reason"] = why
    return {key: values[key] for key in MEMBERS if values.get(key) is not None}


def id_value(text: str | None) -> object:
    """The request id in a row's `request_id`."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text  # an integer with more digits than Python converts, or an id that was cut


def with_outcome(record: Mapping[str, object], outcome: Outcome) -> dict[str, object]:
    """A record that was made before its outcome was known, with the outcome."""
    return {**record, "outcome": outcome.outcome, "duration_ms": outcome.duration_us / 1000}


def line(entry: Mapping[str, object], *, with_server: bool = False) -> str:
    """A record as one line of `key=value`."""
    names = ["axis", *(["server"] if with_server else []), "user", "agent", "tool"]
    words = [str(entry["decision"]), *(f"{key}={quoted(entry[key])}" for key in names if key in entry)]
    if "limit" in entry:
        words.append(f"limit={limit_text(entry)}")
    elif "rule" in entry:
        words.append(f"rule={quoted(entry['rule'])}")
    words += [f"{key}={entry[key]}" for key in ("count", "cost", "in_flight", "repeats", "waited_ms") if key in entry]
    if "warned" in entry:
        words.append(f"warned={warned_text(entry)}")
    wait = entry.get("retry_after_ms")
    if isinstance(wait, int):
        words.append(f"retry_after={-(-wait // 1000)}s")
    words += [f"{key}={quoted(entry[key])}" for key in ("reason", "outcome") if key in entry]
    return " ".join(words)


def limit_text(entry: Mapping[str, object]) -> str:
    """The limit in a record or in a member of its `exceeded`.

    >>> limit_text({"limit": 5, "window": "1m"}), limit_text({"limit": 2, "counts": "concurrent"})
    ('5/1m', '2-in-flight')
    >>> limit_text({"limit": 3, "window": "1m", "counts": "errors"})
    '3-errors/1m'
    """
    return Reported.of(entry).limit_text


def warned_text(entry: Mapping[str, Any]) -> str:
    """The limits of which the call of a record warns, joined by commas."""
    return ",".join(map(limit_text, entry["warned"]))


def summary(tally: Mapping[tuple[str, str], int]) -> str:
    """One line with a session's number of calls by decision and axis, and its number of invalid frames."""
    totals: Counter[str] = Counter()
    axes: dict[str, list[str]] = {}
    refused = 0
    for (word, axis), n in sorted(tally.items(), key=lambda item: -item[1]):
        if word == "invalid":
            refused += n
        if word in {"policy", "invalid"}:
            continue
        totals[word] += n
        if axis:
            axes.setdefault(word, []).append(f"{axis} {n}")
    parts = [f"{n} {word}" + (f" ({', '.join(axes[word])})" if word in axes else "") for word, n in totals.most_common()]
    calls = f"{plural(totals.total(), 'call')}: {', '.join(parts)}" if parts else "no calls"
    return f"{calls}; {plural(refused, 'invalid frame')}" if refused else calls
