"""Push, pull and read-through over a link that is held to a rate: they take nearly all of it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from bucket_samples import KEYS
from bucket_speed import get_bare, made, put_bare, timed
from slow_link import slow_link

from cache.base.home import Home
from cache.base.listener import Listener
from cache.bucket import BucketStore
from cache.mirror import pull, push, with_remote
from cache.store import Store
from infer.features import ReadAhead, StoredFeatures

LINK_BYTES_PER_S = 100e6
NUM_ENTRIES = 16  # of 41.8 MB
NEEDED = 0.8  # of the link, by what computes
SILENT = Listener()


@pytest.fixture
def linked(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket behind a slow link, with its server and the link in processes of their own."""
    monkeypatch.setattr(os, "fsync", os.fdatasync)  # a real one: the suite's does nothing
    program = Path(__file__).with_name("s3_stand_in.py")
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, text=True, env=environ
    ) as server:
        assert server.stdout is not None
        try:
            place = json.loads(server.stdout.readline())
            port = urlsplit(place["environ"]["AWS_ENDPOINT_URL"]).port
            assert port is not None
            with slow_link(port, LINK_BYTES_PER_S) as ours:
                for name, value in KEYS.items():
                    monkeypatch.setenv(name, value)
                monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{ours}")
                yield place["address"]
        finally:
            server.terminate()


@pytest.mark.campaign
def test_push_and_pull_take_nine_tenths_of_a_link_of_100_mb_a_second(linked: str, tmp_path: Path) -> None:
    store, chunks = made(tmp_path / "a", NUM_ENTRIES)
    bucket, other = BucketStore.open(linked, create=True), Store.open(Home(tmp_path / "b"))
    num_bytes = sum(map(len, chunks))
    took_s = {
        "bare put": timed(put_bare, bucket, chunks, use_multipart=False),
        "push": timed(push, store, bucket, None, SILENT),
        "bare get": timed(get_bare, bucket, NUM_ENTRIES),
        "pull": timed(pull, other, bucket, None, SILENT),
    }
    print({what: f"{num_bytes / seconds / 1e6:.0f} MB/s" for what, seconds in took_s.items()})
    # On a machine with other work the link gives less than it is held to: what bare requests got.
    for bare, ours in (("bare put", "push"), ("bare get", "pull")):
        assert max(took_s[bare], num_bytes / LINK_BYTES_PER_S) / took_s[ours] >= 0.9
    assert all(other.check(key) is None for key in set(store.keys()))


@pytest.mark.campaign
def test_pass_two_does_not_wait_for_a_link_that_gives_more_than_it_needs(linked: str, tmp_path: Path) -> None:
    """A stand-in computes as long on each frame as it takes to need so much of the link."""
    store, chunks = made(tmp_path / "a", NUM_ENTRIES)
    push(store, BucketStore.open(linked, create=True), None, SILENT)
    frames = store.read_manifest(store.list_manifests()[0]).frames
    reader = with_remote(Store.open(Home(tmp_path / "b")), {}, linked)
    computing_s = len(chunks[0]) / LINK_BYTES_PER_S / NEEDED
    waits_s = []
    with ReadAhead(StoredFeatures(reader, "a-recording"), 3) as ahead:
        for number, frame in enumerate(frames):
            ahead.expect(frames[number:])
            started_s = time.perf_counter()
            ahead.features(frame)
            waits_s.append(time.perf_counter() - started_s)
            ahead.expect(frames[number + 1 :])
            time.sleep(computing_s)
    share = sum(waits_s[1:]) / (computing_s * (len(frames) - 1))
    print(f"{waits_s[0]:.2f} s for the first, then {share:.3f} of the time; {computing_s:.2f} s a frame")
    assert share < 0.02
