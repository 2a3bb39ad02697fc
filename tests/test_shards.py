"""Pass one over several machines into a bucket: entries and manifest are those of one machine."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from bucket_samples import watched
from conftest import Run
from screens import noise
from store_samples import same

from cache.base.errors import NotEncodedError, StoreError
from cache.base.home import Home
from cache.base.listener import Listener
from cache.bucket import BucketStore, metadata_name
from cache.bucket_upkeep import check_bucket, collect_bucket
from cache.key import EncoderId
from cache.manifest import Manifest, list_manifests
from cache.store import Store
from precompute.encoder import VisionEncoder
from precompute.options import EncodeOptions
from precompute.pipeline import EncodeResult, _PassOne
from precompute.shards import encode_shard, merge, shard_range
from sources.recording import Frame

PICTURES = (0, 1, 1, 2, 0, 3, 4)  # of each frame
LOADED: "dict[EncoderId, VisionEncoder]" = {}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven pictures, of which five differ, and a file that is none."""
    made = tmp_path / "monday"
    made.mkdir()
    for number, picture in enumerate(PICTURES):
        noise(picture).save(made / f"{number}.png")
    (made / "7.png").write_bytes(b"no picture")
    return made


def rows(manifest: Manifest) -> tuple[object, ...]:
    """What a manifest says, but for when it was written."""
    return manifest.recording, manifest.encoder, manifest.frames, manifest.skipped, manifest.complete


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_shards_and_a_merge_give_what_one_machine_gives(
    kind: str,
    folder: Path,
    plain: Path,
    tmp_path: Path,
    run: Run,
    home: Path,
    times_encoded: Counter[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"memory://{tmp_path}" if kind == "memory" else f"file://{tmp_path}/bucket"
    assert run("seeonce encode --model", plain, folder).code == 3
    store = Store.open(Home(home))
    alone = store.read_manifest(store.list_manifests()[0])
    times_encoded.clear()
    for number in (3, 1, 2):
        monkeypatch.setenv("SEEONCE_HOME", str(tmp_path / f"worker{number}"))
        done = run("seeonce encode --model", plain, "--to", url, "--shard", f"{number}/3", folder)
        assert done.code == (3 if number == 3 else 0)
        assert f"Pictures of screens go to {url}" in done.err
    assert list(times_encoded.values()) == [1] * 5
    merged = run("seeonce encode --json --merge --to", url, folder)
    assert (merged.code, merged.json["num_encoded"], merged.json["num_entries"]) == (3, 7, 5)
    bucket = BucketStore.open(url)
    [head] = bucket.list_manifests(pytest.fail)
    assert rows(bucket.read_manifest(head)) == rows(alone)
    for frame in alone.frames:
        features = store.read(frame.key)
        assert features is not None
        assert same(bucket.read(frame.key), features)


def test_without_shards_all_of_it_goes_into_the_bucket(
    folder: Path, plain: Path, run: Run, tmp_path: Path, home: Path
) -> None:
    url = f"memory://{tmp_path}"
    done = run("seeonce encode --json --model", plain, "--to", url, folder)
    assert (done.code, done.json["num_new"]) == (3, 5)
    again = run("seeonce encode --json --model", plain, "--to", url, folder)
    assert (again.code, again.json["num_new"]) == (3, 0)
    bucket = BucketStore.open(url)
    assert len(bucket.read_manifest(bucket.list_manifests(pytest.fail)[0]).frames) == 7
    assert list_manifests(Home(home)) == []


Shards = Callable[..., EncodeResult]


@pytest.fixture
def bucket(tmp_path: Path) -> BucketStore:
    return BucketStore.open(f"memory://{tmp_path}", create=True)


@pytest.fixture
def shard(folder: Path, plain: Path, bucket: BucketStore, home: Path) -> Shards:
    """Return a function that encodes a shard, "2/3"."""
    options = EncodeOptions(str(folder), str(plain))

    def encode(number: int, num_shards: int, into: BucketStore = bucket) -> EncodeResult:
        return encode_shard(Home(home), options, Listener(), LOADED, bucket=into, shard=(number, num_shards))

    return encode


def silent(line: str) -> None:
    pass


def test_merge_names_the_shards_that_are_missing_or_not_complete(
    shard: Shards, bucket: BucketStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotEncodedError, match="no shard of 'monday'"):
        merge(bucket, "monday", silent)
    shard(1, 3)
    with monkeypatch.context() as patch:
        patch.setattr(_PassOne, "_add_frame", _interrupt_at(3, _PassOne._add_frame))
        assert shard(2, 3).interrupted
    with pytest.raises(NotEncodedError, match=r"shard 2/3 has 1 of 3 frames, 3/3 is missing; .* --shard 2/3"):
        merge(bucket, "monday", silent)
    assert bucket.list_manifests(pytest.fail) == []
    shard(2, 3)
    (folder / "8.png").write_bytes((folder / "0.png").read_bytes())
    shard(3, 3)
    with pytest.raises(NotEncodedError, match="1/3 is of another state of the recording, 2/3 is of"):
        merge(bucket, "monday", silent)


def _interrupt_at(index: int, add: Callable[..., None]) -> Callable[..., None]:
    def interrupted(self: _PassOne, frame: Frame, *more: object) -> None:
        if frame.index == index:
            raise KeyboardInterrupt
        add(self, frame, *more)

    return interrupted


@pytest.mark.parametrize("died_at", [9, 1000])
def test_a_shard_that_broke_off_goes_on_and_nothing_is_doubled(
    died_at: int, shard: Shards, bucket: BucketStore, times_encoded: Counter[bytes]
) -> None:
    requests = iter(range(10_000))

    def fail(operation: str, name: str) -> None:
        if next(requests) >= died_at or name.startswith("shards"):
            raise StoreError("the bucket is gone")

    with pytest.raises(StoreError):
        shard(1, 1, watched(bucket, fail))
    shard(1, 1)
    shard(1, 1)
    assert merge(bucket, "latest", silent).num_entries == 5
    assert merge(bucket, "latest", silent).num_entries == 5
    assert sum(1 for item in bucket.objects.list("frames")) == 10
    assert check_bucket(bucket, read_data=True).problems == []


def test_merge_names_the_shard_whose_entries_went_away(shard: Shards, bucket: BucketStore) -> None:
    shard(1, 2)
    gone = shard(2, 2).manifest.frames[-1].key
    bucket.objects.delete(metadata_name(gone))
    with pytest.raises(NotEncodedError, match=r"1 entry of shard 2/2 went away: .* --shard 2/2"):
        merge(bucket, "latest", silent)
    shard(2, 2)
    assert merge(bucket, "latest", silent).num_entries == 5


def test_a_collection_removes_lists_of_shards_that_are_old(shard: Shards, bucket: BucketStore) -> None:
    shard(1, 1)
    merge(bucket, "latest", silent)
    collect_bucket(bucket)
    assert merge(bucket, "latest", silent).num_frames == 7
    collect_bucket(bucket, grace_s=-10)
    assert list(bucket.objects.list("shards")) == []
    assert len(bucket.list_manifests(pytest.fail)) == 1


def test_shards_are_neighbours_of_one_size_and_together_all_frames() -> None:
    for num_frames in (0, 1, 7, 100):
        for num_shards in (1, 3, 8, 101):
            ranges = [shard_range((number + 1, num_shards), num_frames) for number in range(num_shards)]
            assert [index for one in ranges for index in one] == list(range(num_frames))
            assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--shard 1/2", "name it, as in --to"),
        ("--to memory://x --shard 3/2", "--shard 2/5"),
        ("--to memory://x --shard 1/2 --merge", "leave one of them out"),
        ("--to memory://x --watch", "need a local store"),
        ("--to http://x", "no address"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: str, problem: str, run: Run) -> None:
    ended = run(f"seeonce encode demo {options}")
    assert ended.code == 1
    assert problem in ended.error
