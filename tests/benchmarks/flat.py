"""Whether a call takes as long with a full store, or under a long policy, as it does with little of either.

The wrappers of all sizes of a kind run at once, each on a store of its own, and take turns. They share a CPU. So the others are
stopped during a turn, and a round begins when the upkeep of all is done: it would delay the calls of another size.
"""

import os
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

from mcpguard.policy.model import Call
from mcpguard.policy.parse import parse
from mcpguard.session.journal import Journal
from mcpguard.session.verdict import DecisionRequest
from mcpguard.stores.api import Options
from mcpguard.stores.sqlite.call_log import CallLog, log_path
from mcpguard.stores.sqlite.store import SqliteStore
from mcpguard.text.printing import compact

from .calls import SETTLE, WARM_UP, cpus
from .effort import Effort
from .filling import create, fill_counters, fill_rows, tool_name, user_name
from .report import added, percentile
from .session import INITIALIZE, BenchmarkError, Session, echo_call, ping_pong
from .variants import BARE, BENCH_SERVER, GUARD, Variant

LIMIT = "100000000/1h"
EACH_USER_AND_TOOL = f'[[rule]]\nuser = "*"\ntool = "*"\nlimit = "{LIMIT}"\n'
THREE_LIMITS = f'{EACH_USER_AND_TOOL}\n[[rule]]\nuser = "*"\nlimit = "{LIMIT}"\n\n[[rule]]\ntool = "*"\nlimit = "{LIMIT}"\n'
STORE = "store.db"
MAX_MB = 100_000  # so that nothing is pruned
ROWS_OVER_S = 10 * 86400
COUNTERS_A_USER = 100
LOOK_EVERY_S = 0.01
PATIENCE_S = 60
USER = user_name(0)


@dataclass(frozen=True, slots=True)
class Point:
    """One size of a kind.

    Attributes:
        label: It as text.
        policy: The policy's text.
        fill: Fills the store.
        tools: The tools that are called in turn.
        users: If over 0, between two calls one of so many users makes a call through another wrapper.
    """

    label: str
    policy: str = THREE_LIMITS
    fill: Callable[[Path], None] = create
    tools: Sequence[bytes] = (b"echo",)
    users: int = 0


@dataclass(frozen=True, slots=True)
class Curve:
    """What was found for a kind.

    Attributes:
        title: What the sizes count.
        labels: The sizes.
        lines: The figures of each size, by what was measured.
    """

    title: str
    labels: Sequence[str]
    lines: Mapping[str, Sequence[float]]


def points() -> dict[str, list[Point]]:
    """The sizes of each kind."""
    return {
        "counters that hold calls": [_counters(10**power) for power in range(2, 7)],
        "audit rows": [_rows(10**power) for power in range(3, 8)],
        "rules": [_rules(10**power) for power in range(1, 5)],
        "users × tools": [_users(*of) for of in ((1, 1), (10, 5), (50, 20), (500, 50))],
    }


def _counters(size: int) -> Point:
    def fill(path: Path) -> None:
        create(path)
        fill_counters(path, parse(EACH_USER_AND_TOOL), size // COUNTERS_A_USER, COUNTERS_A_USER)

    return Point(f"{size:,}", fill=fill)


def _rows(size: int) -> Point:
    def fill(path: Path) -> None:
        create(path)
        fill_rows(path, size, over_s=ROWS_OVER_S)

    return Point(f"{size:,}", fill=fill)


def _rules(size: int) -> Point:
    """Three rules that apply; the others name another user, or a tool by a pattern."""
    others = [
        f'[[rule]]\nuser = "{user_name(1 + at)}"\n{tool}limit = "10/1h"\n'
        for at in range(size - 3)
        for tool in (f'tool = "{tool_name(at)}*"\n' if at % 2 else "",)
    ]
    return Point(f"{size:,}", "\n".join([THREE_LIMITS, *others]))


def _users(users: int, tools: int) -> Point:
    """Each user has a rule, and a counter for each tool, which holds calls."""

    def fill(path: Path) -> None:
        create(path)
        fill_counters(path, parse(EACH_USER_AND_TOOL), users, tools)

    rules = [f'[[rule]]\nuser = "{user_name(at)}"\nlimit = "{LIMIT}"\n' for at in range(users)]
    names = [tool_name(at).encode() for at in range(tools)]
    return Point(f"{users} × {tools}", "\n".join([THREE_LIMITS, *rules]), fill, names, users)


class OtherUsers:
    """Makes calls as users picked at random, as a second wrapper would. The measured wrapper must follow their records."""

    def __init__(self, path: Path, point: Point) -> None:
        policy = parse(point.policy)
        self._store = SqliteStore(path, Options(max_bytes=MAX_MB << 20))
        self._journal = Journal("0" * 16)
        self._random = random.Random(1)  # noqa: S311 - not for secrets
        self._requests = [
            DecisionRequest(call, policy.plan(call), compact({"namespace": "default", **call._asdict()}))
            for user in range(point.users)
            for tool in point.tools
            for call in (Call(user_name(user), "bench::interactive::default", "bench", tool.decode()),)
        ]

    def call(self) -> None:
        self._store.decide([self._random.choice(self._requests)], self._journal)

    def close(self) -> None:
        self._store.close()


def measure(effort: Effort, folder: Path, kinds: Mapping[str, Sequence[Point]], guard: Variant = GUARD) -> list[Curve]:
    curves = []
    for at, (title, of_kind) in enumerate(kinds.items()):
        place = folder / str(at)
        curves.append(_curve(title, of_kind, effort, place, guard))
        shutil.rmtree(place)  # it can be a gigabyte
    return curves


def _curve(title: str, of_kind: Sequence[Point], effort: Effort, folder: Path, guard: Variant) -> Curve:
    homes = {point.label: _home(point, folder / str(at)) for at, point in enumerate(of_kind)}
    p50: dict[str, list[float]] = {name: [] for name in (BARE.name, *homes)}
    p99: dict[str, list[float]] = {name: [] for name in p50}
    first: dict[str, list[float]] = {name: [] for name in p50}
    start_ms = {}
    turns: list[tuple[Session, Sequence[bytes], Callable[[], object] | None]] = []
    with ExitStack() as stack:
        client_cpus, other_cpus = stack.enter_context(cpus("split"))
        os.sched_setaffinity(0, other_cpus)
        bare = stack.enter_context(BARE.start(BENCH_SERVER, folder))
        bare.handshake()
        turns.append((bare, (b"echo",), None))
        for point in of_kind:
            home = homes[point.label]
            with _at_home(guard, home, point.label).start(BENCH_SERVER, home) as session:
                _first_call(session)  # of a start that finds cold caches and is not counted
            before = time.perf_counter()
            session = stack.enter_context(_at_home(guard, home, point.label).start(BENCH_SERVER, home))
            _first_call(session)
            start_ms[point.label] = (time.perf_counter() - before) * 1000
            others = stack.enter_context(closing(OtherUsers(home / STORE, point))) if point.users else None
            turns.append((session, point.tools, others.call if others else None))
        os.sched_setaffinity(0, client_cpus)
        settle, (rounds, count) = SETTLE, effort.flat
        few = max(1, count // 10)
        for session, tools, between in turns:
            ping_pong(session, 1, WARM_UP, tools=tools, between=between)
        for number in range(rounds):
            if number:
                for home in homes.values():
                    wait_for_upkeep(home / STORE)
            new_tools = [b"new_%d_%d" % (number, at) for at in range(few)]
            for session, tools, between in turns:
                with ExitStack() as while_stopped:
                    for other, _, _ in turns:
                        if other is not session:
                            while_stopped.enter_context(other.stopped())
                    times_us = ping_pong(session, 1, settle + count, tools=tools, between=between)[settle:]
                    first_us = ping_pong(session, 1, few, tools=new_tools)
                p50[session.name].append(percentile(times_us, 50))
                p99[session.name].append(percentile(times_us, 99))
                first[session.name].append(percentile(first_us, 50))
    labels = [point.label for point in of_kind]
    found = {
        "added to the median, µs": added(p50, BARE.name),
        "added to the 99th percentile, µs": added(p99, BARE.name),
        "added to the first call of a tool, median, µs": added(first, BARE.name),
        "start to the answer to the first call, ms": start_ms,
    }
    return Curve(title, labels, {what: [values[label] for label in labels] for what, values in found.items()})


def wait_for_upkeep(store: Path, patience_s: float = PATIENCE_S) -> None:
    """Wait until a wrapper has moved its calls into the database, about two seconds after it did that last."""
    until_s = time.monotonic() + patience_s
    with closing(CallLog(log_path(store), writable=False)) as log:
        while not log.ends_at(log.drained()):
            if time.monotonic() > until_s:
                raise BenchmarkError(f"{store} has not taken its calls within {patience_s} seconds")
            time.sleep(LOOK_EVERY_S)


def _first_call(session: Session) -> None:
    session.write(INITIALIZE)
    session.read_answer(0)
    session.write(echo_call(1))
    session.read_answer(1)


def _home(point: Point, home: Path) -> Path:
    home.mkdir(parents=True, mode=0o700)
    (home / "policy.toml").write_text(point.policy, encoding="utf-8")
    (home / "config.toml").write_text(f"[audit]\nmax_mb = {MAX_MB}\n", encoding="utf-8")
    point.fill(home / STORE)
    return home


def _at_home(guard: Variant, home: Path, name: str) -> Variant:
    names = {"MCPGUARD_CONFIG": home / "config.toml", "MCPGUARD_POLICY": home / "policy.toml"}
    env = {**{name: str(path) for name, path in names.items()}, "MCPGUARD_STORE": f"sqlite:///{home / STORE}"}
    return replace(guard, name=name, env={**guard.env, **env, "MCPGUARD_USER": USER})


def markdown(curves: Sequence[Curve]) -> str:
    """A table for each curve. Its last column says how the largest figure compares to that of the smallest size."""
    lines = []
    for curve in curves:
        heads = [curve.title, *curve.labels, "most / first"]
        lines += ["", f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
        for what, values in curve.lines.items():
            cells = [*(f"{value:,.0f}" for value in values), f"{max(values) / values[0]:.2f}"]
            lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])
