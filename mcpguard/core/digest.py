"""Hashes, names that are cut with one, and numbers that stand for texts.

BLAKE2b without what `hashlib` loads beside it: OpenSSL, 4.6 MB of memory and 3 ms of every start.
"""

from typing import Final

try:
    from _blake2 import blake2b  # what hashlib.blake2b is
except ImportError:  # pragma: no cover - a Python built without it
    from hashlib import blake2b

__all__ = ["MAX_NAME_BYTES", "blake2b", "cut", "number"]

MAX_NAME_BYTES: Final = 256
"""A longer name is cut in counters and audit, with a hash in place of the rest."""


def cut(name: str) -> str:
    """A name as it is kept: whole up to `MAX_NAME_BYTES`, else its beginning and a hash of all of it."""
    if len(name) <= MAX_NAME_BYTES // 4:
        return name
    data = name.encode(errors="surrogatepass")
    if len(data) <= MAX_NAME_BYTES:
        return name
    digest = blake2b(data, digest_size=8).hexdigest()
    return f"{data[: MAX_NAME_BYTES - 20].decode(errors='ignore')}…#{digest}"


def number(text: str, key: bytes = b"") -> int:
    """What stands for a text in a store: 63 bits of its hash, which is an SQLite integer.

    Of a million texts two meet once in 18 million stores. Whoever chooses texts can find two that meet in some minutes, where
    they do not have a key that he does not know.
    """
    return int.from_bytes(blake2b(text.encode(), key=key, digest_size=8).digest()) >> 1
