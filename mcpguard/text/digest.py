"""Hashes, shortened names, and numbers that stand for texts.

BLAKE2b is imported without `hashlib`, which also loads OpenSSL: 4.6 MB of memory and 3 ms of every start.
"""

from mcpguard.light_typing import Final

try:
    from _blake2 import blake2b  # the same function as hashlib.blake2b
except ImportError:  # pragma: no cover - a Python built without it
    from hashlib import blake2b

__all__ = ["MAX_NAME_BYTES", "blake2b", "cut", "number"]

MAX_NAME_BYTES: Final = 256
"""In counters and audit rows, longer names are cut, and a hash takes the place of the rest."""


def cut(name: str) -> str:
    """A name as counters and rows hold it: whole up to `MAX_NAME_BYTES`, else its beginning and a hash of all of it."""
    if len(name) <= MAX_NAME_BYTES // 4:
        return name
    data = name.encode(errors="surrogatepass")
    if len(data) <= MAX_NAME_BYTES:
        return name
    digest = blake2b(data, digest_size=8).hexdigest()
    return f"{data[: MAX_NAME_BYTES - 20].decode(errors='ignore')}…#{digest}"


def number(text: str, key: bytes = b"") -> int:
    """The number of a text in a store: 63 bits of its hash, which fit an SQLite integer.

    One in 18 million stores with a million texts has two texts with the same number. Without a secret key, somebody who chooses
    the texts can find such a pair within minutes.
    """
    return int.from_bytes(blake2b(text.encode(), key=key, digest_size=8).digest()) >> 1
