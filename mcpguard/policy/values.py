"""What the keys of a policy may have as their values: their types and bounds, and how they are parsed.

A value that is wrong is a fault, with a hint at the right form.
"""

import re
from collections.abc import Collection, Mapping

from mcpguard.errors import closest_word
from mcpguard.identity.caller import KNOWN_CLIENTS, Agent, known_client, nearest
from mcpguard.light_typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from mcpguard.limiter.plan import SESSION
from mcpguard.policy.model import PER, SELECTORS, Rate
from mcpguard.text.times import UNITS_S, seconds_of

if TYPE_CHECKING:
    from mcpguard.documents.model import KeyPath

MAX_N: Final = 1_000_000_000
"""The largest limit. A larger one never denies in practice; `unlimited` states that."""

MAX_CONCURRENT: Final = 10_000
"""The largest cap on calls in flight. A store keeps an entry for each of them."""

MAX_WINDOW_SECONDS: Final = 3650 * 86400
"""The longest window, ten years. It keeps store times exact in the doubles of a Redis script."""

SESSION_SECONDS: Final = 30 * 86400
"""The window of a limit per session: a session that goes on for longer has room again for calls that are older."""

MAX_WAIT_SECONDS: Final = 3600
"""The longest `wait`. Few clients wait even for a minute, unless they get progress notifications."""

LIMIT_WORDS: Final = ("deny", "unlimited")
"""The words that can stand in place of limits."""

SHARE: Final = re.compile(r"([1-9][0-9]?|100)%")
"""A share of a limit."""

RATE: Final = re.compile(rf"([0-9]+)/(?:([0-9]+)([smhdw])|{SESSION})")
"""A limit as a text: a number of calls, and a window or the word for a session."""

_LOOSE_RATE = r"(?i)\s*([0-9]+)\s*(?:/|per|an?|each|every)\s*([0-9]*)\s*(ms|[a-z]+?)s?\s*"  # compiled only for an error
_MILLISECONDS: Final = ("ms", "msec", "milli", "millisecond")
_UNITS: Final = {"sec": "s", "second": "s", "min": "m", "minute": "m", "hour": "h", "hr": "h", "day": "d", "week": "w"}


class Fault(NamedTuple):
    """What is wrong at a path in a policy. `on_key` tells whether the key is meant and not its value."""

    path: "KeyPath"
    message: str
    hint: str
    on_key: bool = False


class ValueType(Protocol):
    """What a key of a policy may have as its value."""

    def parse(self, key: str, value: Any, faults: list[Fault]) -> Any:
        """The value as rules have it. If it is wrong, a fault is added, and what is returned is not used."""


class Words(NamedTuple):
    """One of some words.

    Attributes:
        words: The words.
        hints: Hints for other words that are probably written.
    """

    words: tuple[str, ...]
    hints: Mapping[str, str] = {}

    def parse(self, key: str, value: Any, faults: list[Fault]) -> str:
        """See `ValueType`."""
        word = value if isinstance(value, str) else ""
        if word not in self.words:
            hint = self.hints.get(word) or nearest_word(word, self.words)
            faults.append(Fault((key,), f"{key}: {shown_value(value)} is none of {' '.join(self.words)}", hint))
        return word


class Number(NamedTuple):
    """A whole number from 1 on.

    Attributes:
        most: The largest.
        what: What it is a number of.
        zero: The hint for 0.
        unlimited: Whether the word `unlimited` is allowed. It is parsed as 0.
    """

    most: int
    what: str
    zero: str
    unlimited: bool = False

    def parse(self, key: str, value: Any, faults: list[Fault]) -> int:
        """See `ValueType`."""
        if self.unlimited and value == "unlimited":
            return 0
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= self.most:
            return value
        hint = f"write a whole number from 1 to {self.most}" + (', or "unlimited"' if self.unlimited else "")
        if value == 0:
            hint = self.zero
        elif isinstance(value, str) and value.strip().isdecimal():
            hint = f"write it without quotes: {key} = {value.strip()[:20]}"
        faults.append(Fault((key,), f"{key}: {shown_value(value)} is not a number of {self.what}", hint))
        return 0


class TimeSpan(NamedTuple):
    """A span of time from `0s` to `most_s` seconds. It is parsed as microseconds."""

    most_s: int

    def parse(self, key: str, value: Any, faults: list[Fault]) -> int:
        """See `ValueType`."""
        seconds = seconds_of(value)
        if seconds is None or seconds > self.most_s:
            hint = f'write text, from "0s" to "{self.most_s}s" (s m h): {key} = "5s"'
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= self.most_s:
                hint = f'did you mean "{value}s"?'
            what = "is not a time to wait" if seconds is None else "is too long"
            faults.append(Fault((key,), f"{key}: {shown_value(value)} {what}", hint))
        return (seconds or 0) * 1_000_000


class Share(NamedTuple):
    """A share of a limit, from `1%` to `100%`. It is parsed as a number of percent."""

    def parse(self, key: str, value: Any, faults: list[Fault]) -> int:
        """See `ValueType`."""
        meant = f"{str(value).rstrip(' %')}%"
        match = SHARE.fullmatch(meant)
        if match and value == meant:
            return int(match[1])
        meant = f'did you mean "{meant}"?' if match else f'write text, from "1%" to "100%": {key} = "80%"'
        faults.append(Fault((key,), f"{key}: {shown_value(value)} is not a share of a limit", meant))
        return 0


class Text(NamedTuple):
    """Any text."""

    def parse(self, key: str, value: Any, faults: list[Fault]) -> str:
        """See `ValueType`."""
        if not isinstance(value, str):
            faults.append(Fault((key,), f"{key}: {shown_value(value)} is not text", f'write {key} = "search, all users"'))
        return str(value)


class Patterns(NamedTuple):
    """A pattern of a selector; with `may_be_list` also a list of them."""

    may_be_list: bool = False

    def parse(self, key: str, value: Any, faults: list[Fault]) -> tuple[str, ...]:
        """See `ValueType`."""
        is_list = self.may_be_list and isinstance(value, list)
        values = value if is_list else [value]
        if not values:
            faults.append(Fault((key,), f"{key}: an empty list", f"leave {key} out to match any"))
        return tuple([_pattern(key, item, (key, at) if is_list else (key,), faults) for at, item in enumerate(values)])


class Axes(NamedTuple):
    """A list of some of `PER`. It is parsed in their order."""

    def parse(self, key: str, value: Any, faults: list[Fault]) -> tuple[str, ...]:
        """See `ValueType`."""
        if not isinstance(value, list):
            hint = "[]" if value in ("", "none") else f'["{value if isinstance(value, str) else "user"}"]'
            faults.append(Fault((key,), f"{key}: {shown_value(value)} is not a list", f"write {key} = {hint}"))
            return ()
        for at, axis in enumerate(value):
            if axis not in PER:
                meant = axis if isinstance(axis, str) and axis not in SELECTORS else ""  # role is not a misspelt tool
                faults.append(Fault((key, at), f"{key}: unknown axis {shown_value(axis)}", nearest_word(meant, PER)))
        return tuple(axis for axis in PER if axis in value)


class Limits(NamedTuple):
    """A limit `N/W` or `N/session`, a list of such, or one of `LIMIT_WORDS`, which has no rates."""

    def parse(self, key: str, value: Any, faults: list[Fault]) -> tuple[Rate, ...]:
        """See `ValueType`."""
        if value in LIMIT_WORDS:
            return ()
        values = value if isinstance(value, list) else [value]
        if not values:
            faults.append(Fault((key,), f"{key}: an empty list", f'write {key} = "100/1h", "deny" or "unlimited"'))
        rates: list[Rate] = []
        for at, item in enumerate(values):
            path: KeyPath = (key, at) if isinstance(value, list) else (key,)
            rate = _rate(item)
            if not isinstance(rate, Rate):
                faults.append(Fault(path, f"{key}: {rate[0]}", rate[1]))
                continue
            window = rate.window_us, rate.is_per_session
            twin = next((other for other in rates if (other.window_us, other.is_per_session) == window), None)
            if twin is not None:
                both = f"{twin.n}/{twin.text} and {rate.n}/{rate.text}"
                faults.append(Fault(path, f"{key}: two limits for one window: {both}", "keep one of them"))
            rates.append(rate)
        return tuple(rates)


def _rate(value: object) -> Rate | tuple[str, str]:
    """A limit `N/W` or `N/session`, or what is wrong with it and a hint.

    >>> _rate("100/90m"), _rate("200/session").text
    (Rate(n=100, window_us=5400000000, text='90m'), 'session')
    """
    if not isinstance(value, str):
        return f"{shown_value(value)} is not text", 'write text in quotes: "100/1h"'
    if value in LIMIT_WORDS:
        return f"{shown_value(value)} stands alone", f'write limit = "{value}", without other limits'
    match = RATE.fullmatch(value)
    if not match or len(value) > 32:
        return f"{value[:60]!r} is not a limit", _nearest_rate(value)
    n, seconds = int(match[1]), int(match[2]) * UNITS_S[match[3]] if match[2] else SESSION_SECONDS
    if n == 0:
        return f"{shown_value(value)} admits nothing", 'write limit = "deny" to close a tool'
    if n > MAX_N:
        return f"{shown_value(value)} is over {MAX_N} calls", 'write limit = "unlimited" for no limit'
    if not 0 < seconds <= MAX_WINDOW_SECONDS:
        return f"{shown_value(value)} has a window out of bounds", "write a window from 1s to 3650d"
    return Rate(n, seconds * 1_000_000, f"{int(match[2])}{match[3]}" if match[2] else SESSION)


def _nearest_rate(text: str) -> str:
    match = re.fullmatch(_LOOSE_RATE, text)
    if match and len(text) <= 64:
        word = match[3].lower()
        if word in _MILLISECONDS:
            n, window_ms = int(match[1]), int(match[2] or 1)
            per_second = n * 1000 // window_ms if 0 < window_ms < 1000 else 0
            meant = f'did you mean "{per_second}/1s"? ' if per_second else ""
            return f"{meant}the shortest window is 1s (s m h d w; m is minutes)"
        unit = word if word in UNITS_S else _UNITS.get(word)
        if unit:
            return f'did you mean "{int(match[1])}/{int(match[2] or 1)}{unit}"?'
        if match[2] in {"", "1"} and closest_word(word, (SESSION,)):
            return f'did you mean "{int(match[1])}/{SESSION}"?'
    several = re.split(r"[\s,;]+", text.strip())
    if len(several) > 1 and all(RATE.fullmatch(one) for one in several):
        return f"write each limit by itself: {' '.join(several)}"
    if near := closest_word(text.strip().lower(), LIMIT_WORDS):
        return f'did you mean "{near}"?'
    return 'write a number of calls per window, such as "5/1m" or "100/90m" (s m h d w), or "deny" or "unlimited"'


def _pattern(key: str, value: object, path: "KeyPath", faults: list[Fault]) -> str:
    if not isinstance(value, str):
        faults.append(Fault(path, f"{key}: {shown_value(value)} is not text", f'write {key} = "…", with * for any text'))
        return ""
    if not value:
        faults.append(Fault(path, f"{key}: empty text matches nothing", f'leave {key} out to match any, or write "*"'))
    elif key == "agent" and value == "*":
        return "*::*::*"
    elif key == "agent" and Agent.parse(value) is None:
        hint = f'write client::tier::name; did you mean "{_nearest_agent(value)}"?'
        faults.append(Fault(path, f"agent: {shown_value(value)} does not have three parts", hint))
    return value


def _nearest_agent(text: str) -> Agent:
    agent = nearest(text, {*KNOWN_CLIENTS, *KNOWN_CLIENTS.values()})
    return agent._replace(client=known_client(agent.client))


def shown_value(value: object) -> str:
    """A value in a message: as in Python, but not long."""
    try:
        return repr(value)[:60]
    except ValueError:  # a hexadecimal number with more digits than Python converts to decimal ones
        return "this number"


def nearest_word(word: str, known: Collection[str]) -> str:
    """A hint at the known word that is most like `word`, or at all of them."""
    near = closest_word(word, known)
    return f"did you mean {near!r}?" if near else f"use one of: {' '.join(known)}"
