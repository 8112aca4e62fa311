"""Clients and servers that misbehave, against what limits count beyond calls."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.host import Host, Message, audit, call, lines, policy, request, script, until

CAP = '[[rule]]\ntool = "work"\nconcurrent = 2\n'
CANCELLED = "notifications/cancelled"
ERRORS = '[[rule]]\ntool = "work"\ncount = "errors"\nlimit = "1/1h"\n'


class Puppet(Host):
    """A client, and a server that does what the client says; see `servers/puppet.py`."""

    def __init__(self, home: Path, rules: str) -> None:
        policy(home, rules)
        self._notes = home / "notes.jsonl"
        self._syncs = 0
        super().__init__(home, *script("puppet", self._notes), options=("--user", "alice", "--server", "crm"))

    def got(self, method: str) -> list[Message]:
        """What the server has got with this method."""
        lines = self._notes.read_bytes().split(b"\n")[:-1] if self._notes.exists() else []
        return [message for message in map(json.loads, lines) if message.get("method") == method]

    def forwarded(self, *messages: Message | bytes) -> list[object]:
        """Send messages, wait until all are judged, and return the ids of all calls that the server has got."""
        self._syncs += 1
        self.send(*messages, request(f"sync {self._syncs}", "sync"))
        until(lambda: len(self.got("sync")) == self._syncs, "the server gets what was sent")
        return [message["id"] for message in self.got("tools/call")]

    def write(self, *texts: str) -> None:
        """Let the server write texts, one after another."""
        self.send({"jsonrpc": "2.0", "method": "do", "params": {"write": texts}})

    def end_call(self, request_id: int | str, **result: object) -> None:
        """Let the server answer a request, and read the answer."""
        self.write(json.dumps({"jsonrpc": "2.0", "id": request_id, "result": {"content": [], **result}}) + "\n")
        self.answer(request_id)


def test_a_client_that_uses_one_id_for_all_its_calls_has_no_more_of_them_in_flight(tmp_path: Path) -> None:
    with Puppet(tmp_path, CAP) as host:
        for _ in range(5):
            host.forwarded(call(1, "work"))
        assert host.forwarded() == [1]
        for _ in range(4):  # the others were refused
            assert host.answer(1)["error"]["code"] == -32600
        host.end_call(1)
        assert host.forwarded(call(2, "work"), call(3, "work"), call(4, "work")) == [1, 2, 3]


@pytest.mark.parametrize("ping_first", [True, False])
def test_no_request_with_the_id_of_a_call_frees_its_place_or_hides_that_it_failed(tmp_path: Path, *, ping_first: bool) -> None:
    with Puppet(tmp_path, CAP + ERRORS) as host:
        pairs = [(request(at, "ping"), call(at, "work")) for at in range(1, 4)]
        host.forwarded(lines([one for pair in pairs for one in (pair if ping_first else pair[::-1])]))  # in one write
        for at in range(1, 4):  # the server answers whatever it has got
            host.write(
                *(json.dumps({"jsonrpc": "2.0", "id": at, "result": {}}) + "\n" for one in host.got("ping") if one["id"] == at)
            )
        calls = host.forwarded(*(call(at, "work") for at in (1, 2, 3, 4, 5)))
        assert len(calls) == 2
        host.end_call(1, isError=True)
        assert len(host.forwarded(call(6, "work"))) == 2, "one failed call closes the tool"


def test_the_server_gets_the_cancellations_of_all_calls_but_those_that_wait(tmp_path: Path) -> None:
    with Puppet(tmp_path, CAP.replace("2", "1") + 'wait = "60s"\n[[rule]]\ntool = "closed"\nlimit = "deny"\n') as host:
        calls = [call(1, "work"), call(2, "work"), call(3, "closed")]
        assert host.forwarded(*calls) == [1]
        cancellations = [{"jsonrpc": "2.0", "method": CANCELLED, "params": {"requestId": at}} for at in (1, 2, 3)]
        host.forwarded(*cancellations)
        assert [one["params"]["requestId"] for one in host.got(CANCELLED)] == [1, 3]


@pytest.mark.parametrize("kept", ["hash", "full"])
def test_arguments_that_are_nested_as_deeply_as_allowed_are_counted(tmp_path: Path, kept: str) -> None:
    (tmp_path / "config.toml").write_text(f'[audit]\narguments = "{kept}"\n')
    with Puppet(tmp_path, '[[rule]]\ntool = "work"\nper = ["arguments"]\nlimit = "2/1h"\n') as host:
        for at, number in enumerate(("1.0", "1", "1e0", "2.0"), 1):
            deep = "[" * 510 + number + "]" * 510
            host.send(b'{"id":%d,"method":"tools/call","params":{"name":"work","arguments":%b}}\n' % (at, deep.encode()))
        assert host.forwarded() == [1, 2, 4]
        assert host.answer(3)["error"]["data"]["reason"] == "rate_limited"
        decisions = [(one["request_id"], one["decision"]) for one in audit(tmp_path)]
        assert decisions == [(1, "allowed"), (2, "allowed"), (3, "rate_limited"), (4, "allowed")]


def test_a_request_with_a_very_long_id_makes_no_room_for_calls(tmp_path: Path) -> None:
    with Puppet(tmp_path, CAP) as host:
        host.forwarded(call(1, "work"), call(2, "work"))
        with host.sending(json.dumps(request("x" * 9_000_000, "ping")).encode() + b"\n"):
            pass
        assert host.forwarded(call(3, "work")) == [1, 2]


@pytest.mark.parametrize(
    "answer",
    [
        lambda text: [f'[{{"jsonrpc":"2.0","id":1,"result":{{"text":"{text}"}}}}]\n'],
        lambda text: [f'{{"jsonrpc":"2.0","result":{{"text":"{text * 200_000}"}},"id":1}}\n'],
        lambda text: [f'{{"id":1,"jsonrpc":"2.0","error":{{"code":1,"message":"{text * 200_000}"}}}}\n'],
        lambda text: ['{"jsonrpc":"2.0"', ',"id":', f'1,"result":"{text}', '"}\n'],
        lambda text: [f'{{"jsonrpc":"2.0","id":"1","result":"{text}"}}\n'],
        lambda text: [f'{{"jsonrpc":"2.0","id":1.0,"result":"{text}"}}\n'],
        lambda text: [f'{{"jsonrpc":"2.0","\\u0069d":1,"result":"{text}"}}\n'],
    ],
    ids=["batch", "large, id last", "large, version second", "in pieces", "id as a string", "id as a double", "key escaped"],
)
def test_an_answer_frees_the_place_of_its_call_however_it_is_written(
    tmp_path: Path, answer: Callable[[str], list[str]]
) -> None:
    with Puppet(tmp_path, CAP.replace("2", "1")) as host:
        assert host.forwarded(call(1, "work"), call(2, "work")) == [1]
        host.write(*answer("answer"))
        while b'"answer' not in (line := host.line()) and b"answeranswer" not in line:
            pass
        assert host.forwarded(call(3, "work")) == [1, 3]
