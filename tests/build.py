"""Builds policies, sessions and frames for tests."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from mcpguard.errors import PolicyError, Unauthenticated
from mcpguard.identity.caller import Agent, Identity
from mcpguard.limiter.plan import Counter, Plan, Reported
from mcpguard.limiter.sliding import Exceeded, Limit
from mcpguard.policy.model import Policy
from mcpguard.policy.parse import parse
from mcpguard.session.audit import Outcome
from mcpguard.session.journal import Journal
from mcpguard.session.machine import LogLine
from mcpguard.session.machine import Session as Machine
from mcpguard.session.verdict import Decided, DecisionRequest, Verdict
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


def raising(error: Exception) -> Callable[..., NoReturn]:
    """A function that fails with an error, to stand in for one of the system."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    return fail


def of_another_group(file: Path) -> Callable[[int], os.stat_result]:
    """A function like `os.fstat`, to which a file belongs to a group that has no other file."""
    number, fstat = file.stat().st_ino, os.fstat

    def found(fd: int) -> os.stat_result:
        one = fstat(fd)
        return os.stat_result((*one[:5], 4711, *one[6:10])) if one.st_ino == number else one

    return found


def refusing(number: int) -> Callable[..., NoReturn]:
    """A function of the system that fails with this number of `errno`."""
    return raising(OSError(number, os.strerror(number)))


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


def exceeding(decision: Decided, *exceeded: tuple[Reported, int | None], at: int = 0, **members: Any) -> Verdict:
    """The verdict on a call that has exceeded these limits, each with its wait; the one with the index `at` decided."""
    limits = [Limit(one.limit or 0, 60, n, counts=one.counts or "calls") for n, (one, _) in enumerate(exceeded)]
    counters = [Counter(n, "", 60) for n in range(len(limits))]
    plan = Plan(tuple(limits), tuple([one for one, _ in exceeded]), tuple(counters))
    waits = tuple([Exceeded(n, wait_us) for n, (_, wait_us) in enumerate(exceeded)])
    return Verdict(decision, plan, at, retry_after_us=exceeded[at][1], exceeded=waits, **members)


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
        self._make = partial(Machine, who or identity(), taken, self.journal, **options)
        self.machine = self._make()
        self.calls = 0

    def requests(self, *lines: bytes | Refusal) -> list[DecisionRequest]:
        """All requests for the store when the client writes lines. A relay would receive them in portions."""
        return [asked for message in read(lines) for asked in self.machine.judge([message], 0)]

    def charges(self, tool: str, times: int = 1, **params: object) -> list[DecisionRequest]:
        """The requests of `times` calls that the client makes at once."""
        lines = []
        for _ in range(times):
            self.calls += 1
            lines.append(call_line(tool, self.calls, **params))
        return self.requests(*lines)

    def refuse(self, *lines: bytes | Refusal, wall_us: int = WALL_US) -> list[Verdict]:
        """The verdicts on lines that are refused whatever the store says. Writes their rows."""
        self.requests(*lines)
        verdicts = [verdict for _, verdict in self.machine.unwritten]
        self.write_rows(wall_us)
        return verdicts

    def start(self) -> list[str]:
        """Calls can be judged: write the row of the policy."""
        self.machine.start()
        self.write_rows()
        return []

    def write_rows(self, wall_us: int = WALL_US) -> None:
        """Write the rows of what no limit decides, such as refused lines."""
        self.store.append(self.machine.rows(wall_us))

    def answer_to(self, verdict: Verdict) -> dict[str, Any]:
        """The client's answer if this is the verdict on the last request."""
        self.machine.decided([verdict])
        answer: dict[str, Any] = json.loads(self.machine.output()[1])
        return answer

    def keep_arguments(self, how: str) -> None:
        """Begin the session anew with another setting `arguments`."""
        self.machine = self._make(arguments=how)

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
        self.to_server: list[Any] = []
        self.to_client: list[Any] = []
        self.forwarded_bytes: list[bytes] = []
        self.logs: list[LogLine] = []
        self.noted: dict[str, str] = {}  # the notes that hooks have left
        self.looked_up: list[str] = []  # the keys of the notes that were looked up
        self.unread: list[object] = []  # what the server has written and the session has not read
        self.machine.read_answers = self.read_answers
        self.machine.requests.take_note = self.take_note
        self.together: list[int] = []  # how many requests were decided at once
        self.verdicts: list[Verdict] = []
        self.recorded: list[int] = []  # how many outcomes were recorded at once
        self.outcomes: list[Outcome] = []

    def carry_out(self, asked: Sequence[DecisionRequest] = ()) -> list[str]:
        """Have the store decide, and carry out what comes of it, as the relay does."""
        self.write_rows(self.wall())
        self.settle()
        while asked:
            if self.store_failure or len(self.together) == self.fails_after:
                asked = self.machine.undecided(self.store_failure)
                continue
            self.together.append(len(asked))
            verdicts = self.store.decide(asked, self.journal)
            self.verdicts += verdicts
            asked = self.machine.decided(verdicts)
        to_server, to_client = self.machine.output()
        self.settle()
        self.logs += self.machine.take_lines()
        return self.forward(to_server) + self.answer_client(to_client)

    def settle(self) -> None:
        self.store.settle(self.machine.take_endings())

    def forward(self, data: bytes) -> list[str]:
        messages = [json.loads(line) for line in data.splitlines()]
        self.forwarded_bytes += [data] * bool(data)
        self.to_server += messages
        return [*map(_forwarded, messages)]

    def answer_client(self, data: bytes) -> list[str]:
        messages = [json.loads(line) for line in data.splitlines()]
        self.to_client += messages
        return [*map(_answered, messages)]

    def client(self, *lines: bytes | Refusal, noted: Mapping[str, str] | None = None) -> list[str]:
        """The client writes lines, all read at once; hooks have noted agents for some of them."""
        self.noted |= noted or {}
        return self.carry_out(self.machine.judge(read(lines), self.time()))

    def take_note(self, key: str) -> str:
        self.looked_up.append(key)
        return self.noted.pop(key, "")

    def read_answers(self) -> None:
        unread, self.unread = self.unread, []
        self.server_wrote(*unread)

    def client_calls(self, tool: str, *request_ids: object, **params: object) -> list[str]:
        """The client calls a tool once for each id, all read at once."""
        return self.client(*[call_line(tool, one, **params) for one in request_ids])

    def server(self, *messages: object) -> list[str]:
        """The server writes messages, and outcomes are recorded some time later."""
        self.server_wrote(*messages)
        return self.record()

    def server_wrote(self, *messages: object) -> None:
        stream = b"".join(json.dumps(message).encode() + b"\n" for message in messages)
        self.machine.server_wrote(self.lines.feed(stream), self.time())
        self.settle()

    def answer(self, request_id: object, **result: object) -> None:
        """The server answers a request with a result."""
        assert self.server({"jsonrpc": "2.0", "id": request_id, "result": result}) == []

    def ask_for_input(self, request_id: object, state: object = None, *inputs: str) -> None:
        """The server answers a call by asking for input: a retry that carries it, and the state, is free."""
        carried = {} if state is None else {"requestState": state}
        self.answer(request_id, resultType="input_required", inputRequests={one: {} for one in inputs}, **carried)

    def record(self, *, everything: bool = False) -> list[str]:
        """The time has come to record outcomes."""
        outcomes, rows = self.machine.take_outcomes(), self.machine.last_rows(self.wall(), everything=everything)
        self.recorded.append(len(outcomes))
        self.outcomes += outcomes
        self.store.record(outcomes)
        self.store.append(rows)
        came_out = self.carry_out()
        return came_out + (self.record() if self.machine.has_outcomes else [])

    def pass_ms(self, ms: int) -> list[str]:
        """Time passes, and held calls are decided when they are due."""
        end_us = self.time() + 1000 * ms
        came_out: list[str] = []
        while (due_us := self.machine.held.next_us) is not None and due_us <= end_us:
            self.time.now_us = max(self.time(), due_us)
            came_out += self.decide_held()
        self.time.now_us = end_us
        return came_out

    def decide_held(self) -> list[str]:
        return self.carry_out(self.machine.judge((), self.time()))

    def attend(self) -> list[str]:
        """Held calls that are due now are decided."""
        return self.pass_ms(0)

    def take_up(self, policy: str | PolicyError) -> list[str]:
        """The policy file has changed."""
        self.machine.change_policy(parse(policy) if isinstance(policy, str) else policy)
        return self.carry_out()

    def identify(self, found: Identity | Unauthenticated) -> list[str]:
        """The token has changed."""
        self.machine.change_identity(found)
        return self.carry_out()

    def unjudged(self, *lines: bytes | Refusal) -> list[str]:
        """A bug has kept lines from being judged."""
        self.machine.unjudged(lines, self.time())
        return self.carry_out()

    def client_leaves(self) -> list[str]:
        self.machine.client_left(self.time())
        return self.carry_out()

    def input_closes(self, why: str) -> list[str]:
        """The server receives nothing more."""
        self.machine.close_input(why)
        return self.carry_out()

    def server_does_not_take(self, *lines: bytes) -> list[str]:
        self.machine.undelivered(b"".join(line + b"\n" for line in lines), self.time())
        return self.carry_out()

    def server_exits(self, how: str) -> list[str]:
        last = self.answer_client(self.machine.server_exited(how, self.time()))
        self.settle()
        return last + self.record()

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
