"""Which events are told: of many, one; the rest is summed up. What was told is in a file, for all processes of the account."""

import contextlib
import json
import os
from collections.abc import Mapping

from mcpguard.files import private_folder
from mcpguard.light_typing import IO, Any, Final, NamedTuple
from mcpguard.locks import lock_file
from mcpguard.session.audit import line
from mcpguard.text.digest import blake2b
from mcpguard.text.printing import compact, printable
from mcpguard.text.times import rfc3339, seconds_of

Record = Mapping[str, Any]
"""The members of an audit row; or, of an outage, `decision`, `reason` and `store`."""

_KINDS: Final[dict[str, tuple[str, int]]] = {
    **dict.fromkeys(("rate_limited", "denied", "unauthenticated"), ("denied", 2)),
    "warned": ("warn", 1),
    "store_lost": ("unavailable", 1),
    "store_back": ("unavailable", 0),
}
"""The event by the `decision`, and its level. What has a higher one is told even if what has a lower one was told: a denial
after a warning."""

_CLOSED: Final = ("policy_invalid", "too_many_counters")
"""The reasons of a call that is `unavailable` for which somebody has to do something about the policy."""

_CALLERS: Final = {"user": ("user",), "agent": ("user", "agent")}
_TOLD: Final = (
    "id", "namespace", "server", "via", "user", "agent", "tool", "decision", "axis", "rule", "limit", "window", "counts",
    "cost", "count", "in_flight", "retry_after_ms", "reason", "store",
)  # fmt: skip
"""The members of a row that a message has: not its arguments, for example, which may be private."""

LEAST_QUIET_S: Final = 60
MOST_QUIET_S: Final = 30 * 86_400
NO_WINDOW_S: Final = 3600
OUTAGE_S: Final = 86_400
"""How long there must be no event before the next one is told: two windows, between the first and the second; of a limit
without a window, the third; of an outage, the last. A loop that obeys denials makes a burst of calls in each window. So the
gaps between its events are a little longer than a window."""

_MOST_KEYS: Final = 256
_MOST_CHARS: Final = 1 << 16
_LOCK_S: Final = 0.2

_Told = dict[str, tuple[int, int, int]]
"""By key: the level that was told; until when later events share that message; how many were left out since."""


class Event(NamedTuple):
    """What may be told.

    Attributes:
        record: What it is about.
        time_us: Wall-clock time.
    """

    record: Record
    time_us: int

    @property
    def kind(self) -> str:
        """`denied`, `warn` or `unavailable`; else empty, also for a call that was dropped while it waited."""
        decision, reason = self.record["decision"], str(self.record.get("reason"))
        if decision == "unavailable":
            return "denied" if reason in _CLOSED else ""
        return "" if "while it waited" in reason else _KINDS.get(decision, ("", 0))[0]

    def key(self, salt: object) -> str:
        """A hash of what events that share a message have in common: the rule, the limit, and what it counts separately."""
        members = ("store", "rule", "limit", "window", "counts", *_CALLERS.get(str(self.record.get("axis")), ()))
        if _counts_tools(str(self.record.get("rule", ""))):
            members += ("server", "tool")
        common = [self.record.get(member) for member in members]
        other = "" if common[1] else self.kind if common[0] else self.record["decision"]
        return blake2b(compact([salt, other, common]).encode(), digest_size=8).hexdigest()

    @property
    def quiet_s(self) -> int:
        """How long later events share its message, if none of them is later than that after the one before."""
        window_s = seconds_of(self.record.get("window"))
        if window_s is None:
            return OUTAGE_S if self.kind == "unavailable" else NO_WINDOW_S
        return min(max(LEAST_QUIET_S, 2 * window_s), MOST_QUIET_S)

    def message(self, more: int) -> dict[str, object]:
        """The message, as JSON. `more` is how many events were left out since the last message."""
        members = {key: self.record[key] for key in _TOLD if key in self.record}
        text = str(self.record["reason"]) if self.kind == "unavailable" else line(self.record, with_server=True)
        text = printable(text) + (f" (and {more:,} more)" if more else "")
        return {**members, "event": self.kind, "text": text, "time": rfc3339(self.time_us), "more": more}


def _counts_tools(rule: str) -> bool:
    """Whether a rule counts each tool separately, by its text: see `Rule.text`.

    >>> _counts_tools("user=* tool=*"), _counts_tools("tool=a* per=user"), _counts_tools("user=* per=user,arguments")
    (True, False, True)
    """
    words = rule.split()
    per = next((word.removeprefix("per=").split(",") for word in words if word.startswith("per=")), None)
    return any(word.startswith("tool=") for word in words) if per is None else not {"tool", "arguments"}.isdisjoint(per)


def admit(event: Event, path: str, salt: object) -> int | None:
    """How many events were left out since the last message, if an event is told; None if it is not.

    Args:
        event: The event.
        path: The file that remembers what was told.
        salt: Processes with the same one share their messages.

    Raises:
        OSError: The file cannot be used.
    """
    key, level, now_us = event.key(salt), _KINDS.get(event.record["decision"], ("", 2))[1], event.time_us
    private_folder(os.path.dirname(path))
    with contextlib.closing(lock_file(path)) as lock, open(lock.fd, "r+", encoding="ascii", closefd=False) as file:
        lock.acquire(_LOCK_S)
        told = _read(file)
        before, until_us, more = told.pop(key, (-1, 0, 0))
        is_known = now_us < until_us <= now_us + MOST_QUIET_S * 1_000_000  # else the clock was set back
        is_told = before > 0 if level == 0 else level > before or not is_known
        more += 0 if event.kind == "unavailable" else int(event.record.get("repeats", 1))
        told[key] = (level if is_told else before, now_us + event.quiet_s * 1_000_000, 0 if is_told else more)
        file.seek(0)
        file.write(json.dumps(dict(sorted(told.items(), key=lambda one: one[1][1])[-_MOST_KEYS:])))
        file.truncate()
    return max(0, more - 1) if is_told else None


def _read(file: IO[str]) -> _Told:
    """What was told; nothing if the file is new or damaged."""
    with contextlib.suppress(Exception):  # nesting, and numbers without an end, have errors of their own
        return {key: (int(level), int(us), int(more)) for key, (level, us, more) in json.loads(file.read(_MOST_CHARS)).items()}
    return {}
