"""Machines that share nothing but a server of counters; here each has a home of its own."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cli.command import mcpguard
from tests.redis_servers import running

from .host import Host, Message, call, lines, policy, rule, script, total

LIMIT = rule("300/1h", user="*", tool="search")
WHO = ("--user", "alice", "--server", "crm")


def loop(home: Path, url: str, calls: int, name: str) -> list[Message]:
    """Make calls without waiting, in a wrapper of its own; the answers."""
    policy(home, LIMIT)
    requests = [call(f"{name}-{number}", "search") for number in range(calls)]
    with Host(home, *script("obedient"), options=WHO, env={"MCPGUARD_STORE": url}) as host:
        with host.sending(lines(requests)):
            answers = [host.message() for _ in requests]
        assert host.end() == 0
    return answers


def tail(home: Path, url: str, *options: str, password: str = "") -> list[Message]:
    argv = ("audit", "tail", "-n", "100000", "--json", *options)
    done = mcpguard(home, *argv, MCPGUARD_STORE=url, MCPGUARD_STORE_PASSWORD=password)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_four_machines_with_two_wrappers_each_admit_together_exactly_what_one_may(tmp_path: Path) -> None:
    with running(tmp_path / "redis") as server:
        with ThreadPoolExecutor(8) as pool:
            homes = [tmp_path / f"machine{at % 4}" for at in range(8)]
            found = pool.map(lambda at: loop(homes[at], server.url, 200, str(at)), range(8))
            answers = [answer for some in found for answer in some]
        assert len(answers) == 1600
        assert sum("result" in answer for answer in answers) == 300
        assert {answer["error"]["code"] for answer in answers if "error" in answer} == {429}
        rows = tail(tmp_path / "machine5", server.url)
        assert (total(rows, "allowed"), total(rows, "rate_limited")) == (300, 1300)
        assert {row["outcome"] for row in rows if row["decision"] == "allowed"} == {"ok"}
        for session in {row["session"] for row in rows}:
            seqs = [row["seq"] for row in rows if row["session"] == session]
            assert seqs == list(range(1, len(seqs) + 1))
        reset = mcpguard(tmp_path / "machine5", "reset", "--yes", MCPGUARD_STORE=server.url)
        assert reset.stdout == "user=alice tool=search server=crm: 300 calls in the last hour\n1 counter reset\n"
        assert sum("result" in answer for answer in loop(homes[0], server.url, 1, "again")) == 1
    assert not list(tmp_path.glob("machine*/*.db*"))


def test_a_flood_of_refused_calls_in_one_namespace_leaves_the_limits_of_another_alone(tmp_path: Path) -> None:
    """Three wrappers are asked for closed tools of ever new names, as much as would fill the server."""
    with running(tmp_path / "redis", "--maxmemory", "6mb", "--maxmemory-policy", "noeviction") as server:

        def flood(home: Path) -> list[Message]:
            policy(home, rule("deny", tool="*"))
            (home / "config.toml").write_text('[store]\nnamespace = "a"\ntimeout_ms = 10000\n[audit]\nmax_mb = 1\n')
            requests = [call(number, f"{home.name} {number:<200}") for number in range(3500)]
            with Host(home, *script("obedient"), options=WHO, env={"MCPGUARD_STORE": server.url}) as host:
                with host.sending(lines(requests)):
                    answers = [host.message() for _ in requests]
                assert host.end() == 0
            assert "store unavailable" not in host.err
            return answers

        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(flood, [tmp_path / f"flooding{at}" for at in range(3)]))
        assert {answer["error"]["code"] for some in found for answer in some} == {403}
        admitted = 0
        for at in range(3):
            home = tmp_path / f"machine{at}"
            policy(home, rule("5/1h", user="*", tool="search"))
            (home / "config.toml").write_text("[store]\ntimeout_ms = 10000\n")
            with Host(home, *script("obedient"), options=WHO, env={"MCPGUARD_STORE": server.url}) as host:
                admitted += sum("result" in host.call(number, "search") for number in range(5))
                assert host.end() == 0
            assert "store unavailable" not in host.err
        assert admitted == 5


def test_a_server_that_is_killed_and_comes_back_keeps_every_count(tmp_path: Path) -> None:
    """While it is away the wrappers deny: what was admitted before, and what is afterwards, make up the limit."""
    with running(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always") as server:
        policy(tmp_path, LIMIT)
        admitted = 0
        for life in range(3):
            (tmp_path / "config.toml").write_text('[store]\non_unavailable = "deny"\n')
            with Host(tmp_path, *script("obedient"), options=WHO, env={"MCPGUARD_STORE": server.url}) as host:
                host.send(*(call(f"{life}-{number}", "search") for number in range(60)))
                answers = [host.message() for _ in range(60)]
                host.send(*(call(f"{life}-late-{number}", "search") for number in range(60)))
                server.signal(signal.SIGKILL)
                answers += [host.message() for _ in range(60)]
                server.kill()
                server.start()
                assert host.end() == 0
            admitted += sum("result" in answer for answer in answers)
        assert admitted >= 180
        admitted += sum("result" in answer for answer in loop(tmp_path, server.url, 300, "rest"))
        emptied = mcpguard(tmp_path, "reset", "--yes", MCPGUARD_STORE=server.url).stdout
        assert ": 300 calls in the last hour" in emptied
        rows = tail(tmp_path, server.url, "--decision", "allowed")
        # A call whose reply was lost is counted, and denied; the row that says so takes the place of the server's
        assert admitted <= len(rows) <= 300
        assert len({row["id"] for row in rows}) == len(rows)


def test_a_password_stands_in_no_process_line_no_output_and_no_environment_of_the_server(tmp_path: Path) -> None:
    with running(tmp_path / "redis", "--requirepass", "s3cret") as server:
        policy(tmp_path, LIMIT)
        environ = {"MCPGUARD_STORE": server.url, "MCPGUARD_STORE_PASSWORD": "s3cret"}
        with Host(tmp_path, *script("obedient"), options=WHO, env=environ) as host:
            assert "result" in host.call(1, "search")
            environment = host.call(2, "variables")
            assert host.end() == 0
        assert f"store={server.url}" in host.err
        assert "MCPGUARD_HOME" in json.dumps(environment)
        assert "s3cret" not in host.err + json.dumps(environment) + json.dumps(tail(tmp_path, server.url, password="s3cret"))
        for wrong in ("wr0ng", ""):
            done = mcpguard(tmp_path, "audit", "tail", MCPGUARD_STORE=server.url, MCPGUARD_STORE_PASSWORD=wrong)
            assert done.returncode == 69
            assert done.stderr.startswith(f"mcpguard: {server.url} refuses: ")
            assert len(done.stderr.splitlines()) == 2
            assert "wr0ng" not in done.stderr
