import json
import sys
from pathlib import Path

from tests.alerts.webhook import webhook
from tests.doctor.checks import doctor, of


def test_each_way_to_notify_is_told_without_its_secret_and_a_missing_program_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        f'[[notify]]\ncommand = [{json.dumps(sys.executable)}, "-V"]\non = ["warn"]\n'
        '[[notify]]\nwebhook = "https://hooks.acme.com/s3cret"\n'
        '[[notify]]\ncommand = ["no-such-program-of-mcpguard"]\n'
    )
    found = of(doctor(tmp_path, status=1), "notify")
    usual, missing = "on denied, warn, unavailable", "no-such-program-of-mcpguard"
    assert [(one.ok, one.detail) for one in found] == [
        (True, f"command {sys.executable}, on warn"),
        (True, f"webhook at hooks.acme.com, {usual}"),
        (False, f"command {missing}, {usual}: {missing} is not installed"),
    ]


def test_it_sends_a_message_if_it_is_asked_to(tmp_path: Path) -> None:
    with webhook() as hook:
        (tmp_path / "config.toml").write_text(f'[[notify]]\nwebhook = "{hook.url}"\n')
        (sent,) = of(doctor(tmp_path, "--notify"), "notify")
        assert sent.detail.endswith(": a message was sent")
        hook.status = 404
        (failed,) = of(doctor(tmp_path, "--notify", status=1), "notify")
    assert failed.detail == "not sent: webhook at 127.0.0.1: it answers with HTTP status 404"
    assert [one["text"] for one in hook.messages] == ["this is a test of mcpguard doctor"] * 2


def test_without_a_way_there_is_nothing_to_try(tmp_path: Path) -> None:
    (one,) = of(doctor(tmp_path, "--notify", status=1), "notify")
    assert one.detail == "config.toml has no [[notify]]"
