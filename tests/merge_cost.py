"""Measure what a merge costs its machine: python tests/merge_cost.py NUM_FRAMES [NUM_SHARDS]."""

import resource
import sys
import time
from dataclasses import replace

from store_samples import SPEC, frame, manifest

from cache.bucket import BucketStore, metadata_name
from cache.bucket_manifests import parts_of, write_rows
from precompute.shards import merge, shard_range


def main(num_frames: int, num_shards: int = 8) -> None:
    """Put lists of imagined frames and names of entries into memory, then merge; print seconds of CPU."""
    bucket = BucketStore.open("memory://merge-cost", create=True)
    info = replace(manifest(1).recording, num_frames=num_frames)
    for number in range(1, num_shards + 1):
        frames = [frame(index) for index in shard_range((number, num_shards), num_frames)]
        for one in frames:
            bucket.objects.put_new(metadata_name(one.key), b"")
        folder = f"shards/{info.id}/{SPEC.encoder_id.hex}/{number}of{num_shards}"
        created_at = "2026-11-27T00:00:00Z"
        write_rows(
            bucket.objects, info, SPEC, parts_of(frames), complete=True, created_at=created_at, folder=folder
        )
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started_s = time.process_time()
    merge(bucket, info.id, print)
    took_s = time.process_time() - started_s
    more_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kb) / 1024
    print(
        f"{num_frames:,} frames of {num_shards} shards: {took_s / num_frames * 1e6:.0f} us of CPU a frame, "
        f"peak {more_mb:.0f} MB above what was there"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
