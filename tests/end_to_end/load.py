"""Eight wrappers of one store under load, some of which are killed, and what an observer at both ends saw."""

import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.end_to_end.host import Host, Message, call, script, until

WRAPPERS = 8
MOST_PAUSE_S = 0.01
"""How long a client pauses at most after a denial, so that the wrappers wait for the store and not for a CPU."""

Next = Callable[[random.Random], tuple[str, Message]]
"""Chooses the tool and the arguments of the next call."""


def now_us() -> int:
    return time.monotonic_ns() // 1000


class Seen(NamedTuple):
    """A call, as the client and the server saw it. Times are in microseconds, by the clock of the machine.

    Attributes:
        wrapper: The life of a wrapper that the call was sent to.
        number: The call's number in that life.
        tool: Its tool.
        arguments: Its arguments.
        sent_us: When the client was about to send it.
        begun_us: When the server got it; None if it did not.
        ended_us: When the server was about to answer; or the wrapper was about to be killed; None if neither happened.
        answered_us: When the client had the answer; None if it got none.
        answer: The answer; None if the client got none.
    """

    wrapper: str
    number: int
    tool: str
    arguments: Message
    sent_us: int
    begun_us: int | None
    ended_us: int | None
    answered_us: int | None
    answer: Message | None

    @property
    def reason(self) -> str:
        """Why the call was denied; empty if it was not, or was not answered."""
        return str(self.answer["error"]["data"]["reason"]) if self.answer and "error" in self.answer else ""

    @property
    def failed(self) -> bool:
        return bool(self.answer and self.answer.get("result", {}).get("isError"))


class Load:
    """Runs eight wrappers until so many calls were admitted, each with a client that has some calls in flight.

    Args:
        home: The folder for `MCPGUARD_HOME`, with the policy.
        choose: Chooses the tool and the arguments of a call.
        at_once: How many calls a client has in flight.
        kills: How many wrappers are killed meanwhile.
        env: Further environment variables of the wrappers.
        tuned: Constants of the wrappers with other values; see `host.program`.
    """

    def __init__(
        self,
        home: Path,
        choose: Next,
        *,
        at_once: int = 1,
        kills: int = 4,
        env: Mapping[str, str] | None = None,
        tuned: Mapping[str, object] | None = None,
    ) -> None:
        self._home, self._choose, self._at_once, self._kills = home, choose, at_once, kills
        self._env, self._tuned = dict(env or {}), tuned
        self._log = home / "calls.jsonl"
        self._sent: dict[str, tuple[str, int, str, Message, int]] = {}
        self._answers: dict[str, tuple[int, Message]] = {}
        self._killed_us: dict[str, int] = {}
        self._answering: dict[str, Host] = {}  # lives of wrappers that have answered, and were not killed
        self._admitted = 0
        self._is_over = threading.Event()
        self.errors: list[BaseException] = []

    def run(self, admitted: int) -> list[Seen]:
        """Run, and return all calls in the order in which they were sent.

        Args:
            admitted: How many answers that are results end the run. The wrappers are killed at equal distances before that.
        """
        clients = [threading.Thread(target=self._client, args=(at,)) for at in range(WRAPPERS)]
        for client in clients:
            client.start()
        chance = random.Random(1)  # noqa: S311 - no secret
        try:
            for killed in range(1, self._kills + 1):
                self._await(killed * admitted // (self._kills + 1))
                if self._answering:
                    name = chance.choice(sorted(self._answering))
                    host = self._answering.pop(name)
                    self._killed_us[name] = now_us()
                    host.kill()
            self._await(admitted)
        finally:
            self._is_over.set()
        for client in clients:
            client.join()
        assert not self.errors, self.errors
        return self._seen()

    def _await(self, admitted: int) -> None:
        until(lambda: bool(self.errors) or self._admitted >= admitted, f"{admitted} calls were admitted")

    def _client(self, at: int) -> None:
        try:
            for life in itertools.count():
                if self._is_over.is_set():
                    return
                self._live(f"{at}.{life}", random.Random(f"{at}.{life}"))  # noqa: S311 - no secret
        except BaseException as error:
            self.errors.append(error)

    def _live(self, name: str, chance: random.Random) -> None:
        """Call until time is over or the wrapper was killed."""
        command = script("timed", self._log)
        options = ("--user", "alice", "--server", "crm")
        with Host(self._home, *command, options=options, env=self._env, tuned=self._tuned) as host:
            waiting = 0
            for number in itertools.count():
                if self._is_over.is_set():
                    host.stdin.close()
                elif waiting < self._at_once:
                    tool, arguments = self._choose(chance)
                    self._sent[f"{name}.{number}"] = name, number, tool, arguments, now_us()
                    try:
                        host.send(call(f"{name}.{number}", tool, arguments))
                    except BrokenPipeError:
                        return
                    waiting += 1
                    continue
                while (line := host.line()) and "method" in json.loads(line):
                    pass
                if not line:
                    return
                answer = json.loads(line)
                self._answers[answer["id"]] = now_us(), answer
                waiting -= 1
                if "result" in answer:
                    self._admitted += 1
                    if name not in self._killed_us:
                        self._answering[name] = host
                else:
                    self._is_over.wait(chance.random() * MOST_PAUSE_S)

    def _seen(self) -> list[Seen]:
        begun: dict[str, int] = {}
        ended: dict[str, int] = {}
        for line in self._log.read_text().splitlines():
            at_us, what, request_id = json.loads(line)
            (begun if what == "begin" else ended)[request_id] = at_us
        found = []
        for request_id, (name, number, tool, arguments, sent_us) in self._sent.items():
            answered_us, answer = self._answers.get(request_id, (None, None))
            ends = (ended.get(request_id), self._killed_us.get(name))  # the server of a killed wrapper may go on for a moment
            end_us = min((end_us for end_us in ends if end_us is not None), default=None)
            found.append(Seen(name, number, tool, arguments, sent_us, begun.get(request_id), end_us, answered_us, answer))
        return sorted(found, key=lambda one: one.sent_us)


def most_at_once(calls: list[Seen]) -> int:
    """The most calls that the server had in flight at once."""
    steps = sorted(
        itertools.chain.from_iterable(
            ((one.begun_us, 1), (one.ended_us, -1)) for one in calls if one.begun_us is not None and one.ended_us is not None
        )
    )
    return max(itertools.accumulate(step for _, step in steps), default=0)


def most_in_a_window(calls: list[Seen], window_us: int, cost: Callable[[Seen], int] = lambda _: 1) -> int:
    """The most cost of calls that were surely admitted within one window: sent in it, and begun in it."""
    begun = [one for one in calls if one.begun_us is not None]
    return max((sum(_costs(begun, first.sent_us, window_us, cost)) for first in begun), default=0)


def _costs(calls: list[Seen], from_us: int, window_us: int, cost: Callable[[Seen], int]) -> Iterator[int]:
    for one in calls:
        if one.begun_us is not None and one.sent_us >= from_us and one.begun_us < from_us + window_us:
            yield cost(one)
