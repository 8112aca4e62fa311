"""The policy file as it changes under a running wrapper."""

import os
import time
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Final

from mcpguard.core.policy import Policy
from mcpguard.core.policy_parse import STARTER, parse
from mcpguard.errors import PolicyError

SETTLING_NS: Final = 50_000_000
"""A file younger than this is read again at the next call: two edits can fall into one tick of the file system's clock."""


class PolicyFile:
    """The policy file, followed while it changes.

    Args:
        path: The file.
        named: Whether somebody named it. Then it must exist; else the starter policy is in force until it does.
        observe: Report only, whatever it says.
    """

    def __init__(self, path: Path, *, named: bool = False, observe: bool = False) -> None:
        self.path = path
        self.is_starter = False
        self._named = named
        self._observe = observe
        self._stamp: tuple[int, ...] | None = None
        self._settled = False
        self._content: bytes | str | None = None
        self._taken_up = False

    def begin(self) -> Policy | PolicyError:
        """The policy to start with; an error if there is none, which closes every tool until it is mended."""
        self._look()
        return self._understand()

    def poll(self) -> Policy | PolicyError | None:
        """What is new since the last look: a policy, or why the file's new content cannot be taken up. Usually None."""
        before = self._content
        return self._understand() if self._look() and self._content != before else None

    def _look(self) -> bool:
        """Read the file if it may have changed; whether it was read."""
        try:
            stat = os.stat(self.path)  # noqa: PTH116 - on every call's path, and twice as quick
        except OSError:
            changed = self._stamp is not None
            self._stamp, self._content = None, None
            return changed
        stamp = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if stamp == self._stamp and self._settled:
            return False
        self._stamp = stamp
        self._settled = time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > SETTLING_NS
        if not (S_ISREG(stat.st_mode) or S_ISDIR(stat.st_mode)):
            self._content = "not a regular file"  # reading a pipe could wait for ever
            return True
        try:
            self._content = self.path.read_bytes()
        except OSError as error:
            self._content = error.strerror or str(error)
        return True

    def _understand(self) -> Policy | PolicyError:
        self.is_starter = self._content is None and not self._named and not self._taken_up
        try:
            if self.is_starter:
                return parse(STARTER, source="starter policy", observe=self._observe)
            if self._content is None:
                return PolicyError(f"{self.path}: no such file", "make one: mcpguard policy init")
            if isinstance(self._content, str):
                return PolicyError(f"{self.path}: cannot be read: {self._content}", "a policy is a file in TOML")
            policy = parse(self._content.decode(), source=str(self.path), observe=self._observe)
        except UnicodeDecodeError:
            return PolicyError(f"{self.path}: line 1: not UTF-8", "a policy is a file in TOML")
        except PolicyError as error:
            return error
        self._taken_up = True  # from now on a file that is gone leaves this one in force
        return policy
