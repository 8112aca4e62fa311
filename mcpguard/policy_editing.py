"""Changes to a policy file that keep what a person wrote into it: comments, order, mode, and the file itself if we fail."""

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

from mcpguard.core.policy import Policy, Rule
from mcpguard.core.policy_parse import STARTER, parse, parse_rule, text_of
from mcpguard.errors import McpguardError, PolicyError
from mcpguard.files import place_to_make, private_folder
from mcpguard.followed_file import FollowedFile
from mcpguard.policy_file import no_such_file

if sys.platform != "win32":
    import fcntl

LOCK_TIMEOUT_S: Final = 10.0
"""How long to wait for another command that edits the same file; each takes some milliseconds."""

LEFT_AFTER_S: Final = 3600.0
"""Where folders cannot be locked, an unfinished file of this age is one of a command that was killed."""

_BLANK: Final = " \t\r\n"
"""What TOML takes for blank; to Python more is."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[Path]:
    """Hold others off a policy file.

    The lock is on its folder, so that no lock file lies about in what may be somebody's repository; where folders cannot be
    locked, nobody is held off.

    Yields:
        The file itself, if `path` is a link to it. Its folder exists.

    Raises:
        McpguardError: Its folder cannot be used, or another process keeps it locked.
    """
    with _reported(path), contextlib.ExitStack() as undo:
        target = place_to_make(path)
        private_folder(target.parent)
        alone = _wait_for_lock(target, undo)
        _remove_leftovers(target, older_than_s=0 if alone else LEFT_AFTER_S)
        yield target


def _wait_for_lock(path: Path, undo: contextlib.ExitStack) -> bool:
    """Lock a file's folder until `undo`; False if that cannot be done on this file system."""
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
    """How the names begin of files that are to take the place of a file."""
    return f".{path.name}.mcpguard-"


def _remove_leftovers(path: Path, *, older_than_s: float) -> None:
    """Remove what a command that was killed has left of a new file."""
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
            "the file is as it was; are it and its folder writable, and the disk not full?",
        ) from error


def read(path: Path) -> str | None:
    """A policy file's text; None if there is none.

    Raises:
        PolicyError: It cannot be read.
    """
    file = FollowedFile(path)
    file.look()
    if isinstance(file.content, str):
        raise PolicyError(f"{path}: cannot be read: {file.content}", "a policy is a file in TOML")
    return None if file.content is None else text_of(file.content, source=str(path))


def write(path: Path, text: str) -> None:
    """Put a text in a file's place, all of it or nothing. An existing file's mode and owner stay; a new one has mode 0600.

    Raises:
        McpguardError: It cannot be written; the file is as it was.
    """
    with _reported(path):
        if path.exists() and not os.access(path, os.W_OK):  # another file could take its place all the same
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=_new_files(path))
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(text.encode())
                file.flush()
                if sys.platform != "win32":
                    os.fchmod(file.fileno(), 0o600)  # whatever the umask
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
        with contextlib.suppress(OSError):  # some file systems do not sync folders
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def begin(path: Path) -> bool:
    """Write the starter policy to a file, unless there is something already: False then.

    Raises:
        McpguardError: It cannot be written.
    """
    with locked(path) as target:
        if target.exists():
            return False
        write(target, STARTER)
        return True


def place_of(policy: Policy, rule: Rule) -> int | None:
    """Where a policy has a rule with the same selectors and `per`."""
    return next((at for at, other in enumerate(policy.rules) if other.key == rule.key), None)


def put(path: Path, table: dict[str, Any]) -> tuple[Policy, Policy, int]:
    """Set a rule in a policy file: in the place of the one with the same selectors and `per`, else at the end.

    Args:
        path: The file. If it is missing it begins with the starter rules.
        table: The rule as the file is to have it; an empty `name` is none, and takes away the one that is there.

    Returns:
        The policy before, the policy now, and where the rule is in it.

    Raises:
        PolicyError: The file holds no policy; it is as it was.
        McpguardError: It cannot be written; it is as it was.
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
    """Remove the rule with these selectors and `per` from a policy file.

    Args:
        path: The file.
        rule: Has the selectors and `per`.
        named: Whether somebody named the file.

    Returns:
        The rule that was there, and the policy now; None if there was none, and then nothing is written.

    Raises:
        PolicyError: There is no file, or it holds no policy; it is as it was.
        McpguardError: It cannot be written; it is as it was.
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
    """The policy that a new text holds, if it is the one that was meant."""
    policy = parse(text, source=str(path))
    if [_content(rule) for rule in policy.rules] != [_content(rule) for rule in rules]:
        raise McpguardError(f"{path}: this edit would change more than its rule", "edit the file by hand: mcpguard policy edit")
    return policy


def _content(rule: Rule) -> tuple[object, ...]:
    return rule.selectors, rule.per, rule.per_text, sorted(rule.rates), rule.deny, rule.observe, rule.name


def _document(text: str) -> Any:
    """A text that tomlkit can change; it is stricter than tomllib here and there."""
    try:
        return tomlkit.parse(text)
    except (TOMLKitError, ValueError, RecursionError) as error:
        what = f"this file holds what only a person can edit: {error}"
        raise McpguardError(what, "edit it by hand: mcpguard policy edit") from error


def _lines(text: str) -> list[str]:
    """A text's lines with their ends, as TOML has lines: others that Python knows may stand in a comment or a name."""
    return list(io.StringIO(text, newline="\n"))


def _ended_alike(old: str, new: str) -> str:
    """A text whose lines, where they are not the old text's, end as those do: we and tomlkit write them with LF."""
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
    document = _document("".join(lines[line - 1 : end]))  # no other rule is touched, not even the spacing of its header
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
    """Change a limit. Of a list with comments, what stays keeps its place and its comment; without a list they stand behind."""
    array = found["limit"]
    if "#" not in array.as_string():  # no limit has one in it
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
    while end > begin + 1 and _is_aside(lines[end - 1]):  # what stands before the next rule is that one's
        end -= 1
    while end < len(lines) - 1 and not lines[end].strip():
        end += 1
    above = begin
    while above and lines[above - 1].lstrip().startswith("#"):
        above -= 1
    if above:  # a comment right above a rule goes with it, one that opens the file does not
        begin = above
    new = "\n".join([*lines[:begin], *lines[end:]])
    return new if len(policy.rules) > 1 else _without_rules(new)


def _is_aside(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


def _without_rules(text: str) -> str:
    """A file without content would not be a policy."""
    if _document(text):
        return text
    above = text.rstrip(_BLANK)
    return (f"{above}\n\n" if above else "") + 'mode = "enforce"\n'
