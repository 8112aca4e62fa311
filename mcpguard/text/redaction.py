"""Removes tokens that were pasted by mistake, and masks secrets in addresses and in texts that other programs wrote."""

import re
from collections.abc import Iterable, Mapping, Sequence

from mcpguard.light_typing import Final

MASK: Final = "***"
"""Stands in place of a secret."""

LEAST_SECRET: Final = 6
"""The shortest value that counts as a secret of a command. A shorter one may be an ordinary word."""

# `re` compiles a pattern when it is first used: `run` checks names before it starts the server, and most have no dot
_MAY_BE_HEADER: Final = r"(?<![A-Za-z0-9_-])([A-Za-z0-9_-]{8,}+)(?=\.)"
_REST: Final = r"[A-Za-z0-9_.-]*"
_URL_SAFE: Final = str.maketrans("-_", "+/")

_SUSPECT: Final = "(?:token|secret|passw|passwd|api[_-]?key|access[_-]?key|private[_-]?key|credential|auth)"
_SECRET_NAME: Final = rf"(?i)[\w-]*{_SUSPECT}[\w-]*"
_USER_INFO: Final = r"(?<=://)[^/\s?#]*@"
_ASSIGNED: Final = rf"(?i)({_SUSPECT}[\w-]{{0,40}}[\"']?\s*[=:]\s*[\"']?)(?:(Bearer|Basic)\s+)?(?![{{\[])[^\s\"',;&]+"
_OPTION: Final = rf"(?i)(?<!\S)(--?[\w-]{{0,40}}{_SUSPECT}[\w-]{{0,40}}\s+[\"']?)(?!-)[^\s\"']+"
_VARIABLE: Final = r"(?<!\S)([A-Z_][A-Z0-9_]*=)[^\s\"']+"
_QUERY: Final = r"(?i)(?<=[?&])([\w-]{0,40}key=)[^\s\"'&]+"
_KEY: Final = r"(?<![A-Za-z0-9_])(?=[A-Za-z_]*[0-9])[A-Za-z0-9_]{24,}"
"""So many letters and digits in a row are a key or a hash."""
_BEARER: Final = r"\b([Bb]earer|Basic)\s+[\w.~+/=-]{8,}"


def holds_token(text: str) -> bool:
    """Whether a text contains a JWT, whole or cut short."""
    return redacted(text) != text


def redacted(text: str) -> str:
    """Replace each JWT in a text, whole or cut short. Its header, in base64url, has `alg` (RFC 7515, section 4.1.1).

    >>> redacted("no such file: eyJhbGciOiJSUzI1NiJ9.e30.c2ln")
    'no such file: (a token)'
    """
    if "." not in text:
        return text
    kept, at = [], 0
    for found in re.finditer(_MAY_BE_HEADER, text):  # the text before every dot, because a name with a dot can precede a token
        if found.start() >= at and _has_algorithm(found[1]):
            kept += [text[at : found.start()], "(a token)"]
            at = re.compile(_REST).match(text, found.end()).end()  # type: ignore[union-attr]  # it also matches the empty text
    return "".join([*kept, text[at:]])


def _has_algorithm(header: str) -> bool:
    import binascii  # loaded with the first such text

    try:
        return b'"alg"' in binascii.a2b_base64(header.translate(_URL_SAFE) + "==")
    except binascii.Error:
        return False


def masked(text: str) -> str:
    """Replace JWTs, credentials of HTTP, and users and passwords in URLs.

    >>> masked("redis://alice:s3cret@host/0 does not answer")
    'redis://***@host/0 does not answer'
    """
    return re.sub(_BEARER, rf"\1 {MASK}", re.sub(_USER_INFO, f"{MASK}@", redacted(text)))


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
    return re.sub(_ASSIGNED, rf"\1{MASK}", masked(text))


def secrets_of(command: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The values in a command and its environment whose names say that they are secret.

    Args:
        command: The words of the command, such as `--api-key VALUE` or `-e TOKEN=VALUE`.
        environ: The environment.
    """
    values = [value for name, value in environ.items() if _is_secret(name)]
    for before, word in zip(("", *command), command, strict=False):
        name, is_assigned, value = word.partition("=")
        if is_assigned and _is_secret(name):
            values.append(value)
        elif before.startswith("-") and _is_secret(before):
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
    if is_assigned and (re.fullmatch(_VARIABLE, f"{name}=x") or _is_secret(name)):
        return f"{name}={MASK}"
    if before.startswith("-") and not word.startswith("-") and _is_secret(before):
        return MASK
    shown = masked_output(word, ())
    for pattern in (_OPTION, _VARIABLE, _QUERY):
        shown = re.sub(pattern, rf"\1{MASK}", shown)
    return shown if re.search(r"[/\\]", shown) else re.sub(_KEY, MASK, shown)


def _is_secret(name: str) -> bool:
    """Whether a name, or an option, says that its value is secret."""
    return re.fullmatch(_SECRET_NAME, name) is not None
