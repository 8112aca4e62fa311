"""Edits a policy file and keeps its comments, order and mode. A failed edit leaves the file unchanged."""

import contextlib
import errno
import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import tomlkit
from tomlkit.exceptions import TOMLKitError

from mcpguard.core.policy.model import Policy, Rule
from mcpguard.core.policy.parse import STARTER, parse, parse_rule, text_of
from mcpguard.errors import McpguardError, PolicyError
from mcpguard.files import place_to_make, private_folder
from mcpguard.followed_file import FollowedFile
from mcpguard.policy_file import no_such_file

if sys.platform != "win32":
    import fcntl

LOCK_TIMEOUT_S: Final = 10.0
"""How long to wait for other commands that edit the same file. Each takes some milliseconds."""

LEFT_AFTER_S: Final = 3600.0
"""If the folder cannot be locked, an unfinished file of this age was left by a command that was killed."""

_BLANK: Final = " \t\r\n"
"""White space in TOML. Python knows more characters of that kind."""


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


def write(path: Path, text: str) -> None:
    """Replace a file's content atomically. An existing file keeps its mode and owner; a new one has mode 0600.

    Raises:
        McpguardError: The file cannot be written; it is unchanged.
    """
    with _reported(path):
        if path.exists() and not os.access(path, os.W_OK):  # replacing it would work, but it is read-only on purpose
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=_new_files(path))
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(text.encode())
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


def begin(path: Path) -> bool:
    """Write the starter policy to a file; False if the file exists already.

    Raises:
        McpguardError: The file cannot be written.
    """
    with locked(path) as target:
        if target.exists():
            return False
        write(target, STARTER)
        return True


def place_of(policy: Policy, rule: Rule) -> int | None:
    """The place of the rule with the same selectors and `per`; None if there is none."""
    return next((at for at, other in enumerate(policy.rules) if other.key == rule.key), None)


def put(path: Path, table: dict[str, Any]) -> tuple[Policy, Policy, int]:
    """Set a rule in a policy file. It replaces the rule with the same selectors and `per`, or is added at the end.

    Args:
        path: The file. If it does not exist, it is made with the starter rules.
        table: The rule as a table of the file. An empty `name` removes the rule's name.

    Returns:
        The policy before, the policy now, and the place of the rule in it.

    Raises:
        PolicyError: The file is not a valid policy; it is unchanged.
        McpguardError: The file cannot be written; it is unchanged.
    """
    with locked(path) as target:
        text = read(target)
        before = parse(STARTER if text is None else text, source=str(path))
        rule = parse_rule(table, where=str(path))
        at = place_of(before, rule)
        old = text or STARTER
        new = _ended_alike(old, _appended(old, table) if at is None else _replaced(old, before, at, table))
        rules = list(before.rules)
        if at is None:
            rules.append(rule)
        else:
            rules[at] = _with_limit(rules[at], rule, name=table.get("name", rules[at].name))
        after = _checked(path, new, rules)
        write(target, new)
    return before, after, len(rules) - 1 if at is None else at


def take_out(path: Path, rule: Rule, *, named: bool) -> tuple[Rule, Policy] | None:
    """Remove a rule from a policy file.

    Args:
        path: The file.
        rule: A rule with the selectors and `per` of the rule to remove.
        named: Whether an option or a variable names the file.

    Returns:
        The removed rule, and the policy now; None if there is no such rule. Then nothing is written.

    Raises:
        PolicyError: The file does not exist or is not a valid policy; it is unchanged.
        McpguardError: The file cannot be written; it is unchanged.
    """
    with locked(path) as target:
        text = read(target)
        if text is None:
            raise no_such_file(path, named=named)
        before = parse(text, source=str(path))
        at = place_of(before, rule)
        if at is None:
            return None
        new = _ended_alike(text, _removed(text, before, at))
        after = _checked(path, new, [*before.rules[:at], *before.rules[at + 1 :]])
        write(target, new)
        return before.rules[at], after


def _with_limit(old: Rule, new: Rule, *, name: str) -> Rule:
    return Rule(old.selectors, old.per, old.per_text, new.rates, new.deny, old.observe, name, old.line)


def _checked(path: Path, text: str, rules: Sequence[Rule]) -> Policy:
    """Parse an edited text, and make sure that the edit changed nothing else."""
    policy = parse(text, source=str(path))
    if [_content(rule) for rule in policy.rules] != [_content(rule) for rule in rules]:
        raise McpguardError(f"{path}: this edit would change more than its rule", "edit the file by hand: mcpguard policy edit")
    return policy


def _content(rule: Rule) -> tuple[object, ...]:
    return rule.selectors, rule.per, rule.per_text, sorted(rule.rates), rule.deny, rule.observe, rule.name


def _document(text: str) -> Any:
    """Parse a text for editing. tomlkit rejects some texts that tomllib accepts."""
    try:
        return tomlkit.parse(text)
    except (TOMLKitError, ValueError, RecursionError) as error:
        what = f"this file can only be edited by hand: {error}"
        raise McpguardError(what, "use mcpguard policy edit") from error


def _lines(text: str) -> list[str]:
    """A text's lines with their ends, by the rules of TOML: Python's other line ends can be part of a comment or a name."""
    return list(io.StringIO(text, newline="\n"))


def _ended_alike(old: str, new: str) -> str:
    """Give new lines the line ends of the old text: this module and tomlkit write LF."""
    if "\r\n" not in old:
        return new
    kept = set(_lines(old))
    return "".join(line if line in kept else re.sub(r"\r?\n$", "\r\n", line) for line in _lines(new))


def _appended(text: str, table: dict[str, Any]) -> str:
    document = _document(text)
    table = {key: value for key, value in table.items() if key != "name" or value}
    if isinstance(document.get("rule"), tomlkit.items.Array):  # rule = [{…}]
        inline = tomlkit.inline_table()
        inline.update(table)
        document["rule"].append(inline)
        return tomlkit.dumps(document)
    body = [f"{key} = {tomlkit.item(value).as_string()}\n" for key, value in table.items()]
    return "".join([text.rstrip(_BLANK), "\n\n[[rule]]\n", *body])


def _replaced(text: str, policy: Policy, at: int, table: dict[str, Any]) -> str:
    line = policy.rules[at].line
    if not line:  # rule = [{…}]
        document = _document(text)
        document["rule"][at].update(table)
        if table.get("name") == "":
            del document["rule"][at]["name"]
        return tomlkit.dumps(document)
    lines = _lines(text)
    end = policy.rules[at + 1].line - 1 if at + 1 < len(policy.rules) else len(lines)
    document = _document("".join(lines[line - 1 : end]))  # other rules stay as they are, even the spacing of their headers
    found = document["rule"][0]
    _set_limit(found, table["limit"])
    name = table.get("name")
    named = "name" in found
    if name and named:
        found["name"] = name
    elif name == "" and named:
        del found["name"]
    new = _lines(tomlkit.dumps(document))
    if name and not named:  # tomlkit would put it after the comments of the next rule
        new.insert(1, f"name = {tomlkit.item(name).as_string()}\n")
    return "".join([*lines[: line - 1], *new, *lines[end:]])


def _set_limit(found: Any, limit: str | list[str]) -> None:
    """Change a limit.

    In a list with comments, limits that do not change keep their place and comment. If a word such as `deny` replaces the list,
    the comments are put after it.
    """
    array = found["limit"]
    if "#" not in array.as_string():  # a limit never contains #
        found["limit"] = limit
        return
    if limit in ("deny", "unlimited"):
        found["limit"] = limit
        found["limit"].comment("; ".join(re.findall(r"#[ \t]*(.*\S)", array.as_string() + array.trivia.comment)))
        return
    wanted = {text.partition("/")[2]: text for text in ([limit] if isinstance(limit, str) else limit)}
    for place in reversed(range(len(array))):
        text = wanted.pop(str(array[place]).partition("/")[2], None)
        if text is None:
            del array[place]
        else:
            array[place] = text
    array.extend(wanted.values())


def _removed(text: str, policy: Policy, at: int) -> str:
    if not policy.rules[at].line:
        document = _document(text)
        del document["rule"][at]
        return tomlkit.dumps(document)
    lines = text.split("\n")
    begin = policy.rules[at].line - 1
    end = policy.rules[at + 1].line - 1 if at + 1 < len(policy.rules) else len(lines)
    while end > begin + 1 and _is_aside(lines[end - 1]):  # comments right before the next rule belong to it
        end -= 1
    while end < len(lines) - 1 and not lines[end].strip():
        end += 1
    above = begin
    while above and lines[above - 1].lstrip().startswith("#"):
        above -= 1
    if above:  # a comment right above the rule is removed with it, unless it begins the file
        begin = above
    new = "\n".join([*lines[:begin], *lines[end:]])
    return new if len(policy.rules) > 1 else _without_rules(new)


def _is_aside(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


def _without_rules(text: str) -> str:
    """Add a `mode` to a text without content: an empty file is not a valid policy."""
    if _document(text):
        return text
    above = text.rstrip(_BLANK)
    return (f"{above}\n\n" if above else "") + 'mode = "enforce"\n'
