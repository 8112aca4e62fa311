from collections.abc import Iterator
from pathlib import Path

import pytest

from mcpguard.reading.telemetry import HEADERS, SERVICE
from tests.cli.command import complaint, mcpguard, process
from tests.reading.receiver import Receiver, receiving, values


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def decisions(receiver: Receiver) -> list[str]:
    return [values(span.attributes)["mcpguard.decision"] for span in receiver.spans]


def test_the_calls_of_a_real_server_reach_a_collector(home: Path, receiver: Receiver) -> None:
    env = {HEADERS: "api-key=hunter2", SERVICE: "fleet"}
    done = process(home, "audit", "export", "--otlp", receiver.url, **env)  # type: ignore[arg-type]
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "7 rows sent\n")
    assert decisions(receiver) == ["allowed", "rate_limited", "denied", "would_deny"]
    assert receiver.counts("mcpguard.decision") == {(one,): 1 for one in decisions(receiver)}
    assert receiver.headers[0]["api-key"] == "hunter2"
    assert receiver.resources[0]["service.name"] == "fleet"


def test_filters_select_the_rows_that_are_sent(home: Path, receiver: Receiver) -> None:
    assert mcpguard(home, "audit", "export", "--otlp", receiver.url, "--denied").returncode == 0
    assert decisions(receiver) == ["rate_limited", "denied"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--otlp", "localhost:4318"), "--otlp: this is not an http or https URL"),
        (("--otlp", "http://x", "-o", "f"), "--otlp excludes -o and --format"),
        (("--otlp", "http://x", "--format", "jsonl"), "--otlp excludes -o and --format"),
        (("--otlp-user",), "--otlp-user needs --otlp"),
    ],
)
def test_a_wrong_command_line_is_refused(home: Path, argv: tuple[str, ...], message: str) -> None:
    assert complaint(home, "audit", "export", *argv).startswith(f"mcpguard: {message}\nhint: ")
