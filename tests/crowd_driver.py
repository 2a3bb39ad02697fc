"""Eight writers, two readers and a collector at one store: ``python crowd_driver.py FOLDER NUM_EACH ROUNDS``.

Each is a fork of this process. An exit status of 1 means that one of them failed; it says on stderr why.
"""

import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from store_samples import PROVENANCE, SPEC, features, new_store, pixels, same

from cache.collecting import collect
from cache.key import entry_key
from cache.store import Store

NUM_WRITERS, NUM_READERS = 8, 2
SHARED = range(40)  # every writer writes these
OLD = range(40, 60)  # nobody named or used these for long: the collector takes them
SAVED = range(60, 80)  # as old, but a reader may come first, and then they stay
KEPT = range(80, 100)  # as old, but a manifest names them
OWN = 1000  # writer n writes its own from n * OWN on


def own(writer: int, num_each: int) -> range:
    return range((writer + 1) * OWN, (writer + 1) * OWN + num_each)


def write(store: Store, writer: int, num_each: int, rounds: int) -> None:
    chance = random.Random(writer)
    for _ in range(rounds):
        numbers = [*SHARED, *own(writer, num_each)]
        chance.shuffle(numbers)
        while numbers:
            taken = [numbers.pop() for _ in range(min(len(numbers), chance.choice([1, 2, 7])))]
            with store.batch() as batch:
                for number in taken:
                    batch.add(pixels(number), SPEC, features(number), PROVENANCE)
                keys = batch.commit()
            for key, number in zip(keys, taken, strict=True):
                assert same(store.read(key), features(number)), (
                    f"entry {number} is not there after its commit"
                )


def read(store: Store, until: Path, seed: int) -> None:
    chance = random.Random(seed)
    numbers = [*SHARED, *SAVED, *KEPT, *own(0, 20)]
    while not until.exists():
        number = chance.choice(numbers)
        found = store.read(entry_key(pixels(number), SPEC.encoder_id))
        assert found is None or same(found, features(number)), f"a wrong read of entry {number}"
        assert found is not None or number not in KEPT, f"entry {number} is gone though a manifest names it"


def collect_again_and_again(store: Store, until: Path) -> None:
    while not until.exists():
        collect(store)
        time.sleep(0.01)
    collect(store)


def child(work: Callable[..., None], *arguments: object) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def main() -> int:
    folder, num_each, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    store, done = new_store(folder), folder / "done"
    others = [child(read, store, done, seed) for seed in range(NUM_READERS)]
    others.append(child(collect_again_and_again, store, done))
    writers = [child(write, store, writer, num_each, rounds) for writer in range(NUM_WRITERS)]
    failed = [os.waitpid(pid, 0)[1] for pid in writers]
    done.touch()
    failed += [os.waitpid(pid, 0)[1] for pid in others]
    return int(any(failed))


if __name__ == "__main__":
    sys.exit(main())
