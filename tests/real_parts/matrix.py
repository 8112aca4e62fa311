"""Which clients and servers there are, and what is done with each pair of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .parts import Parts

Json = dict[str, Any]
Command = Callable[[Parts, Path], list[str]]
"""A command line, from what is installed and the folder of a pair."""

MODERN: Final = "2026"


@dataclass(frozen=True)
class Feature:
    """Something beside calls that passes through."""

    steps: Sequence[Json]  # of the client
    judge: Callable[[Sequence[Json]], bool]  # whether the answers of the steps are as they should be
    eras: tuple[str, ...] = ("2024", "2025", "2026")  # the beginnings of the protocol versions that have it
    charged: str = ""  # a tool of which exactly one call must have been charged


@dataclass(frozen=True)
class Server:
    """A server: its command, a tool that is limited to one call, and what else it can do."""

    name: str
    command: Command
    tool: str
    arguments: Json
    answer: str
    features: Mapping[str, Feature] = field(default_factory=dict)
    modern: bool = True


@dataclass(frozen=True)
class Client:
    name: str  # what it says it is
    mode: str  # `auto` or `legacy`
    command: Command  # the program that does a job's steps
    lacks: tuple[str, ...] = ()  # features its SDK does not have, and of which era

    @property
    def label(self) -> str:
        return f"{self.name}, {self.mode}"


def step(what: str, tool: str, arguments: Json | None = None, **more: str) -> Json:
    return {"do": what, "tool": tool, "arguments": arguments or {}, **more}


def says(text: str) -> Callable[[Sequence[Json]], bool]:
    return lambda answers: all(text in str(answer.get("text")) and not answer["is_error"] for answer in answers)


def progressed(*steps: int) -> Callable[[Sequence[Json]], bool]:
    """The first of these at least: the TypeScript SDK 2.x drops what it reads together with the answer."""

    def judge(answers: Sequence[Json]) -> bool:
        seen = answers[0].get("progress", [])
        return bool(seen) and seen == list(steps[: len(seen)]) and not answers[0]["is_error"]

    return judge


_HANDSHAKE = ("2024", "2025")
PROGRESS = Feature(
    [step("hold", "count", {"steps": 3}, then="release")],
    lambda answers: answers[0].get("progress") == [1, 2, 3] and answers[0]["text"] == "counted 3",
)
LOG = Feature([step("log", "say")], lambda answers: "said" in str(answers[0].get("logged")))
CANCEL = Feature(
    [step("cancel", "hang"), step("call", "gave_up")],
    lambda answers: answers[0].get("cancelled") is True and answers[1]["text"] == "gave up",
)
ASKS = Feature(
    [step("call", "ask")],
    lambda answers: answers[0].get("asked") == ["elicitation/create"] and answers[0]["text"] == "hello Ann",
    _HANDSHAKE,
    charged="ask",
)
ROUNDS = Feature(
    [step("call", "ask"), step("call", "ask")],  # the second is over the limit: its first round is
    lambda answers: (
        answers[0].get("asked") == ["elicitation/create"]
        and answers[0]["text"] == "hello Ann"
        and answers[1].get("code") == 429
    ),
    (MODERN,),
    charged="ask",
)
CHANGES = Feature(
    [step("subscribe", "touch", uri="own://thing")], lambda answers: set(answers[0].get("updated", ())) == {"own://thing"}
)
OWN = {"progress": PROGRESS, "asks": ASKS, "log": LOG, "cancel": CANCEL}

_THING = "demo://resource/dynamic/text/1"
EVERYTHING = {
    "progress": Feature([step("call", "trigger-long-running-operation", {"duration": 0.4, "steps": 2})], progressed(1, 2)),
    "asks": Feature(
        [
            step("call", "trigger-elicitation-request"),
            step("call", "trigger-sampling-request", {"prompt": "hi"}),
            step("call", "get-roots-list"),  # it may have asked for them already
        ],
        lambda answers: (
            "elicitation/create" in answers[0].get("asked", ())
            and "sampling/createMessage" in answers[1].get("asked", ())
            and "URI: file:///" in answers[2]["text"]
        ),
    ),
    "log": Feature([step("log", "toggle-simulated-logging", level="debug")], says("Started simulated")),
    "cancel": Feature(
        [step("cancel", "trigger-long-running-operation", {"duration": 1, "steps": 10})],
        lambda answers: answers[0].get("cancelled") is True,
    ),
    "change": Feature(
        [step("subscribe", "toggle-subscriber-updates", uri=_THING)], lambda answers: answers[0].get("updated") == [_THING]
    ),
    "task": Feature(
        [step("task", "simulate-research-query", {"topic": "limits"})],
        says("# Research Report"),
        charged="simulate-research-query",
    ),
}


def _npm(name: str, *arguments: str) -> Command:
    """A published server."""

    def command(parts: Parts, home: Path) -> list[str]:
        script = parts.npm("typescript") / "@modelcontextprotocol" / name / "dist" / "index.js"
        return [parts.node(), str(script), *(argument.format(home=home) for argument in arguments)]

    return command


def _python(venv: str, module: str) -> Command:
    """One of our programs on a Python SDK."""
    return lambda parts, home: [parts.python(venv), "-m", f"tests.real_parts.programs.{module}"]


def _typescript(file: str) -> Command:
    """One of our programs on a TypeScript SDK."""
    return lambda parts, home: parts.program(file)


_ECHO: tuple[str, Json, str] = ("echo", {"message": "é\u2028"}, "echo: é\u2028")
_WORK = Feature([step("task", "work")], says("task task-1"), (MODERN,), charged="work")
SERVERS: Final = (
    Server("everything", _npm("server-everything", "stdio"), *_ECHO[:2], "Echo: é\u2028", EVERYTHING, modern=False),
    Server(
        "filesystem", _npm("server-filesystem", "{home}"), "list_allowed_directories", {}, "Allowed directories:", modern=False
    ),
    Server("memory", _npm("server-memory"), "read_graph", {}, '"entities"', modern=False),
    Server("python-1", _python("python-1", "server_python_1"), *_ECHO, OWN, modern=False),
    Server(
        "python-2",
        _python("python-2", "server_python_2"),
        *_ECHO,
        OWN | {"change": Feature(CHANGES.steps, CHANGES.judge, (MODERN,)), "rounds": ROUNDS, "task": _WORK},
    ),
    Server("typescript-2", _typescript("server_typescript_2.mjs"), *_ECHO, OWN | {"change": CHANGES, "rounds": ROUNDS}),
)


CLIENTS: Final = (
    Client("python-sdk-1", "legacy", _python("python-1", "client_python_1")),
    Client("python-sdk-2", "auto", _python("python-2", "client_python_2"), lacks=("task of 2025",)),
    Client("python-sdk-2", "legacy", _python("python-2", "client_python_2"), lacks=("task of 2025",)),
    Client("typescript-sdk-1", "legacy", _typescript("typescript_1.mjs")),
    Client("typescript-sdk-2", "auto", _typescript("typescript_2.mjs"), lacks=("task of 2025", "task of 2026")),
    Client("typescript-sdk-2", "legacy", _typescript("typescript_2.mjs"), lacks=("task of 2025",)),
)
