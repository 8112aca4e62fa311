"""Removes tokens that were pasted into a text by mistake."""

import re

from mcpguard.light_typing import Final

# Compiled when a text has a dot: `run` checks names before it starts the server.
_MAY_BE_HEADER: Final = r"(?<![A-Za-z0-9_-])([A-Za-z0-9_-]{8,}+)(?=\.)"
_REST: Final = r"[A-Za-z0-9_.-]*"
_URL_SAFE: Final = str.maketrans("-_", "+/")


def holds_token(text: str) -> bool:
    """Whether a text contains a JWT, whole or cut short."""
    return redacted(text) != text


def redacted(text: str) -> str:
    """Replace each JWT in a text, whole or cut short. Its header, in base64url, has `alg` (RFC 7515, section 4.1.1).

    >>> redacted("no such file: eyJhbGciOiJSUzI1NiJ9.e30.c2ln")
    'no such file: (a token)'
    """
    if "." not in text:
        return text
    kept, at = [], 0
    for found in re.finditer(_MAY_BE_HEADER, text):  # the text before every dot, because a name with a dot can precede a token
        if found.start() >= at and _has_algorithm(found[1]):
            kept += [text[at : found.start()], "(a token)"]
            at = re.compile(_REST).match(text, found.end()).end()  # type: ignore[union-attr]  # it also matches the empty text
    return "".join([*kept, text[at:]])


def _has_algorithm(header: str) -> bool:
    import binascii  # loaded with the first such text

    try:
        return b'"alg"' in binascii.a2b_base64(header.translate(_URL_SAFE) + "==")
    except binascii.Error:
        return False
