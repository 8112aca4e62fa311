"""Wrappers that know which of their calls are in flight."""

from mcpguard.limiter.plan import Plan
from mcpguard.session.verdict import Ending, Verdict
from mcpguard.stores.api import Store
from tests.build import Session


class Caller(Session):
    """A wrapper that knows which of its calls are in flight."""

    def __init__(self, store: Store, policy: str, *, session: str = "a" * 16) -> None:
        super().__init__(store, policy, session=session)
        self.flying: list[tuple[int, Plan]] = []
        self.plans: list[Plan] = []  # of the calls that were decided last

    def decide(self, *tools: str, waited_us: int | None = None, is_behind: bool = False, rounds: int = 0) -> list[Verdict]:
        """The verdicts on calls that are decided together."""
        requests = [request for tool in tools for request in self.charges(tool)]
        for request in requests:
            request.waited_us, request.is_behind, request.rounds = waited_us, is_behind, rounds
            if rounds:
                request.plan = request.plan.only(lambda limit: limit.counts == "concurrent")
        self.plans = [request.plan for request in requests]
        verdicts = self.store.decide(requests, self.journal)
        for request, verdict in zip(requests, verdicts, strict=True):
            if verdict.forwards:
                assert verdict.row_id is not None
                self.flying.append((verdict.row_id, request.plan))
        return verdicts

    def words(self, *tools: str, **how: int | None) -> list[str]:
        return [verdict.decision for verdict in self.decide(*tools, **how)]  # type: ignore[arg-type]

    def end(self, at: int = 0, *, failed: bool = False) -> tuple[int, Plan]:
        """End one of the calls in flight."""
        call = self.flying.pop(at)
        self.store.settle([Ending(*call, failed)])
        return call

    @property
    def used(self) -> list[int]:
        return sorted(one.used for one in self.store.counters())
