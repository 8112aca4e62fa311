"""Runs the hook of a client: reads its input, answers within a second, and prints nothing but the answer."""

import contextlib
import json
import os
import sys
import time
from _thread import allocate_lock, start_new_thread  # `threading` takes a millisecond to load
from collections.abc import Callable, Mapping

from mcpguard.errors import ExitStatus, McpguardError
from mcpguard.light_typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from mcpguard.config import Settings

TIMEOUT_S: Final = 0.9
"""The longest that a hook works, because a call waits for it: with its start and its end it takes a second."""

LAST_S: Final = 0.05
"""How long an answer that is being printed when the time is up may still take."""

MAX_INPUT_BYTES: Final = 16 * 1024 * 1024
"""The longest input, which includes the call's arguments."""

MOST_TIMEOUT_MS: Final = 500
"""The longest time that a deciding hook waits for the store, however long `timeout_ms` is."""


def run(*, name: str, enforce: bool, **options: Any) -> NoReturn:
    """Run a hook, and end this process. The exit status is always 0: after another one, a client may stop the call.

    Args:
        name: The name of the hook.
        enforce: Whether it decides calls. Else it only leaves a note of which agent makes a call.
        options: The options of `config.load`; and `observe`: decide and log, but deny nothing.
    """
    answer = _HookAnswer(name)
    with contextlib.suppress(Exception):  # the system has no thread left: a tool that a rule closes stays closed
        start_new_thread(answer.give_in_time, ())
    with contextlib.suppress(BaseException):  # no error may stop a call that the hook does not decide
        if enforce:
            _decide(answer, options)
        else:
            answer.text = _note(name, _input(), options)
    answer.give()


def refuse(name: str, reason: str) -> NoReturn:
    """Deny a call, because the hook has options that this mcpguard does not know, and end this process."""
    answer = _HookAnswer(name)
    answer.deny(reason)
    answer.give()


class _HookAnswer:
    """What the hook prints, at once or when its time is up.

    Args:
        name: The name of the hook.

    Attributes:
        name: The same.
        text: The answer as far as it is known.
        last: Called once the answer is printed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._giving = allocate_lock()
        self.text = b""
        self.last: Callable[[], None] = lambda: None

    def deny(self, reason: str) -> None:
        """Answer that the call is denied, for this reason."""
        from mcpguard.hook.shown import CLIENTS

        self.text = json.dumps(CLIENTS[self.name].denial(reason)).encode() + b"\n"

    def give_in_time(self) -> NoReturn:
        """Print the answer when the time is up."""
        time.sleep(TIMEOUT_S)
        self.give()

    def give(self) -> NoReturn:
        """Print the answer, and end the process at once: the end of the interpreter would wait for threads."""
        if self._giving.acquire(timeout=LAST_S):  # else another thread prints, and nobody reads
            with contextlib.suppress(BaseException):
                output = self.text
                while output:
                    output = output[os.write(1, output) :]
                self.last()
        os._exit(ExitStatus.OK)


def _input() -> dict[str, Any]:
    """The JSON object on stdin; an empty one for another value.

    Raises:
        ValueError: It is not JSON, or too long.
        RecursionError: It is nested too deeply.
    """
    data = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
    if len(data) > MAX_INPUT_BYTES:
        raise ValueError(f"it has over {MAX_INPUT_BYTES >> 20} MiB")
    value = json.loads(data)
    return value if isinstance(value, dict) else {}


def _decide(answer: _HookAnswer, options: Mapping[str, Any]) -> None:
    """Decide the call on stdin. What cannot be judged is denied, as by `mcpguard run`: a model writes a part of it."""
    from mcpguard.hook.shown import CLIENTS

    settings, call, decision = None, None, None
    try:
        settings = _settings(options)
        if settings.on_unavailable == "deny":
            answer.deny("mcpguard could not decide this call in time. Try again in a few seconds.")
    except McpguardError as error:
        answer.deny(_cannot(error))
    try:
        given = _input()
    except (ValueError, RecursionError):
        answer.deny("mcpguard cannot judge this call: the hook's input is not JSON, or too long or too deeply nested.")
        return
    try:
        call = CLIENTS[answer.name].shown(given)
        if call is None:
            answer.text = b""
            if answer.name == "copilot":  # its second hook, before a call of a server, tells the call's id
                with contextlib.suppress(Exception):
                    answer.text = _note(answer.name, given, options)
            return
        if settings is None:
            answer.text = b"" if call.has_failed else answer.text
            return
        from mcpguard.hook.deciding import HookDecision

        settings = settings._replace(timeout_ms=min(settings.timeout_ms, MOST_TIMEOUT_MS))
        decision = HookDecision(answer.name, given, call, settings, options)
        if told := not call.has_failed and decision.denial_if_late:
            answer.deny(told)
        reason = decision.result()
    except McpguardError as error:
        reason = _cannot(error)
    except Exception as error:
        reason = f"mcpguard failed to judge this call: {error!r}"
    if reason is None or (call and call.has_failed):
        answer.text = b""
    else:
        answer.deny(reason)
    if decision:
        decision.finish()
        answer.last = decision.notify


def _cannot(error: McpguardError) -> str:
    return f"mcpguard cannot decide calls: {error.message} ({error.hint})"


def _settings(options: Mapping[str, Any]) -> "Settings":
    from mcpguard import config

    settings = config.load(os.environ, **{key: value for key, value in options.items() if key != "observe"})
    return settings._replace(observe=options["observe"] or settings.observe)


def _note(name: str, hook_input: Mapping[str, Any], options: Mapping[str, Any]) -> bytes:
    """Leave the note, if there is one to leave. Returns what the hook prints.

    Raises:
        Exception: The note could not be written.
    """
    from mcpguard.identity.client_agents import HOOKS, agent_note, meta_with_id

    note = agent_note(HOOKS[name], hook_input, os.environ)
    if note is None:
        return b""
    settings = _settings(options)
    wall_us, timeout_s = time.time_ns() // 1000, settings.timeout_ms / 1000
    settings.address.leave_note(settings.namespace, note, wall_us=wall_us, timeout_s=timeout_s)
    call_meta = meta_with_id(hook_input, note.key) if HOOKS[name].adds_id else None
    return b"" if call_meta is None else json.dumps({"metaToUse": call_meta}, allow_nan=False).encode() + b"\n"
