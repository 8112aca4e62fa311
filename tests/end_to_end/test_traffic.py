import hashlib
import os
import sys
from pathlib import Path

import pytest

from mcpguard.text.printing import quoted

from .host import CAT, PYTHON, Host, call, fill, lines, policy, request, rule, serving


def test_what_passes_is_the_same_to_the_byte_both_ways(tmp_path: Path) -> None:
    sent = [
        b'{ "jsonrpc" : "2.0",\t"method":"notifications/x" , "params":{"z":1,"a":[1.0,1e3,-0,"\\u0041\\/"],"k":"\xc3\xa9"} }',
        b'{"jsonrpc":"2.0","id":123456789012345678901234567890,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"arguments":{"a":1,"A":2,"a":3},"name":"search"}}',
        b'{"jsonrpc":"2.0","id":7,"result":{"roots":[]}}',
        b'{"id":8,"jsonrpc":"2.0","error":{"code":-1,"message":"no"}}',
    ]
    long = b'{"jsonrpc":"2.0","method":"notifications/x","params":{"a":"%b"}}' % ("é✓ and more " * 150_000).encode()
    with serving(tmp_path, *CAT) as host:  # it says what it is told
        for line in sent:
            host.send(line + b"\n")
            assert host.line() == line
        host.send(sent[0] + b"\r\n")
        assert host.line() == sent[0] + b" "
        with host.sending(long + b"\n"):
            assert host.line() == long


def test_the_servers_stderr_passes_and_its_bytes_need_not_be_json_lines(tmp_path: Path) -> None:
    writes = r"import os; os.write(1, b'hello \377\000\032\r\n\n\n{broken'); os.write(2, b'line\n\033[31mred\033[0m half')"
    with Host(tmp_path, *PYTHON, writes) as host:
        assert host.ended() == (b"hello \xff\x00\x1a\r\n\n\n{broken", 0)
        assert "line\n\x1b[31mred\x1b[0m half" in host.err


def test_a_line_that_is_too_long_is_refused_and_the_next_one_passes(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("max_frame_bytes = 2048\n")
    with serving(tmp_path, *CAT) as host:
        with host.sending(lines([call(1, "search", {"text": "x" * 3_000_000}), request(2, "ping")])):
            messages = [host.message(), host.message()]  # the guard's answer and the server's, in either order
        assert request(2, "ping") in messages
        refused = {"code": -32700, "message": "Refused: longer than 2048 bytes"}
        assert [message["error"] for message in messages if "error" in message] == [refused]


def test_thousands_of_admitted_calls_written_before_the_first_answer_is_read_are_all_answered_in_order(tmp_path: Path) -> None:
    with serving(tmp_path, rules=rule("1000000/1h", user="*", tool="search")) as host:
        host.send(lines([call(number, "search", {"text": "x" * 100}) for number in range(5_000)]))
        assert [host.message()["id"] for _ in range(5_000)] == list(range(5_000))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_an_answer_of_a_hundred_mebibytes_passes_unchanged_in_little_memory(tmp_path: Path) -> None:
    expected = hashlib.sha256(b'{"jsonrpc":"2.0","id":2,"result":{"text":"')
    for number in range(100):
        expected.update(bytes([97 + number % 26]) * (1 << 20))
    expected.update(b'"}}\n')
    size = 100 * (1 << 20) + len(b'{"jsonrpc":"2.0","id":2,"result":{"text":""}}\n')

    with serving(tmp_path) as host:

        def peak_mib() -> float:
            status = Path(f"/proc/{host.process.pid}/status").read_text().split()
            return int(status[status.index("VmHWM:") + 1]) / 1024

        host.call(1, "search")
        before = peak_mib()
        host.send(call(2, "big", {"mib": 100}))
        found = hashlib.sha256()
        while size:
            data = host.read(min(size, 1 << 16))
            size -= len(data)
            found.update(data)
        assert host.call(3, "search")["id"] == 3
        assert peak_mib() - before < 16
    rows = host.audit()
    assert found.digest() == expected.digest()
    assert [row["outcome"] for row in rows] == ["ok", "unparsed", "ok"]


def test_a_stderr_that_nobody_reads_stops_neither_calls_nor_denials_nor_the_end(tmp_path: Path) -> None:
    rules = "".join(rule("1/1h", tool=f"tool-{number}") for number in range(100))
    read, write = os.pipe()
    fill(write)
    with serving(tmp_path, rules=rules, stderr=write) as host:
        os.close(write)
        for number in range(100):
            assert "result" in host.call(number, f"tool-{number}")
            assert host.call(f"{number} again", f"tool-{number}")["error"]["code"] == 429
    os.close(read)


def test_the_guard_says_at_its_start_what_it_goes_by_and_at_its_end_what_happened(tmp_path: Path) -> None:
    file = policy(tmp_path, rule("1/1h", user="*", tool="search") + rule("9/1h", mode="observe"))
    with serving(tmp_path, options=["--user", "alice", "--server", "crm"]) as host:
        for number in range(3):
            host.call(number, "search")
    first, *others = [line for line in host.err.splitlines() if line.startswith("mcpguard: ")]
    assert " mode=enforce server=crm user=alice agent=unknown::interactive::default " in first
    assert f" policy={quoted(file)} (2 rules, 1 in observe mode) store={quoted(tmp_path / 'mcpguard.db')}" in first
    assert others[0].startswith("mcpguard: rate_limited axis=user user=alice ")
    told, _, retry_after = others[0].rpartition(" retry_after=")
    assert told.endswith(" tool=search limit=1/1h count=2")
    assert 3540 < int(retry_after.removesuffix("s")) <= 3600
    assert others[-1] == "mcpguard: 3 calls: 2 rate_limited (user 2), 1 allowed"


def test_observing_is_said_in_the_first_line_denies_nothing_and_reports_what_it_would_have_denied(tmp_path: Path) -> None:
    file = policy(tmp_path, rule("1/1h", user="*") + rule("9/1h", mode="observe"))
    with serving(tmp_path, env={"MCPGUARD_OBSERVE": "1"}) as host:
        assert all("result" in host.call(number, "search") for number in range(3))
    assert " mode=observe (nothing is denied) server=" in host.err
    assert f" policy={quoted(file)} (2 rules)" in host.err
    assert [row["decision"] for row in host.audit()] == ["allowed", "would_deny", "would_deny"]


def test_an_entry_enforces_although_the_environment_says_to_observe(tmp_path: Path) -> None:
    with serving(tmp_path, rules=rule("deny", tool="closed"), options=["--enforce"], env={"MCPGUARD_OBSERVE": "1"}) as host:
        assert host.call(1, "closed")["error"]["code"] == 403


def test_a_quiet_guard_says_nothing_of_what_goes_as_it_should_and_of_denials(tmp_path: Path) -> None:
    with serving(tmp_path, rules=rule("deny", tool="closed"), options=["--quiet"]) as host:
        assert host.call(1, "closed")["error"]["code"] == 403
        policy(tmp_path, rule("deny", tool="other"))
        assert "result" in host.call(2, "closed")
    assert host.err == ""
