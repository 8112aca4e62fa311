"""Alerts: messages about denials, warnings and outages, off every call's path. Loaded only if `[[notify]]` is configured."""

from collections.abc import Mapping

from mcpguard.errors import ConfigError
from mcpguard.light_typing import Any, NamedTuple


class Way(NamedTuple):
    """Which events are told, and how: by a command or a webhook, else by a notification of the system.

    Attributes:
        on: The events.
        command: The words of a command, which gets the message as JSON on its stdin.
        webhook: A URL, which gets the message as JSON by POST. It may hold a secret.
    """

    on: tuple[str, ...]
    command: tuple[str, ...] = ()
    webhook: str = ""

    def __repr__(self) -> str:
        """Without secrets."""
        return f"<{self.shown}>"

    @property
    def shown(self) -> str:
        """The way without secrets, for messages: of a URL only the host, because some services put a token into the path."""
        if not self.webhook:
            return f"command {self.command[0]}" if self.command else "desktop"
        from urllib.parse import urlsplit

        return f"webhook at {urlsplit(self.webhook).hostname}"


def way(values: Mapping[str, Any], events: tuple[str, ...], where: str) -> Way:
    """The way with these values, which have their types.

    Args:
        values: The members of a `[[notify]]`.
        events: All events, if `values` names none.
        where: How an error names the table.

    Raises:
        ConfigError: It has none or several of the ways, or a message must not be sent to its URL.
    """
    command, webhook, desktop = (values.get(key) for key in ("command", "webhook", "desktop"))
    if [bool(command), bool(webhook), bool(desktop)].count(True) != 1:
        hint = 'write one of desktop = true, webhook = "https://…" and command = ["…"]; for several ways, several [[notify]]'
        raise ConfigError(f"{where}: not exactly one of command, webhook and desktop", hint)
    if webhook:
        from mcpguard.urls import url_problem  # only for a webhook: it takes a few milliseconds to load

        if url_problem(webhook):
            hint = "write an https URL without user and password, or an http URL of this machine"
            raise ConfigError(f"{where}: webhook: messages are not sent to this URL", hint)
    return Way(tuple(values.get("on", events)), tuple(command or ()), webhook or "")
