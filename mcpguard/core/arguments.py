"""The hash that stands for a call's arguments in the audit log."""

from mcpguard.core.digest import blake2b
from mcpguard.core.jsonrpc.skim import Unbuilt
from mcpguard.core.text import canonical


def args_hash(arguments: object, key: bytes) -> bytes:
    """A keyed BLAKE2b of a call's arguments. Equal arguments have equal hashes; without the key a hash reveals nothing."""
    text = arguments.text if isinstance(arguments, Unbuilt) else canonical(arguments)
    return blake2b(text.encode(errors="surrogatepass"), key=key, digest_size=12).digest()
