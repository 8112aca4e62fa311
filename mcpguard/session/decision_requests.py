"""Makes the requests for the store: to decide a call, or to write the row of a refused frame or of a policy."""

import json
import re
from collections.abc import Callable
from typing import Any, Final

from mcpguard.identity.client_agents import codex_tier
from mcpguard.policy.model import Call, Policy
from mcpguard.session.callers import Caller, Callers, name_in
from mcpguard.session.verdict import NO_LIMITS, DecisionRequest, Verdict
from mcpguard.text.digest import cut
from mcpguard.wire import meta
from mcpguard.wire.arguments import NONE, args_hash
from mcpguard.wire.frames import Frame, Refusal
from mcpguard.wire.heavy import Unbuilt

_REMEMBERED_BYTES: Final = 4096
"""The arguments of a longer call are not remembered."""

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-((?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class DecisionRequests:
    """Makes decision requests.

    Args:
        callers: The identity and the policy in force.
        arguments: What the audit log keeps of a call's arguments: `hash`, `none` or `full`.
        args_key: Returns the key of the hash; empty for no hash. It is called for each call.
    """

    def __init__(self, callers: Callers, arguments: str, args_key: Callable[[], bytes]) -> None:
        self._callers = callers
        self._arguments = arguments
        self._args_key = args_key
        self._has_own_key = False  # whether calls were counted by a key of this session, while the store's was not known
        # The last arguments, the key, and the hash: the next arguments may be the same object
        self._hashed: tuple[object, bytes, bytes] | None = None

    def of_call(self, frame: Frame, params: dict[str, Any], noted: str | None) -> DecisionRequest:
        """The request for a call, to be decided by its plan.

        Args:
            frame: The call.
            params: Its `params`.
            noted: The agent that a hook noted for it; None if no hook did.
        """
        client_name, meta_agent, tier, trace = self._callers.client_name, None, None, None
        if "_meta" in params and not meta.OF_CALLER.isdisjoint(call_meta := meta_of(params)):
            client_name = name_in(call_meta.get(meta.CLIENT_INFO)) or client_name
            agent = call_meta.get(meta.AGENT)
            meta_agent = agent if isinstance(agent, str) else None
            tier = codex_tier(call_meta) if meta.CODEX_TURN in call_meta else None
            trace = call_meta.get(meta.TRACEPARENT)
        names = (client_name, meta_agent, noted, tier, params["name"])
        caller = self._callers.known.get(names) or self._callers.new(*names)
        call, plan, context, _ = caller
        request = DecisionRequest(call, plan, context, frame, str(frame.id))
        request.client_name = client_name
        if noted is not None:
            request.noted = noted
        if self._arguments == "hash":
            if key := self._args_key():
                arguments = params.get("arguments", NONE)
                hashed = self._hashed
                if hashed is None or arguments is not hashed[0] or key is not hashed[1]:
                    hashed = arguments, key, args_hash(arguments, key)
                    self._hashed = hashed if len(frame.raw) <= _REMEMBERED_BYTES else None
                request.args_hash = hashed[2]
        elif self._arguments == "full":
            request.detail = {"arguments": _in_full(params.get("arguments"))}
        if not plan.is_plain:
            self._complete(request, caller, params)
        if trace and isinstance(trace, str) and (match := _TRACEPARENT.fullmatch(trace)):
            request.trace_id = match[1]
        return request

    def _complete(self, request: DecisionRequest, caller: Caller, params: dict[str, object]) -> None:
        """Add what only the requests of some plans have."""
        plan = caller.plan
        if plan.is_split:
            key, arguments, earlier = self._args_key(), params.get("arguments", NONE), ""
            if not key or self._has_own_key:
                earlier = args_hash(
                    arguments, self._callers.session.encode()
                ).hex()  # whoever reads the hash can read either key
                self._has_own_key = True
            request.plan = caller.plan_of(args_hash(arguments, key).hex(), earlier) if key else caller.plan_of(earlier)
        if plan.cost is not None:
            request.detail = {**request.detail, "cost": plan.cost}
        if plan.waits:
            request.waited_us = 0

    def of_refusal(self, refusal: Refusal) -> DecisionRequest:
        """The row of a frame that was refused."""
        identity = self._callers.identity
        tool = {} if refusal.tool is None else {"tool": cut(refusal.tool)}
        return DecisionRequest(
            Call(identity.user, "", identity.server, refusal.tool or ""),
            NO_LIMITS,
            self._callers.context(tool),
            request_id="" if refusal.id == "null" else cut(refusal.id),
            detail={"reason": refusal.message},
        )

    def of_unjudged(self, message: Frame | Refusal) -> tuple[DecisionRequest, Verdict]:
        """The row, and its verdict, of a message that a bug kept from being judged."""
        if isinstance(message, Refusal):
            return self.of_refusal(message), Verdict("invalid")
        refusal = Refusal(0, "internal_error", message.id or "null", tool=message.tool)
        return self.of_refusal(refusal), Verdict("unavailable")

    def of_policy(self, reason: str) -> DecisionRequest:
        """The row that names the policy in force, and why the row is written."""
        policy, server = self._callers.policy, self._callers.identity.server
        detail: dict[str, object] = {"policy": policy.digest} if isinstance(policy, Policy) else {}
        detail["reason"] = reason
        context = self._callers.context({}, with_user=False)
        return DecisionRequest(Call("", "", server, ""), NO_LIMITS, context, detail=detail)


def meta_of(params: object) -> dict[str, object]:
    """The `_meta` in a call's `params`; empty if it is not an object."""
    found = params.get("_meta") if isinstance(params, dict) else None
    return found if isinstance(found, dict) else {}


def _in_full(arguments: object) -> object:
    """Arguments as the audit log keeps them: as text if they were not built, or have a number beyond the range of doubles."""
    if isinstance(arguments, Unbuilt):
        return arguments.text
    try:
        json.dumps(arguments, allow_nan=False)
    except ValueError:
        return json.dumps(arguments)
    return arguments
