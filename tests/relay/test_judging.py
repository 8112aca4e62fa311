import re

import pytest

from mcpguard.core.identity import Identity
from mcpguard.core.journal import Journal
from mcpguard.core.jsonrpc.frames import Reader
from mcpguard.core.policy.parse import parse
from mcpguard.core.session.machine import Session
from mcpguard.errors import PolicyError
from mcpguard.relay import judging

ALICE = Identity("alice", "config", "crm")
CALL = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"search","arguments":{"query":"x"}}}'


def test_after_the_rehearsal_the_first_call_compiles_no_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = parse('[[rule]]\ntool = "se*"\nlimit = "1/1h"\n')
    re.purge()
    judging.rehearse(ALICE, policy)
    session, compiled = Session(ALICE, policy, Journal("")), []
    monkeypatch.setattr("re._compiler.compile", lambda *pattern: compiled.append(pattern))
    assert session.lone_call(Reader().read([CALL]))
    assert not compiled


def test_a_rehearsal_without_a_policy_judges_nothing() -> None:
    judging.rehearse(ALICE, PolicyError("broken"))
