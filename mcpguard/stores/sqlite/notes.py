"""The lines of agent notes in the call log. A hook writes one, and is a short process: it loads nothing else of the lines."""

import json
from collections.abc import Sequence

from mcpguard.identity.client_agents import AgentNote
from mcpguard.light_typing import Final

NOTED: Final = "n"


def note_line(namespace: str, note: AgentNote, wall_us: int) -> str:
    """The line of an agent note. Without a text it removes the note with this key."""
    return f"{NOTED}\t{json.dumps(namespace)}\t{note.key}\t{json.dumps(note.text)}\t{wall_us}"


def read_note(fields: Sequence[str]) -> tuple[str, AgentNote, int]:
    """The namespace, the note and its wall-clock time in a line's fields."""
    _, namespace, key, agent, wall_us = fields
    return json.loads(namespace), AgentNote(key, json.loads(agent)), int(wall_us)
