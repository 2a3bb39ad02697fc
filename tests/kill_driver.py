"""A process that starts writers and lets them be killed: ``python kill_driver.py STORE_FOLDER``.

One line in, one writer: ``step NUMBER STEP OCCURRENCE`` kills it at that step of committing a batch of three;
``time NUMBER SECONDS`` lets it commit batches until it is killed. One line out: the numbers of the entries
that the writer acknowledged. Importing numpy takes longer than a commit, so a writer is a fork of this.
"""

import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from store_samples import PROVENANCE, SPEC, features, new_store, pixels

from cache.store import Durability, Store

MANY = 100_000


def write(store: Store, numbers: range, told: int) -> None:
    with store.batch() as batch:
        for number in numbers:
            batch.add(pixels(number), SPEC, features(number), PROVENANCE)
        batch.commit()
    os.write(told, "".join(f"{number} " for number in numbers).encode())


def dies_at(store: Store, first: int, step: str, occurrence: int, told: int) -> None:
    left = [occurrence]

    def on_step(reached: str) -> None:
        left[0] -= reached == step
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    write(replace(store, on_step=on_step), range(first, first + 3), told)


def writes_until_killed(store: Store, first: int, told: int) -> None:
    chance = random.Random(first)
    number = first
    while number < first + MANY:
        size = chance.choice([1, 1, 2, 5])
        write(store, range(number, number + size), told)
        number += size


def run(store: Store, words: list[str]) -> str:
    """Run one writer to its death; return what it acknowledged."""
    heard, told = os.pipe()
    child = os.fork()
    if not child:
        os.close(heard)
        if words[0] == "step":
            dies_at(store, int(words[1]), words[2], int(words[3]), told)
        else:
            writes_until_killed(store, int(words[1]), told)
        os._exit(1)
    os.close(told)
    if words[0] == "time":
        time.sleep(float(words[2]))
        os.kill(child, signal.SIGKILL)
    acknowledged = b"".join(iter(lambda: os.read(heard, 1 << 16), b""))
    os.close(heard)
    _, status = os.waitpid(child, 0)
    return acknowledged.decode() if os.WIFSIGNALED(status) else f"not killed: {status}"


def main() -> None:
    store = new_store(Path(sys.argv[1]), Durability.none)
    for line in sys.stdin:
        print(run(store, line.split()), flush=True)


if __name__ == "__main__":
    main()
