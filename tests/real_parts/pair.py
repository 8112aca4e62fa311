"""One client with one server: what they do through the guard, and how it is judged."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.end_to_end.host import PATIENT_MS, ROOT, audit, budget, environment, policy, rule, total, until
from tests.windows import processes

from .matrix import Client, Feature, Server, step
from .parts import Parts

CLIENT_S: Final = 180.0
"""Only what hangs takes this long: every step of a client has a bound of its own."""


class Pair:
    """One client in one mode with one server, in a folder of their own."""

    def __init__(self, client: Client, server: Server, parts: Parts, home: Path) -> None:
        self.client = client
        self.server = server
        self.parts = parts
        self.home = home
        self.checked: set[str] = set()  # what was looked at
        self.why: list[str] = []  # what went wrong

    def check(self, name: str, right: bool, evidence: object) -> None:
        self.checked.add(name)
        if not right:
            self.why.append(f"{name}: {evidence}")

    def run(self) -> None:
        """Do and judge everything. MissingError says what cannot be had here."""
        limited = {self.server.tool, *(f.charged for f in self.server.features.values() if f.charged)}
        budget(self.home, PATIENT_MS)
        policy(self.home, "".join(rule("1/1h", user="*", tool=tool) for tool in sorted(limited)))
        self._work(self.client.command(self.parts, self.home), self.server.command(self.parts, self.home))
        self._judge_audit()
        until(lambda: not processes.with_variable("MCPGUARD_HOME", self.home), "no process is left behind", most_pause_s=0.1)

    def _guarded(self, server: Sequence[str], denials: str) -> list[str]:
        options = ["--user", "alice", "--server", self.server.name, "--denials", denials]
        return ["-m", "mcpguard", "run", *options, "--", *server]

    def _version(self) -> str:
        return "2026-07-28" if self.client.mode == "auto" and self.server.modern else "2025-11-25"

    def _features(self) -> dict[str, Feature]:
        version = self._version()
        return {
            name: feature
            for name, feature in self.server.features.items()
            if version.startswith(feature.eras) and f"{name} of {version[:4]}" not in self.client.lacks
        }

    def _work(self, client: Sequence[str], server: Sequence[str]) -> None:
        features = self._features()
        call = step("call", self.server.tool, self.server.arguments)
        steps = [{"do": "list"}, call, call, *(each for feature in features.values() for each in feature.steps)]
        shared = {"command": sys.executable, "env": environment(self.home), "mode": self.client.mode}
        job = {
            "client": self.client.name,
            "root": str(self.home),
            "sessions": [
                shared | {"args": self._guarded(server, "error"), "steps": steps},
                shared | {"args": self._guarded(server, "result"), "steps": [call]},
            ],
        }
        file = self.home / "job.json"
        file.write_text(json.dumps(job))
        with (self.home / "err").open("wb") as err:
            env = environment(self.home, HOME=str(self.home))
            streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": err}
            done = subprocess.run([*client, str(file)], env=env, cwd=ROOT, timeout=CLIENT_S, check=False, **streams)
        assert done.returncode == 0, (self.home / "err").read_text("utf-8", "replace")[-4000:]
        first, second = json.loads(done.stdout)
        self.check("call", first["version"] == self._version(), first["version"])
        listed, answered, denied, *others = first["answers"]
        self.check("call", self.server.tool in listed.get("tools", ()), listed)
        self.check("call", self.server.answer in str(answered.get("text")) and not answered["is_error"], answered)
        self.check("error", self._is_denial(denied.get("message"), denied.get("data"), denied.get("code")), denied)
        (denied,) = second["answers"]
        self.check("result", denied.get("is_error") is True and self._is_denial(denied["text"], denied["denial"]), denied)
        for name, feature in features.items():
            answers, others = others[: len(feature.steps)], others[len(feature.steps) :]
            try:
                right = feature.judge(answers)
            except KeyError:
                right = False
            self.check(name, right, answers)

    @property
    def _message(self) -> str:
        return f"Tool {self.server.tool} rate limit exceeded for user alice: 1 call per 1h. Retry in 3"

    def _is_denial(self, message: object, data: object, code: object = 429) -> bool:
        if code != 429 or self._message not in str(message) or not isinstance(data, dict):
            return False
        wait = data.get("retry_after_ms")
        told = (data.get("reason"), data.get("axis"), data.get("limit"), data.get("agent"))
        return told == ("rate_limited", "user", 1, self._agent) and isinstance(wait, int) and 3_400_000 < wait <= 3_600_000

    @property
    def _agent(self) -> str:
        return f"{self.client.name}::interactive::default"

    def _judge_audit(self) -> None:
        rows = [row for row in audit(self.home) if row["decision"] != "policy"]
        agents = {(row.get("agent"), row.get("agent_source")) for row in rows}
        self.check("audit", agents == {(self._agent, "clientInfo")}, agents)
        mine = [row for row in rows if row.get("tool") == self.server.tool]
        self.check("audit", (total(mine, "allowed"), total(mine, "rate_limited")) == (1, 2), mine)
        outcomes = {row.get("outcome") for row in mine if row["decision"] == "allowed"}
        self.check("audit", outcomes == {"ok"}, mine)
        for name, feature in self._features().items():
            charged = [row for row in rows if feature.charged and row.get("tool") == feature.charged]
            self.check(name, not feature.charged or total(charged, "allowed") == 1, charged)
            if name == "rounds":
                self.check(name, total(charged, "continued") >= 1, charged)
            if name == "cancel":
                self.check(name, any(row.get("outcome") == "cancelled" for row in rows), rows)
