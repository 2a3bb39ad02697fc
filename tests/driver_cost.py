"""What the driver of Ray's workers costs a frame, with an encoder that only waits for 50 ms.

    PYTHONPATH=.:tests python tests/driver_cost.py NUM_WORKERS NUM_FRAMES

Entries are two objects of a byte in a folder. Prints frames a second, and the processor's time a frame of the
driver, of Ray's own processes beside it, and of the merge.
"""

import sys
import tempfile
import time
from dataclasses import replace

import obstore
import psutil
from store_samples import SPEC, frame, manifest

from cache.bucket import BucketStore, chunk_name, metadata_name
from cache.bucket_manifests import parts_of, write_rows
from cache.layout import SHARDS, now
from precompute.shards import merge, shard_range
from seeonce.fleet import _SHARDS_A_WORKER, Fleet, _cluster, _each

ENCODE_S = 0.05


class Waits:
    """Takes the place of what encodes shards: waits for each frame, puts its names, leaves its rows."""

    def __init__(self, address: str, num_frames: int) -> None:
        self._bucket = BucketStore.open(address, create=True)
        self._recording = replace(manifest(1).recording, num_frames=num_frames)

    def __call__(self, shard: tuple[int, int]) -> str:
        rows = list(map(frame, shard_range(shard, self._recording.num_frames)))
        for row in rows:
            time.sleep(ENCODE_S)
            for name in (chunk_name(row.key), metadata_name(row.key)):
                obstore.put(self._bucket.objects.store, name, b"x")
        folder = f"{SHARDS}/{self._recording.id}/{SPEC.encoder_id.hex}/{shard[0]}of{shard[1]}"
        write_rows(
            self._bucket.objects, self._recording, SPEC, parts_of(rows),
            complete=True, created_at=now(), folder=folder,
        )  # fmt: skip
        return self._recording.id


def rays_own_s() -> float:
    """Return the processor's time of what Ray runs beside the driver, but for its workers."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        if not process.name().startswith("ray::") and "default_worker" not in " ".join(process.cmdline()):
            total += sum(process.cpu_times()[:2])
    return total


def main(num_workers: int, num_frames: int) -> None:
    """Encode and merge, and print what it took."""
    fleet = Fleet(num_workers)
    num_shards = num_workers * _SHARDS_A_WORKER
    shards = [(number + 1, num_shards) for number in range(num_shards)]
    with tempfile.TemporaryDirectory() as folder:
        bucket = BucketStore.open(f"file://{folder}/bucket", create=True)
        with _cluster(fleet):
            started_s, driver_s, ray_s = time.perf_counter(), time.process_time(), rays_own_s()
            first_s = 0.0
            for found in _each(shards, Waits, (bucket.objects.address, num_frames), fleet, num_workers):
                first_s = first_s or time.perf_counter() - started_s
                assert isinstance(found, str), found
            took_s = time.perf_counter() - started_s
            driver_s, ray_s = time.process_time() - driver_s, rays_own_s() - ray_s
        merging_s = time.process_time()
        merge(bucket, "latest", print)
        merging_s = time.process_time() - merging_s
    ideal_s = num_frames * ENCODE_S / num_workers
    print(
        f"{num_workers} workers, {num_shards} shards, {num_frames} frames in {took_s:.1f} s; "
        f"waiting alone {ideal_s:.1f} s"
    )
    for what, seconds in (("driver", driver_s), ("Ray's own processes", ray_s), ("merge", merging_s)):
        print(f"{what:<20}{seconds:7.2f} s of processor time, {seconds / num_frames * 1e3:.3f} ms a frame")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
