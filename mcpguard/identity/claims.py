"""Checks a token's claims, and takes the user, the agent, roles and scopes from them.

`mcpguard.identity.token` has verified the signature before.
"""

from collections.abc import Iterator, Mapping

from mcpguard.errors import Unauthenticated
from mcpguard.identity.caller import Agent, Identity, escape_part
from mcpguard.light_typing import Any, Final, NamedTuple
from mcpguard.text.times import rfc3339

LEEWAY_S: Final = 30
"""How far the clocks of the provider and of this machine may differ."""

_LAST_TIME_S: Final = 253_402_300_799
"""The end of the year 9999. A larger number is not a time in seconds."""

_SECONDS: Final = "get a token with a number of seconds since 1970 in this claim"

Claims = Mapping[str, Any]


class Expected(NamedTuple):
    """The claims that a token must have, and the claims that are read.

    Attributes:
        issuer: The required `iss`.
        audience: `aud` must contain one of these.
        user_claim: The claim with the user's name.
        roles_claim: The claim with the user's roles.
        agent_claim: The claim with the agent; None if there is none.
    """

    issuer: str
    audience: tuple[str, ...]
    user_claim: str = "sub"
    roles_claim: str = "roles"
    agent_claim: str | None = None


def problems(claims: Claims, expected: Expected, *, where: str, renew: str, now_s: float) -> Iterator[Unauthenticated]:
    """Every reason to reject a token with these claims now; none if it is accepted.

    Args:
        claims: The token's claims.
        expected: The required claims.
        where: How a message names the token: `the token in …`.
        renew: The hint for a token that has expired.
        now_s: Wall-clock time, in seconds.
    """
    if claims.get("iss") != expected.issuer:
        yield Unauthenticated(
            f"{where} is not from the issuer {expected.issuer}", "get a token from this issuer, or correct identity.jwt.issuer"
        )
    if not set(expected.audience) & set(_texts(claims.get("aud"))):
        wanted = " or ".join(expected.audience)
        hint = f"ask the provider for a token with {wanted} in aud, or correct identity.jwt.audience"
        yield Unauthenticated(f"{where} is not for the audience {wanted}", hint)
    expires_s = time_of(claims, "exp")
    if claims.get("exp") is None:
        yield Unauthenticated(f"{where} does not say when it expires", "get a token with a time in exp")
    elif expires_s is None:
        yield Unauthenticated(f"{where} has no time in exp", _SECONDS)
    elif now_s >= expires_s + LEEWAY_S:
        yield Unauthenticated(f"{where} expired at {utc(expires_s)}", renew)
    for claim, what in (("nbf", "is not valid before"), ("iat", "was issued in the future:")):
        begins_s = time_of(claims, claim)
        if claims.get(claim) is not None and begins_s is None:
            yield Unauthenticated(f"{where} has no time in {claim}", _SECONDS)
        elif begins_s is not None and begins_s > now_s + LEEWAY_S:
            hint = "wait until that time; if it should be valid now, check the clock of this machine"
            yield Unauthenticated(f"{where} {what} {utc(begins_s)}", hint)
    if not _is_name(claims.get("sub")):
        yield Unauthenticated(f"{where} names no subject", "get a token with text in sub")
    if expected.user_claim == "email" and not _is_verified(claims):
        yield Unauthenticated(
            f"{where} has an email that is not verified", "verify the address at the provider, or use another user_claim"
        )
    elif expected.user_claim != "sub" and not _is_name(claim_at(claims, expected.user_claim)):
        hint = "let the provider add the claim, or correct identity.jwt.user_claim"
        yield Unauthenticated(f"{where} has no text in its claim {expected.user_claim}", hint)


def identity(claims: Claims, expected: Expected, configured: Identity) -> Identity:
    """The caller that accepted claims name.

    Args:
        claims: The token's claims, for which `problems` finds none.
        expected: The claims that are read.
        configured: The server, and the parts of the agent that the token does not name.
    """
    agent = _agent(claim_at(claims, expected.agent_claim) if expected.agent_claim else None)
    email = claims.get("email")
    return configured._replace(
        user=claim_at(claims, expected.user_claim),
        user_source="jwt",
        roles=_texts(claim_at(claims, expected.roles_claim)),
        scopes=_scopes(claims),
        email=email if _is_name(email) and _is_verified(claims) else None,
        act=_actors(claims.get("act")),
        agent_parts=agent.or_else(configured.agent_parts),
        agent_source="jwt" if any(agent) else configured.agent_source,
    )


def claim_at(claims: Claims, path: str) -> Any:
    """The claim with this name, else the claim at this dotted path; None if there is neither.

    >>> claim_at({"realm_access": {"roles": ["dev"]}}, "realm_access.roles"), claim_at({"https://a.b/c": 1}, "https://a.b/c")
    (['dev'], 1)
    """
    if path in claims:
        return claims[path]
    found: Any = claims
    for step in path.split("."):
        found = found.get(step) if isinstance(found, dict) else None
    return found


def time_of(claims: Claims, name: str) -> float | None:
    """A claim as seconds since 1970; None if it is not a number from year 1970 to 9999."""
    value = claims.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LAST_TIME_S:
        return value
    return None


def utc(seconds: float) -> str:
    """A time in UTC, to the second.

    >>> utc(1767225600)
    '2026-01-01T00:00:00Z'
    """
    return rfc3339(int(seconds) * 1_000_000).replace(".000000", "")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_verified(claims: Claims) -> bool:
    """Whether the e-mail address is trusted. It is not if `email_verified` is false; some providers send that as text."""
    value = claims.get("email_verified")
    return (value.lower() if isinstance(value, str) else value) not in (False, "false")


def _texts(value: object) -> tuple[str, ...]:
    """The non-empty texts in a claim that is a text or a list."""
    values = value if isinstance(value, list) else [value]
    return tuple(text for text in values if isinstance(text, str) and text)


def _scopes(claims: Claims) -> tuple[str, ...]:
    """The words in `scope` (RFC 8693, section 4.2) and `scp`. Each of the two is a text or a list."""
    words = [word for name in ("scope", "scp") for text in _texts(claims.get(name)) for word in text.split()]
    return tuple(dict.fromkeys(words))


def _agent(claim: object) -> Agent:
    """The parts of the agent that a claim names. A text without three parts is the third part."""
    if not isinstance(claim, str) or not _is_name(claim):
        return Agent()
    return Agent.split(claim) or Agent(name=escape_part(claim))


def _actors(act: object) -> tuple[str, ...]:
    """The chain of delegation, first delegator first, the caller last: the outermost `act` (RFC 8693, section 4.1)."""
    actors = []
    while isinstance(act, dict):
        name = next((act[key] for key in ("sub", "client_id", "iss") if _is_name(act.get(key))), "unknown")
        actors.append(name)
        act = act.get("act")
    return tuple(reversed(actors))
