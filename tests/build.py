"""Builds policies, sessions and frames for tests."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from mcpguard.errors import PolicyError, Unauthenticated
from mcpguard.identity.agent import Agent
from mcpguard.identity.caller import Identity
from mcpguard.policy.model import Policy
from mcpguard.policy.parse import parse
from mcpguard.session import events
from mcpguard.session.audit import Outcome
from mcpguard.session.commands import Decide, Log, LookUp, Record, Settle, ToClient, ToServer
from mcpguard.session.journal import Journal
from mcpguard.session.machine import Session as Machine
from mcpguard.session.verdict import DecisionRequest, Verdict
from mcpguard.stores.api import CallStore, Store
from mcpguard.stores.memory import MemoryStore
from mcpguard.wire.answers import AnswerLines
from mcpguard.wire.frames import Refusal, read

TESTS = Path(__file__).parent
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


def cancel(request_id: object) -> bytes:
    message = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": request_id}}
    return json.dumps(message).encode()


class Wrapper:
    """The core's session, its journal and a store: a wrapper without pipes."""

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
        self.journal = Journal(session)
        self.machine = Machine(who or identity(), taken, self.journal, **options)
        self.calls = 0

    def requests(self, *lines: bytes | Refusal) -> list[DecisionRequest]:
        """All requests for the store when the client writes lines. A relay would receive them in portions."""
        commands = self.machine.handle(events.ClientWrote(read(lines), 0))
        if any(isinstance(command, LookUp) for command in commands):
            self.machine.handle(events.LookedUp({}))
        return [step for step in self.machine._exchange.steps if isinstance(step, DecisionRequest)]

    def charges(self, tool: str, times: int = 1, **params: object) -> list[DecisionRequest]:
        """The requests of `times` calls that the client makes at once."""
        lines = []
        for _ in range(times):
            self.calls += 1
            lines.append(call_line(tool, self.calls, **params))
        return self.requests(*lines)

    def policy_row(self) -> DecisionRequest:
        """The request for the first row of a session."""
        (decide,) = self.machine.handle(events.Started())
        assert isinstance(decide, Decide)
        return decide.requests[0]

    def answer_to(self, verdict: Verdict) -> dict[str, Any]:
        """The client's answer if this is the verdict on the last request."""
        commands = self.machine.handle(events.Decided([verdict]))
        (reply,) = [command for command in commands if isinstance(command, ToClient)]
        answer: dict[str, Any] = json.loads(reply.data)
        return answer

    def keep_arguments(self, how: str) -> None:
        """Change the setting `arguments`."""
        self.machine._requests._arguments = how

    def call(self, tool: str, times: int = 1, **params: object) -> list[Verdict]:
        """The verdicts on `times` calls, decided in one transaction."""
        return self.store.decide(self.charges(tool, times, **params), self.journal)

    def decisions(self, tool: str, times: int = 1, **params: object) -> list[str]:
        return [verdict.decision for verdict in self.call(tool, times, **params)]

    def one(self, tool: str) -> Verdict:
        (verdict,) = self.call(tool)
        return verdict


class Session(Wrapper):
    """A wrapper on a store that can be read."""

    store: Store


class Talk(Session):
    """A conversation. Each method hands the session an event and returns what is forwarded and answered, in order.

    The server gets `forwarded 1`, a request with the id 1; `forwarded ping`, a notification; and `forwarded answer 1`, a
    response. The client gets `answered 1: 429`, an error; and `answered 1: result`, a result.
    """

    def __init__(self, policy: str | Policy | PolicyError = "mode = 'enforce'", **options: Any) -> None:
        self.time = Time()
        self.wall = Time(WALL_US)
        super().__init__(MemoryStore(clock=self.time, wall=self.wall), policy, **options)
        self.lines = AnswerLines()
        self.store_failure = ""  # why the store fails, if it does
        self.fails_after: int | None = None  # how many times the store decides before it fails
        self.noted: Mapping[str, str] = {}
        self.to_server: list[Any] = []
        self.to_client: list[Any] = []
        self.forwarded_bytes: list[bytes] = []
        self.logs: list[Log] = []
        self.looked_up: list[tuple[Sequence[str], bool]] = []  # keys of notes, and whether the answers are needed
        self.together: list[int] = []  # how many requests were decided at once
        self.verdicts: list[Verdict] = []
        self.recorded: list[int] = []  # how many outcomes were recorded at once
        self.outcomes: list[Outcome] = []

    def handle(self, event: events.Event) -> list[str]:
        """Carry out what an event leads to, as the relay does."""
        came_out: list[str] = []
        next_event: events.Event | None = event
        while next_event is not None:
            commands, next_event = self.machine.handle(next_event), None
            for command in commands:
                assert next_event is None, "a command that asks for something is the last"
                if isinstance(command, ToServer):
                    came_out += self._forward(command.data)
                elif isinstance(command, ToClient):
                    messages = [json.loads(line) for line in command.data.splitlines()]
                    self.to_client += messages
                    came_out += map(_answered, messages)
                elif isinstance(command, Log):
                    self.logs.append(command)
                elif isinstance(command, Settle):
                    self.store.settle(command.endings)
                else:
                    next_event = self._do(command)
        return came_out

    def _forward(self, data: bytes) -> list[str]:
        self.forwarded_bytes.append(data)
        messages = [json.loads(line) for line in data.splitlines()]
        self.to_server += messages
        return [*map(_forwarded, messages)]

    def _do(self, command: Decide | LookUp | Record) -> events.Event:
        if isinstance(command, LookUp):
            self.looked_up.append((command.notes, command.answers))
            return events.LookedUp({one: self.noted[one] for one in command.notes if one in self.noted})
        if isinstance(command, Decide):
            if self.store_failure or len(self.together) == self.fails_after:
                return events.StoreFailed(self.store_failure)
            self.together.append(len(command.requests))
            verdicts = self.store.decide(command.requests, self.journal)
            self.verdicts += verdicts
            return events.Decided(verdicts)
        if self.store_failure:
            return events.RecordingFailed()
        self.recorded.append(len(command.outcomes))
        self.outcomes += command.outcomes
        self.store.record(command.outcomes)
        self.store.append(command.rows)
        return events.Recorded()

    def client(self, *lines: bytes | Refusal, noted: Mapping[str, str] | None = None) -> list[str]:
        """The client writes lines, all read at once; hooks have noted agents for some of them."""
        self.noted = noted or {}
        messages, now_us = read(lines), self.time()
        request = self.machine.lone_call(messages)
        if request is None:
            return self.handle(events.ClientWrote(messages, now_us))
        decided = self._do(Decide([request]))
        if isinstance(decided, events.Decided) and decided.verdicts[0].decision == "allowed":
            return self._forward(self.machine.forward(request, decided.verdicts[0], now_us))
        self.machine.resume(messages, request, now_us)
        return self.handle(decided)

    def server(self, *messages: object) -> list[str]:
        """The server writes messages, and outcomes are recorded some time later."""
        stream = b"".join(json.dumps(message).encode() + b"\n" for message in messages)
        return self.handle(events.ServerWrote(self.lines.feed(stream), self.time())) + self.record()

    def answer(self, request_id: object, **result: object) -> None:
        """The server answers a request with a result."""
        assert self.server({"jsonrpc": "2.0", "id": request_id, "result": result}) == []

    def record(self) -> list[str]:
        """The time has come to record outcomes."""
        came_out = self.handle(events.RecordingDue(self.wall()))
        return came_out + (self.record() if self.machine.has_outcomes else [])

    def pass_ms(self, ms: int) -> list[str]:
        """Time passes, and held calls are decided when they are due."""
        end_us = self.time() + 1000 * ms
        came_out: list[str] = []
        while (due_us := self.machine.held_calls_due_us) is not None and due_us <= end_us:
            self.time.now_us = max(self.time(), due_us)
            came_out += self.handle(events.HeldCallsDue(self.time()))
        self.time.now_us = end_us
        return came_out

    def attend(self) -> list[str]:
        """Held calls that are due now are decided."""
        return self.pass_ms(0)

    def take_up(self, policy: str | PolicyError) -> list[str]:
        """The policy file has changed."""
        return self.handle(events.PolicyChanged(parse(policy) if isinstance(policy, str) else policy))

    def identify(self, found: Identity | Unauthenticated) -> list[str]:
        """The token has changed."""
        return self.handle(events.IdentityChanged(found))

    def client_leaves(self) -> list[str]:
        return self.handle(events.ClientLeft(self.time()))

    def input_closes(self, why: str) -> list[str]:
        """The server receives nothing more."""
        return self.handle(events.InputClosed(why))

    def server_does_not_take(self, *lines: bytes) -> list[str]:
        return self.handle(events.Undelivered(b"".join(line + b"\n" for line in lines), self.time()))

    def server_exits(self, how: str) -> list[str]:
        return self.handle(events.ServerExited(how, self.time())) + self.record()

    @property
    def awaits_answers(self) -> bool:
        return bool(self.machine.in_flight.by_id)

    @property
    def logged(self) -> list[str]:
        """The lines for stderr."""
        return [log.text for log in self.logs]

    @property
    def errors(self) -> list[str]:
        return [log.text for log in self.logs if log.is_error]

    @property
    def log_kinds(self) -> list[str]:
        return [log.kind for log in self.logs]

    @property
    def records(self) -> list[dict[str, object]]:
        """The audit, without the rows of policies."""
        return [entry.record for entry in self.store.entries() if entry.record["decision"] != "policy"]

    @property
    def policy_records(self) -> list[dict[str, object]]:
        return [entry.record for entry in self.store.entries() if entry.record["decision"] == "policy"]


def _forwarded(message: dict[str, Any]) -> str:
    if "method" not in message:
        return f"forwarded answer {message['id']}"
    return f"forwarded {message.get('id', message['method'])}"


def _answered(message: dict[str, Any]) -> str:
    if message.get("method") == "notifications/progress":
        return f"told {message['params']['progressToken']}: {message['params']['message']}"
    return f"answered {message['id']}: {message['error']['code'] if 'error' in message else 'result'}"
