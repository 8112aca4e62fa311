"""What the session and a store say to each other: the request for a decision, the verdict, and the end of a call."""

from collections.abc import Callable, Container, Sequence

from mcpguard.light_typing import Final, Literal, NamedTuple, Self, TypeVar
from mcpguard.limiter.plan import Counter, Plan, Reported
from mcpguard.limiter.sliding import Exceeded, Limit, State
from mcpguard.policy.model import Call
from mcpguard.text.times import ms_up
from mcpguard.wire.frames import Frame

Decided = Literal[
    "allowed",
    "held",
    "rate_limited",
    "denied",
    "would_deny",
    "continued",
    "unauthenticated",
    "invalid",
    "unavailable",
    "allowed_unavailable",
    "policy",
]
"""The values of `decision` in an audit record. `held` is in no record: such a call is decided anew, see `sliding.is_held`."""

FORWARDED: frozenset[Decided] = frozenset({"allowed", "would_deny", "continued", "allowed_unavailable"})
"""The decisions after which a call is forwarded to the server."""

REFUSED: frozenset[Decided] = frozenset({"rate_limited", "denied", "unauthenticated", "invalid", "unavailable"})
"""The decisions that charge nothing. No limit bounds their number, so the journal bounds their rows."""

NO_LIMITS: Final = Plan()
"""The plan of what no limit decides."""

NO_FRAME: Final = Frame(b"", None, None, None)
"""The frame of what is not a call."""


_T = TypeVar("_T")


def copied(one: _T) -> _T:
    """A copy with the same attributes. `copy` does this too, but takes a millisecond to load."""
    made = object.__new__(type(one))
    made.__dict__ |= one.__dict__
    return made


class Verdict:
    """The decision on a call.

    Attributes:
        decision: One of `Decided`.
        plan: The plan by which it was decided.
        limit: The index in the plan of the limit that decided; None if no limit did. Of exceeded limits: one that denies, else
            one that the call costs more than, else a cap on calls in flight, else the limit with the longest wait. If none is
            exceeded: the limit on calls or cost with the least quota left, else another limit; an enforced limit goes before
            all observed ones.
        count: What the counter of that limit holds. In a denial, plus this session's denials on the counter since the last
            admission.
        remaining: How many calls that limit still admits.
        retry_after_us: The wait after which all limits have room; None if they have room, or if waiting does not help.
        exceeded: Every limit without room, with its wait.
        audit_id: The id of the audit row.
        row_id: The store's id of that row, which joins the outcome to it.
        has_own_row: Whether the call has an audit row of its own; equal denials share one.
        in_flight: How many calls are in flight, with this one if it is admitted, on the cap that has the least room; None if
            there is no cap.
        states: Of a held call, the states of the plan's counters; else empty.
        now_us: Of a held call, the store's time; else 0.
        warned: The limits of which an admitted call warns; see `Decision`.
    """

    # few verdicts have others, and each attribute that is set takes time; so does each default of a keyword-only argument
    audit_id = ""
    has_own_row = False
    in_flight: int | None = None
    states: Sequence[State] = ()
    now_us = 0
    warned: tuple[tuple[int, int], ...] = ()

    def __init__(
        self,
        decision: Decided,
        plan: Plan = NO_LIMITS,
        limit: int | None = None,
        count: int | None = None,
        remaining: int | None = None,
        retry_after_us: int | None = None,
        exceeded: tuple[Exceeded, ...] = (),
        row_id: int | None = None,
    ) -> None:
        self.decision = decision
        self.plan = plan
        self.limit = limit
        self.count = count
        self.remaining = remaining
        self.retry_after_us = retry_after_us
        self.exceeded = exceeded
        self.row_id = row_id

    def dropped(self, passed_us: int) -> Self:
        """The denial of a call that was held and is dropped some time later: all waits are shorter."""
        made = copied(self)
        made.decision, made.states = "rate_limited", ()
        made.retry_after_us = _shorter(self.retry_after_us, passed_us)
        made.exceeded = tuple([Exceeded(at, _shorter(wait_us, passed_us)) for at, wait_us in self.exceeded])
        return made

    @property
    def forwards(self) -> bool:
        """Whether the call is forwarded to the server."""
        return self.decision in FORWARDED

    @property
    def reported(self) -> Reported | None:
        """How the limit that decided is reported; None if no limit did."""
        return None if self.limit is None else self.plan.reported[self.limit]

    @property
    def cost(self) -> int | None:
        """What the call takes of the limit that decided, if that counts cost; else None."""
        limit = None if self.limit is None else self.plan.limits[self.limit]
        return limit.cost if limit and limit.counts == "cost" else None

    @property
    def without_room(self) -> list[dict[str, object]]:
        """Every limit without room, as rows and denials have it; without a wait if waiting does not help."""
        waits = [(at, {} if wait_us is None else {"retry_after_ms": ms_up(wait_us)}) for at, wait_us in self.exceeded]
        return [{**self.plan.reported[at].members(), **wait} for at, wait in waits]

    @property
    def warnings(self) -> list[dict[str, object]]:
        """The limits of which the call warns, as a row has them."""
        return [{**self.plan.reported[at].members(), "count": count} for at, count in self.warned]

    @property
    def rules_without_room(self) -> set[int]:
        """The rules, by index in the policy, that have a limit without room. They do not count the call."""
        return {self.plan.limits[at].rule for at, _ in self.exceeded}

    @property
    def charged(self) -> list[tuple[int, int]]:
        """Of an admitted call, the limits that counted it: the ids of their counters, and their n."""
        plan, full = self.plan, self.rules_without_room
        return [(plan.counters[one.counter].id, one.n) for one in plan.limits if one.n and one.rule not in full]

    @property
    def taken_caps(self) -> list[Counter]:
        """The counters of calls in flight on which an admitted call has a place. An observed rule without room gives none."""
        plan, full = self.plan, self.rules_without_room
        caps = [limit for limit in plan.limits if limit.counts == "concurrent" and limit.rule not in full]
        return [plan.counters[counter] for counter in dict.fromkeys(limit.counter for limit in caps)]

    @property
    def reason(self) -> str | None:
        """Why the call is not within its limits: `rate_limited`, `concurrent`, `failing`, `too_costly` or `denied`."""
        reported = self.reported
        if not self.exceeded or reported is None:
            return None
        return "denied" if reported.limit is None else reason(reported.counts, self.retry_after_us)


class DecisionRequest:
    """A call that a store decides, or something else that has an audit row.

    Attributes:
        call: The caller and the tool.
        plan: The limits that the call must pass.
        context: The caller and the tool in the audit row: a JSON object, as text.
        frame: The frame to forward if the call is allowed.
        key: Of a call: the `id_key` of its id.
        request_id: The request's id as JSON text; empty if there is none.
        args_hash: A keyed hash of the call's arguments.
        trace_id: 32 hex digits from the call's `traceparent`.
        detail: Further members of the audit record.
        why: A sentence for the client that states the cause of a denial that no rule made.
        rounds: The call's number among the free retries of one charge; 0 if it is not a free retry.
        was_decided: Whether a hook has decided it, by all limits that count calls or cost.
        noted: The note that a hook left for the call; empty if no hook did.
        client_name: The client's name, which selects the form of a denial; None if the client gave none.
        waited_us: How long the call has been held; None if it is denied at once without room.
        is_behind: Whether an earlier call waits for one of its counters. Then it is held if there is room.
        whole_plan: Of a call that need not pass all limits, because it has passed some before, the plan with all; else None.
        verdict: The verdict. Until there is one, and while the call is held, its decision is `held`.
    """

    # few calls have others, and each attribute that is set takes time; so does each default of a keyword-only argument
    args_hash: bytes | None = None
    trace_id: str | None = None
    why = ""
    rounds = 0
    was_decided = False
    noted = ""
    client_name: str | None = None
    waited_us: int | None = None
    is_behind = False
    whole_plan: Plan | None = None
    verdict = Verdict("held")

    def __init__(
        self,
        call: Call,
        plan: Plan,
        context: str,
        frame: Frame = NO_FRAME,
        request_id: str = "",
        key: str = "",
        detail: dict[str, object] | None = None,
    ) -> None:
        self.call = call
        self.plan = plan
        self.context = context
        self.frame = frame
        self.request_id = request_id
        self.key = key
        self.detail = {} if detail is None else detail

    def explain(self, reason: str, why: str) -> None:
        """State the cause of a denial that no rule made: in a word for the audit, and in a sentence for the client."""
        self.detail = {**self.detail, "reason": reason}
        self.why = why

    @property
    def is_continued(self) -> bool:
        """Whether the call was counted before: it is a free retry, or a hook has decided it."""
        return self.rounds > 0 or self.was_decided

    def continue_as(self, rounds: int) -> None:
        """Let a free retry pass its limits, which do not count it. While it is in flight it takes a place under each cap."""
        self.rounds = rounds
        self._pass(lambda limit: limit.counts != "concurrent" and (limit.n > 0 or limit.observe))

    def continue_from(self, counted: Container[str]) -> None:
        """Let a call pass the limits on which a hook has counted it. All others remain.

        Args:
            counted: These limits, see `client_agents.counted_by`.
        """
        counters = self.plan.counters
        self._pass(lambda limit: limit.n > 0 and f"{counters[limit.counter].id}/{limit.n}" in counted)
        self.was_decided = all(not limit.n or limit.counts in {"concurrent", "errors"} for limit in self.plan.limits)

    def _pass(self, has_passed: Callable[[Limit], bool]) -> None:
        self.whole_plan = self.plan
        self.plan = self.plan.only(lambda limit: not has_passed(limit))
        if not self.plan.waits:
            self.waited_us = None

    def with_plan(self, plan: Plan) -> Self:
        """A copy with another plan."""
        made = copied(self)
        made.plan = plan
        return made


class Ending(NamedTuple):
    """A forwarded call that has ended. The store is told if the call's plan `settles`.

    Attributes:
        row_id: The store's id of the call's row.
        plan: The call's plan.
        failed: Whether its outcome is one of `audit.ERRORS`.
    """

    row_id: int
    plan: Plan
    failed: bool


def _shorter(wait_us: int | None, passed_us: int) -> int | None:
    return None if wait_us is None else max(0, wait_us - passed_us)


def reason(counts: str | None, retry_after: int | None) -> str:
    """Why a call is not within a limit without room; see `Verdict.reason`.

    Args:
        counts: What the limit counts; see `Reported`.
        retry_after: The wait until it has room; None if waiting does not help, or for calls in flight.
    """
    if counts == "concurrent":
        return "concurrent"
    if counts == "errors":
        return "failing"
    return "rate_limited" if retry_after is not None else "too_costly"
