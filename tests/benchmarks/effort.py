"""How much to measure."""

from typing import NamedTuple


class Effort(NamedTuple):
    """Rounds are interleaved: each goes once through all variants.

    Attributes:
        calls: Rounds, and calls of one variant in one round.
        paced: The same at the pace of an agent.
        sdk: The same with a server on the SDK.
        pipelined: Rounds, and seconds that one variant should take in one round.
        streams: The same of streams.
        starts: Starts of the tiny server, and of the SDK server.
        wrapper_seconds: How long wrappers share a store.
        wrappers: How many of them.
        flat: Rounds, and calls of one size in one round.
    """

    calls: tuple[int, int] = (40, 500)
    paced: tuple[int, int] = (10, 50)
    sdk: tuple[int, int] = (40, 80)
    pipelined: tuple[int, float] = (5, 0.5)
    streams: tuple[int, float] = (5, 0.5)
    starts: tuple[int, int] = (21, 9)
    wrapper_seconds: float = 5
    wrappers: tuple[int, ...] = (1, 4, 16)
    flat: tuple[int, int] = (20, 500)
