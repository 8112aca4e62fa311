"""How much to measure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Effort:
    """Rounds are interleaved: each goes once through all variants. The rest is of one variant in one round.

    Seconds are aimed at: each variant gets as much to do as takes it about so long, by a first try that is not counted.
    """

    call_rounds: int
    calls: int
    paced_rounds: int
    paced_calls: int
    sdk_calls: int
    pipelined_rounds: int
    pipelined_seconds: float
    stream_rounds: int
    stream_seconds: float
    tiny_starts: int
    sdk_starts: int
    wrapper_seconds: float
    flat_rounds: int


FULL = Effort(
    call_rounds=40,
    calls=500,
    paced_rounds=10,
    paced_calls=50,
    sdk_calls=80,
    pipelined_rounds=5,
    pipelined_seconds=0.5,
    stream_rounds=5,
    stream_seconds=0.5,
    tiny_starts=21,
    sdk_starts=9,
    wrapper_seconds=5,
    flat_rounds=20,
)
QUICK = Effort(
    call_rounds=6,
    calls=300,
    paced_rounds=3,
    paced_calls=20,
    sdk_calls=40,
    pipelined_rounds=3,
    pipelined_seconds=0.2,
    stream_rounds=2,
    stream_seconds=0.15,
    tiny_starts=7,
    sdk_starts=3,
    wrapper_seconds=0.5,
    flat_rounds=5,
)
