"""Builds policies, sessions and frames for tests."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from mcpguard.core.agent import Agent
from mcpguard.core.answers import AnswerLines
from mcpguard.core.audit import Outcome
from mcpguard.core.frames import Frame, Refusal, read
from mcpguard.core.guard import Forward, Guard, Reply
from mcpguard.core.identity import Identity
from mcpguard.core.journal import Journal
from mcpguard.core.policy import Policy
from mcpguard.core.policy_parse import parse
from mcpguard.core.verdict import DecisionRequest, Verdict
from mcpguard.errors import PolicyError
from mcpguard.stores.api import CallStore, Store
from tests.memory_store import MemoryStore

TESTS = Path(__file__).parent.parent
START_US = 1_000_000_000_000
"""The start of the tests' store time. It is not 0, so that a clock that was never set is noticed."""

WALL_US = 1_767_225_600_000_000
"""2026-01-01T00:00:00Z."""


class Time:
    """A clock that tests set."""

    def __init__(self, now_us: int = START_US) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        return self.now_us

    def pass_ms(self, ms: int) -> None:
        self.now_us += 1000 * ms

    def pass_s(self, seconds: int) -> None:
        self.now_us += 1_000_000 * seconds


def steps(do: Callable[[], object]) -> int:
    """The number of functions that `do` calls."""
    seen = 0

    def count(_frame: FrameType, event: str, _arg: object) -> None:
        nonlocal seen
        seen += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        do()
    finally:
        sys.setprofile(before)
    return seen


def identity(
    user: str = "alice@acme.com",
    agent: str = "Claude Code::interactive::default",
    server: str = "crm",
    roles: tuple[str, ...] = (),
    scopes: tuple[str, ...] = (),
) -> Identity:
    return Identity(user, "config", server, Agent.parse(agent) or Agent(), "config", roles=roles, scopes=scopes)


def request(method: str, request_id: object = 1, **params: object) -> bytes:
    message: dict[str, object] = {"jsonrpc": "2.0", "id": request_id, "method": method}
    return json.dumps(message | ({"params": params} if params else {})).encode()


def call_line(tool: str, request_id: object = 1, **params: object) -> bytes:
    return request("tools/call", request_id, name=tool, **params)


class Wrapper:
    """A guard, its journal and a store: a wrapper without pipes."""

    def __init__(
        self,
        store: CallStore,
        policy: str | Policy | PolicyError,
        *,
        session: str = "00000000000000aa",
        who: Identity | None = None,
        **options: Any,
    ) -> None:
        self.store = store
        taken = parse(policy) if isinstance(policy, str) else policy
        self.guard = Guard(who or identity(), taken, session=session, **options)
        self.journal = Journal(session)
        self.calls = 0

    def charges(self, tool: str, times: int = 1, **params: object) -> list[DecisionRequest]:
        """The requests of `times` calls that the client makes at once."""
        lines = []
        for _ in range(times):
            self.calls += 1
            lines.append(call_line(tool, self.calls, **params))
        return [action for action in self.guard.client_messages(read(lines), now_us=0) if isinstance(action, DecisionRequest)]

    def call(self, tool: str, times: int = 1, **params: object) -> list[Verdict]:
        """The verdicts on `times` calls, decided in one transaction."""
        return self.store.decide(self.charges(tool, times, **params), self.journal)

    def decisions(self, tool: str, times: int = 1) -> list[str]:
        return [verdict.decision for verdict in self.call(tool, times)]

    def one(self, tool: str) -> Verdict:
        (verdict,) = self.call(tool)
        return verdict


class Session(Wrapper):
    """A wrapper on a store that can be read."""

    store: Store


class Talk(Session):
    """A conversation: what the client and the server write, and what the other side receives."""

    def __init__(self, policy: str | Policy | PolicyError = "mode = 'enforce'", **options: Any) -> None:
        self.time = Time()
        super().__init__(MemoryStore(clock=self.time, wall=Time(WALL_US)), policy, **options)
        self.answers = AnswerLines()
        self.to_server: list[Any] = []
        self.to_client: list[Any] = []
        self.outcomes: list[Outcome] = []
        self.verdicts: list[Verdict] = []

    def client(self, *lines: bytes | Refusal, noted: dict[str, str] | None = None) -> None:
        """Let the client write lines, which are read at once. `noted` has the agents that hooks noted, by id."""
        messages = read(lines)
        wanted = self.guard.wanted_notes([one for one in messages if isinstance(one, Frame) and one.is_call])
        found = {one: (noted or {})[one] for one in wanted if one in (noted or {})}
        actions = self.guard.client_messages(messages, now_us=self.time(), noted=found)
        requests = [action for action in actions if isinstance(action, DecisionRequest)]
        verdicts = iter(self.store.decide(requests, self.journal))
        for action in actions:
            done: Any = action
            if isinstance(action, DecisionRequest):
                self.verdicts.append(next(verdicts))
                done = self.guard.charged(action, self.verdicts[-1], now_us=self.time())
            if isinstance(done, Forward):
                self.to_server.append(json.loads(done.data))
            elif isinstance(done, Reply):
                self.to_client.append(json.loads(done.data))

    def server(self, *messages: object) -> None:
        """Let the server write messages."""
        stream = b"".join(json.dumps(message).encode() + b"\n" for message in messages)
        self.outcomes += self.guard.server_lines(self.answers.feed(stream), now_us=self.time())

    def answer(self, request_id: object, **result: object) -> None:
        self.server({"jsonrpc": "2.0", "id": request_id, "result": result})

    @property
    def records(self) -> list[dict[str, object]]:
        return [entry.record for entry in self.store.entries()]
