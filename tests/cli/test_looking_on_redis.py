"""`usage` and the commands of `audit` show one fleet's calls on a server that many machines share."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import BOB, calls, mcpguard, objects, output
from tests.cli.test_completion import offered
from tests.cli.test_usage import watching
from tests.end_to_end.host import policy, rule, until
from tests.redis_servers import Server, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def home(tmp_path: Path, server: Server) -> Path:
    """Alice calls a tool three times, over a limit of two; Bob calls another."""
    policy(tmp_path, rule("2/1h", user="*", tool="echo") + rule("9/1h", user="*"))
    (tmp_path / "config.toml").write_text(
        f'[store]\nurl = "{server.url}"\nnamespace = "{tmp_path.name}"\ntimeout_ms = 20000\n', "utf-8"
    )
    calls(tmp_path, "echo", 3)
    calls(tmp_path, "plain", 1, *BOB)
    return tmp_path


def test_usage_stats_export_suggest_and_prune_work_on_a_server(home: Path) -> None:
    found = [(one["rule"], one["used"], one["left"]) for one in objects(home, "usage", "--json")]
    assert found == [("user=* tool=echo", 2, 0), ("user=*", 2, 7), ("user=*", 1, 8)]
    (stats,) = objects(home, "audit", "stats", "--by", "user", "--json")
    assert [(one["key"], one["calls"], one["denied"]) for one in stats["rows"]] == [("alice@acme.com", 3, 1), ("bob", 1, 0)]
    tools = [row["tool"] for row in objects(home, "audit", "export", "--tool", "*")]
    assert tools == ["echo", "echo", "echo", "plain"]
    assert json.loads(mcpguard(home, "policy", "suggest", "--json").stdout)["calls"] == 3
    assert output(home, "audit", "prune", "--before", "1h", "--yes") == "0 rows deleted\n"
    rows = len(objects(home, "audit", "export"))
    assert output(home, "audit", "prune", "--before", "9999-01-01T00:00:00Z", "--yes") == f"{rows} rows deleted\n"
    assert objects(home, "audit", "export") == []
    assert len(objects(home, "usage", "--json")) == 3


def test_names_that_the_shell_completes_come_from_a_server(home: Path) -> None:
    seen = ["bob", "alice@acme.com"]
    until(lambda: offered(home, "mcpguard reset --user ") == seen, "the server answers within the second that a shell waits")


def test_the_screen_shows_what_other_machines_do(home: Path) -> None:
    with watching(home) as shown:
        shown.wait_for(b"user=alice@acme.com tool=echo")
        calls(home, "echo", 3, *BOB)
        shown.wait_for(b"rate_limited user  2/1h      echo bob")
        assert shown.end(signal.SIGTERM) == 143
