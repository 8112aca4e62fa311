"""Fills a store with counters and audit rows, faster than calls could: it writes the database as draining the log would."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from mcpguard.limiter import sliding
from mcpguard.limiter.plan import counter_id
from mcpguard.policy.model import Call, Policy
from mcpguard.stores.clock import wall_us
from mcpguard.stores.sqlite import database
from mcpguard.stores.sqlite.draining import fragment_bytes, row_bytes
from mcpguard.stores.sqlite.memory import pack_log
from mcpguard.stores.sqlite.reader import SqliteReader
from mcpguard.text.digest import number
from mcpguard.text.printing import compact

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


def user_name(at: int) -> str:
    return f"user-{at}@acme.example"


def tool_name(at: int) -> str:
    return f"tool_{at}"


def fill_counters(path: Path, policy: Policy, users: int, tools: int) -> None:
    """Add the counters of so many users and tools, each with some charges. `policy` must charge one counter a call.

    Nothing else may have the store open.
    """
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
