"""Texts without the tokens that somebody has pasted into them."""

import binascii
import re
from typing import Final

_MAY_BE_HEADER: Final = re.compile(r"(?<![A-Za-z0-9_-])([A-Za-z0-9_-]{8,}+)(?=\.)")
_REST: Final = re.compile(r"[A-Za-z0-9_.-]*")
_URL_SAFE: Final = str.maketrans("-_", "+/")


def holds_token(text: str) -> bool:
    """Whether there is a JWT in a text, whole or cut short."""
    return redacted(text) != text


def redacted(text: str) -> str:
    """A text without the JWTs in it, whole or cut short: base64url before a dot, with an `alg` in it (RFC 7515, section 4.1.1).

    >>> redacted("no such file: eyJhbGciOiJSUzI1NiJ9.e30.c2ln")
    'no such file: (a token)'
    """
    kept, at = [], 0
    for found in _MAY_BE_HEADER.finditer(text):  # each by itself: a name with a dot may stand in front of a token
        if found.start() >= at and _has_algorithm(found[1]):
            kept += [text[at : found.start()], "(a token)"]
            at = _REST.match(text, found.end()).end()  # type: ignore[union-attr]  # it matches anything
    return "".join([*kept, text[at:]])


def _has_algorithm(header: str) -> bool:
    try:
        return b'"alg"' in binascii.a2b_base64(header.translate(_URL_SAFE) + "==")
    except binascii.Error:
        return False
