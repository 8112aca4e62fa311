"""The hash that stands for a call's arguments: in the audit log, and in counters."""

import re
from json import encoder

from mcpguard.light_typing import Final, NamedTuple
from mcpguard.text.digest import blake2b

_MAX_CHARS: Final = 64 * 1024
"""Numbers in longer arguments are not compared by value."""

_STRING_OR_FLOAT: Final = r'"(?:[^"\\]++|\\.)*+"|-?[0-9]++(?:\.0(?![0-9])|[0-9.]*+e\+[0-9]++)'
"""A string, or a float that is a whole number, in the text of arguments. Compiled when it is needed: few calls do."""

# As `text.printing` has it for `compact`, but with the members of objects sorted by their names
_encode = encoder.c_make_encoder(None, None, encoder.encode_basestring_ascii, None, ":", ",", True, False, True)  # type: ignore[attr-defined]

NONE: Final[dict[str, object]] = {}
"""The arguments of a call that has none; do not change them."""


class Unbuilt(NamedTuple):
    """The text of arguments, or of another value, that were checked but not built, because they are in a heavy line."""

    text: str


def args_hash(arguments: object, key: bytes) -> bytes:
    """A keyed BLAKE2b of a call's arguments: equal arguments have equal hashes. Without the key a hash reveals nothing.

    Arguments are equal if they are equal as JSON: the order of members does not matter, `1.0` is `1`, and missing arguments are
    `{}`. But `true` is not `1`, and `"1"` is not `1`. In arguments of more than 64 KiB, `1.0` is not `1`. Arguments of a heavy
    line are equal if their text is.

    Args:
        arguments: The arguments; `NONE` if they are missing.
        key: The key.
    """
    if isinstance(arguments, Unbuilt):
        text = arguments.text
    else:
        text = "".join(_encode(arguments, 0))
        if (".0" in text or "e+" in text) and len(text) <= _MAX_CHARS:  # in the text, because values may be nested deeply
            text = re.sub(_STRING_OR_FLOAT, _as_integer, text)
    return blake2b(text.encode(errors="surrogatepass"), key=key, digest_size=12).digest()


def _as_integer(match: re.Match[str]) -> str:
    return match[0] if match[0][0] == '"' else str(int(float(match[0])))
