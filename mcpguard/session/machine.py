"""The state machine of one session: messages in, requests to the store, frames out.

Theory of operation
===================

The relay hands over what the client has written, and then asks the store whatever the session asks for::

    asked = session.judge(messages, now_us, notes)
    while asked:
        asked = session.decided(store.decide(asked, session.journal))
    output = session.output()

`judge` finds out what becomes of each message if no limit refuses it. `decided` takes verdicts, a portion at a time.
`output` returns all frames for the server and for the client. What else happens is told by other methods, such as
`server_wrote` and `client_left`; what they answer comes with the next `output`.

Before `judge`, the relay asks `look_up` what the verdicts depend on and the session does not know. Before the store is asked,
the relay writes the `rows` of what no limit decides, such as refused frames. After everything it tells the store of `endings`
before the client gets a frame, and writes `lines` to stderr. The session does no I/O and reads no clock.

**The client** *waits* until `client_left`, then *has left*. mcpguard answers requests in the server's place only while the
client waits: a client that has closed its side may fail on a frame that it no longer expects. Denials and refusals are sent in
both states.

**The server** *serves* until `close_input`, then *takes nothing more*: no call is charged, nothing is forwarded, and a request
is answered with an error that says why. After `server_exited` it *is gone*: all requests in flight have been answered, and what
the client writes is discarded.

Invariants
----------

- No call is forwarded undecided: the server gets only messages that are not calls, and calls that the store has admitted and
  counted.
- Every request has exactly one answer, unless the client cancels it or leaves: a denial, a refusal, the server's answer, or an
  error because the server cannot answer. A request is in flight from the output that forwards it until its end.
- The server has at most one unanswered request with an id, so that each answer is the answer to one request. A request with
  the id of another is refused until the other is answered, even if that was cancelled.
- The server gets no cancellation of a request that it did not get.
- Messages go to the server in the order in which the client wrote them, except held calls, which others pass. Answers go to
  the client in that order, too.
- The store is told of the end of a call that its plan `settles` before the client gets the answer.
- Memory is bounded, whatever the client writes: see `in_flight`, `callers`, `retries`, `held_calls` and `journal`.
- No method raises anything. An exception is a bug. The relay reports it and calls `unjudged`; then it hands over, one by one,
  the held calls that were due and the lines; and calls `unjudged` for each that leads to an exception again.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from mcpguard.errors import PolicyError, Unauthenticated
from mcpguard.identity.caller import Identity
from mcpguard.policy.model import Policy
from mcpguard.session import audit, replies
from mcpguard.session.callers import Callers, name_in
from mcpguard.session.decision_requests import DecisionRequests, meta_of
from mcpguard.session.held_calls import HeldCall, HeldCalls
from mcpguard.session.in_flight import InFlight, RequestsInFlight, settled_plan
from mcpguard.session.journal import Journal
from mcpguard.session.output import Log, LookUp
from mcpguard.session.retries import FreeRetries
from mcpguard.session.verdict import FORWARDED, REFUSED, DecisionRequest, Ending, Verdict
from mcpguard.wire import answers, frames
from mcpguard.wire.answers import Answer, Line
from mcpguard.wire.frames import INVALID_REQUEST, TOOLS_CALL, Frame, Refusal
from mcpguard.wire.ids import id_key

MAX_PORTION: Final = 256
MAX_PORTION_BYTES: Final = 256 * 1024
"""How many requests are decided in one transaction, and how long their frames may be, because rows may hold the arguments. This
takes some milliseconds, so that other wrappers get their turn."""

MAX_OUTCOMES: Final = 64
"""Outcomes that are recorded at once, or a 16th of all, if that is more: calls are not decided while the store writes them."""

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
        unwritten: What has a row that no decision of the store writes, with its verdict; see `rows`.
        lines: Lines for stderr; see `take_lines`.
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
        self._form = denials
        self._callers = Callers(identity, policy, journal.session, namespace)
        self._requests = DecisionRequests(self._callers, arguments, args_key)
        self.in_flight = RequestsInFlight()
        self.unwritten: list[tuple[DecisionRequest, Verdict]] = []
        self._retries = FreeRetries()
        self._held = HeldCalls(self._retries, self.unwritten)
        self._unsent: dict[str, None] = {}  # the keys of requests that the server did not get
        self._client_waits = True
        self._input_closed = ""  # the reason; empty while it is open
        self._server_exited = False
        self._to_client: list[bytes] = []
        self.lines: list[Log] = []
        self._asked: Sequence[DecisionRequest] = ()  # the portion that the store was asked for last
        self._begin(0)

    def _begin(self, now_us: int, messages: Sequence[Frame | Refusal] = ()) -> None:
        """Begin to judge messages."""
        self._now_us = now_us
        self._messages = messages
        self._steps: list[Frame | Refusal | DecisionRequest] = []  # the messages, with calls as requests
        self._ids: set[str] = set()  # the `id_key` of each request among the messages
        self._due: Sequence[HeldCall] = ()  # the held calls that are decided anew
        self._denied: list[tuple[DecisionRequest, Verdict]] = []  # what is refused, whatever the store says
        self._to_decide: list[DecisionRequest] = []  # by the store
        self._decided = 0  # how many of these have verdicts

    # What the client writes

    def look_up(self, messages: Sequence[Frame | Refusal]) -> LookUp | None:
        """What the verdicts on these messages depend on and the session does not know; None if it knows everything."""
        notes: dict[str, None] = {}  # an ordered set
        needs_answers, by_id, late = False, self.in_flight.by_id, self.in_flight.late
        for message in messages:
            if isinstance(message, Refusal):
                continue
            _, method, request_id, params = message
            if request_id is not None and ((key := id_key(request_id)) in by_id or key in late):  # the other may be answered
                needs_answers = True
            if method == TOOLS_CALL:
                if "_meta" in params and (note_key := self._callers.note_key(meta_of(params))):
                    notes[note_key] = None
                if "requestState" in params or "inputResponses" in params:
                    needs_answers = True
            elif method == _CANCELLED and ((cancelled := _cancelled_key(params)) in by_id or cancelled in late):
                needs_answers = True  # the request may be answered: a client may cancel what it has the answer to
        return LookUp(tuple(notes), needs_answers) if notes or needs_answers else None

    def judge(
        self, messages: Sequence[Frame | Refusal], now_us: int, notes: Mapping[str, str] | None = None
    ) -> Sequence[DecisionRequest]:
        """Judge messages from the client.

        Args:
            messages: As `frames.read` returns them.
            now_us: A monotone clock's reading.
            notes: The agents in the `notes` that were looked up, by key. Calls without a note are absent.

        Returns:
            The requests that the store has to decide in one transaction, for `decided`; empty if none is left.
        """
        if self._server_exited:
            return ()
        self._begin(now_us, messages)
        left = dict(notes) if notes else None
        steps, ids, held, in_flight = self._steps, self._ids, self._held.calls, self.in_flight
        for message in messages:
            if isinstance(message, Refusal):
                steps.append(self._refuse(message))
                continue
            request_id, key = message.id, ""
            if request_id is not None:
                key = id_key(request_id)
                if key in ids or key in held or key in in_flight.by_id or key in in_flight.late:
                    steps.append(self._refuse(Refusal(INVALID_REQUEST, _USED_ID, request_id, tool=message.tool)))
                    continue
                ids.add(key)
            if message.method == TOOLS_CALL:
                steps.append(self._call(message, key, self._noted(message.params, left) if left else None))
            else:
                self._take_note_of(message)
                steps.append(message)
        if held:
            self._add_due()
        self.unwritten += self._denied
        return self._ask()

    def _take_note_of(self, message: Frame) -> None:
        """Look for the client's name in a message that is not a call, and for the cancellation of a held call."""
        _, method, request_id, params = message
        if method == "initialize" and isinstance(params, dict):
            self._callers.client_name = name_in(params.get("clientInfo"))
        elif method == _CANCELLED and request_id is None and (cancelled := _cancelled_key(params)) in self._held.calls:
            self._drop(str(cancelled))

    def _noted(self, params: object, notes: dict[str, str]) -> str | None:
        """The agent in the note of a call, which counts for one call; None if there is none."""
        key = self._callers.note_key(meta_of(params))
        return notes.pop(key, None) if key else None

    def _refuse(self, refusal: Refusal) -> Refusal:
        self._denied.append((self._requests.of_refusal(refusal), Verdict("invalid")))
        return refusal

    def _call(self, frame: Frame, key: str, noted: str | None, rounds: int | None = None) -> DecisionRequest:
        """The request for a call, which the store decides unless the call is denied whatever its limits are.

        Args:
            frame: The call.
            key: The `id_key` of its id.
            noted: The agent that a hook noted for it; None if no hook did.
            rounds: The call's number among the free retries of one charge; None if that is not known yet.
        """
        params: dict[str, Any] = frame.params
        callers, request = self._callers, self._requests.of_call(frame, params, noted)
        request.key = key
        if self._input_closed or callers.unauthenticated or not isinstance(callers.policy, Policy):
            self._deny(request)
            return request
        if rounds is None and ("requestState" in params or "inputResponses" in params) and not request.plan.is_closed:
            rounds = self._retries.redeem(request.call.user, request.call.tool, params)
        if rounds:
            request.continue_as(rounds)
        self._to_decide.append(request)
        return request

    def _deny(self, request: DecisionRequest) -> None:
        """Deny a call, whatever its limits are."""
        unauthenticated, policy = self._callers.unauthenticated, self._callers.policy
        verdict = Verdict("unavailable")
        if self._input_closed:
            request.detail = {**request.detail, "reason": replies.SERVER_GONE}
            request.why = self._input_closed
        elif unauthenticated:
            verdict = Verdict("unauthenticated")
            request.detail = {**request.detail, "axis": "user", "reason": unauthenticated.message}
            hint = unauthenticated.hint
            request.why = f"{unauthenticated.message}. {hint[:1].upper()}{hint[1:]}."
        else:
            assert isinstance(policy, PolicyError)  # noqa: S101 - else the store decides
            request.detail = {**request.detail, "reason": "policy_invalid"}
            request.why = f"no policy is in force. {policy.message}. Every tool is closed until it is fixed."
        self._held.decided(request)
        request.verdict = verdict
        self._denied.append((request, verdict))

    # Verdicts

    def _ask(self) -> Sequence[DecisionRequest]:
        """The next portion of requests. A call that may be held is decided alone: others may have to wait for it."""
        requests, start = self._to_decide, self._decided
        if start == len(requests):
            return ()
        end = start + 1
        if len(requests) > end:
            most = 1 if requests[start].waited_us is not None else MAX_PORTION
            size_bytes = len(requests[start].frame.raw)
            while end < len(requests) and end - start < most and requests[end].waited_us is None:
                size_bytes += len(requests[end].frame.raw)
                if size_bytes > MAX_PORTION_BYTES:
                    break
                end += 1
        asked = self._asked = requests[start:end]
        if asked[0].waited_us is not None:
            self._let_wait(asked[0])
        return asked

    def decided(self, verdicts: Sequence[Verdict]) -> Sequence[DecisionRequest]:
        """Take the verdicts on the requests that the store was asked for, in order; returns the next requests, as `judge`."""
        asked, held = self._asked, self._held
        if verdicts[0].decision == "held":
            if not held.hold(asked[0], verdicts[0], self._now_us):
                asked[0].waited_us = None  # if there is room by now, it is for the calls before it: `is_behind` stays
                return asked
        elif held.calls:
            for request in asked:
                held.decided(request)
            if any(verdict.decision == "allowed_unavailable" for verdict in verdicts):
                held.hurry()  # nothing is limited, so nothing has to wait
        for request, verdict in zip(asked, verdicts, strict=True):
            request.verdict = verdict
            if verdict.decision in REFUSED and verdict.has_own_row:
                self.lines.append(replies.line_of(audit.row(request, verdict, 0)))
        self._decided += len(asked)
        return self._ask() if self._decided < len(self._to_decide) else ()

    def undecided(self, why: str) -> Sequence[DecisionRequest]:
        """As `decided`, if the store could not decide the requests: they are denied."""
        for request in self._asked:
            request.detail = {**request.detail, "reason": "store_unavailable"}
            request.why = f"the store of counters is unavailable ({why})."
        self.lines.append(Log(f"store unavailable: {why}", kind="store unavailable", is_error=True))
        return self.decided([Verdict("unavailable") for _ in self._asked])

    # What comes out

    def rows(self, wall_us: int) -> list[audit.Row]:
        """The rows of what is `unwritten`. Denials of these calls name their rows, so this has to come before `output`."""
        unwritten = self.unwritten.copy()
        self.unwritten.clear()
        return self._logged(self.journal.rows([one for one, _ in unwritten], [verdict for _, verdict in unwritten], wall_us))

    def last_rows(self, wall_us: int, *, everything: bool = False) -> list[audit.Row]:
        """As `rows`, with the rows that sum up denials, as far as it is time for them.

        Args:
            wall_us: Wall-clock time.
            everything: Whether the session ends, so that every denial must be in a row now.
        """
        return self.rows(wall_us) + self._logged(self.journal.flush(wall_us, all_of_them=everything))

    def _logged(self, rows: list[audit.Row]) -> list[audit.Row]:
        self.lines += [replies.line_of(row) for row in rows if row.decision != "policy"]
        return rows

    def output(self) -> tuple[bytes, bytes]:
        """What comes of the messages that were judged, once all are decided, and of all that was told since.

        Returns:
            The frames for the server; and those for the client, to be written between two frames from the server.
        """
        to_server: list[bytes] = []
        for step in self._steps:
            if not isinstance(step, DecisionRequest):
                frame = self._pass_on(step) if isinstance(step, Frame) else self._answer_refusal(step)
            elif step.verdict is not None and step.verdict.decision in FORWARDED:
                frame = self._forward(step, step.verdict)
            else:
                frame = self._answer_denied(step)
            if frame:
                to_server += (frame, b"\n")
        self._steps = []
        to_client, self._to_client = self._to_client, []
        return b"".join(to_server), b"".join(to_client)

    def take_lines(self) -> list[Log]:
        """Remove and return the lines for stderr."""
        lines, self.lines = self.lines, []
        return lines

    def take_endings(self) -> list[Ending]:
        """Remove and return the calls that have ended and that the store has to be told of at once."""
        endings, self.in_flight.endings = self.in_flight.endings, []
        for ending in endings:
            self._held.freed(ending.plan)
        return endings

    def take_outcomes(self) -> list[audit.Outcome]:
        """Remove and return some outcomes to be recorded."""
        return self.in_flight.take_outcomes(max(MAX_OUTCOMES, self.in_flight.outcomes // 16))

    def _forward(self, request: DecisionRequest, verdict: Verdict) -> bytes:
        """Let a call be in flight; returns its frame."""
        call, plan, request_id = request.call, request.plan, request.request_id
        settled = settled_plan(request, verdict) if plan.settles or request.rounds else None
        flight = (request_id, verdict.row_id, self._now_us, call.tool, call.user, request.rounds, settled)
        self.in_flight.add(request.key, tuple.__new__(InFlight, flight))  # half the time of `InFlight(…)`
        return request.frame.raw

    def _answer_denied(self, request: DecisionRequest) -> bytes:
        """Answer a call that was denied, unless it is held; the server gets nothing."""
        verdict = request.verdict or Verdict("held")
        if verdict.decision != "held":
            self._note_unsent(request.key)
            self._retries.give_back(request)
            if self._client_waits or request.detail.get("reason") != replies.SERVER_GONE:
                self._to_client.append(replies.denied(request, verdict, self._form))
        return b""

    def _answer_refusal(self, refusal: Refusal) -> bytes:
        if refusal.id != "null" and refusal.message is not _USED_ID:
            self._note_unsent(id_key(refusal.id))
        if refusal.answered:
            self._to_client.append(replies.refused(refusal))
        return b""

    def _pass_on(self, frame: Frame) -> bytes:
        """A frame that is not a call, if the server gets it; else nothing."""
        if self._input_closed:
            if frame.id is not None:
                self._answer_all([frame.id], self._input_closed)
            return b""
        if frame.id is not None:  # servers do not take a request for a cancellation
            self.in_flight.add(id_key(frame.id), InFlight(frame.id, None, self._now_us))
        elif frame.method == _CANCELLED and (key := _cancelled_key(frame.params)) is not None and not self._cancel(key):
            return b""
        return frame.raw

    def _cancel(self, key: str) -> bool:
        """Cancel a request; returns whether the server gets the cancellation, because it has got the request or may have."""
        if key in self._held.calls:
            self._drop(key)
        elif self.in_flight.has_id(key):
            self.in_flight.cancel(key, self._now_us)
            return True
        return key not in self._unsent

    def _drop(self, key: str) -> None:
        self._held.drop(key, "cancelled while it waited", self._now_us)
        self._note_unsent(key)

    def _note_unsent(self, key: str) -> None:
        """Remember that the server did not get a request, in case that the client cancels it."""
        self._unsent[key] = None
        if len(self._unsent) > _MAX_UNSENT:
            del self._unsent[next(iter(self._unsent))]

    # Held calls

    @property
    def held_calls(self) -> int:
        """How many calls are held."""
        return len(self._held.calls)

    @property
    def held_calls_due_us(self) -> int | None:
        """When `judge_held` has to be called; None if no call is held."""
        return self._held.next_us if self._held.calls else None

    def judge_held(self, now_us: int, *, alone: bool = False) -> Sequence[DecisionRequest]:
        """As `judge`, for the held calls that are to be decided anew, or of which the client is to be told that they wait.

        Args:
            now_us: A monotone clock's reading.
            alone: Whether only the first call that is due is decided: a bug has kept all of them from being judged.
        """
        self._begin(now_us)
        self._add_due(alone=alone)
        self.unwritten += self._denied
        return self._ask()

    def _add_due(self, *, alone: bool = False) -> None:
        """Put the held calls that are due before everything else, so that no later call passes them."""
        now_us, later = self._now_us, self._to_decide
        due = self._due = self._held.due(now_us)[: 1 if alone else None]
        self._to_decide = []
        requests = []
        for call in due:
            request = self._call(call.request.frame, call.key, call.request.noted, call.request.rounds)
            waited_us = call.waited_us(now_us)
            request.detail = {**request.detail, "waited_ms": waited_us // 1000}
            request.waited_us = None if request.waited_us is None else waited_us
            requests.append(request)
        self._to_decide += later
        self._steps[:0] = requests
        self._to_client += [told for call in self._held if call not in due and (told := call.progress(now_us))]

    def _let_wait(self, request: DecisionRequest) -> None:
        """Tell the store of a request whether it may be held, and whether an earlier call waits for one of its counters."""
        if self._held.get(request) is None and not (self._held.has_room and self._client_waits):
            request.waited_us = None
        else:
            request.is_behind = self._held.is_behind(request)

    # The policy and the caller

    @property
    def identity(self) -> Identity:
        """The identity in force."""
        return self._callers.identity

    @property
    def agent(self) -> str:
        """The agent of a call that does not name one."""
        return self._callers.identity.agent(self._callers.client_name)[0]

    def start(self, policy: Policy | PolicyError | None = None) -> None:
        """Note that the policy was loaded. Until then there are only messages that need no verdict.

        Args:
            policy: The policy in force from now on, or why there is none; None for the one that the session was made with.
        """
        if policy is not None:
            self._callers.take_up(policy)
        self._write_policy_row(audit.POLICY_AT_START)

    def change_policy(self, found: Policy | PolicyError) -> None:
        """Note that the policy file has changed: `found` is the new policy, or the fault of the file."""
        before = self._callers.policy
        self._callers.take_up(found)
        self._held.hurry()
        if isinstance(found, PolicyError):
            reason = f"not applied: {found.message}"
            self.lines.append(Log(f"policy {reason}", is_error=True))
            self._write_policy_row(reason)
            return
        is_new_mode = isinstance(before, PolicyError) or before.observe != found.observe
        self.lines.append(Log(f"policy applied: {found.mode_text}" if is_new_mode else "policy applied"))
        self._write_policy_row("applied")

    def _write_policy_row(self, reason: str) -> None:
        self.unwritten.append((self._requests.of_policy(reason), Verdict("policy")))

    def change_identity(self, found: Identity | Unauthenticated) -> None:
        """Note that the token has changed: `found` is the new identity, or the reason why no user is verified."""
        self._callers.identify(found)
        self._held.hurry()

    # The server, and the end

    @property
    def has_outcomes(self) -> bool:
        """Whether there are outcomes to be recorded, or rows to be written."""
        return self.in_flight.outcomes > 0 or bool(self.unwritten)

    def server_wrote(self, lines: Sequence[Line], now_us: int) -> None:
        """Read outcomes off what the server has written, and grant free retries.

        Args:
            lines: The lines that may be answers.
            now_us: A monotone clock's reading, taken when mcpguard read them.
        """
        for line in lines:
            if not self.in_flight.awaits_answers:
                break
            if line.frame.lstrip().startswith(b"["):
                for one in answers.read_batch(line.frame):
                    self._answered(one, now_us)
            elif answer := answers.read_answer(line.frame, whole=line.whole):
                self._answered(answer, now_us)

    def _answered(self, answer: Answer, now_us: int) -> None:
        request = self.in_flight.answered(id_key(answer.id), answer.outcome, now_us)
        if answer.wanted and request and request.tool is not None:
            self._retries.grant(request.user, request.tool, answer.wanted, request.rounds + 1)

    def undelivered(self, data: bytes, now_us: int) -> None:
        """Note that the server closed its input before it took these frames.

        Args:
            data: Whole lines. The server may have taken a part of the first.
            now_us: A monotone clock's reading.
        """
        ids = replies.requests_in(data)
        self._answer_all([one for one in ids if self.in_flight.end(id_key(one), "no_answer", now_us)], _INPUT_CLOSED)

    def close_input(self, why: str) -> None:
        """Note that the server receives nothing more. `why` is a clause for the client; the first one counts."""
        self._input_closed = self._input_closed or why
        self._held.hurry()  # they are answered with this reason, or before that with the server's exit status

    def client_left(self, now_us: int) -> None:
        """Note that the client has closed its side, or that mcpguard was told to end."""
        self._client_waits = False
        self._held.drop_all("the client left while it waited", now_us)

    def server_exited(self, how: str, now_us: int) -> bytes:
        """Note that the server is gone, and that all that it wrote has been passed on; returns the last frames for the client.

        Args:
            how: What became of it, as a clause: `server exited with status 7`.
            now_us: A monotone clock's reading.
        """
        self._server_exited = True
        held = self._held.drop_all("the server ended while it waited", now_us)
        ids = [*self.in_flight.end_all("no_answer", now_us), *held]
        return b"".join(replies.gone(ids, how)) if self._client_waits else b""

    def _answer_all(self, ids: Sequence[str], why: str) -> None:
        """Answer requests in the server's place, if the client waits for answers."""
        if self._client_waits:
            self._to_client += replies.gone(ids, why)

    # Bugs

    def unjudged(self, lines: Sequence[bytes | Refusal], now_us: int) -> None:
        """Note that a bug has kept messages from being judged. Nothing of them is forwarded.

        Args:
            lines: As `LineSplitter` returns them: their requests are answered with an error or a refusal. Empty if they are
                handed over again, one by one.
            now_us: A monotone clock's reading.
        """
        self._abandon(now_us)
        for line in lines:
            messages: Sequence[Frame | Refusal] = (Frame(b"", None, "null", None),)  # if the bug is in the parser
            with contextlib.suppress(Exception):
                messages = frames.read([line])
            for message in messages:
                if isinstance(message, Refusal):
                    self._to_client += [replies.refused(message)] if message.answered else []
                elif message.id is not None:
                    self._to_client += replies.unjudged([message.id])
                with contextlib.suppress(Exception):  # the bug may be in making requests
                    self.unwritten.append(self._requests.of_unjudged(message))

    def _abandon(self, now_us: int) -> None:
        """End what a bug has stopped, as if nothing of it were read. Calls that were charged stay charged."""
        due = self._due
        held = {id(call.request.frame) for call in due}
        self._to_client = []
        for step in self._steps:
            if isinstance(step, DecisionRequest):
                verdict = step.verdict
                if id(step.frame) not in held and (verdict is None or verdict.forwards):
                    self._retries.give_back(step)
                if verdict is not None and verdict.forwards and not self.in_flight.has_id(step.key):
                    self._forward(step, verdict)
        for key in [*self._ids, *(call.key for call in due)]:
            self.in_flight.end(key, "no_answer", now_us)
        if len(due) == 1 and not self._messages and due[0].key in self._held.calls:
            self._held.drop(due[0].key, "mcpguard failed to judge it", now_us)
        gone = [call.request.request_id for call in due if call.key not in self._held.calls]
        self._to_client += replies.unjudged(gone)
        self._begin(now_us)


def _cancelled_key(params: object) -> str | None:
    """The key of the request that a cancellation names; None if it names none."""
    request_id = frames.id_text(params.get("requestId")) if isinstance(params, dict) else None
    return None if request_id is None else id_key(request_id)
