"""Masks secrets in addresses and in texts that other programs wrote. `redaction` removes tokens pasted by mistake."""

import re
from collections.abc import Iterable, Mapping, Sequence

from mcpguard.light_typing import Final
from mcpguard.text.redaction import redacted

MASK: Final = "***"
"""Stands in place of a secret."""

LEAST_SECRET: Final = 6
"""The shortest value that counts as a secret of a command. A shorter one may be an ordinary word."""

_SUSPECT: Final = "(?:token|secret|passw|passwd|api[_-]?key|access[_-]?key|private[_-]?key|credential|auth)"
_SECRET_NAME: Final = re.compile(rf"[\w-]*{_SUSPECT}[\w-]*", re.IGNORECASE)
_USER_INFO: Final = re.compile(r"(?<=://)[^/\s?#]*@")
_ASSIGNED: Final = re.compile(
    rf"(?i)({_SUSPECT}[\w-]{{0,40}}[\"']?\s*[=:]\s*[\"']?)(?:(Bearer|Basic)\s+)?(?![{{\[])[^\s\"',;&]+"
)
_OPTION: Final = re.compile(rf"(?i)(?<!\S)(--?[\w-]{{0,40}}{_SUSPECT}[\w-]{{0,40}}\s+[\"']?)(?!-)[^\s\"']+")
_VARIABLE: Final = re.compile(r"(?<!\S)([A-Z_][A-Z0-9_]*=)[^\s\"']+")
_QUERY: Final = re.compile(r"(?i)(?<=[?&])([\w-]{0,40}key=)[^\s\"'&]+")
_KEY: Final = re.compile(r"(?<![A-Za-z0-9_])(?=[A-Za-z_]*[0-9])[A-Za-z0-9_]{24,}")
"""So many letters and digits in a row are a key or a hash."""
_BEARER: Final = re.compile(r"\b([Bb]earer|Basic)\s+[\w.~+/=-]{8,}")


def masked(text: str) -> str:
    """Replace JWTs, credentials of HTTP, and users and passwords in URLs.

    >>> masked("redis://alice:s3cret@host/0 does not answer")
    'redis://***@host/0 does not answer'
    """
    return _BEARER.sub(rf"\1 {MASK}", _USER_INFO.sub(f"{MASK}@", redacted(text)))


def masked_output(text: str, secrets: Iterable[str]) -> str:
    """Replace what may be a secret in another program's output: also the values of names such as `api_key`.

    Args:
        text: The output.
        secrets: Secrets that are replaced wherever they occur.

    >>> masked_output("api_key=s3cret refused for tango77", ["tango77"])
    'api_key=*** refused for ***'
    """
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return _ASSIGNED.sub(rf"\1{MASK}", masked(text))


def secrets_of(command: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The values in a command and its environment whose names say that they are secret.

    Args:
        command: The words of the command, such as `--api-key VALUE` or `-e TOKEN=VALUE`.
        environ: The environment.
    """
    values = [value for name, value in environ.items() if _SECRET_NAME.fullmatch(name)]
    for before, word in zip(("", *command), command, strict=False):
        name, is_assigned, value = word.partition("=")
        if is_assigned and _SECRET_NAME.fullmatch(name.lstrip("-")):
            values.append(value)
        elif before.startswith("-") and _SECRET_NAME.fullmatch(before.lstrip("-")):
            values.append(word)
    return [value for value in values if len(value) >= LEAST_SECRET]


def masked_words(words: Sequence[str]) -> list[str]:
    """The words of a command with what may be secrets replaced, and values of variables.

    >>> masked_words(["docker", "-e", "CRM_KEY=s3cret", "crm", "--api-key", "s3cret", "https://crm.acme.com/?key=s3cret"])
    ['docker', '-e', 'CRM_KEY=***', 'crm', '--api-key', '***', 'https://crm.acme.com/?key=***']
    """
    return [_masked_word(before, word) for before, word in zip(("", *words), words, strict=False)]


def _masked_word(before: str, word: str) -> str:
    name, is_assigned, _ = word.partition("=")
    if is_assigned and (_VARIABLE.fullmatch(f"{name}=x") or _SECRET_NAME.fullmatch(name.lstrip("-"))):
        return f"{name}={MASK}"
    if before.startswith("-") and not word.startswith("-") and _SECRET_NAME.fullmatch(before.lstrip("-")):
        return MASK
    shown = masked_output(word, ())
    for pattern in (_OPTION, _VARIABLE, _QUERY):
        shown = pattern.sub(rf"\1{MASK}", shown)
    return shown if re.search(r"[/\\]", shown) else _KEY.sub(MASK, shown)
