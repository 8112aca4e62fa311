"""Printable and quoted text, counted nouns, and compact JSON."""

from json import encoder

# The encoder that `JSONEncoder.encode` makes for each value, in a third of its time
_encode = encoder.c_make_encoder(None, None, encoder.encode_basestring_ascii, None, ":", ",", False, False, True)  # type: ignore[attr-defined]


def compact(value: object) -> str:
    r"""JSON without spaces, in ASCII.

    >>> compact({"b": [1, "é"], "a": None})
    '{"b":[1,"\\u00e9"],"a":null}'
    """
    return "".join(_encode(value, 0))


def printable(text: str) -> str:
    r"""Escape what could control a terminal: control characters, line separators and lone surrogates.

    >>> printable("a\x1b[2J")
    'a\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in text)


def quoted(value: object) -> str:
    r"""A value for `key=value`: printable, and in quotation marks if it needs them. Different values have different forms.

    >>> quoted("alice"), quoted("Claude Code"), quoted("a\x1b"), quoted("a\\x1b")
    ('alice', '"Claude Code"', '"a\\x1b"', '"a\\\\x1b"')
    """
    text = str(value)
    if text.isprintable() and text and not any(char in text for char in ' "=\\'):
        return text
    return '"' + printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def plural(n: int, noun: str) -> str:
    """A number with its noun.

    >>> plural(1, "call"), plural(2, "call")
    ('1 call', '2 calls')
    """
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def amount(n: int, noun: str) -> str:
    """`plural`, with commas between thousands.

    >>> amount(1, "row"), amount(1234, "row")
    ('1 row', '1,234 rows')
    """
    return f"1 {noun}" if n == 1 else f"{n:,} {noun}s"
