"""What the client is told in the server's place: denials, refusals, and errors because the server cannot answer."""

from collections.abc import Iterable, Iterator
from typing import Final

from mcpguard.session import audit, denial
from mcpguard.session.output import Log
from mcpguard.session.verdict import DecisionRequest, Verdict
from mcpguard.wire import frames
from mcpguard.wire.frames import Frame, Refusal

SERVER_GONE: Final = "server_gone"
"""The audit's reason for a call that came when the server took nothing more."""

_UNJUDGED: Final = "mcpguard failed to judge this request; it was not forwarded"


def denied(request: DecisionRequest, verdict: Verdict, form: str) -> bytes:
    """The denial of a call.

    Args:
        request: The call's request.
        verdict: Its verdict.
        form: The configured form of a denial.
    """
    reason = str(request.detail.get("reason", ""))
    if reason == SERVER_GONE:
        return denial.error(request.request_id, denial.SERVER_GONE, request.why)
    equal = verdict.limit is not None and verdict.plan.counts_arguments(verdict.limit)
    code, message, data = denial.describe(request.call, verdict, reason, request.why, equal=equal)
    if request.frame.params.get("task") is None and denial.form(form, request.client_name, request.call.server) == "result":
        return denial.result(request.request_id, message, data)
    return denial.error(request.request_id, code, message, data)


def refused(refusal: Refusal) -> bytes:
    """The answer to a line that must not reach the server."""
    return denial.error(refusal.id, refusal.code, f"Refused: {refusal.message}")


def gone(request_ids: Iterable[str], why: str) -> list[bytes]:
    """The answers to requests that the server cannot answer, because it is gone or takes nothing more."""
    return [denial.error(request_id, denial.SERVER_GONE, why) for request_id in request_ids]


def unjudged(request_ids: Iterable[str]) -> list[bytes]:
    """The answers to requests that a bug kept from being judged."""
    data: dict[str, object] = {"reason": "internal_error"}
    return [denial.error(request_id, denial.UNAVAILABLE, _UNJUDGED, data) for request_id in request_ids]


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
