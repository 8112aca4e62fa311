"""Options that several commands have, which rows and counters their filters select, and the names that are known for them.

Known names are those of the newest rows in the audit log, and for completion those that rules select by.
"""

import contextlib
import os
import re
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial, wraps
from itertools import islice
from typing import Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from mcpguard import config
from mcpguard.cli.present import can_ask
from mcpguard.config import Settings
from mcpguard.errors import ConfigError, UsageError, closest_word
from mcpguard.identity.caller import Agent, agent_matches
from mcpguard.limiter.plan import SESSION
from mcpguard.policy.model import AXES
from mcpguard.session.audit import DECISIONS, OUTCOMES
from mcpguard.session.verdict import REFUSED
from mcpguard.stores.api import AuditReader, Wanted
from mcpguard.stores.clock import wall_us
from mcpguard.text.patterns import glob

_F = TypeVar("_F", bound=Callable[..., Any])

_Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]


def seen(key: str, *, with_patterns: bool = False) -> _Complete:
    """A `shell_complete` function for an option that takes a name.

    Args:
        key: The kind of name: `user`, `agent`, `server`, `tool`, `role`, `scope` or `session`.
        with_patterns: Whether the patterns of rules are shown, too.
    """

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        del param
        names = dict.fromkeys(_in_time(_known(key, ctx.params)))
        return [CompletionItem(name) for name in names if name.startswith(incomplete) and (with_patterns or "*" not in name)]

    return complete


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """A `shell_complete` function for the name of a file, which the shell completes."""
    del ctx, param
    return [CompletionItem(incomplete, type="file")]


def words(*known: str) -> _Complete:
    """A `shell_complete` function for an option that takes one of a few words."""
    return lambda _ctx, _param, incomplete: [CompletionItem(word) for word in known if word.startswith(incomplete)]


policy_option = click.option(
    "--policy", metavar="F", shell_complete=files, help="The policy file. Default: MCPGUARD_POLICY, the account's file."
)
store_option = click.option("--store", metavar="URL", help="The store. Default: MCPGUARD_STORE, config.toml, the account's.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")


def lines_option(text: str) -> Callable[[_F], _F]:
    """The option for how many rows or counters are shown, with this help."""
    return click.option("-n", "--lines", "rows", type=click.IntRange(min=0), metavar="N", help=text)


def name_option(key: str, metavar: str, text: str, *, with_patterns: bool = False, **more: Any) -> Callable[[_F], _F]:
    """An option for a name, such as `--user`. A shell completes it.

    Args:
        key: The kind of name: see `seen`.
        metavar: The name of its value in the help.
        text: Its text in the help.
        with_patterns: Whether the patterns of rules are completed, too.
        more: Further arguments for `click.option`.
    """
    complete = seen(key, with_patterns=with_patterns)
    return click.option(f"--{key}", metavar=metavar, shell_complete=complete, help=text, **more)


def all_of(*options: Callable[[_F], _F]) -> Callable[[_F], _F]:
    """One decorator that adds several options, in this order."""

    def decorated(function: _F) -> _F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorated


def with_settings(*keys: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator of a command that takes the settings first: it adds the options `--policy` and `--store`, as far as named."""

    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def command(**given: Any) -> Any:
            options = {key: given.pop(key) for key in keys}
            return function(config.load(os.environ, **options), **given)

        return all_of(*({"policy": policy_option, "store": store_option}[key] for key in keys))(command)

    return decorated


def policy_words(settings: config.Settings) -> list[str]:
    """The words that name the policy file in a command, if the option `--policy` has named it; else none."""
    return ["--policy", settings.policy_path] if settings.places["policy"] == "--policy" else []


def require_terminal(command: str, hint: str) -> None:
    """Refuse to ask for confirmation where nobody can answer.

    Raises:
        UsageError: There is no terminal.
    """
    if not can_ask():
        raise UsageError(f"{command} asks for confirmation, and there is no terminal", hint)


_LIMITED_AXES: Final = ("user", "tool", "agent")
"""The values of `axis` in an audit record."""

_VALUES: Final = ("decision", "outcome", "axis", "tool", "user", "agent", "server")
"""The filters by a member of a record, in the order in which `nearest` tries to do without them."""

LOOKED_AT: Final = 10_000
"""How many of the newest rows `nearest` looks at. Reading them takes about a third of a second."""

MAX_OFFERED: Final = 3
"""How many values `nearest` offers."""

_LATEST_US: Final = 253_402_300_799_999_999
"""The last microsecond of the year 9999, after which no time can be shown."""


def name_filters(what: str) -> Callable[[_F], _F]:
    """The options `--user`, `--agent`, `--server`, `--tool` and `--session`, which filter rows or counters."""
    return all_of(
        name_option("user", "G", f"Only {what} of this user; * matches any text."),
        *(name_option(key, "G", f"Only {what} of this {key}.") for key in ("agent", "server", "tool", SESSION)),
    )


def _word_option(key: str, known: tuple[str, ...], text: str, *, multiple: bool = False) -> Callable[[_F], _F]:
    return click.option(f"--{key}", metavar="G", multiple=multiple, shell_complete=words(*known), help=text)


row_filters = all_of(
    name_filters("rows"),
    _word_option("axis", _LIMITED_AXES, "Only rows of this axis: user, tool or agent."),
    _word_option("decision", DECISIONS, "Only rows of this decision, such as denied. May be repeated.", multiple=True),
    _word_option("outcome", OUTCOMES, "Only rows of this outcome, such as ok. May be repeated.", multiple=True),
    click.option("--denied", is_flag=True, help="Only rows of calls that were not forwarded."),
    click.option("--since", metavar="WHEN", help="Only rows of the last 90m, 2h, 7d …, or since an RFC 3339 time."),
    click.option("--until", metavar="WHEN", help="Only rows before 90m, 2h, 7d … ago, or before an RFC 3339 time."),
)
"""The options of `wanted_rows`."""


def wanted_rows(namespace: str, filters: Mapping[str, Any]) -> Wanted:
    """The rows that the options of `row_filters` select.

    Args:
        namespace: The namespace of the rows.
        filters: The values of the options.

    Raises:
        UsageError: A value is not valid, or no row can match all of them.
    """
    axis, since, until = filters["axis"], filters["since"], filters["until"]
    _among("--axis", () if axis is None else (axis,), _LIMITED_AXES)
    decisions = _among("--decision", filters["decision"], DECISIONS)
    outcomes = _among("--outcome", filters["outcome"], OUTCOMES)
    if filters["denied"]:
        decisions = REFUSED if decisions is None else decisions & REFUSED
        if not decisions:
            raise UsageError("--denied and --decision exclude each other", f"use one of: {' '.join(sorted(REFUSED))}")
    since_us = None if since is None else time_us("--since", since)
    until_us = None if until is None else time_us("--until", until)
    if since_us is not None and until_us is not None and since_us >= until_us:
        raise UsageError(f"no time is since {since} and until {until}", "give --since the earlier time")
    context = partial(_is_in_context, namespace, given(filters))
    return Wanted(context, decisions, None if axis is None else partial(glob, axis), outcomes, since_us, until_us)


def given(names: Mapping[str, Any]) -> dict[str, str]:
    """The patterns among the values of `name_filters`, by kind of name."""
    return {key: pattern for key in (*AXES, SESSION) if (pattern := names[key]) is not None}


def is_given(value: object) -> bool:
    """Whether the value of one of `row_filters` was given. An empty pattern counts as given."""
    return value not in (None, (), False)


def none_match(noun: str, filters: Mapping[str, Any]) -> str:
    """The message that there is nothing to show: `no rows match` if one of `row_filters` was given, else `no rows`."""
    return f"no {noun} match" if any(map(is_given, filters.values())) else f"no {noun}"


def _selects(key: str, pattern: str, text: str) -> bool:
    """Whether a filter's pattern matches a name. An agent is matched part by part if the pattern has three parts."""
    if key == "agent" and Agent.split(pattern) and Agent.split(text):
        return agent_matches(pattern, text)
    return glob(pattern, text)


def all_match(patterns: Mapping[str, str], members: Mapping[str, object]) -> bool:
    """Whether a row or a counter with these members has a name for each pattern, and the pattern matches it.

    A row's session is that of the client, or that of the wrapper.
    """
    names = {key: [key, "client_session"] if key == SESSION else [key] for key in patterns}
    return all(
        any(name in members and _selects(key, pattern, str(members[name])) for name in names[key])
        for key, pattern in patterns.items()
    )


def nearest(store: AuditReader, namespace: str, filters: Mapping[str, Any]) -> str:
    """A hint for filters that no row matches: other values of one of them, which match some of the newest rows.

    Args:
        store: The store.
        namespace: The namespace of the rows.
        filters: The values of `row_filters`.

    Returns:
        Empty if no row matches all the filters but one.
    """
    everything = Wanted(partial(_is_in_context, namespace, {}))
    keys = [key for key in (*_VALUES, "denied", "since", "until") if is_given(filters[key])]
    records = [record for _, record in islice(store.newest(wanted=everything), LOOKED_AT if keys else 0)]
    for key in keys:
        others = wanted_rows(namespace, {**filters, key: () if isinstance(filters[key], tuple) else None})
        found = [record for record in records if record["decision"] != "policy" and others.admits(record)]
        if not found:
            continue
        if key == "since":
            return f"use an earlier --since: the newest row that matches without it is of {found[0]['time']}"
        if key == "until":
            return "use a later --until: all rows that match without it are later"
        if key == "denied":
            return "leave out --denied: the rows that match without it are of calls that were forwarded"
        pattern = filters[key][0] if isinstance(filters[key], tuple) else filters[key]
        values = _by_likeness(pattern, {str(record[key]) for record in found if key in record})
        if values:
            tries = [f"--{key} {shlex.quote(_typable(value))}" for value in values[:MAX_OFFERED]]
            tries += ["--denied"] if key == "decision" and REFUSED & set(values) else []
            return f"try filters that find rows: {', '.join(tries)}"
    return ""


def _typable(value: str) -> str:
    """A pattern that matches a value, with * in place of characters that a terminal cannot show."""
    return "".join(char if char.isprintable() else "*" for char in value)


def _by_likeness(pattern: str, values: set[str]) -> list[str]:
    """Values in the order of their likeness to a pattern. Denials are like denials."""
    import difflib  # loaded only if nothing is found

    def likeness(value: str) -> tuple[bool, float]:
        return (value in REFUSED) == (pattern in REFUSED), difflib.SequenceMatcher(None, pattern.lower(), value.lower()).ratio()

    return sorted(values, key=likeness, reverse=True)


def _is_in_context(namespace: str, patterns: Mapping[str, str], context: Mapping[str, object]) -> bool:
    return context["namespace"] == namespace and all_match(patterns, context)


def _among(option: str, patterns: tuple[str, ...], known: tuple[str, ...]) -> frozenset[str] | None:
    """The known words that one of the patterns matches; None without patterns.

    Raises:
        UsageError: A pattern matches none.
    """
    found: set[str] = set()
    for pattern in patterns:
        matched = [word for word in known if glob(pattern, word)]
        if not matched:
            raise UsageError(f"{option}: {pattern!r} matches no known value", f"use one of: {' '.join(known)}")
        found.update(matched)
    return frozenset(found) if patterns else None


def time_us(option: str, text: str) -> int:
    """The time that `--since` or `--until` names: a span before now, or a time. A time without an offset is local.

    Returns:
        A time from 1970 to 9999, the nearest one to the time that the text names.

    Raises:
        UsageError: The text is neither.
    """
    if re.fullmatch(r"[0-9]+[a-z]", text):
        with contextlib.suppress(ConfigError):
            at_us = wall_us() - config.span_us(text, where=option)
            return min(max(0, at_us), _LATEST_US)
    else:
        with contextlib.suppress(ValueError, OverflowError):
            at = datetime.fromisoformat(text.upper())
            try:
                at_s = at.timestamp()
            except OSError:  # Windows knows the local time of the years 1970 to 3000 only
                at_s = at.replace(tzinfo=UTC).timestamp()
            return min(max(0, round(at_s * 1_000_000)), _LATEST_US)
    raise UsageError(f"{option}: {text!r} is neither a span nor a time", "write 90m, 2h, 7d, or 2026-01-31T09:00:00Z")


LOOK_S: Final = 1.0
"""How long the store is read at most. What was found until then is shown."""

KNOWN_ROWS: Final = 3000
"""How many of the newest rows are read."""

LIKE: Final = 0.8
"""How much a known name must be like one that may be misspelt, from 0 to 1."""

_T = TypeVar("_T")


def unseen(settings: Settings, given: Mapping[str, str | None], *, unlike: tuple[str, ...] = ()) -> Iterator[str]:
    """Warnings of names that none of the newest calls in the audit log has, but that are like one that a call has.

    Args:
        settings: The settings of this machine.
        given: The values of `--user`, `--agent`, `--server` and `--tool`. Patterns, and parts of an agent with `*`, are not
            looked for.
        unlike: Warn of a `tool` or `server` that is like none, too.
    """
    rows = [row for row in _in_time(_newest(settings)) if all(axis in row for axis in AXES)]
    for what, value, names in _sought(given, rows):
        if not value or "*" in value or not names or value in names:
            continue
        near = _meant(value, names)
        if near or what in unlike:
            hint = f"did you mean {near}?" if near else "compare the name with mcpguard audit tail"
            yield f"none of the newest calls in the audit log has the {what} {value}; {hint}"


def _sought(given: Mapping[str, str | None], rows: list[Mapping[str, Any]]) -> Iterator[tuple[str, str | None, set[str]]]:
    """What is looked for: what it is, its name, and the names that calls have."""
    for key in ("user", "server", "tool"):
        yield key, given.get(key), {str(row[key]) for row in rows}
    wanted = Agent.split(given.get("agent") or "") or Agent()
    agents = [agent for row in rows if (agent := Agent.split(str(row["agent"])))]
    yield "client", wanted.client, {agent.client for agent in agents}
    yield "agent", wanted.name, {agent.name for agent in agents}


def _meant(value: str, names: set[str]) -> str | None:
    """The name that was probably meant. The users of a domain are not alike only because of the domain."""
    if "@" not in value:
        return closest_word(value, names, least=LIKE)
    user, _, domain = value.partition("@")
    known = {name.partition("@")[0]: name for name in sorted(names, key=lambda name: name.endswith(f"@{domain}"))}
    near = closest_word(user, known, least=LIKE)
    return known[near] if near else None


def _in_time(found: Iterator[_T]) -> list[_T]:
    """What is found within `LOOK_S`, before a failure. A command that reads the store for itself reports the failure."""
    taken: list[_T] = []

    def take() -> None:
        with contextlib.suppress(Exception):
            taken.extend(found)

    looking = threading.Thread(target=take, daemon=True)
    looking.start()
    looking.join(LOOK_S)
    return list(taken)


def _known(key: str, given: dict[str, Any]) -> Iterator[str]:
    """The names of this kind in the policy and the store that the line names."""
    options = {name: given.get(name) for name in ("policy", "store")}
    settings = config.load(os.environ, config=given.get("config") or given.get("config_file"), **options)
    for names in (_of_rules(settings, key), _of_rows(settings, key)):
        with contextlib.suppress(Exception):  # the policy may be broken, and the store readable
            yield from names


def _of_rules(settings: Settings, key: str) -> Iterator[str]:
    from mcpguard.policy.file import load

    policy = load(settings.policy, named=settings.policy_named)
    for rule in policy.rules:
        yield from rule.selectors.get(key, ())


def _of_rows(settings: Settings, key: str) -> Iterator[str]:
    member = {"role": "roles", "session": "client_session"}.get(key, key)
    for record in _newest(settings):
        value = record.get(member)
        if value:
            yield from value if isinstance(value, list) else [str(value)]


def _newest(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """The newest rows of this namespace."""
    if not settings.address.exists():
        return
    with settings.read_store() as store:
        for entry in islice(store.newest(), KNOWN_ROWS):
            if entry.record["namespace"] == settings.namespace:
                yield entry.record
