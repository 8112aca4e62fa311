"""A server that takes messages."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Webhook:
    """A server that notes what is posted.

    Attributes:
        url: Where to post. The path holds a secret.
        status: How it answers.
        location: The header `Location` of its answers; empty for none.
        got: The paths that were asked for, and what was posted there.
        answers: Set while it answers; else it keeps a request waiting.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/hooks/s3cret"
        self.status = 204
        self.location = ""
        self.got: list[tuple[str, str, Any]] = []
        self.answers = threading.Event()
        self.answers.set()

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [message for _, _, message in self.got]


@contextmanager
def webhook() -> Iterator[Webhook]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            here.got.append((self.path, self.headers["Content-Type"], json.loads(body)))
            here.answers.wait(60)
            self.send_response(here.status)
            if here.location:
                self.send_header("Location", here.location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            here.got.append((self.path, "GET", None))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here = Webhook(server.server_port)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield here
    finally:
        here.answers.set()
        server.shutdown()
        thread.join()
        server.server_close()
