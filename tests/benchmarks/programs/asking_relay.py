"""The least relay that asks a server something before it passes a frame on: `asking_relay.py PORT SHA COMMAND...`.

What it adds beyond the least relay is one round trip, in the place and at the moment at which a limiter makes its own.
"""

import os
import socket
import sys
import threading

sys.path.insert(0, os.path.dirname(__file__))  # noqa: PTH120 - we run isolated

from least_relay import pump, start  # noqa: E402


def pump_and_ask(source: int, sink: int, link: socket.socket, question: bytes) -> None:
    while data := os.read(source, 65536):
        link.sendall(question)
        link.recv(64)
        view = memoryview(data)
        while view:
            view = view[os.write(sink, view) :]
    os.close(sink)


def main(port: int, sha: str, command: list[str]) -> None:
    link = socket.create_connection(("127.0.0.1", port))
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    question = b"*3\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n0\r\n" % sha.encode()
    server, to_server, from_server = start(command)
    threading.Thread(target=pump_and_ask, args=(0, to_server, link, question), daemon=True).start()
    pump(from_server, 1)
    _, status = os.waitpid(server, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
