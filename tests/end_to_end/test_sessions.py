"""Limits per session, exact over all wrappers and hooks of a session: real processes, one store between them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .host import PATIENT_MS, Host, budget, policy, rule
from .test_hook import create_store, guarded, hook, used

SOCKET = "/tmp/cc-socks/7.sock"
"""What names a process of Claude Code to its hooks and servers."""

IN_ONE_PROCESS = {"CLAUDE_CODE_SESSION_ID": "first", "CLAUDE_CODE_MESSAGING_SOCKET": SOCKET}


def called(host: Host, call_id: str) -> bool:
    """Call a tool of a guarded server, as Claude Code does. Returns whether the server was called."""
    return "result" in host.call(call_id, "search", _meta={"claudecode/toolUseId": call_id})


def test_two_wrappers_and_the_hook_of_a_session_admit_exactly_as_many_calls_as_its_limit(tmp_path: Path) -> None:
    policy(tmp_path, rule("5/session", user="*"))
    budget(tmp_path, PATIENT_MS)
    create_store(tmp_path)

    def built_in(call_id: str, session: str = "first") -> bool:
        return not hook(tmp_path, "claude-code", used("WebSearch", call_id, session_id=session), "--enforce")

    def shown_and_called(host: Host, name: str, call_id: str, session: str) -> bool:
        given = used(f"mcp__{name}__search", call_id, session_id=session)
        is_let = not hook(tmp_path, "claude-code", given, "--enforce", CLAUDE_CODE_MESSAGING_SOCKET=SOCKET)
        assert not is_let or called(host, call_id)
        return is_let

    with (
        guarded(tmp_path, "--server", "crm", **IN_ONE_PROCESS) as crm,
        guarded(tmp_path, "--server", "files", **IN_ONE_PROCESS) as files,
    ):
        asked: list[Callable[[], list[bool]]] = [
            lambda: [called(crm, f"crm{at}") for at in range(4)],
            lambda: [called(files, "files0"), *(shown_and_called(files, "files", f"files{at}", "first") for at in [1])],
            lambda: [built_in(f"hook{at}") for at in range(2)],
        ]
        with ThreadPoolExecutor(3) as pool:
            admitted = [one for found in pool.map(lambda one: one(), asked) for one in found]
        assert (len(admitted), admitted.count(True)) == (8, 5)
        assert not called(crm, "last")
        # After /clear the hook tells another session, which has a count of its own, and the wrappers learn it by the notes
        assert shown_and_called(files, "files", "cleared", "second")
        assert built_in("other", "second")
        assert not called(crm, "without a hook")  # which only knows the session in which it was started
        rows = crm.audit()
        assert {row["client_session"] for row in rows} == {"first", "second"}
        assert [row["decision"] for row in rows if row["client_session"] == "second"].count("allowed") == 2
        denied = next(row for row in rows if row["decision"] == "rate_limited")
        assert (denied["axis"], denied["limit"], denied["window"]) == ("user", 5, "session")
