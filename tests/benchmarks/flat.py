"""Whether a call takes as long with a full store, or under a long policy, as it does with little of either.

The wrappers of all sizes of a kind run at once, each on a store of its own, and take turns. They share a CPU. So the others are
stopped during a turn, and a round begins when the upkeep of all is done: it would delay the calls of another size.
"""

import os
import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from mcpguard.limiter import sliding
from mcpguard.limiter.plan import counter_id
from mcpguard.policy.model import Call, Policy
from mcpguard.policy.parse import parse
from mcpguard.session.journal import Journal
from mcpguard.session.verdict import DecisionRequest
from mcpguard.stores.api import Options
from mcpguard.stores.clock import wall_us
from mcpguard.stores.sqlite import database
from mcpguard.stores.sqlite.call_log import CallLog, log_path
from mcpguard.stores.sqlite.draining import fragment_bytes, row_bytes
from mcpguard.stores.sqlite.memory import pack_log
from mcpguard.stores.sqlite.reader import SqliteReader
from mcpguard.stores.sqlite.store import SqliteStore
from mcpguard.text.digest import number
from mcpguard.text.printing import compact
from tests.end_to_end.host import rule

from .calls import SETTLE, WARM_UP, cpus
from .rounds import Effort, added, percentile, take_turns
from .session import BenchmarkError, Session, ping_pong
from .variants import BARE, BENCH_SERVER, GUARD, Variant


def user_name(at: int) -> str:
    return f"user-{at}@acme.example"


def tool_name(at: int) -> str:
    return f"tool_{at}"


LIMIT = "100000000/1h"
EACH_USER_AND_TOOL = rule(LIMIT, user="*", tool="*")
THREE_LIMITS = EACH_USER_AND_TOOL + rule(LIMIT, user="*") + rule(LIMIT, tool="*")
STORE = "store.db"
MAX_MB = 100_000  # so that nothing is pruned
ROWS_OVER_S = 10 * 86400
COUNTERS_A_USER = 100
LOOK_EVERY_S = 0.01
PATIENCE_S = 60
USER = user_name(0)

TIMES = (
    "added to the median, µs",
    "added to the 99th percentile, µs",
    "added to the first call of a tool, median, µs",
)
START = "start to the answer to the first call, ms"

Curve = dict[str, dict[str, float]]
"""What was found for a kind: what was measured, and the figure of each size."""


@dataclass(frozen=True, slots=True)
class Point:
    label: str
    policy: str = THREE_LIMITS
    fill: Callable[[Path], None] = lambda path: None  # fills the store, which is empty
    tools: tuple[bytes, ...] = (b"echo",)  # which are called in turn
    users: int = 0  # if over 0, between two calls one of so many users makes a call through another wrapper


class Turn(NamedTuple):
    session: Session
    tools: Sequence[bytes] = (b"echo",)
    between: Callable[[], object] | None = None

    @property
    def name(self) -> str:
        return self.session.name

    def times_us(self, count: int) -> list[float]:
        return ping_pong(self.session, count, tools=self.tools, between=self.between)


def points() -> dict[str, list[Point]]:
    return {
        "counters that hold calls": [_counters(size) for size in (100, 1_000, 10_000, 50_000)],
        "audit rows": [_rows(10**power) for power in range(3, 8)],
        "rules": [_rules(10**power) for power in range(1, 5)],
        "users × tools": [_users(*of) for of in ((1, 1), (10, 5), (50, 20), (500, 50))],
    }


def _counters(size: int) -> Point:
    each = parse(EACH_USER_AND_TOOL)
    return Point(f"{size:,}", fill=lambda path: fill_counters(path, each, size // COUNTERS_A_USER, COUNTERS_A_USER))


def _rows(size: int) -> Point:
    return Point(f"{size:,}", fill=lambda path: fill_rows(path, size, over_s=ROWS_OVER_S))


def _rules(size: int) -> Point:
    """Three rules that apply; the others name another user, or a tool by a pattern."""
    tools = [{"tool": f"{tool_name(at)}*"} if at % 2 else {} for at in range(size - 3)]
    others = [rule("10/1h", user=user_name(at), **tool) for at, tool in enumerate(tools, 1)]
    return Point(f"{size:,}", "".join([THREE_LIMITS, *others]))


def _users(users: int, tools: int) -> Point:
    """Each user has a rule, and a counter for each tool, which holds calls."""
    each = parse(EACH_USER_AND_TOOL)
    rules = [rule(LIMIT, user=user_name(at)) for at in range(users)]
    names = tuple([tool_name(at).encode() for at in range(tools)])
    policy = "".join([THREE_LIMITS, *rules])
    return Point(f"{users} × {tools}", policy, lambda path: fill_counters(path, each, users, tools), names, users)


@contextmanager
def other_users(path: Path, point: Point) -> Iterator[Callable[[], object]]:
    """Makes calls as users picked at random, as a second wrapper would. The measured wrapper must follow their records."""
    policy = parse(point.policy)
    journal = Journal("0" * 16)
    dice = random.Random(1)  # noqa: S311 - not for secrets
    requests = [
        DecisionRequest(call, policy.plan(call), compact({"namespace": "default", **call._asdict()}))
        for user in range(point.users)
        for tool in point.tools
        for call in (Call(user_name(user), "bench::interactive::default", "bench", tool.decode()),)
    ]
    with closing(SqliteStore(path, Options(max_bytes=MAX_MB << 20))) as store:
        yield lambda: store.decide([dice.choice(requests)], journal)


def measure(
    effort: Effort, folder: Path, kinds: Mapping[str, Sequence[Point]] | None = None, guard: Variant = GUARD
) -> dict[str, Curve]:
    found = {}
    for at, (title, of_kind) in enumerate((kinds or points()).items()):
        place = folder / str(at)
        found[title] = _curve(of_kind, effort, place, guard)
        shutil.rmtree(place)  # it can be a gigabyte
    return found


def _curve(of_kind: Sequence[Point], effort: Effort, folder: Path, guard: Variant) -> Curve:
    wrappers = {point: _at_home(point, folder / str(at), guard) for at, point in enumerate(of_kind)}
    rounds, count = effort.of(20), effort.of(500)
    few = max(1, count // 10)
    start_ms = {}
    with ExitStack() as stack:
        client_cpus, other_cpus = stack.enter_context(cpus("split"))
        os.sched_setaffinity(0, other_cpus)
        bare = stack.enter_context(BARE.start(BENCH_SERVER, folder))
        bare.handshake()
        turns = [Turn(bare)]
        stores = []
        for point, (wrapper, home) in wrappers.items():
            with wrapper.start(BENCH_SERVER, home) as session:
                session.handshake()  # of a start that finds cold caches and is not counted
                ping_pong(session, 1)
            before = time.perf_counter()
            session = stack.enter_context(wrapper.start(BENCH_SERVER, home))
            session.handshake()
            ping_pong(session, 1)
            start_ms[point.label] = (time.perf_counter() - before) * 1000
            stores.append(home / STORE)
            between = stack.enter_context(other_users(home / STORE, point)) if point.users else None
            turns.append(Turn(session, point.tools, between))
        os.sched_setaffinity(0, client_cpus)
        for turn in turns:
            turn.times_us(WARM_UP)

        def take(turn: Turn) -> tuple[float, ...]:
            for store in stores if turn is turns[0] else ():
                wait_for_upkeep(store)
            with ExitStack() as while_stopped:
                for other in turns:
                    if other is not turn:
                        while_stopped.enter_context(other.session.stopped())
                times_us = turn.times_us(SETTLE + count)[SETTLE:]
                new_tools = [b"new_%d" % at for at in turn.session.ids(few)]
                first_us = ping_pong(turn.session, few, tools=new_tools)
            return percentile(times_us, 50), percentile(times_us, 99), percentile(first_us, 50)

        times = take_turns(turns, rounds, take)
    of_each = {what: {name: [one[at] for one in of] for name, of in times.items()} for at, what in enumerate(TIMES)}
    return {what: added(of, BARE.name) for what, of in of_each.items()} | {START: start_ms}


def wait_for_upkeep(store: Path, patience_s: float = PATIENCE_S) -> None:
    """Wait until a wrapper has moved its calls into the database, about two seconds after it did that last."""
    until_s = time.monotonic() + patience_s
    with closing(CallLog(log_path(store), writable=False)) as log:
        while not log.ends_at(log.drained()):
            if time.monotonic() > until_s:
                raise BenchmarkError(f"{store} has not taken its calls within {patience_s} seconds")
            time.sleep(LOOK_EVERY_S)


def _at_home(point: Point, home: Path, guard: Variant) -> tuple[Variant, Path]:
    """A wrapper of a size, and its home, with a filled store."""
    home.mkdir(parents=True, mode=0o700)
    policy, config, store = home / "policy.toml", home / "config.toml", home / STORE
    policy.write_text(point.policy, encoding="utf-8")
    config.write_text(f"[audit]\nmax_mb = {MAX_MB}\n", encoding="utf-8")
    SqliteStore(store).close()
    point.fill(store)
    files = {"MCPGUARD_CONFIG": str(config), "MCPGUARD_POLICY": str(policy), "MCPGUARD_STORE": f"sqlite:///{store}"}
    return replace(guard, name=point.label, env={**guard.env, **files, "MCPGUARD_USER": USER}), home


def markdown(curves: Mapping[str, Curve]) -> str:
    """A table for each curve. Its last column says how the largest figure compares to that of the smallest size."""
    lines = []
    for title, curve in curves.items():
        heads = [title, *next(iter(curve.values())), "most / first"]
        lines += ["", f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
        for what, of_sizes in curve.items():
            values = [*of_sizes.values()]
            cells = [*(f"{value:,.0f}" for value in values), f"{max(values) / values[0]:.2f}"]
            lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


# Filling a store, faster than calls could: the database is written as draining the log would

NAMESPACE = "default"
CONTEXTS = 500
CHARGES = 3
CHARGE_EVERY_US = 100_000_000

_ROWS = """
    WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < :count)
    INSERT INTO audit
    SELECT i, :namespace, :first_us + i * :step_us, i, 'allowed', (SELECT id FROM temp.context WHERE at = i % :contexts), NULL,
        CAST(i AS TEXT), randomblob(16), NULL, 1 + i % 100, 100, NULL, NULL, NULL, 'ok', 12345
    FROM n
"""


def fill_counters(path: Path, policy: Policy, users: int, tools: int) -> None:
    """Add the counters of users and tools, each with some charges, to a closed store. A call must charge one counter."""
    call = Call(user_name(0), "bench::interactive::default", "bench", tool_name(0))
    (counter,) = policy.plan(call, NAMESPACE).counters
    (limit,) = policy.plan(call, NAMESPACE).limits
    with closing(SqliteReader(path)) as reader:
        now_us = reader.clock()
    log = sliding.EMPTY
    for charge in range(CHARGES, 0, -1):
        log = sliding.charge(log, limit.n, limit.window_us, now_us - charge * CHARGE_EVERY_US)
    packed = pack_log(log)
    labels = (
        counter.label.replace(f'"{call.user}"', f'"{user_name(user)}"').replace(f'"{call.tool}"', f'"{tool_name(tool)}"')
        for user in range(users)
        for tool in range(tools)
    )
    values = sorted((counter_id(label), limit.window_us, label, log[-2], packed) for label in labels)
    with _bulk(path) as db:
        db.executemany("INSERT INTO counter VALUES (?, ?, ?, ?, ?)", values)


def fill_rows(path: Path, count: int, *, over_s: int) -> None:
    """Add so many audit rows of the last `over_s` seconds. Nothing else may have the store open."""
    with _bulk(path) as db:
        db.execute("INSERT OR IGNORE INTO namespace (name) VALUES (?)", (NAMESPACE,))
        (namespace,) = db.execute("SELECT id FROM namespace WHERE name = ?", (NAMESPACE,)).fetchone()
        key = database.key(db) or b""
        who = {"namespace": NAMESPACE, "server": "bench", "user_source": "config", "agent": "bench::interactive::default"}
        of = [{"session": f"{at:016x}", **who, "user": user_name(at), "tool": tool_name(at)} for at in range(CONTEXTS)]
        texts = [*map(compact, of)]
        ids = [number(text, key) for text in texts]
        uses = -(-count // CONTEXTS)
        db.executemany(
            "INSERT INTO fragment VALUES (?, ?, ?, ?)", [(*of, namespace, uses) for of in zip(ids, texts, strict=True)]
        )
        db.execute("CREATE TEMP TABLE context (at INTEGER PRIMARY KEY, id INTEGER)")
        db.executemany("INSERT INTO temp.context VALUES (?, ?)", list(enumerate(ids)))
        first_us, step_us = wall_us() - over_s * 1_000_000, over_s * 1_000_000 // count
        fields = {"count": count, "namespace": namespace, "first_us": first_us, "step_us": step_us, "contexts": CONTEXTS}
        db.execute(_ROWS, fields)
        size = count * row_bytes(len(str(count))) + sum(fragment_bytes(len(text)) for text in texts)
        db.execute("UPDATE namespace SET bytes = ? WHERE id = ?", (size, namespace))
        database.set_position(db, database.position(db)._replace(row=count + 1))


@contextmanager
def _bulk(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(database.connect(path)) as db:
        db.executescript("PRAGMA synchronous = OFF; PRAGMA journal_mode = OFF; PRAGMA cache_size = -65536")
        with database.writing(db):
            yield db
    with path.open("rb") as file:
        os.fsync(file.fileno())  # so that the upkeep of what is measured does not
