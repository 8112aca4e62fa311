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

Before the store is asked, the relay writes the `rows` of what no limit decides, such as refused frames. Before that, and before
the client gets a frame, it tells the store of `endings`. After everything it writes `lines` to stderr. The session does no I/O
and reads no clock. What a verdict depends on and the session does not know, it asks the relay for: see `read_answers`, and
`take_note` of `decision_requests`.

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
- Memory is bounded, whatever the client writes: see `in_flight`, `decision_requests`, `held_calls` and `journal`.
- No method raises anything. An exception is a bug. The relay reports it and calls `unjudged`; then it hands over, alone, each
  held call and each line; and calls `unjudged` for each that leads to an exception again.
"""

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

from mcpguard.errors import PolicyError, Unauthenticated
from mcpguard.identity import client_agents
from mcpguard.identity.caller import Identity
from mcpguard.light_typing import TYPE_CHECKING, Final, NamedTuple
from mcpguard.policy.model import Policy
from mcpguard.session import audit, denial
from mcpguard.session.decision_requests import DecisionRequests, name_in
from mcpguard.session.held_calls import HeldCall, HeldCalls
from mcpguard.session.in_flight import FreeRetries, RequestsInFlight
from mcpguard.session.journal import Journal
from mcpguard.session.verdict import FORWARDED, REFUSED, DecisionRequest, Ending, Verdict
from mcpguard.wire import frames
from mcpguard.wire.frames import INVALID_REQUEST, TOOLS_CALL, Frame, Refusal, id_key

if TYPE_CHECKING:  # loaded with the first answer
    from mcpguard.wire.answers import Line

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


class LogLine(NamedTuple):
    """A line for stderr.

    Attributes:
        text: The line.
        kind: The kind by which lines are rationed; empty for a line that a client cannot cause any number of times.
        is_error: Whether somebody has to act on it. Then it is written even with `--quiet`.
        record: The members of the row that it is about; None if it is about none.
    """

    text: str
    kind: str = ""
    is_error: bool = False
    record: Mapping[str, object] | None = None


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
        requests: Makes the requests, from the identity and the policy in force.
        in_flight: The requests in flight. If it has any `to_settle`, answers have to be read before the client gets them.
        held: The held calls.
        unwritten: What has a row that no decision of the store writes, with its verdict; see `rows`.
        lines: Lines for stderr; see `take_lines`.
        tally: The number of calls by decision and axis.
        read_answers: Calls `server_wrote` with all that the server has written. The session calls it if a request has the id of
            one in flight, or a cancellation names one, which the server may have answered; and if a call claims to be a retry.
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
        self.requests = DecisionRequests(
            identity, policy, journal.session, namespace=namespace, arguments=arguments, args_key=args_key
        )
        self._retries = FreeRetries()
        self.in_flight = RequestsInFlight(self._retries)
        self.unwritten: list[tuple[DecisionRequest, Verdict]] = []
        self.held = HeldCalls(self._retries, self.unwritten)
        self._unsent: deque[str] = deque(maxlen=_MAX_UNSENT)  # the keys of requests that the server did not get
        self._client_waits = True
        self._input_closed = ""  # the reason; empty while it is open
        self._server_exited = False
        self._to_client: list[bytes] = []
        self.lines: list[LogLine] = []
        self.tally: Counter[tuple[str, str]] = Counter()
        self.read_answers: Callable[[], None] = lambda: None
        self._now_us = 0
        self._steps: list[Frame | Refusal | DecisionRequest] = []  # the messages, with calls as requests
        self._due: Sequence[HeldCall] = ()  # the held calls that are decided anew
        self._denied: list[tuple[DecisionRequest, Verdict]] = []  # what is refused, whatever the store says
        self._to_decide: list[DecisionRequest] = []  # by the store
        self._asked: Sequence[DecisionRequest] = ()  # the portion of these that the store was asked for last

    # What the client writes

    def judge(self, messages: Sequence[Frame | Refusal], now_us: int, *, alone: bool = False) -> Sequence[DecisionRequest]:
        """Judge messages from the client, and the held calls that are due.

        Args:
            messages: As `frames.read` returns them; none if only held calls are due, or their clients are to be told.
            now_us: A monotone clock's reading.
            alone: Whether no held calls are judged with the messages, and only the first that is due if there are none.

        Returns:
            The requests that the store has to decide in one transaction, for `decided`; empty if none is left.
        """
        if self._server_exited:
            return ()
        self._now_us, steps = now_us, self._steps
        keys: set[str] = set()  # of the requests among the messages
        held, by_id, late = self.held.calls, self.in_flight.by_id, self.in_flight.late
        for message in messages:
            if isinstance(message, Refusal):
                steps.append(self._refuse(message))
                continue
            request_id, key = message.id, ""
            if request_id is not None:
                key = id_key(request_id)
                if key in keys or key in held or ((key in by_id or key in late) and self._is_unanswered(key)):
                    steps.append(self._refuse(Refusal(INVALID_REQUEST, _USED_ID, request_id, tool=message.tool)))
                    continue
                keys.add(key)
            if message.method == TOOLS_CALL:
                steps.append(self._call(message, key))
            elif not self._cancels_held(message):
                if message.method == "initialize" and isinstance(message.params, dict):
                    self.requests.client_name = name_in(message.params.get("clientInfo"))
                steps.append(message)
        if held and not (alone and messages):
            self._add_due(1 if alone else None)
        if self._denied:
            self.unwritten += self._denied
            self._denied = []
        requests = self._to_decide
        if len(requests) != 1 or requests[0].waited_us is not None:
            return self._ask() if requests else ()
        self._asked, self._to_decide = requests, []
        return requests

    def _cancels_held(self, message: Frame) -> bool:
        """Drop the held call that a message cancels; returns whether there is one. Servers take no request for that."""
        key = _cancelled_key(message.params) if message.method == _CANCELLED and message.id is None else None
        if key is None or key not in self.held.calls:
            if not self._to_decide:  # the calls after it, but none before it, may have the place of the one that it cancels
                self._cancel(key)
            return False
        self.held.drop(key, "cancelled while it waited", self._now_us)
        self._unsent.append(key)
        return True

    def _is_unanswered(self, key: str) -> bool:
        """Whether the server may still answer a request, after all that it has written."""
        self.read_answers()
        return self.in_flight.has_id(key)

    def _refuse(self, refusal: Refusal) -> Refusal:
        self._denied.append((self.requests.of_refusal(refusal), Verdict("invalid")))
        return refusal

    def _call(self, frame: Frame, key: str, noted: str | None = None, rounds: int | None = None) -> DecisionRequest:
        """The request for a call, which the store decides unless the call is denied whatever its limits are.

        Args:
            frame: The call.
            key: The `id_key` of its id.
            noted: The note that a hook left for it, empty if no hook did; None if that is not known yet.
            rounds: The call's number among the free retries of one charge; None if that is not known yet.
        """
        requests, params = self.requests, frame.params
        request = requests.of_call(frame, key, noted)
        if self._input_closed or requests.unauthenticated or not isinstance(requests.policy, Policy):
            self._deny(request)
            return request
        if rounds is None and ("requestState" in params or "inputResponses" in params) and not request.plan.is_closed:
            self.read_answers()  # the server may have asked for it
            rounds = self._retries.redeem(request.call.user, request.call.tool, params)
        if rounds:
            request.continue_as(rounds)
        elif request.noted and (counted := client_agents.counted_by(request.noted)) is not None:
            request.continue_from(counted)
        self._to_decide.append(request)
        return request

    def _deny(self, request: DecisionRequest) -> None:
        """Deny a call, whatever its limits are."""
        unauthenticated, policy = self.requests.unauthenticated, self.requests.policy
        verdict = Verdict("unavailable")
        if self._input_closed:
            request.explain(denial.SERVER_GONE_REASON, self._input_closed)
        elif unauthenticated:
            verdict, hint = Verdict("unauthenticated"), unauthenticated.hint
            request.explain(unauthenticated.message, f"{unauthenticated.message}. {hint[:1].upper()}{hint[1:]}.")
            request.detail["axis"] = "user"
        else:
            assert isinstance(policy, PolicyError)  # noqa: S101 - else the store decides
            why = f"no policy is in force. {policy.message}. Every tool is closed until it is fixed."
            request.explain("policy_invalid", why)
        request.verdict = verdict
        self._denied.append((request, verdict))

    # Verdicts

    def _ask(self) -> Sequence[DecisionRequest]:
        """The next portion of requests. A call that may be held is decided alone: others may have to wait for it."""
        requests, end = self._to_decide, 1
        if requests[0].waited_us is not None:
            self._let_wait(requests[0])
        else:
            size_bytes = len(requests[0].frame.raw)
            while end < min(len(requests), MAX_PORTION) and requests[end].waited_us is None:
                size_bytes += len(requests[end].frame.raw)
                if size_bytes > MAX_PORTION_BYTES:
                    break
                end += 1
        self._asked, self._to_decide = requests[:end], requests[end:]
        return self._asked

    def _let_wait(self, request: DecisionRequest) -> None:
        """Tell the store of a request whether it may be held, and whether an earlier call waits for one of its counters."""
        if request.key in self.held.calls or (self.held.has_room and self._client_waits):
            request.is_behind = self.held.is_behind(request)
        else:
            request.waited_us = None

    def decided(self, verdicts: Sequence[Verdict]) -> Sequence[DecisionRequest]:
        """Take the verdicts on the requests that the store was asked for, in order; returns the next requests, as `judge`."""
        asked, held = self._asked, self.held
        if verdicts[0].decision == "held":  # it was decided alone
            if not held.hold(asked[0], verdicts[0], self._now_us):
                asked[0].waited_us = None  # if there is room by now, it is for the calls before it: `is_behind` stays
                return asked
        else:
            for request, verdict in zip(asked, verdicts, strict=True):
                request.verdict = verdict
                if held.calls:
                    held.decided(request)
                    if verdict.decision == "allowed_unavailable":
                        held.hurry()  # nothing is limited, so nothing has to wait
                if verdict.decision == "allowed":
                    self.tally["allowed", ""] += 1
                else:
                    self._count(request, verdict)
                    if verdict.decision in REFUSED and verdict.has_own_row:
                        self.lines.append(_line_of(audit.row(request, verdict, 0), verdict.audit_id))
                if verdict.warned:
                    self._warn(request, verdict)
        return self._ask() if self._to_decide else ()

    def undecided(self, why: str) -> Sequence[DecisionRequest]:
        """As `decided`, if the store could not decide the requests: they are denied."""
        for request in self._asked:
            request.explain("store_unavailable", f"the store of counters is unavailable ({why}).")
        self.lines.append(LogLine(f"store unavailable: {why}", kind="store unavailable", is_error=True))
        return self.decided([Verdict("unavailable") for _ in self._asked])

    def _warn(self, request: DecisionRequest, verdict: Verdict) -> None:
        """Log a call that reached a share of a limit."""
        for limit in verdict.warnings:
            record = {**audit.members(request.context), **limit, "id": verdict.audit_id, "decision": "warned"}
            self.lines.append(LogLine(audit.line(record), kind="warned", record=record))

    def _count(self, request: DecisionRequest, verdict: Verdict) -> None:
        """Count a call that is not simply allowed, by its axis; if no limit denies it, by the one that its request names."""
        axis = verdict.reported.axis if verdict.reported else str(request.detail.get("axis", ""))
        self.tally[verdict.decision, axis] += 1

    # What comes out

    def rows(self, wall_us: int) -> list[audit.Row]:
        """The rows of what is `unwritten`. Denials of these calls name their rows, so this has to come before `output`."""
        unwritten = self.unwritten.copy()
        self.unwritten.clear()
        for request, verdict in unwritten:
            self._count(request, verdict)
        return self._logged(self.journal.rows([one for one, _ in unwritten], [verdict for _, verdict in unwritten], wall_us))

    def last_rows(self, wall_us: int, *, everything: bool = False) -> list[audit.Row]:
        """As `rows`, with the rows that sum up denials, as far as it is time for them.

        Args:
            wall_us: Wall-clock time.
            everything: Whether the session ends, so that every denial must be in a row now.
        """
        return self.rows(wall_us) + self._logged(self.journal.flush(wall_us, all_of_them=everything))

    def _logged(self, rows: list[audit.Row]) -> list[audit.Row]:
        self.lines += [_line_of(row) for row in rows if row.decision != "policy"]
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
            elif step.verdict.decision in FORWARDED:
                self.in_flight.add(step.key, step.request_id, self._now_us, step)
                frame = step.frame.raw
            else:
                frame = self._answer_denied(step)
            if frame:
                to_server += (frame, b"\n")
        self._steps, self._due = [], ()
        to_client, self._to_client = self._to_client, []
        return b"".join(to_server), b"".join(to_client)

    def take_lines(self) -> list[LogLine]:
        """Remove and return the lines for stderr."""
        lines, self.lines = self.lines, []
        return lines

    def take_endings(self) -> list[Ending]:
        """Remove and return the calls that have ended and that the store has to be told of at once."""
        endings, self.in_flight.endings = self.in_flight.endings, []
        for ending in endings:
            self.held.freed(ending.plan)
        return endings

    def take_outcomes(self) -> list[audit.Outcome]:
        """Remove and return some outcomes to be recorded."""
        return self.in_flight.take_outcomes(max(MAX_OUTCOMES, len(self.in_flight.outcomes) // 16))

    def _answer_denied(self, request: DecisionRequest) -> bytes:
        """Answer a call that was denied, unless it is held; the server gets nothing."""
        if request.verdict.decision != "held":
            self._unsent.append(request.key)
            self.held.decided(request)
            self._retries.give_back(request)
            if self._client_waits or request.detail.get("reason") != denial.SERVER_GONE_REASON:
                self._to_client.append(denial.denied(request, request.verdict, self._form))
        return b""

    def _answer_refusal(self, refusal: Refusal) -> bytes:
        if refusal.message is not _USED_ID:  # else the server may have got the other request
            self._unsent.append(id_key(refusal.id))
        if refusal.answered:
            self._to_client.append(denial.refused(refusal))
        return b""

    def _pass_on(self, frame: Frame) -> bytes:
        """A frame that is not a call, if the server gets it; else nothing."""
        if self._input_closed:
            self._answer_gone([] if frame.id is None else [frame.id], self._input_closed)
            return b""
        if frame.id is not None:  # servers do not take a request for a cancellation
            self.in_flight.add(id_key(frame.id), frame.id, self._now_us)
        elif self._cancels_held(frame):  # one that was read together with it
            return b""
        elif frame.method == _CANCELLED and (key := _cancelled_key(frame.params)) is not None:
            may_be_answered = self._cancel(key)
            if key in self._unsent and not may_be_answered:
                return b""
        return frame.raw

    def _cancel(self, key: str | None) -> bool:
        """Let the request end that the client cancels, if it is in flight. Returns whether the server may still answer it."""
        if key is None or not self.in_flight.has_id(key):
            return False
        self.read_answers()  # it may be answered: a client may cancel what it has the answer to
        self.in_flight.cancel(key, self._now_us)
        return self.in_flight.has_id(key)

    def _add_due(self, most: int | None) -> None:
        """Put the held calls that are due, or the first of them, before everything else, so that no later call passes them."""
        now_us, later = self._now_us, self._to_decide
        due = self._due = self.held.due(now_us)[:most]
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
        self._to_client += [told for call in self.held if call not in due and (told := call.progress(now_us))]

    # The policy and the caller

    def start(self) -> None:
        """Note that calls can be judged: the policy in force has a row."""
        self._write_policy_row(audit.POLICY_AT_START)

    def change_policy(self, found: Policy | PolicyError) -> None:
        """Note that the policy file has changed: `found` is the new policy, or the fault of the file."""
        before = self.requests.policy
        self.requests.take_up(found)
        self.held.hurry()
        if isinstance(found, PolicyError):
            reason = f"not applied: {found.message}"
            self.lines.append(LogLine(f"policy {reason}", is_error=True))
            self._write_policy_row(reason)
            return
        is_new_mode = isinstance(before, PolicyError) or before.observe != found.observe
        self.lines.append(LogLine(f"policy applied: {found.mode_text}" if is_new_mode else "policy applied"))
        self._write_policy_row("applied")

    def _write_policy_row(self, reason: str) -> None:
        self.unwritten.append((self.requests.of_policy(reason), Verdict("policy")))

    def change_identity(self, found: Identity | Unauthenticated) -> None:
        """Note that the token has changed: `found` is the new identity, or the reason why no user is verified."""
        self.requests.identify(found)
        self.held.hurry()

    # The server, and the end

    @property
    def has_outcomes(self) -> bool:
        """Whether there are outcomes to be recorded, or rows to be written."""
        return bool(self.in_flight.outcomes or self.unwritten)

    def server_wrote(self, lines: "Sequence[Line]", now_us: int) -> None:
        """Read outcomes off what the server has written, and grant free retries.

        Args:
            lines: The lines that may be answers.
            now_us: A monotone clock's reading, taken when mcpguard read them.
        """
        self.in_flight.read_answers(lines, now_us)

    def undelivered(self, data: bytes, now_us: int) -> None:
        """Note that the server closed its input before it took these frames.

        Args:
            data: Whole lines. The server may have taken a part of the first.
            now_us: A monotone clock's reading.
        """
        sent = frames.read([line for line in data.split(b"\n") if line])
        ids = [one.id for one in sent if isinstance(one, Frame) and one.id is not None]
        self._answer_gone([one for one in ids if self.in_flight.end(id_key(one), "no_answer", now_us)], _INPUT_CLOSED)

    def close_input(self, why: str) -> None:
        """Note that the server receives nothing more. `why` is a clause for the client; the first one counts."""
        self._input_closed = self._input_closed or why
        self.held.hurry()  # they are answered with this reason, or before that with the server's exit status

    def client_left(self, now_us: int) -> None:
        """Note that the client has closed its side, or that mcpguard was told to end."""
        self._client_waits = False
        self.held.drop_all("the client left while it waited", now_us)

    def server_exited(self, how: str, now_us: int) -> bytes:
        """Note that the server is gone, and that all that it wrote has been passed on; returns the last frames for the client.

        Args:
            how: What became of it, as a clause: `server exited with status 7`.
            now_us: A monotone clock's reading.
        """
        self._server_exited = True
        held = self.held.drop_all("the server ended while it waited", now_us)
        self._answer_gone([*self.in_flight.end_all("no_answer", now_us), *held], how)
        return self.output()[1]

    def _answer_gone(self, ids: Sequence[str], why: str) -> None:
        """Answer requests that the server cannot answer, if the client waits for answers."""
        if self._client_waits:
            self._to_client += [denial.error(one, denial.SERVER_GONE, why) for one in ids]

    # Bugs

    def unjudged(self, lines: Sequence[bytes | Refusal] | None, now_us: int) -> None:
        """Note that a bug has kept lines from being judged, and the held calls that were due.

        Nothing of them is forwarded. Calls that were charged stay charged.

        Args:
            lines: As `LineSplitter` returns them. Their requests are answered with an error, and so are the held calls. None if
                all are judged again, each alone.
            now_us: A monotone clock's reading.
        """
        self._to_client = []
        steps, self._steps, self._denied, self._to_decide = self._steps, [], [], []
        waiting = [call.key for call in self._due if call.key in self.held.calls]
        for step in steps:
            if isinstance(step, DecisionRequest) and step.key not in waiting:
                self.held.decided(step)  # if it began to wait just now
                if step.verdict.decision not in REFUSED:
                    self._retries.give_back(step)
                if step.verdict.forwards and not self.in_flight.has_id(step.key):
                    self.in_flight.add(step.key, step.request_id, self._now_us, step)
            request_id = step.request_id if isinstance(step, DecisionRequest) else step.id
            if isinstance(step, DecisionRequest | Frame) and request_id:
                self.in_flight.end(id_key(request_id), "no_answer", now_us)
        for key in waiting if lines is not None else ():
            self.held.drop(key, "mcpguard failed to judge it", now_us)
        gone = [call for call in self._due if call.key not in self.held.calls]
        self._to_client += [denial.unjudged(call.request.request_id) for call in gone]
        self._due = ()
        for line in lines or ():
            messages: Sequence[Frame | Refusal] = (Frame(b"", None, "null", None),)  # if the bug is in the parser
            with contextlib.suppress(Exception):
                messages = frames.read([line])
            for message in messages:
                self._answer_unjudged(message)

    def _answer_unjudged(self, message: Frame | Refusal) -> None:
        verdict = Verdict("invalid")
        if isinstance(message, Refusal):
            self._answer_refusal(message)
        else:
            if message.id is not None:
                self._unsent.append(id_key(message.id))
                self._to_client.append(denial.unjudged(message.id))
            verdict, message = Verdict("unavailable"), Refusal(0, "internal_error", message.id or "null", tool=message.tool)
        with contextlib.suppress(Exception):  # the bug may be in making requests
            self.unwritten.append((self.requests.of_refusal(message), verdict))


def _line_of(row: audit.Row, audit_id: str = "") -> LogLine:
    """The line about a denial or a refusal. A client cannot make up kinds, because a kind contains no name.

    Args:
        row: Its row.
        audit_id: The row's id, if the store has written the row, so that this one has no number; else empty.
    """
    record = audit.record(row) | ({"id": audit_id} if audit_id else {})
    return LogLine(audit.line(record), kind=f"{row.decision} {record.get('axis', '')}", record=record)


def _cancelled_key(params: object) -> str | None:
    """The key of the request that a cancellation names; None if it names none."""
    request_id = frames.id_text(params.get("requestId")) if isinstance(params, dict) else None
    return None if request_id is None else id_key(request_id)
