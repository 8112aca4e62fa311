"""Whether a call takes as long with a full store, or under a long policy, as it does with little of either."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from mcpguard.limiter.plan import Counter, counter_id
from mcpguard.session.audit import Row as AuditRow
from mcpguard.stores.clock import wall_us
from mcpguard.stores.sqlite.store import SqliteStore
from mcpguard.text.printing import compact
from tests.end_to_end.host import rule

from .calls import SPLIT_ONE, more, take_calls
from .rounds import Effort, Row
from .variants import BARE, BENCH_SERVER, GUARD, POLICY, Variant

BATCH = 5000
HOUR_US = 3_600_000_000


def measure(effort: Effort, folder: Path, guard: Variant = GUARD) -> list[Row]:
    """Calls through wrappers that differ in the size of their store or of their policy. They take turns."""
    counters, rows, rules = folder / "counters.db", folder / "rows.db", folder / "rules.toml"
    fill(counters, effort.of(10), add_counters)
    fill(rows, effort.of(200), add_rows)
    others = [rule("10/1h", user=f"user-{at}", tool=f"tool_{at}*") for at in range(effort.of(10_000))]
    rules.write_text(POLICY + "".join(others), encoding="utf-8")
    variants = {
        "50,000 counters": {"MCPGUARD_STORE": f"sqlite:///{counters}"},
        "a million audit rows": {"MCPGUARD_STORE": f"sqlite:///{rows}"},
        "10,000 rules": {"MCPGUARD_POLICY": str(rules)},
    }
    sizes = [replace(guard, name=name, env={**guard.env, **env}) for name, env in variants.items()]
    split, one = take_calls([BARE, guard, *sizes], BENCH_SERVER, folder, effort.of(20), effort.of(500))
    text = f"time added to a call (median), with a new store and three rules, {SPLIT_ONE}"
    return [Row(text, more(50, split, one), "µs")]


def fill(path: Path, batches: int, add: Callable[[SqliteStore, int], object]) -> None:
    """Make a store, and fill it in batches. Closing it moves them from the call log into the database."""
    for at in range(batches):
        with closing(SqliteStore(path)) as store:
            add(store, at)


def add_counters(store: SqliteStore, batch: int) -> None:
    """Add counters with one call each."""
    labels = [compact(["default", {"user": f"user-{batch}-{at}"}, {}, HOUR_US]) for at in range(BATCH)]
    store.adopt([(Counter(counter_id(label), label, HOUR_US), (0, 0, 1)) for label in labels], f"batch {batch}")


def add_rows(store: SqliteStore, batch: int) -> None:
    """Add audit rows of a session of its own."""
    caller: Mapping[str, object] = {"namespace": "default", "session": f"{batch:016x}", "server": "bench", "user": "alice"}
    context = compact({**caller, "agent": "bench::interactive::default", "tool": "echo"})
    store.append([AuditRow(wall_us(), seq, "allowed", context, request_id=f"{seq}") for seq in range(1, BATCH + 1)])
