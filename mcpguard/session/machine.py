"""The state machine of one session: one event in, commands out.

Theory of operation
===================

`Session.handle` takes an event of `events` and returns commands of `commands`. The relay carries the commands out, in order,
before it hands over the next event. The session does no I/O and reads no clock. Its state has three independent parts.

**The client** *waits* until `ClientLeft`, then *has left*. mcpguard answers requests in the server's place only while the
client waits: a client that has closed its side may fail on a frame that it no longer expects. Denials and refusals are sent in
both states.

**The server** *serves* until `InputClosed`, then *takes nothing more*: no call is charged, nothing is forwarded, and a request
is answered with an error that says why. After `ServerExited` it *is gone*: all requests in flight have been answered, and what
the client writes is discarded.

**The exchange** judges the messages of one read from the client:

====================  ==================================  =========================================================
state                 event                               leads to
====================  ==================================  =========================================================
idle                  `ClientWrote`                       `LookUp` if the verdicts depend on notes or answers that
                                                          the session does not have; else the same as `LookedUp`
idle                  `Started`, `PolicyChanged`          `Decide` with the row of the policy in force
looking up            `LookedUp`                          `Decide` if there is a call or a refused frame; else the
                                                          end of the exchange
deciding              `Decided`, `StoreFailed`            `Decide` with the next portion of requests; after the last
                                                          portion the end of the exchange
any                   `Unjudged`                          the end of the exchange, of which nothing is forwarded; an
                                                          error or a refusal for each request among the lines
====================  ==================================  =========================================================

At its end an exchange returns a `ToServer` or a `ToClient` for each message that is forwarded or answered, and is idle again.
While it looks up, only `ServerWrote` may come. While it is idle, these may come, too:

- `ServerWrote`: outcomes are read off the answers, and free retries are granted.
- `Undelivered`: requests among the frames are answered with an error.
- `IdentityChanged`: the next calls are the new identity's.
- `HeldCallsDue`: leads to an exchange with the held calls that are to be decided anew, see `held_calls`.
- `RecordingDue`: leads to `Record`, with some outcomes and the rows that sum up denials, if there are any. `Recorded` leads to
  a line for each row. `RecordingFailed` leads to nothing: the outcomes are lost.

Invariants
----------

- No call is forwarded undecided: `ToServer` holds only messages that are not calls, and calls that the store has admitted and
  counted.
- Every request has exactly one answer, unless the client cancels it or leaves: a denial, a refusal, the server's answer, or an
  error because the server cannot answer. A request is in flight from its `ToServer` until its end.
- The server has at most one unanswered request with an id, so that each answer is the answer to one request. A request with
  the id of another is refused until the other is answered, even if that was cancelled.
- The server gets no cancellation of a request that it did not get.
- Messages go to the server in the order in which the client wrote them, except held calls, which others pass. Answers go to
  the client in that order, too.
- The store is told of the end of a call that its plan `settles` before the client gets the answer.
- Memory is bounded, whatever the client writes: see `in_flight`, `callers`, `retries`, `held_calls` and `journal`.
- `handle` raises nothing. An exception is a bug. The relay reports it and hands over `Unjudged`; then, one by one, the held
  calls that were due and the lines; and `Unjudged` for each that leads to an exception again.

A call usually comes alone, and is allowed. `lone_call` and `forward` are a short cut for such a call, without an exchange. They
lead to the same as the events.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final

from mcpguard.errors import PolicyError
from mcpguard.identity.caller import Identity
from mcpguard.policy.model import Policy
from mcpguard.session import audit, events, replies
from mcpguard.session.callers import Callers, name_in
from mcpguard.session.commands import Command, Log, LookUp, Record, Settle, ToClient, ToServer
from mcpguard.session.decision_requests import DecisionRequests, meta_of
from mcpguard.session.exchange import Exchange
from mcpguard.session.held_calls import HeldCalls
from mcpguard.session.in_flight import InFlight, RequestsInFlight, settled_plan
from mcpguard.session.journal import Journal
from mcpguard.session.replies import Denials
from mcpguard.session.retries import FreeRetries
from mcpguard.session.verdict import FORWARDED, REFUSED, DecisionRequest, Verdict
from mcpguard.wire import answers, frames, meta
from mcpguard.wire.answers import Answer
from mcpguard.wire.frames import INVALID_REQUEST, TOOLS_CALL, Frame, Refusal
from mcpguard.wire.ids import id_key

MAX_OUTCOMES: Final = 64
"""Outcomes in one `Record`, or a 16th of all, if that is more: calls are not decided while the store writes it."""

_MAX_UNSENT: Final = 1024
"""How many requests are remembered that the server did not get: a client cancels one soon, or not at all."""

_CANCELLED: Final = "notifications/cancelled"
_USED_ID: Final = "a request with the id of another that is not answered yet"
_INPUT_CLOSED: Final = "the server has closed its input"


class Session:
    """One client's session with one server.

    Args:
        identity: The configured identity.
        policy: The policy in force, or why there is none: then every call is denied.
        journal: What the session remembers in order to write its audit rows.
        namespace: Counters and audit rows of one namespace are separate from all others'.
        denials: The form of a denial: `error`, `result`, or `auto`, which depends on the client's name.
        arguments: What the audit log keeps of a call's arguments: `hash`, `none` or `full`.
        args_key: Returns the key of the arguments' hash; empty for no hash. It is called for each call.

    Attributes:
        in_flight: The requests in flight. If it has any `to_settle`, answers have to be read before the client gets them.
    """

    def __init__(
        self,
        identity: Identity,
        policy: Policy | PolicyError,
        journal: Journal,
        *,
        namespace: str = "default",
        denials: str = "auto",
        arguments: str = "hash",
        args_key: Callable[[], bytes] = bytes,
    ) -> None:
        self.journal = journal
        self.namespace = namespace
        self._denials = Denials(denials)
        self._callers = Callers(identity, policy, journal.session, namespace)
        self._requests = DecisionRequests(self._callers, arguments, args_key)
        self.in_flight = RequestsInFlight()
        self._endings = self.in_flight.endings
        self._retries = FreeRetries()
        self._held = HeldCalls(self._retries)
        self._unsent: dict[str, None] = {}  # the keys of requests that the server did not get
        self._client_waits = True
        self._input_closed = ""  # the reason; empty while it is open
        self._server_exited = False
        self._exchange = self._idle = Exchange((), 0)
        self._recording: list[audit.Row] = []

    def handle(self, event: events.Event) -> list[Command]:
        """Take an event; returns the commands that it leads to, in order."""
        commands = _TRANSITIONS[type(event)](self, event)
        return [self._settle(), *commands] if self._endings else commands

    def _settle(self) -> Settle:
        endings = self._endings.copy()
        self._endings.clear()
        for ending in endings:
            self._held.freed(ending.plan)
        return Settle(endings)

    @property
    def has_outcomes(self) -> bool:
        """Whether there are outcomes to be recorded, or rows of held calls that were dropped."""
        return self.in_flight.outcomes > 0 or self._held.has_dropped

    @property
    def held_calls(self) -> int:
        """How many calls are held."""
        return len(self._held.calls)

    @property
    def held_calls_due_us(self) -> int | None:
        """When `HeldCallsDue` has to come; None if no call is held."""
        return self._held.next_us if self._held.calls else None

    @property
    def identity(self) -> Identity:
        """The identity in force."""
        return self._callers.identity

    @property
    def agent(self) -> str:
        """The agent of a call that does not name one."""
        return self._callers.identity.agent(self._callers.client_name)[0]

    # The policy and the caller

    def _started(self, event: events.Started) -> list[Command]:
        if event.policy is not None:
            self._callers.take_up(event.policy)
        return self._write_policy_row(audit.POLICY_AT_START)

    def _policy_changed(self, event: events.PolicyChanged) -> list[Command]:
        before, found = self._callers.policy, event.found
        self._callers.take_up(found)
        self._held.hurry()
        if isinstance(found, PolicyError):
            reason = f"not applied: {found.message}"
            return [Log(f"policy {reason}", is_error=True), *self._write_policy_row(reason)]
        is_new_mode = isinstance(before, PolicyError) or before.observe != found.observe
        told = f"policy applied: {found.mode_text}" if is_new_mode else "policy applied"
        return [Log(told), *self._write_policy_row("applied")]

    def _write_policy_row(self, reason: str) -> list[Command]:
        self._exchange = exchange = Exchange((), 0)
        exchange.request(self._requests.of_policy(reason))
        return [exchange.ask()]

    def _identity_changed(self, event: events.IdentityChanged) -> list[Command]:
        self._callers.identify(event.found)
        self._held.hurry()
        return []

    # A call that comes alone

    def lone_call(self, messages: Sequence[Frame | Refusal]) -> DecisionRequest | None:
        """The request for a call that came alone; None if it did not, or if it depends on more than the store's decision.

        Calls usually come alone. For such a call the relay asks the store itself, and hands the verdict to `forward` or
        `resume`. `ClientWrote` leads to the same in three times as many steps.
        """
        if len(messages) != 1:
            return None
        frame, callers = messages[0], self._callers
        if not isinstance(frame, Frame):
            return None
        _, method, request_id, params = frame
        if method != TOOLS_CALL:
            return None
        if self._held.calls or self._input_closed or self._server_exited:
            return None
        if callers.unauthenticated or not isinstance(callers.policy, Policy):
            return None
        assert isinstance(params, dict)  # noqa: S101 - `Frame.is_call` promises it
        assert request_id is not None  # noqa: S101
        key, in_flight = id_key(request_id), self.in_flight
        if key in in_flight.by_id or key in in_flight.late or "requestState" in params or "inputResponses" in params:
            return None
        call_meta = meta_of(params)
        if not meta.CALL_IDS.isdisjoint(call_meta) and callers.note_key(call_meta):
            return None
        request = self._requests.of_call(frame, params, call_meta, None)
        return request if request.waited_us is None else None

    def forward(self, request: DecisionRequest, verdict: Verdict, now_us: int) -> bytes:
        """Let a call be in flight that the store has let pass; returns the frame for the server."""
        frame, request_id, call, plan = request.frame, request.request_id, request.call, request.plan
        assert frame is not None  # noqa: S101 - it is a call's request
        assert request_id is not None  # noqa: S101
        settled = settled_plan(request, verdict) if plan.settles or request.rounds else None
        flight = (request_id, verdict.row_id, now_us, call.tool, call.user, request.rounds, settled)
        self.in_flight.add(id_key(request_id), tuple.__new__(InFlight, flight))  # half the time of `InFlight(…)`
        return frame.raw + b"\n"

    def resume(self, messages: Sequence[Frame | Refusal], request: DecisionRequest, now_us: int) -> None:
        """Go on with a call that came alone as if `Decide` had asked for its verdict: `Decided` or `StoreFailed` comes next."""
        self._exchange = exchange = Exchange(messages, now_us)
        exchange.request(request)
        exchange.ids[id_key(str(request.request_id))] = request
        exchange.ask()

    # The exchange

    def _client_wrote(self, event: events.ClientWrote) -> list[Command]:
        if self._server_exited:
            return []
        self._exchange = exchange = Exchange(event.messages, event.now_us)
        look_up = self._to_look_up(exchange)
        return [look_up] if look_up else self._judge({})

    def _to_look_up(self, exchange: Exchange) -> LookUp | None:
        """What the verdicts depend on and the session does not know; None if it knows everything."""
        notes: dict[str, None] = {}  # an ordered set
        needs_answers, has_id = False, self.in_flight.has_id
        for message in exchange.messages:
            if isinstance(message, Refusal):
                continue
            _, method, request_id, params = message
            if request_id is not None and has_id(id_key(request_id)):  # used again: the other request may be answered
                needs_answers = True
            if method == TOOLS_CALL and isinstance(params, dict):
                call_meta = meta_of(params)
                if call_meta and (key := self._callers.note_key(call_meta)):
                    notes[key] = None
                if "requestState" in params or "inputResponses" in params:
                    exchange.has_retry = needs_answers = True
            elif method == _CANCELLED and (key := _cancelled_key(params)) is not None and has_id(key):
                needs_answers = True  # the request may be answered: a client may cancel what it has the answer to
        return LookUp(tuple(notes), answers=needs_answers) if notes or needs_answers else None

    def _looked_up(self, event: events.LookedUp) -> list[Command]:
        return self._judge(event.agents)

    def _judge(self, agents: Mapping[str, str]) -> list[Command]:
        exchange, steps, held = self._exchange, self._exchange.steps, self._held.calls
        left = dict(agents)
        for found in exchange.messages:
            message = self._with_own_id(found)
            if isinstance(message, Refusal):
                exchange.request(self._requests.of_refusal(message))
                if message is found and message.id != "null":
                    self._note_unsent(id_key(message.id))
                if message.answered:
                    steps.append(replies.refused(message))
            elif message.method == TOOLS_CALL:
                key = self._callers.note_key(meta_of(message.params)) if left else None
                noted = left.pop(key, None) if key else None
                request = self._call(message, noted)
                exchange.request(request)
                exchange.ids[id_key(str(message.id))] = request
                if noted is not None:
                    exchange.noted[request] = noted
            elif not self._input_closed:
                steps += self._passing(message)
            elif message.id is not None and self._client_waits:
                steps += replies.gone([message.id], self._input_closed)
        if held:
            self._add_due(exchange)
        return self._go_on()

    def _with_own_id(self, message: Frame | Refusal) -> Frame | Refusal:
        """The message; its refusal if it is a request with the id of one that is not answered yet."""
        if isinstance(message, Refusal) or message.id is None:
            return message
        key = id_key(message.id)
        if key in self._exchange.ids or key in self._held.calls or self.in_flight.has_id(key):
            tool = str(message.params["name"]) if message.is_call and isinstance(message.params, dict) else None
            return Refusal(INVALID_REQUEST, _USED_ID, message.id, tool=tool)
        return message

    def _call(self, frame: Frame, noted: str | None, rounds: int = 0) -> DecisionRequest:
        """The request for a call. `decided` is set if the decision does not depend on a limit.

        Args:
            frame: The call.
            noted: The agent that a hook noted for it; None if no hook did.
            rounds: The call's number among the free retries of one charge, if that is known already; else 0.
        """
        assert isinstance(frame.params, dict)  # noqa: S101 - `Frame.is_call` promises it
        request = self._requests.of_call(frame, frame.params, meta_of(frame.params), noted)
        unauthenticated, policy = self._callers.unauthenticated, self._callers.policy
        if self._input_closed:
            request.decided = "unavailable"
            request.detail = {**request.detail, "reason": replies.SERVER_GONE}
            request.why = self._input_closed
        elif unauthenticated:
            request.decided = "unauthenticated"
            request.detail = {**request.detail, "axis": "user", "reason": unauthenticated.message}
            hint = unauthenticated.hint
            request.why = f"{unauthenticated.message}. {hint[:1].upper()}{hint[1:]}."
        elif isinstance(policy, PolicyError):
            request.decided = "unavailable"
            request.detail = {**request.detail, "reason": "policy_invalid"}
            request.why = f"no policy is in force. {policy.message}. Every tool is closed until it is fixed."
        elif rounds or (self._exchange.has_retry and frame.is_retry and not request.plan.is_closed):
            request.rounds = rounds or self._retries.redeem(request.call.user, request.call.tool, frame.params)
            if request.rounds:
                self._continue(request)
        return request

    def _continue(self, request: DecisionRequest) -> None:
        """Let a free retry pass, which is not charged. While it is in flight it takes a place under each cap."""
        request.whole_plan = request.plan
        request.plan = request.plan.only(lambda limit: limit.counts == "concurrent" or not limit.n)
        if not (request.plan.caps or request.plan.is_closed):
            request.decided, request.waited_us = "continued", None

    def _passing(self, frame: Frame) -> list[ToServer | Frame]:
        """Forward a message that is not a call, after looking for the client's name and for a cancellation."""
        if frame.id is not None:
            key = id_key(frame.id)
            self._exchange.ids[key] = None
            self.in_flight.add(key, InFlight(frame.id, None, self._exchange.now_us))
        elif frame.method == _CANCELLED and (cancelled := _cancelled_key(frame.params)) is not None:
            return self._cancelled(frame, cancelled)  # servers do not take a request for a cancellation
        if frame.method == "initialize" and isinstance(frame.params, dict):
            self._callers.client_name = name_in(frame.params.get("clientInfo"))
        return [ToServer(frame.raw + b"\n")]

    def _cancelled(self, frame: Frame, key: str) -> list[ToServer | Frame]:
        """Cancel a request; forward the cancellation if the server gets the request or may have got it."""
        request = self._exchange.ids.get(key)
        if key in self._held.calls:
            self._held.drop(key, "cancelled while it waited", self._exchange.now_us)
            self._note_unsent(key)
        elif request is not None:  # it is not decided yet
            self._exchange.withdrawn.add(request)
            return [frame]
        elif self.in_flight.has_id(key):
            self.in_flight.cancel(key, self._exchange.now_us)
            return [ToServer(frame.raw + b"\n")]
        return [] if key in self._unsent else [ToServer(frame.raw + b"\n")]

    def _note_unsent(self, key: str) -> None:
        """Remember that the server did not get a request, in case that the client cancels it."""
        self._unsent[key] = None
        if len(self._unsent) > _MAX_UNSENT:
            del self._unsent[next(iter(self._unsent))]

    def _go_on(self) -> list[Command]:
        """Ask for the next verdicts. When all have come, end the exchange: forward and answer its messages."""
        exchange = self._exchange
        if len(exchange.verdicts) < len(exchange.requests):
            decide = exchange.ask()
            if exchange.asked[0].waited_us is not None:
                self._let_wait(exchange.asked[0])
            return [decide]
        commands: list[Command] = []
        verdicts = iter(exchange.verdicts)
        for step in exchange.steps:
            if isinstance(step, DecisionRequest):
                command = self._forward_or_deny(step, next(verdicts), exchange)
            elif isinstance(step, Frame):  # the cancellation of a call in this exchange
                command = ToServer(step.raw + b"\n") if self.in_flight.has_id(str(_cancelled_key(step.params))) else None
            else:
                command = step
            if command is not None:
                commands.append(command)
        self._exchange = self._idle
        return commands

    def _forward_or_deny(self, request: DecisionRequest, verdict: Verdict, exchange: Exchange) -> ToServer | ToClient | None:
        """Forward or deny a call. None for a request that is not a call's: it only wrote a row."""
        if request.frame is None or request.request_id is None:
            return None
        if verdict.decision in FORWARDED:
            data = self.forward(request, verdict, exchange.now_us)
            if exchange.withdrawn and request in exchange.withdrawn:
                self.in_flight.cancel(id_key(request.request_id), exchange.now_us)
            return ToServer(data)
        if verdict.decision == "held":
            return None
        self._note_unsent(id_key(request.request_id))
        self._retries.give_back(request)
        return self._denials.of(request.request_id, request, verdict, waits=self._client_waits)

    # Held calls

    def _let_wait(self, request: DecisionRequest) -> None:
        """Tell the store of a request whether it may be held, and whether an earlier call waits for one of its counters."""
        if self._held.get(request.request_id) is None and not (self._held.has_room and self._client_waits):
            request.waited_us = None
        else:
            request.is_behind = self._held.is_behind(request)

    def _hold(self, request: DecisionRequest, verdict: Verdict) -> bool:
        """Hold a call. Returns False if it has to be decided again, so that it is denied."""
        exchange = self._exchange
        if request in exchange.withdrawn:
            self._held.note_drop(request, verdict, "cancelled while it waited")
        elif not self._held.hold(request, verdict, exchange.noted.get(request), exchange.now_us):
            request.waited_us = None  # if there is room by now, it is for the calls before it: `is_behind` stays
            return False
        return True

    def _held_calls_due(self, event: events.HeldCallsDue) -> list[Command]:
        self._exchange = exchange = Exchange((), event.now_us)
        self._add_due(exchange, alone=event.alone)
        return self._go_on()

    def _add_due(self, exchange: Exchange, *, alone: bool = False) -> None:
        """Put the held calls that are due before everything else in an exchange, so that no later call passes them."""
        now_us = exchange.now_us
        steps: list[DecisionRequest | ToServer | ToClient] = []
        due = exchange.due = self._held.due(now_us)[: 1 if alone else None]
        for call in due:
            request = self._call(call.frame, call.noted, call.rounds)
            waited_us = call.waited_us(now_us)
            request.detail = {**request.detail, "waited_ms": waited_us // 1000}
            request.waited_us = None if request.waited_us is None else waited_us
            steps.append(request)
        exchange.requests[:0] = [step for step in steps if isinstance(step, DecisionRequest)]
        steps += [ToClient(told) for call in self._held if call not in due and (told := call.progress(now_us))]
        exchange.steps[:0] = steps

    # Verdicts

    def _decided(self, event: events.Decided) -> list[Command]:
        lines: list[Command] = []
        if event.verdicts[0].decision == "held":
            if not self._hold(self._exchange.asked[0], event.verdicts[0]):
                return self._go_on()
        elif self._held.calls:
            for request in self._exchange.asked:
                self._held.decided(request)
            if any(verdict.decision == "allowed_unavailable" for verdict in event.verdicts):
                self._held.hurry()  # nothing is limited, so nothing has to wait
        for request, verdict in zip(self._exchange.asked, event.verdicts, strict=True):
            if verdict.has_own_row and verdict.decision in REFUSED:
                lines.append(replies.line_of(audit.row(request, verdict, 0)))
        self._exchange.verdicts += event.verdicts
        return lines + self._go_on()

    def _store_failed(self, event: events.StoreFailed) -> list[Command]:
        asked = self._exchange.asked
        for request in asked:
            request.detail = {**request.detail, "reason": "store_unavailable"}
            request.why = f"the store of counters is unavailable ({event.message})."
            self._held.decided(request)
        log = Log(f"store unavailable: {event.message}", kind="store unavailable", is_error=True)
        self._exchange.verdicts += [Verdict("unavailable") for _ in asked]
        return [log, *self._go_on()]

    def _unjudged(self, event: events.Unjudged) -> list[Command]:
        commands = self._abandon(event.now_us)
        for line in event.lines:
            messages: Sequence[Frame | Refusal] = (Frame(b"", None, "null", None),)  # if the bug is in the parser
            with contextlib.suppress(Exception):
                messages = frames.read([line])
            for message in messages:
                if isinstance(message, Refusal):
                    commands += [replies.refused(message)] if message.answered else []
                elif message.id is not None:
                    commands += replies.unjudged([message.id])
                with contextlib.suppress(Exception):  # the bug may be in making requests
                    self._held.note_row(*self._requests.of_unjudged(message))
        return commands

    def _abandon(self, now_us: int) -> list[Command]:
        """End an exchange that a bug has stopped, as if nothing of it were read. Calls that were charged stay charged."""
        exchange, self._exchange = self._exchange, self._idle
        calls = {request for request in exchange.ids.values() if request is not None}
        for request, verdict in zip_longest(exchange.requests, exchange.verdicts):
            if request in calls and (verdict is None or verdict.forwards):
                self._retries.give_back(request)
            if verdict is not None and verdict.forwards and request.request_id is not None:
                key = id_key(request.request_id)
                if not self.in_flight.has_id(key):
                    self.forward(request, verdict, exchange.now_us)
                self.in_flight.end(key, "no_answer", now_us)
        for key in exchange.ids:
            self.in_flight.end(key, "no_answer", now_us)
        if len(exchange.due) == 1 and not exchange.messages and self._held.get(exchange.due[0].frame.id):
            self._held.drop(id_key(str(exchange.due[0].frame.id)), "mcpguard failed to judge it", now_us)
        gone = [str(call.frame.id) for call in exchange.due if not self._held.get(call.frame.id)]
        return [*replies.unjudged(gone)]

    # The server, and the end

    def _server_wrote(self, event: events.ServerWrote) -> list[Command]:
        for line in event.lines:
            if not self.in_flight.awaits_answers:
                break
            if line.frame.lstrip().startswith(b"["):
                for one in answers.read_batch(line.frame):
                    self._answered(one, event.now_us)
            elif answer := answers.read_answer(line.frame, whole=line.whole):
                self._answered(answer, event.now_us)
        return []

    def _answered(self, answer: Answer, now_us: int) -> None:
        request = self.in_flight.answered(id_key(answer.id), answer.outcome, now_us)
        if answer.wanted and request and request.tool is not None:
            self._retries.grant(request.user, request.tool, answer.wanted, request.rounds + 1)

    def _undelivered(self, event: events.Undelivered) -> list[Command]:
        ids = replies.requests_in(event.data)
        unanswered = [one for one in ids if self.in_flight.end(id_key(one), "no_answer", event.now_us)]
        return self._answer_all(unanswered, _INPUT_CLOSED)

    def _close_input(self, event: events.InputClosed) -> list[Command]:
        self._input_closed = self._input_closed or event.why
        self._held.hurry()  # they are answered with this reason, or before that with the server's exit status
        return []

    def _client_left(self, event: events.ClientLeft) -> list[Command]:
        self._client_waits = False
        self._held.drop_all("the client left while it waited", event.now_us)
        return []

    def _exit(self, event: events.ServerExited) -> list[Command]:
        self._server_exited = True
        held = self._held.drop_all("the server ended while it waited", event.now_us)
        return self._answer_all([*self.in_flight.end_all("no_answer", event.now_us), *held], event.how)

    def _answer_all(self, ids: Sequence[str], why: str) -> list[Command]:
        """Answer requests in the server's place, if the client waits for answers."""
        return [*replies.gone(ids, why)] if self._client_waits else []

    # Recording, which no call waits for

    def _recording_due(self, event: events.RecordingDue) -> list[Command]:
        outcomes = self.in_flight.take_outcomes(max(MAX_OUTCOMES, self.in_flight.outcomes // 16))
        self._recording = self._held.rows(self.journal, event.wall_us)
        self._recording += self.journal.flush(event.wall_us, all_of_them=event.everything)
        return [Record(outcomes, self._recording)] if outcomes or self._recording else []

    def _recorded(self, _: events.Recorded) -> list[Command]:
        rows, self._recording = self._recording, []
        return [replies.line_of(row) for row in rows]

    def _recording_failed(self, _: events.RecordingFailed) -> list[Command]:
        self._recording = []
        self.in_flight.drop_outcomes()  # the calls are counted; memory must not grow while the store is away
        return []


_TRANSITIONS: Final[Mapping[type, Callable[[Session, Any], list[Command]]]] = {
    events.ClientWrote: Session._client_wrote,
    events.Decided: Session._decided,
    events.ServerWrote: Session._server_wrote,
    events.LookedUp: Session._looked_up,
    events.StoreFailed: Session._store_failed,
    events.Unjudged: Session._unjudged,
    events.Undelivered: Session._undelivered,
    events.HeldCallsDue: Session._held_calls_due,
    events.RecordingDue: Session._recording_due,
    events.Recorded: Session._recorded,
    events.RecordingFailed: Session._recording_failed,
    events.Started: Session._started,
    events.PolicyChanged: Session._policy_changed,
    events.IdentityChanged: Session._identity_changed,
    events.InputClosed: Session._close_input,
    events.ClientLeft: Session._client_left,
    events.ServerExited: Session._exit,
}


def _cancelled_key(params: object) -> str | None:
    """The key of the request that a cancellation names; None if it names none."""
    request_id = frames.id_text(params.get("requestId")) if isinstance(params, dict) else None
    return None if request_id is None else id_key(request_id)
