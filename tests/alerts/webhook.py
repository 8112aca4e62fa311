"""A server that takes messages."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.web_server import reply, serving


class Webhook:
    """A server that notes what is posted.

    Attributes:
        url: Where to post. The path holds a secret.
        status: How it answers.
        location: The header `Location` of its answers; empty for none.
        got: The paths that were asked for, and what was posted there.
        answers: Set while it answers; else it keeps a request waiting.
    """

    def __init__(self) -> None:
        self.url = ""
        self.status = 204
        self.location = ""
        self.got: list[tuple[str, str, Any]] = []
        self.answers = threading.Event()
        self.answers.set()

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [message for _, _, message in self.got]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        self.got.append((handler.path, handler.headers["Content-Type"], json.loads(body)))
        self.answers.wait(60)
        reply(handler, self.status, {"Location": self.location} if self.location else {})


@contextmanager
def webhook() -> Iterator[Webhook]:
    hook = Webhook()
    with serving(hook.answer) as server:
        hook.url = f"http://127.0.0.1:{server.server_port}/hooks/s3cret"
        try:
            yield hook
        finally:
            hook.answers.set()
