"""A wrapper on a Redis server: `python -m tests.stores.redis.worker URL LEASE_MS`. The tests control it through pipes.

It answers each line with one line: `call` with the decision, `end` with `ended` when its last call was settled, and `told`
with the losses of places that it has told so far.
"""

import os
import sys
import threading

from mcpguard.session.verdict import Ending
from mcpguard.stores.api import Options
from mcpguard.stores.redis.store import RedisStore
from mcpguard.stores.redis.url import parse
from tests.build import Session

POLICY = '[[rule]]\ntool = "x"\nconcurrent = 1\n'


def run(url: str, lease_ms: int) -> None:
    store = RedisStore(parse(url), Options(timeout_ms=20_000), lease_us=1000 * lease_ms)
    session = Session(store, POLICY, session=os.urandom(8).hex())
    told: list[str] = []
    ends = threading.Event()

    def tend() -> None:
        while not ends.wait(0.02):
            if store.needs_tending:
                store.tend()
                told.extend(store.warnings[len(store._server.warnings) :])

    threading.Thread(target=tend, daemon=True).start()
    ending: Ending | None = None
    answer: str
    for line in sys.stdin:
        word = line.strip()
        if word == "call":
            (request,) = session.charges("x")
            (verdict,) = store.decide([request], session.journal)
            if verdict.forwards:
                assert verdict.row_id is not None
                ending = Ending(verdict.row_id, request.plan, False)
            answer = verdict.decision
        elif word == "end":
            assert ending is not None
            store.settle([ending])
            answer = "ended"
        else:
            answer = " ".join(told)
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()
    ends.set()


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]))
