import re

import pytest

from mcpguard.errors import PolicyError
from mcpguard.identity.caller import Identity
from mcpguard.policy.parse import parse
from mcpguard.relay import guard
from mcpguard.session.journal import Journal
from mcpguard.session.machine import Session
from mcpguard.wire.frames import MessageReader

ALICE = Identity("alice", "config", "crm")
CALL = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"search","arguments":{"query":"x"}}}'


def test_after_the_rehearsal_the_first_call_compiles_no_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = parse('[[rule]]\ntool = "se*"\nlimit = "1/1h"\n')
    re.purge()
    guard.rehearse(ALICE, policy)
    session, compiled = Session(ALICE, policy, Journal("")), []
    monkeypatch.setattr("re._compiler.compile", lambda *pattern: compiled.append(pattern))
    assert session.judge(MessageReader().read([CALL]), 0)
    assert not compiled


def test_a_rehearsal_without_a_policy_judges_nothing() -> None:
    guard.rehearse(ALICE, PolicyError("broken"))
