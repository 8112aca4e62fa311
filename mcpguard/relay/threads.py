"""Starts the threads of a session, also on a system that has no thread left."""

import threading
from collections.abc import Callable

from mcpguard.errors import LOOK_AT_LIMITS, McpguardError


def start(work: Callable[[], None], name: str) -> threading.Thread:
    """Run a function in a thread that the process does not wait for.

    Args:
        work: The function.
        name: The thread's name.

    Raises:
        McpguardError: The system has no thread left.
    """
    thread = threading.Thread(target=work, name=f"mcpguard-{name}", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise McpguardError(f"cannot serve: {error}", LOOK_AT_LIMITS) from error
    return thread


def start_last(work: Callable[[], None], name: str, timeout_s: float = 0.0) -> None:
    """Run a function at the end of the session, in a thread, and wait for it, at most this long.

    Without a thread it runs at once, however long it takes. A client that reads, and a store that answers, cause no wait.
    """
    try:
        thread = start(work, name)
    except McpguardError:
        work()
    else:
        thread.join(timeout_s)
