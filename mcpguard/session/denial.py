"""What mcpguard answers in the server's place: denials, as a JSON-RPC error or a tool result; refusals; and other errors.

The message of a denial is complete without the data.
"""

from collections.abc import Collection

from mcpguard.light_typing import Final
from mcpguard.limiter.plan import ARGUMENTS, SESSION, Reported
from mcpguard.policy.model import Call
from mcpguard.session.verdict import DecisionRequest, Verdict
from mcpguard.text.digest import cut
from mcpguard.text.printing import compact, plural, printable
from mcpguard.text.times import ms_up
from mcpguard.wire.frames import Refusal

RATE_LIMITED: Final = 429
DENIED: Final = 403
UNAUTHENTICATED: Final = 401
UNAVAILABLE: Final = 503
"""HTTP's codes for the same reasons. JSON-RPC demands an integer, and MCP reserves -32768…-32000."""

SERVER_GONE: Final = -32000
"""`Connection closed` in both SDKs."""

SERVER_GONE_REASON: Final = "server_gone"
"""The audit's reason for a call that came when the server took nothing more."""

RESULT_CLIENTS: Final = frozenset({"codex-mcp-client", "fastmcp", "mcp"})
RESULT_CLIENT_BEGINNINGS: Final = ("qwen-cli-mcp-client-", "stdio: ")
"""Names, and beginnings of names, of clients that receive a tool result if the form is `auto`. So do clients that call
themselves as the server. All others receive the error.

`mcp` (the Python SDK), `fastmcp` (FastMCP) and `stdio: COMMAND` (the OpenAI Agents SDK for TypeScript) are the names that a
library uses for a program that gives no name. Agent frameworks are built on these libraries: in some an error ends the run, in
others it reaches the model without its reason, and others retry the call. Qwen Code 0.15 retries, too. The text of a result
reaches the model in all of them except one, which shows the model neither form.

Programs with the OpenAI Agents SDK for TypeScript or with Mastra may name their servers. The client then gives the
server's name as its own. Codex's model gets the error's data as well, and a stack trace if the user has switched that on.

Source: docs/clients.md, for which each client was sent both forms.
"""


def denied(request: DecisionRequest, verdict: Verdict, denials: str) -> bytes:
    """The denial of a call.

    Args:
        request: The call's request.
        verdict: Its verdict.
        denials: The configured form of a denial.
    """
    if request.detail.get("reason") == SERVER_GONE_REASON:
        return error(request.request_id, SERVER_GONE, request.why)
    code, message, data = describe(request, verdict)
    if request.frame.params.get("task") is None and form(denials, request.client_name, request.call.server) == "result":
        return result(request.request_id, message, data)
    return error(request.request_id, code, message, data)


def refused(refusal: Refusal) -> bytes:
    """The answer to a line that must not reach the server."""
    return error(refusal.id, refusal.code, f"Refused: {refusal.message}")


def unjudged(request_id: str) -> bytes:
    """The answer to a request that a bug kept from being judged."""
    message = "mcpguard failed to judge this request; it was not forwarded"
    return error(request_id, UNAVAILABLE, message, {"reason": "internal_error"})


def form(denials: str, client_name: str | None, server: str) -> str:
    """The form of a denial: `error` or `result`.

    A client without a name receives the error. The SDKs always send a name, so such a client was written by hand. It may ignore
    `isError`, and would take the result for an answer.

    The name counts even without `trust_client_info`, because a false name changes only the form of the client's own denials.

    Args:
        denials: The configured form: `error`, `result`, or `auto`, which depends on the client's name.
        client_name: The client's name; None if it gave none.
        server: The server's name.
    """
    if denials != "auto":
        return denials
    name = client_name or ""
    is_listed = name in RESULT_CLIENTS or name.startswith(RESULT_CLIENT_BEGINNINGS)
    return "result" if is_listed or (name and name == server) else "error"


def error(request_id: str, code: int, message: str, data: dict[str, object] | None = None) -> bytes:
    """A JSON-RPC error response as one line.

    Args:
        request_id: The id as JSON text.
        code: The error's code.
        message: What happened.
        data: The same in a form for programs.
    """
    body: dict[str, object] = {"code": code, "message": message}
    if data is not None:
        body["data"] = data
    return f'{{"jsonrpc":"2.0","id":{request_id},"error":{compact(body)}}}\n'.encode()


def result(request_id: str, message: str, data: dict[str, object]) -> bytes:
    """A tool result with `isError` as one line.

    Clients of 2026-07-28 reject a result without `resultType`; older clients ignore it.
    """
    body = {
        "content": [{"type": "text", "text": message}],
        "isError": True,
        "resultType": "complete",
        "_meta": {"mcpguard/denial": data},
    }
    return f'{{"jsonrpc":"2.0","id":{request_id},"result":{compact(body)}}}\n'.encode()


def describe(request: DecisionRequest, verdict: Verdict) -> tuple[int, str, dict[str, object]]:
    """The code, the message and the data of a denial.

    Args:
        request: The call's request.
        verdict: A verdict that does not forward the call.
    """
    call, reported = request.call, verdict.reported
    tool = printable(cut(call.tool))
    names = {"tool": cut(call.tool), "user": cut(call.user), "agent": cut(call.agent)}
    audit = {"audit_id": verdict.audit_id} if verdict.audit_id else {}
    if reported and verdict.decision in {"rate_limited", "denied"}:
        code, message, members = _refusal(call, tool, reported, verdict)
        more = {"rule": reported.rule, **audit, "exceeded": verdict.without_room}
        return code, message, {"reason": verdict.reason, "axis": reported.axis, **members, **names, **more}
    message = f"Tool {tool} was not called: {request.why}"
    if verdict.decision == "unauthenticated":
        del names["user"]
        return UNAUTHENTICATED, message, {"reason": "unauthenticated", "axis": "user", **names, **audit}
    return UNAVAILABLE, message, {"reason": str(request.detail.get("reason", "")), **names, **audit}


def _refusal(call: Call, tool: str, reported: Reported, verdict: Verdict) -> tuple[int, str, dict[str, object]]:
    """The code and the message of a denial by a limit, and the members of its data that depend on the reason."""
    at, reason = verdict.limit, verdict.reason
    by = [word for word in (ARGUMENTS, SESSION) if at is not None and verdict.plan.counts_by(at, word)]
    whose = _whose(call, reported, by)
    n, window = reported.limit or 0, reported.window
    data: dict[str, object] = {"limit": n} if window is None else {"limit": n, "window": window}
    if verdict.cost is not None:
        data["cost"] = verdict.cost
    if verdict.retry_after_us is not None:
        wait_ms = ms_up(verdict.retry_after_us)
        wait_s = -(-wait_ms // 1000)
        data |= {"retry_after_seconds": wait_s, "retry_after_ms": wait_ms}
        if reason == "failing":
            what = f"Tool {tool} keeps failing for {whose}: {plural(n, 'error')} per {window}."
        else:
            limit = plural(n, "call" if verdict.cost is None else "unit") + (" with these arguments" if ARGUMENTS in by else "")
            what = f"Tool {tool} rate limit exceeded for {whose}: {limit} per {window}."
        if verdict.cost is not None:
            what += f" This call costs {plural(verdict.cost, 'unit')}."
        new_session = "a new session, or in " if window == SESSION else ""
        return RATE_LIMITED, f"{what} Retry in {new_session}{plural(wait_s, 'second')}.", data
    if reason == "concurrent":
        message = (
            f"Tool {tool} has too many calls in flight for {whose}: at most {n} at once. Retry when one of them has ended."
        )
        return RATE_LIMITED, message, data | {"in_flight": verdict.in_flight}
    if reason == "too_costly":
        message = (
            f"This call of tool {tool} costs {plural(verdict.cost or 0, 'unit')}, more than the whole limit for {whose}: "
            f"{plural(n, 'unit')} per {window}. Waiting does not help."
        )
        return RATE_LIMITED, message, data
    return DENIED, f"Tool {tool} is denied by policy for {whose}. Waiting does not help.", {}


def _whose(call: Call, reported: Reported, by: Collection[str]) -> str:
    axis, in_session = reported.axis, SESSION in by
    if axis not in {"user", "agent"}:
        return "this session" if in_session else "all users together"
    name = f"{axis} {printable(cut(call.user if axis == 'user' else call.agent))}"
    if axis == "user" and not call.user:
        name = "a user without a name"
    return f"{name} in this session" if in_session and reported.window != SESSION else name
