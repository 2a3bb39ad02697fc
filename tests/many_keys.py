"""A bucket of many keys: a manifest is written and read by parts, keys are looked for and collected.

    python tests/many_keys.py URL NUM_KEYS

Entries are two objects of a byte, put as they are: the keys count, and not their bytes.
Prints of each step seconds of the processor, the memory at its start, and how far its highest was above that
(Linux only). What a bucket in memory:// gains in a step is in that, too: read it off the next step's start.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import obstore
from store_samples import SPEC, frame, manifest

from cache.bucket import BucketStore, chunk_name, metadata_name
from cache.bucket_manifests import parts_of, read_parts, write_rows
from cache.bucket_upkeep import KeysOnDisk, collect_bucket
from cache.key import EntryKey
from cache.manifest import FrameEntry


def rows(num_keys: int) -> Iterator[FrameEntry]:
    """Yield so many frames, one at a time."""
    return map(frame, range(num_keys))


def put_entries(bucket: BucketStore, num_keys: int) -> None:
    """Put the names of so many entries, and of one in a hundred that no manifest names."""
    for number in range(num_keys + num_keys // 100):
        key = frame(number).key if number < num_keys else EntryKey(number.to_bytes(4, "little") * 8)
        for name in (chunk_name(key), metadata_name(key)):
            obstore.put(bucket.objects.store, name, b"x")


def show(what: str, work: Callable[[], object]) -> None:
    """Do something and print what it took."""
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is now
    before, started_s = memory_mb("VmRSS"), time.process_time()
    result = work()
    took_s, more = time.process_time() - started_s, memory_mb("VmHWM") - before
    print(f"{what:<22}{took_s:8.1f} s {before:8.0f} MB {more:+8.0f} MB   {result}", flush=True)


def memory_mb(field: str) -> float:
    """Return what the system says of this process's memory."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def main(address: str, num_keys: int) -> None:
    """Go through all that a manifest of so many frames meets."""
    bucket = BucketStore.open(address, create=True)
    recorded = manifest(1).recording
    show("write a manifest", lambda: write_rows(
        bucket.objects, replace(recorded, num_frames=num_keys), SPEC, parts_of(rows(num_keys)),
        complete=True, created_at="2026-11-27T00:00:00Z",
    ))  # fmt: skip
    (head,) = bucket.list_manifests()
    named = KeysOnDisk()

    def read() -> None:
        for part in read_parts(bucket.objects, str(head.path)):
            named.add(row.key for row in part.frames)

    def missing() -> int:
        return sum(len(named.group(number) - bucket.keys(f"{number:02x}")) for number in range(256))

    show("read its parts", read)
    show("put names", lambda: put_entries(bucket, num_keys))
    with named:
        show("look for each key", missing)
    show("collect: mark", lambda: collect_bucket(bucket))
    show("collect: remove", lambda: collect_bucket(bucket, grace_s=0))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
