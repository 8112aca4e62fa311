"""Edits a policy file and keeps its comments, order and mode. A failed edit leaves the file unchanged."""

import contextlib
import errno
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from mcpguard.core.limiter import Counts
from mcpguard.core.policy.model import Cost, Policy, Rule
from mcpguard.core.policy.parse import STARTER, parse, parse_cost, parse_rule, text_of
from mcpguard.errors import McpguardError, PolicyError
from mcpguard.files import place_to_make, private_folder, read_at_once
from mcpguard.followed_file import FollowedFile
from mcpguard.policy_file import no_such_file
from mcpguard.policy_text import appended, ended_alike, removed, replaced, with_cost, with_mode

if sys.platform != "win32":
    import fcntl

LOCK_TIMEOUT_S: Final = 10.0
"""How long to wait for other commands that edit the same file. Each takes some milliseconds."""

LEFT_AFTER_S: Final = 3600.0
"""If the folder cannot be locked, an unfinished file of this age was left by a command that was killed."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[Path]:
    """Lock a policy file against other edits.

    The lock is on the folder, so that no lock file is left in a repository. If the file system cannot lock folders, there is
    no lock.

    Yields:
        The file; if `path` is a link, its target. The folder exists.

    Raises:
        McpguardError: The folder cannot be used, or another process keeps it locked.
    """
    with _reported(path), contextlib.ExitStack() as undo:
        target = place_to_make(path)
        private_folder(target.parent)
        alone = _wait_for_lock(target, undo)
        _remove_leftovers(target, older_than_s=0 if alone else LEFT_AFTER_S)
        yield target


def _wait_for_lock(path: Path, undo: contextlib.ExitStack) -> bool:
    """Lock a file's folder until `undo` closes; False if this file system cannot lock folders."""
    if sys.platform != "win32":
        folder = os.open(path.parent, os.O_RDONLY)
        undo.callback(os.close, folder)
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while time.monotonic() <= deadline:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                return False
            else:
                return True
        raise McpguardError(f"{path}: locked by another process", "end the process that holds it")
    return False


def _new_files(path: Path) -> str:
    """The prefix of the names of unfinished files, which replace a file when they are complete."""
    return f".{path.name}.mcpguard-"


def _remove_leftovers(path: Path, *, older_than_s: float) -> None:
    """Remove unfinished files of commands that were killed."""
    for entry in path.parent.iterdir():
        with contextlib.suppress(OSError):
            if entry.name.startswith(_new_files(path)) and entry.lstat().st_mtime <= time.time() - older_than_s:
                entry.unlink()


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise McpguardError(
            f"{path}: cannot be written: {error.strerror or error}",
            "the file is unchanged; check that the file and its folder are writable and the disk is not full",
        ) from error


def read(path: Path) -> str | None:
    """Read a policy file; None if it does not exist.

    Raises:
        PolicyError: The file cannot be read, or is not UTF-8.
    """
    file = FollowedFile(path)
    file.look()
    if isinstance(file.content, str):
        raise PolicyError(f"{path}: cannot be read: {file.content}", "a policy is a file in TOML")
    return None if file.content is None else text_of(file.content, source=str(path))


def _require_writable(path: Path) -> None:
    """Refuse a read-only file. Replacing it would work, but it is read-only on purpose."""
    if path.exists() and not os.access(path, os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def write(path: Path, content: bytes) -> None:
    """Replace a file's content atomically. An existing file keeps its mode and owner; a new one has mode 0600.

    Raises:
        McpguardError: The file cannot be written; it is unchanged.
    """
    with _reported(path):
        _require_writable(path)
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=_new_files(path))
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                file.flush()
                if sys.platform != "win32":
                    os.fchmod(file.fileno(), 0o600)  # whatever the umask is
                with contextlib.suppress(FileNotFoundError):
                    stat = path.stat()
                    if sys.platform != "win32":
                        with contextlib.suppress(OSError):
                            os.fchown(file.fileno(), stat.st_uid, stat.st_gid)
                    Path(name).chmod(stat.st_mode & 0o7777)
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        with contextlib.suppress(OSError):  # some file systems cannot sync folders
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


class Edit(NamedTuple):
    """What an edit did.

    Attributes:
        before: The policy before.
        after: The policy now. If the edit changed nothing, it is the policy before.
        is_new_file: Whether the edit made the file, with the starter rules.
    """

    before: Policy
    after: Policy
    is_new_file: bool

    @property
    def is_unchanged(self) -> bool:
        """Whether the policy was already as wanted. Then nothing was written."""
        return self.after is self.before


def begin(path: Path) -> bool:
    """Write the starter policy to a file; False if the file exists already.

    Raises:
        McpguardError: The file cannot be written.
    """
    with locked(path) as target:
        if target.exists():
            return False
        write(target, STARTER.encode())
        return True


class Draft:
    """A copy of a policy file for an editor. Running wrappers see the text when it is saved, and nothing of it before.

    Args:
        path: The policy file, which exists.
        folder: A private folder for the copy and for what the editor puts beside it.

    Attributes:
        file: The copy.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.file = folder / path.name
        self._path = path
        self._before = read_at_once(path)
        self.file.write_bytes(self._before)

    @property
    def is_changed(self) -> bool:
        """Whether the copy differs from the file as it was."""
        return self._content() != self._before

    def check(self) -> Policy:
        """Parse the copy. Errors name the policy file.

        Raises:
            PolicyError: The text is not a valid policy.
        """
        return parse(text_of(self._content(), source=str(self._path)), source=str(self._path))

    def save(self) -> None:
        """Replace the policy file by the copy.

        Raises:
            McpguardError: The file cannot be written, or another process changed it since the copy was made. It is unchanged.
        """
        content = self._content()
        with locked(self._path) as target:
            if read_at_once(target) != self._before:
                kept = self._path.with_name(f"{self._path.name}.edited")
                write(kept, content)
                hint = f"your text is in {kept}"
                raise McpguardError(f"{self._path}: another process has changed it while you edited", hint)
            write(target, content)

    def _content(self) -> bytes:
        try:
            return self.file.read_bytes()
        except OSError as error:
            message = f"the text cannot be read after the editor: {error.strerror}"
            raise McpguardError(message, f"{self._path} is unchanged") from error


@contextlib.contextmanager
def draft_of(path: Path) -> Iterator[Draft]:
    """A copy of a policy file for an editor, removed at the end. A missing file is made with the starter rules first.

    Raises:
        McpguardError: The file cannot be read or made.
    """
    begin(path)
    with _reported(path):
        _require_writable(path)
    with tempfile.TemporaryDirectory(prefix="mcpguard-") as folder:
        try:
            draft = Draft(path, Path(folder))
        except OSError as error:
            raise PolicyError(f"{path}: cannot be read: {error.strerror}", "a policy is a file in TOML") from error
        yield draft


def _place(policy: Policy, rule: Rule, table: dict[str, Any]) -> int | None:
    """The place of the rule that an edit changes; None to add one.

    It is the rule that limits the same; else one with the same selectors and `per` that has only a limit or only a cap, while
    the edit has the other. A rule with another name, mode or wait than the edit stays as it is.

    Raises:
        McpguardError: The limit is in one rule, and the cap in another.
    """
    keys = {part.key for part in rule.parts}
    same = [at for at, other in enumerate(policy.rules) if keys & {part.key for part in other.parts}]
    if len(same) > 1:
        numbers = " and ".join(str(at + 1) for at in same)
        raise McpguardError(f"rules {numbers} have these selectors", "set the limit and the cap one after the other")
    if same:
        return same[0]
    for at, other in enumerate(policy.rules):
        is_other_part = rule.has_limit != other.has_limit and (rule.concurrent is None) != (other.concurrent is None)
        alike = all(
            key not in table or ours == theirs
            for key, ours, theirs in (
                ("name", rule.name, other.name),
                ("mode", rule.observe, other.observe),
                ("wait", rule.wait_us, other.wait_us),
            )
        )
        if is_other_part and alike and not rule.deny and not other.deny and is_for_same(rule, other):
            return at
    return None


def is_for_same(rule: Rule, other: Rule) -> bool:
    """Whether two rules have the same selectors and the same `per`."""
    return rule.key[1:] == other.key[1:]


def put(path: Path, table: dict[str, Any]) -> tuple[Edit, int]:
    """Set a rule in a policy file.

    It replaces the limit, the cap, or both, in the rule that has the same selectors and `per` and counts the same. A limit
    joins a rule that has only a cap, and a cap one that has only a limit. Else the rule is added at the end.

    Args:
        path: The file. If it does not exist, it is made with the starter rules.
        table: The rule as a table of the file. An empty `name` removes the rule's name. Without `name`, `mode` or `wait`, a
            rule that exists keeps its own.

    Returns:
        What was done, and the place of the rule in the policy.

    Raises:
        PolicyError: The file is not a valid policy; it is unchanged.
        McpguardError: The file cannot be written; it is unchanged.
    """
    with locked(path) as target:
        text = read(target)
        before = parse(STARTER if text is None else text, source=str(path))
        rule = parse_rule(table, where=str(path))
        at = _place(before, rule, table)
        old = text or STARTER
        rules = list(before.rules)
        if at is None:
            rules.append(rule)
            new = appended(old, table)
        else:
            rules[at] = _changed(rules[at], rule, table)
            if _content(rules[at]) == _content(before.rules[at]) and text is not None:
                return Edit(before, before, is_new_file=False), at
            unsaid = {"count": None, "concurrent": None, "wait": None} if rule.deny else {}
            new = replaced(old, before, at, unsaid | table)
        new = ended_alike(old, new)
        after = _checked(path, new, before, rules=rules)
        write(target, new.encode())
    return Edit(before, after, is_new_file=text is None), len(rules) - 1 if at is None else at


def put_cost(path: Path, table: dict[str, Any]) -> tuple[Edit, int]:
    """Set a cost in a policy file. It replaces the cost with the same selectors, or is added at the end.

    Args:
        path: The file. If it does not exist, it is made with the starter rules.
        table: The cost as a table of the file.

    Returns:
        What was done, and the place of the cost in the policy.

    Raises:
        PolicyError: The file is not a valid policy; it is unchanged.
        McpguardError: The file cannot be written; it is unchanged.
    """
    with locked(path) as target:
        text = read(target)
        old = text or STARTER
        before = parse(STARTER if text is None else text, source=str(path))
        cost = parse_cost(table, where=str(path))
        at = _place_of_cost(before, cost)
        costs = list(before.costs)
        if at is None:
            at = len(costs)
            costs.append(cost)
            new = appended(old, table, name="cost")
        else:
            if costs[at].units == cost.units:
                return Edit(before, before, is_new_file=False), at
            costs[at] = cost
            new = with_cost(old, before, at, cost.units)
        new = ended_alike(old, new)
        after = _checked(path, new, before, costs=costs)
        write(target, new.encode())
    return Edit(before, after, is_new_file=text is None), at


def _place_of_cost(policy: Policy, cost: Cost) -> int | None:
    return next((at for at, other in enumerate(policy.costs) if other.pattern.key == cost.pattern.key), None)


def set_mode(path: Path, mode: str) -> Edit:
    """Set the mode of a policy file: `observe` or `enforce`. The modes of single rules stay.

    Args:
        path: The file. If it does not exist and the mode changes, it is made with the starter rules.
        mode: The mode.

    Raises:
        PolicyError: The file is not a valid policy; it is unchanged.
        McpguardError: The file cannot be written; it is unchanged.
    """
    with locked(path) as target:
        text = read(target)
        old = STARTER if text is None else text
        before = parse(old, source=str(path))
        observe = mode == "observe"
        if before.observe == observe:
            return Edit(before, before, is_new_file=False)
        new = ended_alike(old, with_mode(old, before, mode))
        after = _checked(path, new, before, observe=observe)
        write(target, new.encode())
    return Edit(before, after, is_new_file=text is None)


class TakenOut(NamedTuple):
    """What was removed from a policy file.

    Attributes:
        gone: The removed rule, or the removed part of a rule.
        after: The policy now.
        at: The place of the rule that keeps its other part; None if the whole rule was removed.
    """

    gone: Rule
    after: Policy
    at: int | None = None


def take_out(path: Path, rule: Rule, *, named: bool, part: Counts | None = None) -> TakenOut | None:
    """Remove a rule, or a part of a rule, from a policy file.

    Args:
        path: The file.
        rule: A rule with the selectors and `per` of the rule to remove.
        named: Whether an option or a variable names the file.
        part: Remove only the limit that counts this, or the cap if it is `concurrent`; None for all of the rule.

    Returns:
        What was removed; None if there is no such rule. Then nothing is written.

    Raises:
        PolicyError: The file does not exist or is not a valid policy; it is unchanged.
        McpguardError: The file cannot be written, or several rules have these selectors; it is unchanged.
    """
    with locked(path) as target:
        text, before = _read_policy(path, target, named=named)
        found = [
            at
            for at, other in enumerate(before.rules)
            if is_for_same(rule, other) and (part is None or any(one.counts == part for one in other.parts))
        ]
        if not found:
            return None
        if len(found) > 1:
            numbers = ", ".join(f"{at + 1} ({before.rules[at].limits_text})" for at in found)
            raise McpguardError(
                f"several rules are for {rule.text}: {numbers}", "add --count or --concurrent to name one of them"
            )
        (at,) = found
        old = before.rules[at]
        rules = list(before.rules)
        if part is None or len(old.parts) == 1:
            gone = rules.pop(at)
            new = removed(text, before, at)
        else:
            gone = next(one for one in old.parts if one.counts == part)
            if part == "concurrent":
                rules[at], keys = old._replace(concurrent=None), ["concurrent"]
            else:
                rules[at] = old._replace(rates=(), counts="calls", has_limit=False)
                keys = ["limit", "count"]
            new = replaced(text, before, at, dict.fromkeys(keys))
        new = ended_alike(text, new)
        after = _checked(path, new, before, rules=rules)
        write(target, new.encode())
        return TakenOut(gone, after, at if len(rules) == len(before.rules) else None)


def take_out_cost(path: Path, cost: Cost, *, named: bool) -> tuple[Cost, Policy] | None:
    """Remove the cost with the same selectors from a policy file; see `take_out`."""
    with locked(path) as target:
        text, before = _read_policy(path, target, named=named)
        at = _place_of_cost(before, cost)
        if at is None:
            return None
        new = ended_alike(text, removed(text, before, at, name="cost"))
        after = _checked(path, new, before, costs=[*before.costs[:at], *before.costs[at + 1 :]])
        write(target, new.encode())
        return before.costs[at], after


def _read_policy(path: Path, target: Path, *, named: bool) -> tuple[str, Policy]:
    """The text of a policy file that exists, and the policy."""
    text = read(target)
    if text is None:
        raise no_such_file(path, named=named)
    return text, parse(text, source=str(path))


def _changed(old: Rule, new: Rule, table: dict[str, Any]) -> Rule:
    """A rule with the limit and the cap that an edit has, and with its name, mode and wait if the table has them."""
    name, observe = table.get("name", old.name), new.observe if "mode" in table else old.observe
    found = old._replace(name=name, observe=observe, wait_us=new.wait_us if "wait" in table else old.wait_us)
    if new.has_limit:
        found = found._replace(rates=new.rates, deny=new.deny, counts=new.counts, has_limit=True)
    if new.deny:
        return found._replace(concurrent=None, wait_us=None)
    return found if new.concurrent is None else found._replace(concurrent=new.concurrent)


def _checked(
    path: Path,
    text: str,
    before: Policy,
    *,
    rules: Sequence[Rule] | None = None,
    costs: Sequence[Cost] | None = None,
    observe: bool | None = None,
) -> Policy:
    """Parse an edited text, and make sure that the edit changed nothing else.

    Args:
        path: The file.
        text: Its new text.
        before: The policy before.
        rules: The rules that it must have now; None for those before, and so on.
        costs: The costs.
        observe: Whether it only observes.
    """
    policy = parse(text, source=str(path))
    expected = (
        before.observe if observe is None else observe,
        before.wait_us,
        [_content(rule) for rule in (before.rules if rules is None else rules)],
        [cost[:2] for cost in (before.costs if costs is None else costs)],
    )
    found = policy.observe, policy.wait_us, [_content(rule) for rule in policy.rules], [cost[:2] for cost in policy.costs]
    if found != expected:
        raise McpguardError(
            f"{path}: this edit would change more than it should", "edit the file by hand: mcpguard policy edit"
        )
    return policy


def _content(rule: Rule) -> tuple[object, ...]:
    return rule._replace(rates=tuple(sorted(rule.rates)), line=0)
