"""The process that sends one message: `python -m mcpguard.alerts.deliver`. The message is on stdin; it prints why it failed."""

import html
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping

from mcpguard.alerts.notifier import end
from mcpguard.alerts.way import Way
from mcpguard.light_typing import Final
from mcpguard.system_programs import system_program

TIMEOUT_S: Final = 10.0
"""How long it may take."""

_TOAST: Final = r"""
$ErrorActionPreference = 'Stop'
$manager = [Windows.UI.Notifications.ToastNotificationManager, Windows.UI.Notifications, ContentType = WindowsRuntime]
$content = $manager::GetTemplateContent([Windows.UI.Notifications.ToastTemplateType]::ToastText02)
$texts = $content.GetElementsByTagName('text')
[void]$texts.Item(0).AppendChild($content.CreateTextNode($env:NOTICE_TITLE))
[void]$texts.Item(1).AppendChild($content.CreateTextNode($env:NOTICE_TEXT))
$shown_as = '{1AC14E77-02E7-4E5D-B744-2EB1AE5198B7}\WindowsPowerShell\v1.0\powershell.exe'
$manager::CreateToastNotifier($shown_as).Show([Windows.UI.Notifications.ToastNotification]::new($content))
"""
"""Shows a notification as Windows PowerShell's. The texts are variables, and never a part of a script."""

_APPLE_SCRIPT: Final = "on run texts\ndisplay notification (item 2 of texts) with title (item 1 of texts)\nend run"


def main() -> None:
    """Send the message on stdin. The process ends within `TIMEOUT_S`, with all that it has started."""
    values, message = json.load(sys.stdin)
    way = Way(*values)

    def give_up() -> None:
        os.write(1, f"{way.shown}: not done in {TIMEOUT_S:g} s".encode())
        end(os.getpid())
        os._exit(1)

    timer = threading.Timer(TIMEOUT_S, give_up)
    timer.daemon = True
    timer.start()
    try:
        why = send(way, message | {"host": platform.node()})
    except (OSError, ValueError) as error:  # `FetchError`, too
        why = getattr(error, "strerror", None) or str(error)
    timer.cancel()
    os.write(1, f"{way.shown}: {why}".encode() if why else b"")


def send(way: Way, message: Mapping[str, object]) -> str:
    """Send a message. Returns why it was not sent, without secrets; empty if it was.

    Raises:
        OSError: A program cannot be started.
        FetchError: A webhook does not take it.
    """
    body = json.dumps(message).encode()
    if way.webhook:
        from mcpguard.identity.fetch import post  # loads httpx2

        post(way.webhook, body, TIMEOUT_S)
        return ""
    argv, more = (way.command, {}) if way.command else desktop(f"mcpguard: {message['event']}", str(message["text"]))
    process = subprocess.run(
        [shutil.which(argv[0]) or argv[0], *argv[1:]],
        input=body + b"\n",
        env=os.environ | more,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        check=False,
    )
    return f"exit status {process.returncode}" if process.returncode else ""


def desktop(title: str, text: str, system: str = sys.platform) -> tuple[tuple[str, ...], dict[str, str]]:
    """The command that shows a notification, and its variables. No text is a part of a script."""
    if system == "win32":
        shell = system_program(r"WindowsPowerShell\v1.0\powershell")
        return (shell, "-NoProfile", "-NonInteractive", "-Command", _TOAST), {"NOTICE_TITLE": title, "NOTICE_TEXT": text}
    if system == "darwin":
        return (system_program("osascript"), "-e", _APPLE_SCRIPT, title, text), {}
    return ("notify-send", "--app-name=mcpguard", "--", title, html.escape(text, quote=False)), {}  # some show it as markup


if __name__ == "__main__":
    main()
