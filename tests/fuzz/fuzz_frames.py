"""Coverage-guided fuzzing of the oracle with atheris: `python -m tests.fuzz.fuzz_frames -runs=100000`.

The options are libFuzzer's. The known attacks are where it starts; a folder given after the options adds to them, and keeps
what it finds. A broken promise ends it with a status that is not 0 and the input in a file named `crash-…`.
"""

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

atheris: Any = importlib.import_module("atheris")

with atheris.instrument_imports(
    include=["mcpguard.wire", "mcpguard.session", "mcpguard.limiter", "mcpguard.policy", "json.decoder", "json.scanner"]
):
    from tests.fuzz.grammar import ATTACKS, Draw, stream
    from tests.fuzz.oracle import check

WORDS = (
    "method",
    "params",
    "name",
    "tools/call",
    "closed",
    '"id":1',
    "jsonrpc",
    "requestState",
    "\u2028",
    "\\u0000",
    "\\ud800",
)
_CHUNKS = (1 << 16, 1, 7, 64)


def one_input(data: bytes) -> None:
    """The first byte says how the rest is read: in which chunks, and what the audit keeps."""
    way = data[0] if data else 0
    check(data[1:], chunk_bytes=_CHUNKS[way & 3], arguments=("hash", "full", "none", "hash")[way >> 2 & 3])


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Sometimes a stream of the grammar's in place of a few bytes, else what libFuzzer does."""
    draw = Draw(seed)
    if draw.often(8):
        return bytes(atheris.Mutate(data, max_size))
    at = draw.randrange(len(data) + 1)
    return (data[:at] + stream(draw) + data[draw.randrange(at, len(data) + 1) :])[:max_size]


def _escaped(word: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word.encode())


def main(argv: list[str]) -> None:
    """Fuzz until the runs are over or a promise is broken. Does not return."""
    with tempfile.TemporaryDirectory() as folder:
        seeds = Path(folder) / "seeds"
        seeds.mkdir()
        for number, attack in enumerate(ATTACKS):
            (seeds / str(number)).write_bytes(b"\0" + attack)
        words = Path(folder) / "words"
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in WORDS))
        corpus = [one for one in argv[1:] if not one.startswith("-")]
        options = ["-max_len=4096", f"-dict={words}", *(one for one in argv[1:] if one.startswith("-"))]
        atheris.Setup([argv[0], *options, *corpus, str(seeds)], one_input, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
