"""The least that a relay in Python can be: two blocking loops in two threads that read nothing into what they move.

No limiter written in Python as a process of its own can add less time to a call than this does.
"""

import os
import sys
import threading


def pump(source: int, sink: int) -> None:
    while data := os.read(source, 65536):
        view = memoryview(data)
        while view:
            view = view[os.write(sink, view) :]
    os.close(sink)


def start(command: list[str]) -> tuple[int, int, int]:
    """The process of a command, and the ends of its stdin and stdout."""
    server_stdin, to_server = os.pipe()
    from_server, server_stdout = os.pipe()
    places = [(os.POSIX_SPAWN_DUP2, server_stdin, 0), (os.POSIX_SPAWN_DUP2, server_stdout, 1)]
    server = os.posix_spawnp(command[0], command, os.environ, file_actions=places)
    os.close(server_stdin)
    os.close(server_stdout)
    return server, to_server, from_server


def main(command: list[str]) -> None:
    server, to_server, from_server = start(command)
    threading.Thread(target=pump, args=(0, to_server), daemon=True).start()
    pump(from_server, 1)
    _, status = os.waitpid(server, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


if __name__ == "__main__":
    main(sys.argv[1:])
