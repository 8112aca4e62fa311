"""Follows a store while people watch: the usage of its counters, and how many calls are made and denied.

A look at the store reads all counters, and counts the rows since the last look. It makes a record only of a denial.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Final, NamedTuple

from mcpguard.errors import PolicyError
from mcpguard.policy.file import PolicyFile
from mcpguard.policy.model import Policy
from mcpguard.reading.usage import Limits, Usage
from mcpguard.session.audit import members, record
from mcpguard.session.verdict import REFUSED
from mcpguard.stores.api import Readable, Wanted

RATE_S: Final = 5.0
"""The time over which calls per second are averaged."""

DENIALS: Final = 8
"""How many of the latest denials are kept."""

NO_AXIS: Final = "none"
"""Stands for the axis of calls that no limit decided."""

_SEARCHED: Final = 500
"""How many of the newest rows are searched for denials at the start."""


class View(NamedTuple):
    """What a look at the store found.

    Attributes:
        usages: The counters, the least left first.
        calls_per_s: Calls per second by axis.
        denials_per_s: Denials per second by axis.
        denials: The latest denials, the newest first.
        trouble: Why the policy file could not be applied; empty if it could.
    """

    usages: list[Usage]
    calls_per_s: Mapping[str, float]
    denials_per_s: Mapping[str, float]
    denials: list[dict[str, object]]
    trouble: str


class Watcher:
    """Looks at a store again and again.

    Args:
        store: The store.
        file: The policy file, whose edits are followed.
        policy: The policy in force at the start.
        namespace: The namespace.
        is_selected: Whether a row or a counter with these members is shown.
        clock: Seconds that never run backwards.

    Attributes:
        policy: The policy in force.
    """

    def __init__(
        self,
        store: Readable,
        file: PolicyFile,
        policy: Policy,
        namespace: str,
        is_selected: Callable[[Mapping[str, object]], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._file = file
        self._namespace = namespace
        self.policy = policy
        self._limits = Limits(policy, namespace)
        self._is_selected = is_selected
        self._clock = clock
        self._trouble = ""
        self._denials: deque[dict[str, object]] = deque(maxlen=DENIALS)
        self._counted: deque[tuple[float, Counter[tuple[str, bool]]]] = deque()
        self._last_id = 0
        for entry in islice(store.newest(), _SEARCHED):
            self._last_id = max(self._last_id, entry.row_id)
            if entry.record["decision"] in REFUSED and self._is_ours(entry.record) and len(self._denials) < DENIALS:
                self._denials.append(entry.record)
        self._since_s = clock()

    def look(self) -> View:
        """Look at the store.

        Raises:
            StoreUnavailable: It cannot be read.
        """
        self._take_up_policy()
        before = self._last_id
        self._count()
        held = self._store.held()
        _, now_us = self._store.peek(())
        usages = [one for one in self._limits.usages(held, now_us) if self._is_selected(one.counter)]
        if self._counted and any(denied for _, denied in self._counted[-1][1]):
            self._note_denials(before)
        return View(usages, self._rates(denied=False), self._rates(denied=True), list(self._denials), self._trouble)

    def _take_up_policy(self) -> None:
        found = self._file.poll()
        if isinstance(found, PolicyError):
            self._trouble = found.message
        elif found is not None:
            self.policy, self._trouble = found, ""
            self._limits = Limits(found, self._namespace)

    def _is_ours(self, found: Mapping[str, object]) -> bool:
        return found.get("namespace") == self._namespace and self._is_selected(found)

    def _count(self) -> None:
        """Count the rows since the last look."""
        calls: Counter[tuple[str, bool]] = Counter()
        for tally in self._store.tally(after=self._last_id):
            self._last_id = max(self._last_id, tally.last_id)
            for group, durations in tally.calls.items():
                if group.decision != "policy" and self._is_ours(members(group.context)):
                    calls[group.axis or NO_AXIS, group.decision in REFUSED] += sum(durations.values())
        now_s = self._clock()
        self._counted.append((now_s, calls))
        while len(self._counted) > 1 and self._counted[0][0] < now_s - RATE_S:
            self._since_s = self._counted.popleft()[0]

    def _note_denials(self, after: int) -> None:
        wanted = Wanted(None, REFUSED)
        for page in self._store.rows(after=after, wanted=wanted):
            for one in page:
                found = record(one.row)
                if one.row_id <= self._last_id and self._is_ours(found):
                    self._denials.appendleft(found)

    def _rates(self, *, denied: bool) -> dict[str, float]:
        """Calls per second by axis: the denied ones, or all."""
        sums: Counter[str] = Counter()
        for _, calls in self._counted:
            for (axis, is_denied), number in calls.items():
                if is_denied or not denied:
                    sums[axis] += number
        span_s = max(self._counted[-1][0] - self._since_s, 0.001) if self._counted else 1.0
        return {axis: number / span_s for axis, number in sums.items()}
