"""What the claims of a token say of who is calling, and what is wrong with them.

Nothing here looks at a signature: `mcpguard.auth.token` does, and trusts no claim before.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from mcpguard.core.agent import Agent, escape_part
from mcpguard.core.identity import Identity
from mcpguard.core.times import rfc3339
from mcpguard.errors import Unauthenticated

LEEWAY_S: Final = 30
"""By how much the clocks of the provider and of this machine may differ."""

_LAST_TIME_S: Final = 253_402_300_799
"""The end of the year 9999. Beyond it a number counts milliseconds, or nothing."""

_SECONDS: Final = "a number of seconds since 1970 belongs there"

Claims = Mapping[str, Any]


class Expected(NamedTuple):
    """What a token must say, and where it names its bearer.

    Attributes:
        issuer: The `iss` that it must have.
        audience: One of these must be in its `aud`.
        user_claim: Which claim is the user's name.
        roles_claim: Which claim has the user's roles.
        agent_claim: Which claim names the agent, if one does.
    """

    issuer: str
    audience: tuple[str, ...]
    user_claim: str = "sub"
    roles_claim: str = "roles"
    agent_claim: str | None = None


def problems(
    claims: Claims, expected: Expected, *, where: str, renew: str, now_s: float, leeway_s: int = LEEWAY_S
) -> Iterator[Unauthenticated]:
    """Every reason why nobody may call with these claims now; none if somebody may.

    Args:
        claims: The token's.
        expected: What they must be.
        where: How a message names the token: `the token in …`.
        renew: What to do about one that has expired.
        now_s: Wall-clock time.
        leeway_s: By how much clocks may differ.
    """
    if claims.get("iss") != expected.issuer:
        yield Unauthenticated(f"{where} is not from the issuer {expected.issuer}", "get one there, or mend identity.jwt.issuer")
    if not set(expected.audience) & set(_texts(claims.get("aud"))):
        wanted = " or ".join(expected.audience)
        hint = f"ask the provider for one with {wanted} in aud, or mend identity.jwt.audience"
        yield Unauthenticated(f"{where} is not for the audience {wanted}", hint)
    expires_s = time_of(claims, "exp")
    if claims.get("exp") is None:
        yield Unauthenticated(f"{where} does not say when it expires", "only a token with a time in exp is accepted")
    elif expires_s is None:
        yield Unauthenticated(f"{where} has no time in exp", _SECONDS)
    elif now_s >= expires_s + leeway_s:
        yield Unauthenticated(f"{where} expired at {utc(expires_s)}", renew)
    for claim, what in (("nbf", "is not valid before"), ("iat", "was issued in the future:")):
        begins_s = time_of(claims, claim)
        if claims.get(claim) is not None and begins_s is None:
            yield Unauthenticated(f"{where} has no time in {claim}", _SECONDS)
        elif begins_s is not None and begins_s > now_s + leeway_s:
            hint = "it counts from then on by itself; if it should now, check the clock of this machine"
            yield Unauthenticated(f"{where} {what} {utc(begins_s)}", hint)
    if not _is_name(claims.get("sub")):
        yield Unauthenticated(f"{where} names no subject", "only a token with text in sub is accepted")
    if expected.user_claim == "email" and not _is_verified(claims):
        yield Unauthenticated(
            f"{where} has an email that is not verified", "verify it at the provider, or use another user_claim"
        )
    elif expected.user_claim != "sub" and not _is_name(claim_at(claims, expected.user_claim)):
        hint = "let the provider add it, or mend identity.jwt.user_claim"
        yield Unauthenticated(f"{where} has no text in its claim {expected.user_claim}", hint)


def identity(claims: Claims, expected: Expected, configured: Identity) -> Identity:
    """Who is calling, by claims that have no problem.

    Args:
        claims: The token's.
        expected: Where they name whom.
        configured: The server, and the parts of the agent that the token does not give.
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
    """The claim of this name, else the one that a dotted path leads to; None if there is neither.

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
    """A claim's time in seconds since 1970; None if it has none, or one that no calendar has."""
    value = claims.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LAST_TIME_S:
        return value
    return None


def utc(seconds: float) -> str:
    """A time as people read it.

    >>> utc(1767225600)
    '2026-01-01T00:00:00Z'
    """
    return rfc3339(int(seconds) * 1_000_000).replace(".000000", "")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_verified(claims: Claims) -> bool:
    """Whether the e-mail address counts: the provider does not call it unverified, as a truth value or, as some do, as text."""
    value = claims.get("email_verified")
    return (value.lower() if isinstance(value, str) else value) not in (False, "false")


def _texts(value: object) -> tuple[str, ...]:
    """Text, or the texts of a list."""
    values = value if isinstance(value, list) else [value]
    return tuple(text for text in values if isinstance(text, str) and text)


def _scopes(claims: Claims) -> tuple[str, ...]:
    """The words of `scope` (RFC 8693, section 4.2) and `scp`, each of which may be a text or a list."""
    words = [word for name in ("scope", "scp") for text in _texts(claims.get(name)) for word in text.split()]
    return tuple(dict.fromkeys(words))


def _agent(claim: object) -> Agent:
    """The parts that a claim gives. A text that does not have three parts is a name."""
    if not isinstance(claim, str) or not _is_name(claim):
        return Agent()
    return Agent.split(claim) or Agent(name=escape_part(claim))


def _actors(act: object) -> tuple[str, ...]:
    """The chain of delegation: the outermost `act` is who calls, those nested in it acted before (RFC 8693, section 4.1)."""
    actors = []
    while isinstance(act, dict):
        name = next((act[key] for key in ("sub", "client_id", "iss") if _is_name(act.get(key))), "unknown")
        actors.append(name)
        act = act.get("act")
    return tuple(reversed(actors))
