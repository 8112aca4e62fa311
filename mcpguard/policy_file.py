"""The policy file as it changes under a running wrapper."""

from pathlib import Path

from mcpguard.core.policy import Policy
from mcpguard.core.policy_parse import STARTER, parse, text_of
from mcpguard.core.redaction import redacted
from mcpguard.errors import PolicyError
from mcpguard.followed_file import FollowedFile


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
        self._file = FollowedFile(path)
        self._taken_up = False

    def begin(self) -> Policy | PolicyError:
        """The policy to start with; an error if there is none, which closes every tool until it is mended."""
        self._file.look()
        return self._understand()

    def poll(self) -> Policy | PolicyError | None:
        """What is new since the last look: a policy, or why the file's new content cannot be taken up. Usually None."""
        before = self._file.content
        return self._understand() if self._file.look() and self._file.content != before else None

    def _understand(self) -> Policy | PolicyError:
        content = self._file.content
        self.is_starter = content is None and not self._named and not self._taken_up
        try:
            if self.is_starter:
                return parse(STARTER, source="starter policy", observe=self._observe)
            if content is None:
                return PolicyError(f"{self.path}: no such file", "make one: mcpguard policy init")
            if isinstance(content, str):
                return PolicyError(f"{self.path}: cannot be read: {content}", "a policy is a file in TOML")
            source = str(self.path)
            policy = parse(text_of(content, source=source), source=source, observe=self._observe)
        except PolicyError as error:
            return PolicyError(redacted(error.message), redacted(error.hint))  # every call is answered with it
        self._taken_up = True  # from now on a file that is gone leaves this one in force
        return policy
