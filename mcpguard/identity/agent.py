"""An agent: `client::tier::name`. No other module knows how the three parts are written as one text."""

from collections.abc import Collection

from mcpguard.light_typing import Final, NamedTuple
from mcpguard.text.patterns import glob

TIERS: Final = ("interactive", "subagent", "background", "api")
"""The usual tiers; others are allowed. The first is the default."""

_SEPARATOR: Final = "::"
_PARTS: Final = 3


class Agent(NamedTuple):
    """An agent, or a pattern for agents, in three parts. A part is escaped (`escape_part`), and empty if it is not known.

    >>> str(Agent("Claude Code", "subagent", "Explore"))
    'Claude Code::subagent::Explore'
    """

    client: str = ""
    tier: str = ""
    name: str = ""

    def __str__(self) -> str:
        return _SEPARATOR.join(self)

    @classmethod
    def split(cls, text: str) -> "Agent | None":
        """Parse an agent, whose parts may be empty; None unless the text has three parts."""
        parts = text.split(_SEPARATOR)
        return cls(*parts) if len(parts) == _PARTS else None

    @classmethod
    def parse(cls, text: str) -> "Agent | None":
        """Parse an agent; None unless the text has three parts, none of them empty."""
        agent = cls.split(text)
        return agent if agent and all(agent) else None

    def or_else(self, other: "Agent") -> "Agent":
        """This agent, with the other's parts where its own are empty."""
        return Agent(*[mine or theirs for mine, theirs in zip(self, other, strict=True)])


DEFAULT: Final = Agent("unknown", TIERS[0], "default")
"""The values of parts that are not known."""


def escape_part(text: str) -> str:
    r"""One part of an agent, with `::` escaped. Different texts have different forms, and no form ends in `:`.

    >>> escape_part("a::subagent"), escape_part("a:b")
    ('a:\\:\\subagent', 'a:b')
    """
    if _SEPARATOR in text or "\\" in text or text.startswith(":") or text.endswith(":"):
        return text.replace("\\", "\\\\").replace(":", ":\\")
    return text


def agent_matches(pattern: str, text: str) -> bool:
    """Whether a pattern matches an agent, part by part: `*` does not cross `::`. False unless both texts have three parts."""
    # Lists are fastest, and this runs for each rule and caller
    patterns, parts = pattern.split(_SEPARATOR), text.split(_SEPARATOR)
    return len(patterns) == len(parts) == _PARTS and all(map(glob, patterns, parts))


def nearest(text: str, clients: Collection[str] = ()) -> Agent:
    """The agent pattern that a text without three parts was probably meant to be.

    Args:
        text: The text. A single word that is neither a tier nor a client is the name of an agent.
        clients: Known clients.

    >>> str(nearest("subagent")), str(nearest("Explore")), str(nearest("Cursor", ["Cursor"])), str(nearest("Cursor::"))
    ('*::subagent::*', '*::*::Explore', 'Cursor::*::*', 'Cursor::*::*')
    """
    parts = [part or "*" for part in text.split(_SEPARATOR)]
    if parts[0] in TIERS:
        parts.insert(0, "*")
    elif len(parts) == 1 and parts[0] not in clients:
        parts = ["*", "*", *parts]
    elif len(parts) == _PARTS - 1 and parts[1] not in (*TIERS, "*"):
        parts.insert(1, "*")
    return Agent(*[*parts, "*", "*"][:_PARTS])
