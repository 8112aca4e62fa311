"""The process that sends one message: `python -m mcpguard.alerts.deliver`. The message is on stdin; it prints why it failed."""

import contextlib
import html
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping

from mcpguard.alerts import Way
from mcpguard.light_typing import Final
from mcpguard.system_programs import output_of, system_program

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
    way, found = Way(*values), [f"not done in {TIMEOUT_S:g} s"]
    thread = threading.Thread(target=lambda: found.append(send(way, message)), daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    with contextlib.suppress(OSError):  # nobody reads it if the wrapper or the hook has ended
        os.write(1, f"{way.shown}: {found[-1]}".encode() if found[-1] else b"")
    if thread.is_alive():
        _end()


def _end() -> None:
    """End this process, with all that it has started."""
    if sys.platform == "win32":
        output_of("taskkill", "/T", "/F", "/PID", str(os.getpid()), within_s=1.0)
    else:
        os.killpg(0, signal.SIGKILL)


def send(way: Way, message: Mapping[str, object]) -> str:
    """Send a message. Returns why it was not sent, without secrets; empty if it was."""
    try:
        return _send(way, {**message, "host": platform.node()})
    except (OSError, ValueError) as error:  # `FetchError`, too
        return getattr(error, "strerror", None) or str(error)


def _send(way: Way, message: Mapping[str, object]) -> str:
    text = str(message["text"])
    if way.webhook:
        from mcpguard.https import post  # loads httpx2

        post(way.webhook, {**message, "text": html.escape(text, quote=False)}, TIMEOUT_S)
        return ""
    argv, more = (way.command, {}) if way.command else desktop(f"mcpguard: {message['event']}", text)
    process = subprocess.run(
        [shutil.which(argv[0]) or argv[0], *argv[1:]],
        input=json.dumps(message).encode() + b"\n",
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
