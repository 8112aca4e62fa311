"""What the client is told in the server's place: denials, refusals, and errors because the server cannot answer."""

from collections.abc import Iterable, Iterator
from typing import Final

from mcpguard.session import audit, denial
from mcpguard.session.commands import Log, ToClient
from mcpguard.session.verdict import DecisionRequest, Verdict
from mcpguard.wire import frames
from mcpguard.wire.frames import Frame, Refusal

SERVER_GONE: Final = "server_gone"
"""The audit's reason for a call that came when the server took nothing more."""

_ID: Final = b'{"jsonrpc":"2.0","id":'
_UNJUDGED: Final = "mcpguard failed to judge this request; it was not forwarded"


class Denials:
    """Makes the denials of calls. Those of one run differ only in their ids, so the rest is made once.

    Args:
        form: The configured form of a denial.
    """

    def __init__(self, form: str) -> None:
        self._form = form
        self._last = Verdict("denied")  # the verdict that `_rest` is of
        self._rest = b""  # what follows the id

    def of(self, request_id: str, request: DecisionRequest, verdict: Verdict, *, waits: bool) -> ToClient | None:
        """The denial of a call. None if the server has gone and the client has left.

        Args:
            request_id: The id of the answer as JSON text.
            request: The call's request.
            verdict: Its verdict.
            waits: Whether the client waits for answers in the server's place.
        """
        if request.detail.get("reason") == SERVER_GONE:
            return ToClient(denial.error(request_id, denial.SERVER_GONE, request.why)) if waits else None
        if _is_task(request):
            return ToClient(_denial(request_id, request, verdict, "error"))
        last = self._last
        if verdict.exceeded and verdict.exceeded is last.exceeded and verdict.audit_id == last.audit_id:
            return ToClient(_ID + request_id.encode() + self._rest)
        frame = _denial(request_id, request, verdict, denial.form(self._form, request.client_name, request.call.server))
        self._last, self._rest = verdict, frame[len(_ID) + len(request_id) :]
        return ToClient(frame)


def _denial(request_id: str, request: DecisionRequest, verdict: Verdict, form: str) -> bytes:
    equal = verdict.reported in request.plan.reported and request.plan.counts_arguments(verdict.reported)
    reason = str(request.detail.get("reason", ""))
    code, message, data = denial.describe(request.call, verdict, reason, request.why, equal=equal)
    return denial.result(request_id, message, data) if form == "result" else denial.error(request_id, code, message, data)


def _is_task(request: DecisionRequest) -> bool:
    params = request.frame.params if request.frame else None
    return isinstance(params, dict) and params.get("task") is not None


def refused(refusal: Refusal) -> ToClient:
    """The answer to a line that must not reach the server."""
    return ToClient(denial.error(refusal.id, refusal.code, f"Refused: {refusal.message}"))


def gone(request_ids: Iterable[str], why: str) -> list[ToClient]:
    """The answers to requests that the server cannot answer, because it is gone or takes nothing more."""
    return [ToClient(denial.error(request_id, denial.SERVER_GONE, why)) for request_id in request_ids]


def unjudged(request_ids: Iterable[str]) -> list[ToClient]:
    """The answers to requests that a bug kept from being judged."""
    data: dict[str, object] = {"reason": "internal_error"}
    return [ToClient(denial.error(request_id, denial.UNAVAILABLE, _UNJUDGED, data)) for request_id in request_ids]


def requests_in(data: bytes) -> Iterator[str]:
    """The ids of the requests in frames that were to be forwarded."""
    for line in data.split(b"\n"):
        for message in frames.parse(line) if line else ():
            if isinstance(message, Frame) and message.id is not None:
                yield message.id


def line_of(row: audit.Row) -> Log:
    """The line about a denial or a refusal. A client cannot make up kinds, because a kind contains no name."""
    record = audit.record(row)
    return Log(audit.line(record), kind=f"{row.decision} {record.get('axis', '')}")
