"""The hash that stands for a call's arguments in the audit log."""

from json import encoder

from mcpguard.core.digest import blake2b
from mcpguard.core.jsonrpc.skim import Unbuilt

# The encoder that `JSONEncoder(sort_keys=True, separators=(",", ":")).encode` makes for each value, in a third of its time
_canonical = encoder.c_make_encoder(None, None, encoder.encode_basestring_ascii, None, ":", ",", True, False, True)  # type: ignore[attr-defined]


def args_hash(arguments: object, key: bytes) -> bytes:
    """A keyed BLAKE2b of a call's arguments. Equal arguments have equal hashes; without the key a hash reveals nothing."""
    text = arguments.text if isinstance(arguments, Unbuilt) else "".join(_canonical(arguments, 0))
    return blake2b(text.encode(errors="surrogatepass"), key=key, digest_size=12).digest()
