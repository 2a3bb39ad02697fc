"""Eight writers of other bytes under one key, two of them killed between requests, and a reader: see the end.

    python tests/bucket_race.py s3://bucket/prefix NUM_ROUNDS

A process forks before it uses obstore, whose threads do not survive that. Prints what it found as JSON.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable

from bucket_samples import Place, watched
from store_samples import SPEC, features, pixels, same

from cache.bucket import BucketStore
from cache.key import entry_key

NUM_WRITERS, NUM_KILLED = 8, 2


def forked(work: Callable[[], None]) -> int:
    """Run something in a process of its own; return its id. It ends with 1 when it raises."""
    if pid := os.fork():
        return pid
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def write(address: str, number: int, seed: int, start_s: float, dies_at: int | None) -> None:
    """Write features of one seed, and see them; or be killed at a request."""
    store = BucketStore.open(address, writable=True)
    requests = 0

    def die(operation: str, name: str) -> None:
        nonlocal requests
        requests += 1
        if requests == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    time.sleep(max(0.0, start_s - time.time()))
    key = Place(watched(store, die)).write(number, features(seed))
    assert is_one(store, number), f"{key} was acknowledged and is not there"


def read(address: str, number: int, start_s: float) -> None:
    """Read until the writers are done: what is there is whole."""
    store = BucketStore.open(address)
    time.sleep(max(0.0, start_s - time.time()))
    until_s = time.time() + 0.5
    while time.time() < until_s:
        found = store.read(entry_key(pixels(number), SPEC.encoder_id))
        assert found is None or any(same(found, features(seed)) for seed in range(NUM_WRITERS))


def is_one(store: BucketStore, number: int) -> bool:
    """Say whether the entry is there, and is whole that of one writer."""
    found = store.read(entry_key(pixels(number), SPEC.encoder_id))
    return any(same(found, features(seed)) for seed in range(NUM_WRITERS))


def main(address: str, num_rounds: int) -> None:
    """Race, round by round, each under a key of its own."""
    forked_pids = [forked(lambda: print(BucketStore.open(address, create=True).store_id, file=sys.stderr))]
    os.waitpid(forked_pids.pop(), 0)
    rng, killed, failed = random.Random(0), 0, 0
    for number in range(num_rounds):
        start_s = time.time() + 0.3
        victims = rng.sample(range(NUM_WRITERS), NUM_KILLED)
        pids = [
            forked(
                lambda number=number, seed=seed, start_s=start_s, dies_at=dies_at: write(  # type: ignore[misc]
                    address, number, seed, start_s, dies_at
                )
            )
            for seed in range(NUM_WRITERS)
            for dies_at in [rng.randint(1, 4) if seed in victims else None]
        ]
        pids.append(forked(lambda number=number, start_s=start_s: read(address, number, start_s)))  # type: ignore[misc]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        killed += codes.count(-signal.SIGKILL)
        failed += codes.count(1)
    print(json.dumps({"rounds": num_rounds, "killed": killed, "failed": failed}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
