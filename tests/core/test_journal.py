"""What a failed transaction leaves in a session's journal: nothing."""

import random
from copy import copy

from mcpguard.core.journal import Journal
from mcpguard.core.verdict import Charge, Verdict
from tests.core.build import WALL_US, Talk

POLICY = '[[rule]]\ntool = "*"\nlimit = "2/1m"\n[[rule]]\nuser = "*"\ntool = "closed"\nlimit = "deny"\n'


def everything(journal: Journal) -> list[object]:
    return [journal.seq, dict(journal.tally), dict(journal._storms), dict(journal._denials)]


def decided(talk: Talk, tool: str, times: int) -> tuple[list[Charge], list[Verdict]]:
    charges = talk.charges(tool, times)
    return charges, talk.store.decide(charges, Journal("elsewhere"))


def test_what_a_failed_transaction_did_to_the_journal_is_taken_back_whole() -> None:
    chance = random.Random(20260101)  # noqa: S311 - it only chooses what is called
    talk = Talk(POLICY)
    time_us = WALL_US
    for _ in range(500):
        charges, verdicts = decided(talk, chance.choice(["a", "b", "closed"]), chance.randint(1, 4))
        time_us += chance.choice([0, 300_000, 1_500_000])
        talk.time.pass_ms(chance.choice([0, 20_000]))
        before = everything(talk.journal)
        rows = talk.journal.rows(charges, [*map(copied, verdicts)], time_us)
        after = everything(talk.journal)
        assert after != before
        talk.journal.take_back()
        assert everything(talk.journal) == before
        assert talk.journal.rows(charges, verdicts, time_us) == rows
        assert everything(talk.journal) == after
        if chance.random() < 0.2:
            talk.journal.flush(time_us)


def copied(verdict: Verdict) -> Verdict:
    twin = copy(verdict)
    twin.audit_id, twin.news = "", False
    return twin


def test_what_is_thrown_out_to_keep_memory_bounded_comes_back_too() -> None:
    talk = Talk('[[rule]]\ntool = "*"\nlimit = "1/1m"\n')
    for at in range(4100):
        talk.call(f"tool {at}", 2)
    charges, verdicts = decided(talk, "another", 2)
    before = everything(talk.journal)
    assert talk.journal.rows(charges, verdicts, WALL_US)
    assert len(talk.journal._denials) < 10
    talk.journal.take_back()
    assert everything(talk.journal) == before


def test_taking_back_twice_takes_back_once() -> None:
    talk = Talk(POLICY)
    talk.call("a")
    before = everything(talk.journal)
    talk.journal.rows(*decided(talk, "a", 1), WALL_US)
    talk.journal.take_back()
    talk.journal.take_back()
    assert everything(talk.journal) == before
