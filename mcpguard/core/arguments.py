"""The hashes that stand for a call's arguments: in the audit log, and in counters."""

from typing import Final

from mcpguard.core.digest import blake2b
from mcpguard.core.jsonrpc.heavy import Unbuilt
from mcpguard.core.text import canonical

_MAX_CHARS: Final = 64 * 1024
"""Numbers in longer arguments are not compared by value."""


def args_hash(arguments: object, key: bytes) -> bytes:
    """A keyed BLAKE2b of a call's arguments. Equal arguments have equal hashes; without the key a hash reveals nothing."""
    text = arguments.text if isinstance(arguments, Unbuilt) else canonical(arguments)
    return blake2b(text.encode(errors="surrogatepass"), key=key, digest_size=12).digest()


def counted_hash(params: dict[str, object], key: bytes) -> str:
    """The hash, in hexadecimal digits, by which a counter knows a call's arguments.

    Arguments are equal if they are equal as JSON: the order of members does not matter, `1.0` is `1`, and missing arguments are
    `{}`. But `true` is not `1`, and `"1"` is not `1`. Arguments of a heavy line are equal if their text is.
    """
    arguments = params.get("arguments", {})
    if isinstance(arguments, Unbuilt):
        return args_hash(arguments, key).hex()
    text = canonical(arguments)
    if len(text) <= _MAX_CHARS and any(sign in text for sign in _OF_FLOATS):
        arguments = _with_integers(arguments)
    return args_hash(arguments, key).hex()


_OF_FLOATS: Final = (".0", "e+")
"""What the text of each float that is a whole number contains."""


def _with_integers(value: object) -> object:
    """A value in which floats that are whole numbers are integers."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_with_integers(one) for one in value]
    if isinstance(value, dict):
        return {key: _with_integers(one) for key, one in value.items()}
    return value
