"""A process that starts users of a prefix cache and kills them: ``python prefix_driver.py FOLDER MAX_BYTES``.

One line in, ``NUMBER SECONDS``: a user writes, reads and shrinks until it is killed after so long. One line
out: what it said of wrong bytes, if anything. Importing numpy takes longer than a write, so a user is a fork.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from prefix_samples import is_right, prefix_store, write

NUM_KEYS = 40


def use(folder: Path, max_bytes: int, seed: int) -> None:
    chance = random.Random(seed)
    store = prefix_store(folder, max_bytes)
    while True:
        number = chance.randrange(NUM_KEYS)
        if not is_right(store, number):
            write(store, number)


def run(folder: Path, max_bytes: int, seed: int, seconds: float) -> str:
    heard, told = os.pipe()
    child = os.fork()
    if not child:
        os.close(heard)
        try:
            use(folder, max_bytes, seed)
        except BaseException as error:
            os.write(told, repr(error).encode())
        os._exit(1)
    os.close(told)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    said = b"".join(iter(lambda: os.read(heard, 1 << 16), b""))
    os.close(heard)
    os.waitpid(child, 0)
    return said.decode()


def main() -> None:
    folder, max_bytes = Path(sys.argv[1]), int(sys.argv[2])
    for line in sys.stdin:
        seed, seconds = line.split()
        print(run(folder, max_bytes, int(seed), float(seconds)), flush=True)


if __name__ == "__main__":
    main()
