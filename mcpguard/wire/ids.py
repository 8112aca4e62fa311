"""When two ids of requests count as one: if a server could answer both alike."""

from typing import Final

from mcpguard.text.digest import blake2b

_EXACT_DIGITS: Final = 15
"""Up to this many digits, all parsers read an integer alike."""

_SHORT_CHARS: Final = 64
"""Longer ids are known by a hash, so that those of many requests take little memory."""


def id_key(request_id: str) -> str:
    """What an id has in common with all ids that a server could not tell from it.

    Some servers write the id 7 as `"7"`, and the clients of both SDKs take that for its answer. Others read every number as a
    double, so that two large integers become one.

    Args:
        request_id: The id as JSON text; see `frames.id_text`.
    """
    if request_id[-1:] != '"' and len(request_id) <= _EXACT_DIGITS:
        return request_id
    key = request_id.strip('"')
    if len(key) > _EXACT_DIGITS and key.removeprefix("-").isdecimal():
        number = float(key)
        if abs(number) < float("inf"):
            return repr(number)
    return key if len(key) <= _SHORT_CHARS else blake2b(key.encode(), digest_size=16).hexdigest()
