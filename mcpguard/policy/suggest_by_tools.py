"""Suggests limits for the tools of a server, from what the server says of them and from their names.

What a server says, its annotations, are hints that nobody has checked. So a tool whose name says that it deletes or sends is
not taken for a more harmless one. What an annotation leaves out is as the protocol says: a tool may change, may destroy, and
may reach the world outside. A tool without annotations is judged by the first verb in its name.

There is a rule for each kind of tools, or several if no pattern matches exactly these. One kind, chosen so that there are few
rules, has the pattern `*`: the others override it.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from mcpguard.light_typing import Final, NamedTuple
from mcpguard.policy.model import Policy
from mcpguard.policy.suggest import rules_tool
from mcpguard.text.patterns import glob


class ServerTool(NamedTuple):
    """A tool, and its annotations: None for one that is absent."""

    name: str
    read_only: bool | None = None
    destructive: bool | None = None
    idempotent: bool | None = None
    open_world: bool | None = None


class ToolKind(NamedTuple):
    """A kind of tools.

    Attributes:
        what: What its tools do.
        limits: The suggested limits of each of them.
    """

    what: str
    limits: tuple[str, str]


# No starter rule is tighter: else it would defeat the suggestion
READS: Final = ToolKind("Only read", ("30/1m", "500/1h"))
LOOKS: Final = ToolKind("Only read, perhaps from outside", ("20/1m", "300/1h"))
CHANGES: Final = ToolKind("Change something, and destroy nothing", ("20/1m", "200/1h"))
DESTROYS: Final = ToolKind("May overwrite or destroy something", ("10/1m", "100/1h"))
SENDS: Final = ToolKind("May add something outside with each call", ("5/1m", "30/1h"))
DELETES: Final = ToolKind("May destroy something, and are named so", ("5/1m", "20/1h"))
KINDS: Final = (READS, LOOKS, CHANGES, DESTROYS, SENDS, DELETES)
"""The kinds, the most harmless first."""

_VERBS: Final = {
    "read": "check count describe diff download explain export fetch find get inspect list lookup ping query read retrieve scan"
    " screenshot search show snapshot status summarize view wait",
    "add": "add append clone copy create import insert new open start upload",
    "send": "comment email invite message notify post publish reply send share tweet",
    "delete": "delete destroy drop erase purge remove truncate wipe",
    "overwrite": "apply cancel clear close disable edit eval evaluate exec execute kill mark merge move patch put rename"
    " replace reset restore run set stop terminate toggle update write",
}
_KNOWN: Final = {word: verb for verb, words in _VERBS.items() for word in words.split()}
_WORD: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_BOUNDARY: Final = re.compile(r"(?<=[^0-9A-Za-z])(?=.)|(?<=[a-z])(?=[A-Z])|(?<=.)(?=[^0-9A-Za-z])")
"""Where a word of a name begins or ends: only there a pattern is cut off."""


class ToolRule(NamedTuple):
    """A suggested rule.

    Attributes:
        tool: Its pattern for tools.
        kind: The kind of the tools that it is for.
        tools: The names of these tools, each with why it is of this kind.
    """

    tool: str
    kind: ToolKind
    tools: dict[str, str]

    @property
    def reasons(self) -> list[str]:
        """Why there is this rule. The names in it are as the server has them."""
        names = {why: [name for name, its in self.tools.items() if its == why] for why in self.tools.values()}
        rest = ["And any tool without a rule of its own, such as one of a later version"] if self.tool == "*" else []
        return [f"{self.kind.what} ({why}): {', '.join(some)}" for why, some in names.items()] + rest


class ToolFindings(NamedTuple):
    """What is suggested for a server.

    Attributes:
        rules: The rules.
        kept: The tools for which the policy in force has rules.
        left_out: The tools that no rule selects without selecting tools of another kind.
    """

    rules: list[ToolRule]
    kept: list[str]
    left_out: list[str]


def suggest_by_tools(policy: Policy, server: str, tools: Iterable[ServerTool]) -> ToolFindings:
    """Suggest rules for a server.

    Args:
        policy: The policy in force. Tools for which it has rules are left out.
        server: The server's name.
        tools: Its tools.
    """
    found = {tool.name: _kind(tool) for tool in tools if tool.name}
    kept = [name for name in found if _is_ruled(policy, server, name)]
    groups = {kind: [name for name, (its, _) in found.items() if its is kind and name not in kept] for kind in KINDS}
    covers = {kind: list(_cover(names, found)) for kind, names in groups.items() if names}
    # `*` would also match tools with rules in force. If several kinds save as many rules, the one with the lowest limits has it
    rest = max(reversed(covers), key=lambda kind: len(covers[kind]), default=None) if not kept else None
    covers |= {rest: [("*", groups[rest])]} if rest else {}
    rules = [
        ToolRule(pattern, kind, {name: found[name][1] for name in names})
        for kind, cover in sorted(covers.items(), key=lambda item: item[0] is not rest)
        for pattern, names in cover
    ]
    left_out = [name for name in found if name not in kept and not any(name in rule.tools for rule in rules)]
    return ToolFindings(rules, kept, left_out)


def _kind(tool: ServerTool) -> tuple[ToolKind, str]:
    """The kind of a tool, and why it is of that kind."""
    verb = next(filter(None, (_KNOWN.get(word.lower()) for word in _WORD.findall(tool.name))), "")
    read_only, destructive = tool.read_only, tool.destructive
    why = "by annotation"
    if read_only is None and destructive is None:
        why = "by name, without annotations" if verb else "without annotations, and the name does not tell"
        read_only, destructive = verb == "read", verb not in ("add", "send")
    elif (read_only and verb == "send") or ((read_only or destructive is False) and verb == "delete"):
        why = "by name, although annotated as more harmless"
        read_only, destructive = False, verb == "delete"
    is_outside = tool.open_world is not False
    if read_only:
        return LOOKS if is_outside else READS, why
    if destructive is not False:
        return DELETES if verb == "delete" else DESTROYS, why
    return SENDS if verb == "send" or (is_outside and not tool.idempotent) else CHANGES, why


def _is_ruled(policy: Policy, server: str, tool: str) -> bool:
    """Whether a rule in force is meant for a tool of this server, and not only for any tool of any server."""
    return any(
        rules_tool(rule, tool) and glob(its, server) and (its, rule.selectors["tool"][0]) != ("*", "*")
        for rule in policy.rules
        for its in rule.selectors.get("server", ("*",))
    )


def _cover(names: Sequence[str], among: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Few patterns that match these names and no others of `among`, and the names that each is for.

    Leaves out names that have no such pattern.
    """
    others = {*among} - {*names}
    alike: defaultdict[str, set[str]] = defaultdict(set)
    for name in names:
        for cut in _BOUNDARY.finditer(name):
            alike[f"{name[: cut.start()]}*"].add(name)
            alike[f"*{name[cut.start() :]}"].add(name)
    left = dict.fromkeys(names)
    patterns = {one: some for one, some in alike.items() if len(some) > 1 and not any(glob(one, other) for other in others)}
    while patterns := {one: its for one, some in patterns.items() if len(its := some & left.keys()) > 1}:
        best = max(patterns, key=lambda one: (len(patterns[one]), len(one)))
        yield best, [name for name in left if name in patterns[best]]
        left = {name: None for name in left if name not in patterns[best]}
    yield from ((name, [name]) for name in left if not any(glob(name, other) for other in others))
