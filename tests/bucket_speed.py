"""How fast push and pull are beside obstore's bare put and get of the same objects, in one run, in turn.

    python tests/bucket_speed.py s3://bucket/prefix [NUM_ENTRIES [NUM_ROUNDS]]

An entry is as large as one of 1920x1080 at 4B, 41.8 MB. Prints seconds and the ratio of each round.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import obstore
from store_samples import PROVENANCE, SPEC, frame, manifest, pixels

from cache.base.home import Home
from cache.base.listener import Listener
from cache.bucket import NUM_TRANSFERS, BucketStore, chunk_name
from cache.entry import Features
from cache.mirror import pull, push
from cache.store import Store

TOKENS, HIDDEN = 2040, 2560  # by four layers of two bytes


def made(folder: Path, num_entries: int) -> tuple[Store, list[bytes]]:
    """Return a store of random entries with a manifest, and their chunks."""
    spec = replace(SPEC, out_hidden_size=HIDDEN)
    store, grid = Store.open(Home(folder)), (1, 2, 2 * TOKENS)
    rng = np.random.default_rng(time.time_ns())
    rows = []
    for number in range(num_entries):
        array = rng.integers(0, 1 << 16, (4, TOKENS, HIDDEN), dtype=np.uint16)
        key = store.write(pixels(number), spec, Features(array, "bfloat16", grid, 2), PROVENANCE)
        rows.append(replace(frame(number), key=key, grid_thw=grid, num_tokens=TOKENS))
    recorded = manifest(num_entries)
    store.write_manifest(replace(recorded, encoder=spec, frames=tuple(rows)))
    return store, [(store.path / chunk_name(row.key)).read_bytes() for row in rows]


def timed(work: Callable[..., object], *given: object, **options: bool) -> float:
    """Return how many seconds something takes."""
    started_s = time.perf_counter()
    work(*given, **options)
    return time.perf_counter() - started_s


def put_bare(bucket: BucketStore, chunks: list[bytes], **options: bool) -> None:
    """Put chunks, as many at once as a push."""
    with ThreadPoolExecutor(NUM_TRANSFERS) as threads:
        names = [f"bare/{number}" for number in range(len(chunks))]
        list(
            threads.map(
                lambda name, chunk: obstore.put(bucket.objects.store, name, chunk, **options), names, chunks
            )
        )


def get_bare(bucket: BucketStore, num_entries: int) -> None:
    """Get them, as many at once as a pull."""
    with ThreadPoolExecutor(NUM_TRANSFERS) as threads:
        names = [f"bare/{number}" for number in range(num_entries)]
        list(threads.map(lambda name: len(obstore.get(bucket.objects.store, name).bytes()), names))


def main(address: str, num_entries: int = 16, num_rounds: int = 3) -> None:
    """Push and pull a store, and put and get its chunks bare, in turn."""
    pushes, pulls = [], []
    for number in range(num_rounds):
        with tempfile.TemporaryDirectory() as folder:
            store, chunks = made(Path(folder, "a"), num_entries)
            other = Store.open(Home(Path(folder, "b")))
            os.sync()
            bucket = BucketStore.open(f"{address}/{number}-{time.time_ns()}", create=True)
            took = {
                "put": timed(put_bare, bucket, chunks),
                "push": timed(push, store, bucket, None, Listener()),
                "get": timed(get_bare, bucket, num_entries),
                "pull": timed(pull, other, bucket, None, Listener()),
            }
            for found in list(bucket.objects.list("")):
                bucket.objects.delete(found["path"])
            pushes.append(took["put"] / took["push"])
            pulls.append(took["get"] / took["pull"])
            size = sum(map(len, chunks)) / 1e6
            print({what: f"{seconds:.2f} s, {size / seconds:.0f} MB/s" for what, seconds in took.items()})
    print(f"push {median(pushes):.2f} of bare put, pull {median(pulls):.2f} of bare get")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
