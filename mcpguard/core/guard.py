"""The state machine of one session: messages and verdicts in, actions out.

The relay hands what the client wrote to `client_messages`, and carries out the actions that come back, in order. A `Forward` or
a `Reply` it writes. A `DecisionRequest` it takes to the store, all of one reading together, and each verdict to `charged`,
which says what becomes of the call. What the server says has passed already when `server_lines` is shown it: outcomes cost a
call nothing.

Before it judges calls the relay may ask `wanted_notes` for which of them a hook may have noted an agent, and fetch those notes.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from mcpguard.core import answers, denial, frames, meta
from mcpguard.core.answers import Line
from mcpguard.core.audit import Outcome, args_hash, compact
from mcpguard.core.claude_code import tool_use_id
from mcpguard.core.digest import cut
from mcpguard.core.frames import Frame, Refusal
from mcpguard.core.identity import Identity
from mcpguard.core.policy import Call, Plan, Policy
from mcpguard.core.retries import FreeRetries
from mcpguard.core.skim import Unbuilt
from mcpguard.core.verdict import DecisionRequest, Verdict
from mcpguard.errors import PolicyError, Unauthenticated

MAX_IN_FLIGHT: Final = 65_536
MAX_IN_FLIGHT_CHARS: Final = 8 * 1024 * 1024
"""Requests remembered until they are answered, and the length of their ids and tools' names. Beyond it the oldest is
forgotten: some are never answered at all."""

_MAX_CALLERS: Final = 1024
_MAX_CALLER_CHARS: Final = 1024
"""Callers that are remembered, so that rules are matched once for each, and the length of the names of one that is."""

_SERVER_GONE: Final = "server_gone"
"""Why a call is unavailable that the server does not get any more, in the audit."""

_NOTHING_NOTED: Final[Mapping[str, str]] = {}
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


class Forward(NamedTuple):
    """A command to the relay: write this to the server."""

    data: bytes


class Reply(NamedTuple):
    """A command to the relay: write this to the client, between two frames of the server's."""

    data: bytes


Action = Forward | Reply | DecisionRequest


class InFlight(NamedTuple):
    """A request that the server has been sent and has not answered.

    Attributes:
        row_id: The store's handle on its audit row; None if it has none.
        since_us: When it was sent, by a monotone clock.
        tool: The tool that it calls; None if it is no call.
        user: Who calls it.
        rounds: Its number among the free retries of one charge; 0 if it is none.
    """

    row_id: int | None
    since_us: int
    tool: str | None = None
    user: str = ""
    rounds: int = 0


class Caller(NamedTuple):
    """What the calls of one agent to one tool have in common.

    Attributes:
        call: Who calls what.
        plan: What each of them has to pass.
        context: What the audit says of them, as a JSON object.
    """

    call: Call
    plan: Plan
    context: str


class Guard:
    """One client's session with one server.

    Args:
        identity: What is configured of who is calling.
        policy: The policy in force, or why there is none: then every call is denied.
        session: 16 hex digits that no other session has.
        namespace: Counters and audit of one namespace know nothing of another's.
        denials: The form of a denial: `error`, `result`, or `auto`, by the client's name.
        arguments: What the audit keeps of a call's arguments: `hash`, `none` or `full`.
        args_key: Returns the key of the arguments' hash, and is asked at each call; without a key there is no hash.
    """

    def __init__(
        self,
        identity: Identity,
        policy: Policy | PolicyError,
        *,
        session: str,
        namespace: str = "default",
        denials: str = "auto",
        arguments: str = "hash",
        args_key: Callable[[], bytes] = bytes,
    ) -> None:
        self.identity = identity
        self.session = session
        self._configured = identity
        self._unauthenticated: Unauthenticated | None = None
        self._policy = policy
        self.namespace = namespace
        self._denials = denials
        self._arguments = arguments
        self._args_key = args_key
        self._client_name: str | None = None
        self._gone = ""
        self._client_waits = True
        self._in_flight: dict[str, InFlight] = {}
        self._in_flight_chars = 0
        self._retries = FreeRetries()
        self._callers: dict[tuple[str | None, str | None, str | None, str], Caller] = {}
        self._lost: list[Outcome] = []
        self._withdrawn: set[str] = set()

    def take_up(self, policy: Policy | PolicyError) -> None:
        """From the next call on, this policy decides. An error leaves the last good policy in force."""
        if isinstance(policy, Policy) or isinstance(self._policy, PolicyError):
            self._policy = policy
            self._callers.clear()

    def identify(self, found: Identity | Unauthenticated) -> None:
        """From the next call on, this is who calls; or why nobody does, and every call is denied."""
        self._unauthenticated = found if isinstance(found, Unauthenticated) else None
        self.identity = found if isinstance(found, Identity) else self._configured
        self._callers.clear()

    def server_gone(self, why: str) -> None:
        """From now on nothing is forwarded and nothing charged: every request is answered with an error that says why."""
        self._gone = why

    def client_left(self) -> None:
        """The client has ended its side, or we are told to end: no request is answered in the server's place any more.

        A client that leaves takes the end of the stream for that answer, and may fail on a frame that it no longer expects.
        Calls and frames that the guard itself refuses are still answered: whoever wrote them and then left may read on.
        """
        self._client_waits = False

    def policy_note(self, *, reason: str = "in force at the start") -> DecisionRequest:
        """A row for the audit: this policy is in force, was taken up, or could not be."""
        policy = self._policy
        detail: dict[str, object] = {"policy": policy.digest} if isinstance(policy, Policy) else {}
        detail["reason"] = reason
        call = Call("", "", self.identity.server, "")
        return DecisionRequest(call, Plan(), self._context({"server": call.server}), detail=detail, decided="policy")

    def wanted_notes(self, calls: Iterable[Frame]) -> list[str]:
        """The ids of those calls whose agents a hook may have noted, each once; none where all of the agent is configured."""
        if self.identity.has_whole_agent:
            return []
        ids: dict[str, None] = {}
        for call in calls:
            about = _meta_of(call)
            if about and (one := tool_use_id(about)):
                ids[one] = None
        return list(ids)

    def client_messages(
        self, messages: Iterable[Frame | Refusal], *, now_us: int, noted: Mapping[str, str] = _NOTHING_NOTED
    ) -> list[Action]:
        """Judge what the client wrote.

        Args:
            messages: As `frames.read` gives them.
            now_us: A monotone clock's reading, for durations.
            noted: Agents that a hook noted, by the ids of their calls: what there is of `wanted_notes`.

        Returns:
            What is to be done, in the order of the messages.
        """
        actions: list[Action] = []
        self._withdrawn.clear()
        for message in messages:
            if isinstance(message, Refusal):
                self._refused(message, actions)
            elif message.is_call:
                actions.append(self._call(message, noted))
            elif self._gone:
                if message.id is not None:
                    actions += self._in_the_servers_place(message.id, self._gone)
            else:
                actions.append(self._passing(message, now_us))
        return actions

    def charged(self, request: DecisionRequest, verdict: Verdict, *, now_us: int) -> Forward | Reply | None:
        """What a verdict leads to: the call goes on, or its denial goes back. None for what needs neither."""
        if request.frame is None or request.request_id is None:
            return None
        if verdict.forwards:
            flight = InFlight(verdict.row_id, now_us, request.call.tool, request.call.user, request.rounds)
            self._sent(request.request_id, flight, now_us)
            if request.request_id in self._withdrawn:  # cancelled in the same reading, before it was decided
                self._lose(request.request_id, "cancelled", now_us)
            return Forward(request.frame.raw + b"\n")
        params = request.frame.params
        if request.rounds and isinstance(params, dict):
            self._retries.give_back(request.call.user, request.call.tool, params, request.rounds)
        reason = str(request.detail.get("reason", ""))
        if reason == _SERVER_GONE:
            return next(iter(self._in_the_servers_place(request.request_id, request.why)), None)
        code, message, data = denial.describe(request.call, verdict, reason, request.why)
        becomes_task = isinstance(params, dict) and params.get("task") is not None
        if denial.form(self._denials, request.client_name) == "result" and not becomes_task:
            return Reply(denial.result(request.request_id, message, data))
        return Reply(denial.error(request.request_id, code, message, data))

    def server_lines(self, lines: Iterable[Line], *, now_us: int) -> list[Outcome]:
        """Read outcomes off what the server said.

        Args:
            lines: The server's lines that may be answers.
            now_us: The clock's reading when they came.

        Returns:
            The outcomes that these lines tell, and those of calls given up since: cancelled, or forgotten as too many wait.
        """
        outcomes, self._lost = self._lost, []
        for line in lines:
            if not self._in_flight:
                break
            answer = answers.read_answer(line.frame, whole=line.whole)
            flight = self._answered(answer.id) if answer else None
            if answer and flight and flight.tool is not None:
                if flight.row_id is not None:
                    outcomes.append(Outcome(flight.row_id, answer.outcome, now_us - flight.since_us))
                if answer.asks:
                    self._retries.grant(flight.user, flight.tool, answer.asks, flight.rounds + 1)
        return outcomes

    def server_exited(self, how: str, *, now_us: int) -> tuple[list[Reply], list[Outcome]]:
        """Answers for every request that will have no other, because the server is gone; none if the client has left.

        Args:
            how: What became of it, as a clause: `server exited with status 7`.
            now_us: The reading of the clock.
        """
        outcomes, self._lost = self._lost, []
        replies: list[Reply] = []
        for request_id, flight in self._in_flight.items():
            replies += self._in_the_servers_place(request_id, how)
            if flight.row_id is not None:
                outcomes.append(Outcome(flight.row_id, "no_answer", now_us - flight.since_us))
        self._in_flight.clear()
        self._in_flight_chars = 0
        return replies, outcomes

    def undelivered(self, lines: Iterable[bytes], *, now_us: int) -> list[Reply]:
        """Answers for requests that the server did not take: these lines were written after it had closed its input."""
        replies: list[Reply] = []
        for line in lines:
            for message in frames.parse(line) if line else ():
                if isinstance(message, Frame) and message.id is not None and message.id in self._in_flight:
                    self._lose(message.id, "no_answer", now_us)
                    replies += self._in_the_servers_place(message.id, "the server has closed its input")
        return replies

    @property
    def awaits_answers(self) -> bool:
        """Whether anything that the server says could be an answer."""
        return bool(self._in_flight or self._lost)

    @property
    def agent(self) -> str:
        """The agent of a call that says nothing of itself."""
        return self.identity.agent(self._client_name)[0]

    def _in_the_servers_place(self, request_id: str, why: str) -> list[Reply]:
        """The answer to a request that the server will not answer, if somebody waits for it."""
        return [Reply(denial.error(request_id, denial.SERVER_GONE, why))] if self._client_waits else []

    def _refused(self, refusal: Refusal, actions: list[Action]) -> None:
        members: dict[str, object] = {"server": self.identity.server} | self._user_members()
        if refusal.tool is not None:
            members["tool"] = cut(refusal.tool)
        call = Call(self.identity.user, "", self.identity.server, refusal.tool or "")
        actions.append(
            DecisionRequest(
                call,
                Plan(),
                self._context(members),
                request_id=cut(refusal.id) if refusal.id != "null" else None,
                detail={"reason": refusal.message},
                decided="invalid",
            )
        )
        if refusal.answered:
            actions.append(Reply(denial.error(refusal.id, refusal.code, f"Refused: {refusal.message}")))

    def _passing(self, frame: Frame, now_us: int) -> Forward:
        """What is not a call goes on; what can be learnt from it is."""
        if frame.id is not None:
            self._sent(frame.id, InFlight(None, now_us), now_us)
        params = frame.params
        if isinstance(params, dict):
            if frame.method == "initialize":
                self._client_name = _name_in(params.get("clientInfo"))
            elif frame.method == "notifications/cancelled":
                self._cancelled(params.get("requestId"), now_us)
        return Forward(frame.raw + b"\n")

    def _call(self, frame: Frame, noted: Mapping[str, str]) -> DecisionRequest:
        params = frame.params
        assert isinstance(params, dict)  # noqa: S101 - what `Frame.is_call` promises
        about = _meta_of(frame)
        tool = params["name"]
        client_name = _name_in(about.get(meta.CLIENT_INFO)) or self._client_name
        note = noted.get(tool_use_id(about) or "") if noted else None
        caller = self._caller(client_name, about.get(meta.AGENT), note, tool)
        request = DecisionRequest(caller.call, caller.plan, caller.context, frame, frame.id)
        request.client_name = client_name
        if self._arguments == "hash":
            if key := self._args_key():
                request.args_hash = args_hash(params.get("arguments"), key)
        elif self._arguments == "full":
            arguments = params.get("arguments")
            request.detail = {"arguments": arguments.text if isinstance(arguments, Unbuilt) else _kept(arguments)}
        trace = about.get(meta.TRACEPARENT)
        if isinstance(trace, str) and (match := _TRACEPARENT.fullmatch(trace)):
            request.trace_id = match[1]
        if self._gone:
            request.decided = "unavailable"
            request.detail = {**request.detail, "reason": _SERVER_GONE}
            request.why = self._gone
        elif self._unauthenticated:
            request.decided = "unauthenticated"
            request.detail = {**request.detail, "axis": "user", "reason": self._unauthenticated.message}
            hint = self._unauthenticated.hint
            request.why = f"{self._unauthenticated.message}. {hint[:1].upper()}{hint[1:]}."
        elif isinstance(self._policy, PolicyError):
            request.decided = "unavailable"
            request.detail = {**request.detail, "reason": "policy_invalid"}
            request.why = f"no policy is in force. {self._policy.message}. Every tool is closed until it is mended."
        elif frame.is_retry and not caller.plan.is_closed:
            rounds = self._retries.redeem(caller.call.user, tool, params)
            if rounds:
                request.decided, request.rounds = "continued", rounds
        return request

    def _caller(self, client_name: str | None, meta_agent: object, note: str | None, tool: str) -> Caller:
        named = meta_agent if isinstance(meta_agent, str) else None
        key = (client_name, named, note, tool)
        caller = self._callers.get(key)
        if caller is None:
            who = self.identity
            agent, source = who.agent(client_name, named, note)
            call = Call(who.user, agent, who.server, tool, who.roles, who.scopes)
            plan = self._policy.plan(call, self.namespace) if isinstance(self._policy, Policy) else Plan()
            members: dict[str, object] = {"server": who.server} | self._user_members()
            members |= {"agent": cut(agent), "agent_source": source, "tool": cut(tool)}
            members |= {member: list(map(cut, names)) for member, names in (("roles", who.roles), ("act", who.act)) if names}
            caller = Caller(call, plan, self._context(members))
            if len(self._callers) >= _MAX_CALLERS:
                self._callers.clear()
            if sum(len(name) for name in (*key, agent) if name) <= _MAX_CALLER_CHARS:
                self._callers[key] = caller
        return caller

    def _user_members(self) -> dict[str, object]:
        if self._unauthenticated:
            return {}
        who = self.identity
        members: dict[str, object] = {"user": cut(who.user), "user_source": who.user_source}
        return members | ({"email": cut(who.email)} if who.email else {})

    def _context(self, members: dict[str, object]) -> str:
        return compact({"session": self.session, "namespace": self.namespace} | members)

    def _sent(self, request_id: str, flight: InFlight, now_us: int) -> None:
        self._lose(request_id, "no_answer", now_us)  # an id that is used twice: one answer is told from another by it alone
        self._in_flight[request_id] = flight
        self._in_flight_chars += _chars(request_id, flight)
        while len(self._in_flight) > MAX_IN_FLIGHT or self._in_flight_chars > MAX_IN_FLIGHT_CHARS:
            self._lose(next(iter(self._in_flight)), "no_answer", now_us)

    def _answered(self, request_id: str) -> InFlight | None:
        """Forget a request; None if there is no such."""
        flight = self._in_flight.pop(request_id, None)
        if flight:
            self._in_flight_chars -= _chars(request_id, flight)
        return flight

    def _lose(self, request_id: str, outcome: str, now_us: int) -> None:
        flight = self._answered(request_id)
        if flight and flight.row_id is not None:
            self._lost.append(Outcome(flight.row_id, outcome, now_us - flight.since_us))

    def _cancelled(self, request_id: object, now_us: int) -> None:
        told = frames.id_text(request_id)
        if told is not None and told in self._in_flight:
            self._lose(told, "cancelled", now_us)
        elif told is not None:
            self._withdrawn.add(told)


def _chars(request_id: str, flight: InFlight) -> int:
    return len(request_id) + len(flight.tool or "")


def _kept(arguments: object) -> object:
    """Arguments as the audit keeps them in full: as they are, or as text if they hold a number beyond JSON's usual ones."""
    try:
        json.dumps(arguments, allow_nan=False)
    except ValueError:
        return json.dumps(arguments)
    return arguments


def _meta_of(call: Frame) -> dict[str, object]:
    found = call.params.get("_meta") if isinstance(call.params, dict) else None
    return found if isinstance(found, dict) else {}


def _name_in(client_info: object) -> str | None:
    name = client_info.get("name") if isinstance(client_info, dict) else None
    return name if isinstance(name, str) and name else None
