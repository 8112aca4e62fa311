"""Counters and audit in one SQLite file, shared by every wrapper of an account.

One decision is one transaction behind a fair queue: the clock is read in it, and one audit row tells both what became of the
call and what it was charged on. For a single call, decided by what this process remembers, that transaction is one statement:
it writes the row only if nobody has written another since.
"""

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from mcpguard.core import audit, limiter
from mcpguard.core.audit import Outcome, Row
from mcpguard.core.claude_code import AgentNote
from mcpguard.core.journal import Journal
from mcpguard.core.limiter import Decision, State
from mcpguard.core.policy import Counter, Plan, counter_id
from mcpguard.core.verdict import Charge, Verdict
from mcpguard.stores import counters, notes, sqlite_audit
from mcpguard.stores.base import Clock, Entry, Held, decide_one, wall_us
from mcpguard.stores.counters import FOLD_AT_MOST, Remembered
from mcpguard.stores.sqlite_file import SqliteFile
from mcpguard.stores.upkeep import Upkeep

_OUTCOMES_AT_ONCE: Final = 500
_UNCHARGED: Final = (Plan(), Decision(False, (), (), ()))
"""What is decided of a row that no charge is for."""


class SqliteStore:
    """A store in one file.

    Args:
        path: The file; it and its folder are made if they are missing, with modes 0600 and 0700.
        timeout_ms: How long a decision waits for its turn.
        durability: `full` forces each decision to the disk before the call is forwarded; `normal` leaves that to the system,
            so that a power cut can lose the last ones.
        namespace: Whose audit rows are pruned: others of the file have settings of their own.
        keep_us: How long they are kept.
        max_bytes: How much of the file they may take before the oldest go.
        clock: The store's time, instead of the machine's own.
        wall: Wall-clock time, for the audit.

    Raises:
        StoreUnavailable: The file cannot be made, is no database, lies on a network file system, was written by a later
            program, or another machine has it.
    """

    restless = False
    warnings: tuple[str, ...] = ()

    def __init__(
        self,
        path: Path,
        *,
        timeout_ms: int = 250,
        durability: str = "normal",
        namespace: str = "default",
        keep_us: int = 30 * 86400 * 1_000_000,
        max_bytes: int = 256 * 1024 * 1024,
        clock: Clock | None = None,
        wall: Clock = wall_us,
    ) -> None:
        self.path = path
        self._wall = wall
        self._upkeep = Upkeep(path, namespace=namespace, keep_us=keep_us, max_bytes=max_bytes)
        self._file = SqliteFile(path, timeout_s=timeout_ms / 1000, durability=durability, own_clock=clock, wall=wall)
        self._clock = self._file.clock
        self._db = self._file.db
        self._cursor = self._db.cursor()
        self._alone = True  # nobody else wrote between our last two decisions: it is likely that nobody did since
        self.args_key = self._file.args_key
        self._remembered = Remembered(self.args_key)

    def decide(self, charges: Sequence[Charge], journal: Journal) -> list[Verdict]:
        """See `Store`."""
        self._file.take_turn()
        try:
            verdict = self._decide_next(charges[0], journal) if self._alone and len(charges) == 1 else None
            return [verdict] if verdict else self._decide_all(charges, journal)
        except (sqlite3.Error, OSError) as error:
            raise self._file.unavailable(error) from error
        finally:
            self._file.queue.release()

    def _decide_next(self, charge: Charge, journal: Journal) -> Verdict | None:
        """Decide one charge by what is remembered; None, and nothing has happened, if that does not do."""
        remembered, plan = self._remembered, charge.plan
        logs = [remembered.states.get(counter.id) for counter in plan.counters]
        if None in logs or remembered.seen - self._upkeep.folded >= FOLD_AT_MOST:
            return None
        verdict, decision = decide_one(charge, logs, self._clock())  # type: ignore[arg-type]
        if not verdict.forwards:
            return self._refuse(charge, verdict, journal)
        row = audit.row(charge, verdict, self._wall(), journal.seq + 1)
        charged_us, charged = _charged(plan, decision)
        numbers = remembered.numbers
        try:
            statement, values = sqlite_audit.insert_if_next(
                remembered.seen, row, numbers[row.context], numbers[row.reported], charged_us, numbers[charged]
            )
        except KeyError:  # a text that is not in the file yet
            return None
        cursor = self._cursor.execute(statement, values)
        if not cursor.rowcount:
            return None
        for _, _, at, _, _ in decision.charged:
            remembered.states[plan.counters[at].id] = decision.states[at]
        verdict.row = remembered.seen = cursor.lastrowid or 0
        journal.wrote(charge, verdict)
        return verdict

    def _refuse(self, charge: Charge, verdict: Verdict, journal: Journal) -> Verdict | None:
        """Write what there is to write of a denial, most often nothing; None if others have written since it was decided."""
        if counters.newest(self._db) != self._remembered.seen:
            return None
        rows = journal.rows([charge], [verdict], self._wall())
        if rows:
            with _taken_back(journal), self._transaction():
                places = self._insert([(row, *_UNCHARGED) for row in rows])
            self._remembered.seen = places[-1]
            verdict.row = places[0] if verdict.news else None
        return verdict

    def _decide_all(self, charges: Sequence[Charge], journal: Journal) -> list[Verdict]:
        """Decide charges in order, in one transaction."""
        remembered = self._remembered
        changed: dict[int, State] = {}
        decided: list[tuple[Charge, Verdict, Decision]] = []
        with contextlib.ExitStack() as undo, self._transaction():
            self._alone = not remembered.catch_up(self._db)
            folded = remembered.learn(self._db, {counter.id for charge in charges for counter in charge.plan.counters})
            if remembered.seen - max(folded, self._upkeep.folded) >= FOLD_AT_MOST:
                folded = counters.fold(self._db, remembered.states)
            now_us = self._clock()
            for charge in charges:
                ids = [counter.id for counter in charge.plan.counters]
                logs = [changed.get(key) or remembered.states[key] for key in ids]
                verdict, decision = decide_one(charge, logs, now_us)
                for limit in decision.charged:
                    changed[ids[limit.counter]] = decision.states[limit.counter]
                decided.append((charge, verdict, decision))
            verdicts = [verdict for _, verdict, _ in decided]
            rows = iter(journal.rows(charges, verdicts, self._wall()))
            undo.enter_context(_taken_back(journal))
            written = [(next(rows), charge.plan, decision) for charge, verdict, decision in decided if verdict.news]
            places = self._insert([*written, *((row, *_UNCHARGED) for row in rows)])
        for verdict, place in zip((one for one in verdicts if one.news), places, strict=False):
            verdict.row = place
        remembered.states |= changed
        remembered.seen = places[-1] if places else remembered.seen
        self._upkeep.folded = max(self._upkeep.folded, folded)
        return verdicts

    def _insert(self, rows: Sequence[tuple[Row, Plan, Decision]]) -> range:
        """Write rows, with what was decided on which plan, and what they name if that is new; their places.

        The caller is in a transaction and has caught up.
        """
        db, remembered = self._db, self._remembered
        places = range(remembered.seen + 1, remembered.seen + 1 + len(rows))
        written: list[tuple[object, ...]] = []
        for place, (row, plan, decision) in zip(places, rows, strict=True):
            charged_us, charged = _charged(plan, decision)
            if charged not in remembered.numbers:
                named = [plan.counters[limit.counter] for limit in decision.charged]
                db.executemany("INSERT OR IGNORE INTO counter VALUES (?, ?, ?)", named)
            context, reported, what = [remembered.number(db, text) for text in (row.context, row.reported, charged)]
            written.append((place, *sqlite_audit.values(row, context, reported, charged_us, what)))
        db.executemany(sqlite_audit.INSERT, written)
        return places

    def append(self, rows: Sequence[Row]) -> list[int]:
        """See `Store`."""
        with self.turn():
            self._remembered.catch_up(self._db)  # a text that is remembered may have been pruned
            places = self._insert([(row, *_UNCHARGED) for row in rows])
        self._remembered.seen = places[-1] if places else self._remembered.seen
        return list(places)

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """See `Store`."""
        for at in range(0, len(outcomes), _OUTCOMES_AT_ONCE):
            with self.turn():
                some = outcomes[at : at + _OUTCOMES_AT_ONCE]
                self._db.executemany(sqlite_audit.INSERT_OUTCOME, some)

    def last_seen(self) -> tuple[dict[int, State], int]:
        """See `Store`."""
        return self._remembered.last_seen(), self._clock()

    def adopt(self, logs: Sequence[tuple[Counter, State]], once: str) -> None:
        """See `Store`."""
        if not logs:
            return
        with self.turn():
            counters.fold(self._db)
            found = counters.read(self._db, [counter.id for counter, _ in logs])
            now_us = self._clock()
            for counter, log in logs:
                found[counter.id] = limiter.merge(found[counter.id], limiter.shift(log, now_us), counter.window_us)
            counters.write(self._db, found)
            self._db.executemany("INSERT OR IGNORE INTO counter VALUES (?, ?, ?)", [counter for counter, _ in logs])
            place = counters.set_barrier(self._db, self._wall())
        self._remembered.begin_anew(found, place)

    def reset(self, labels: Sequence[str]) -> int:
        """See `Store`."""
        with self.turn():
            counters.fold(self._db)
            gone = sum(self._db.execute("DELETE FROM snapshot WHERE id = ?", (counter_id(label),)).rowcount for label in labels)
            place = counters.set_barrier(self._db, self._wall())
        self._remembered.begin_anew({}, place)
        return gone

    def entries(self, *, after: int = 0) -> Iterator[Entry]:
        """See `Store`."""
        while found := self._some_entries(sqlite_audit.AFTER, after):
            yield from found
            after = found[-1].place

    def newest(self) -> Iterator[Entry]:
        """See `Store`."""
        before = 1 << 62
        while found := self._some_entries(sqlite_audit.BEFORE, before):
            yield from found
            before = found[-1].place

    def _some_entries(self, question: str, place: int) -> list[Entry]:
        with self._file.reported():
            found = self._db.execute(question, (place,)).fetchall()
        return [sqlite_audit.entry(one) for one in found]

    def held(self) -> list[Held]:
        """See `Store`."""
        now_us = self._clock()
        with self._file.reading():
            found = counters.labelled(self._db)
        logs = [(label, limiter.live(log, window_us, now_us)) for label, window_us, log in found]
        return [Held(label, limiter.used(log)) for label, log in logs if log]

    def peek(self, wanted: Sequence[Counter]) -> tuple[list[State], int]:
        """See `Store`."""
        with self._file.reading():
            found = counters.current(self._db, [counter.id for counter in wanted])
        return [found[counter.id] for counter in wanted], self._clock()

    def note_agent(self, namespace: str, note: AgentNote) -> None:
        """See `Store`."""
        with self.turn():
            notes.write(self._db, namespace, note, wall_us=self._wall())

    def noted_agents(self, namespace: str, tool_use_ids: Sequence[str]) -> dict[str, str]:
        """See `Store`."""
        with self._file.reported():
            return notes.read(self._db, namespace, tool_use_ids, wall_us=self._wall())

    def tend(self) -> None:
        """See `Store`. Folds, copies the log back, and once a minute lets go of what is too old or too much."""
        self._file.check_identity()
        with self._file.reported():
            self._upkeep.tend(newest=self._remembered.seen, now_us=self._clock(), wall_us=self._wall())

    def close(self) -> None:
        """See `Store`."""
        self._file.close()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """A turn in the queue and a transaction in it.

        Raises:
            StoreUnavailable: It did not come in time, or what was done in it failed; then nothing was done.
        """
        self._file.take_turn()
        try:
            with self._file.reported(), self._transaction():
                yield
        finally:
            self._file.queue.release()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """A transaction; if it fails nothing in it is remembered. The caller has the turn."""
        try:
            with self._file.writing():
                yield
        except BaseException:
            self._remembered.forget()
            raise


@contextlib.contextmanager
def _taken_back(journal: Journal) -> Iterator[None]:
    """Undo what the journal did last if the transaction that it was for fails."""
    try:
        yield
    except BaseException:
        journal.take_back()
        raise


def _charged(plan: Plan, decision: Decision) -> tuple[int | None, str | None]:
    """When a decision charged, and what, as the audit keeps it."""
    if not decision.charged:
        return None, None
    return decision.states[decision.charged[0].counter][-2], counters.charges(plan.counters, decision.charged)
