"""Push, pull, read-through, and the upkeep of a bucket: what is named is there, whoever is killed."""

import os
import time
from pathlib import Path
from unittest.mock import patch

import obstore
import pytest
from bucket_samples import KilledError, Place, new_place, watched
from conftest import Run
from store_samples import SPEC, entry_files, features, flip_bit, manifest, new_store, pixels, same, write

from cache.base.errors import InputError, NotEncodedError, StoreError
from cache.base.home import Home
from cache.base.listener import Listener
from cache.bucket import BucketStore, chunk_name, marker_name, metadata_name
from cache.bucket_upkeep import KeysOnDisk, check_bucket, collect_bucket, require_entries
from cache.key import EntryKey, entry_key
from cache.mirror import Pace, fetch_manifests, pull, push, with_remote
from cache.objects import Objects
from cache.store import Store

SILENT = Listener()


def local(folder: Path, num_frames: int = 3) -> Store:
    """A store with a recording of so many frames."""
    store = new_store(folder)
    for number in range(num_frames):
        write(store, number)
    store.write_manifest(manifest(num_frames))
    return store


def in_bucket(tmp_path: Path, kind: str = "memory") -> BucketStore:
    """An empty bucket."""
    store = new_place(kind, tmp_path).store
    assert isinstance(store, BucketStore)
    return store


def key_of(number: int) -> EntryKey:
    return entry_key(pixels(number), SPEC.encoder_id)


def test_what_is_pushed_and_pulled_is_the_same_byte_for_byte(tmp_path: Path) -> None:
    here, there, bucket = local(tmp_path / "a"), new_store(tmp_path / "b"), in_bucket(tmp_path)
    pushed = push(here, bucket, None, SILENT)
    pulled = pull(there, bucket, "a-recording", SILENT)
    assert pushed == pulled
    assert (pushed.num_entries, pushed.recordings, pushed.interrupted) == (3, ["a-recording"], False)
    for number in range(3):
        files = zip(entry_files(here, key_of(number)), entry_files(there, key_of(number)), strict=True)
        assert all(one.read_bytes() == other.read_bytes() for one, other in files)
    assert there.read_manifest(there.list_manifests()[0]) == here.read_manifest(here.list_manifests()[0])


def test_what_is_there_already_does_not_go_over_again(tmp_path: Path) -> None:
    here, bucket = local(tmp_path), in_bucket(tmp_path)
    push(here, bucket, None, SILENT)
    again = push(here, bucket, None, SILENT)
    assert (again.num_entries, again.num_there) == (0, 3)
    assert (pull(here, bucket, None, SILENT).num_entries) == 0


@pytest.mark.parametrize("died_at", range(0, 14, 2))
def test_a_push_that_was_killed_goes_on(tmp_path: Path, died_at: int) -> None:
    here, bucket = local(tmp_path), in_bucket(tmp_path)
    requests = iter(range(1000))

    def die(operation: str, name: str) -> None:
        if next(requests) >= died_at:
            raise KilledError

    with pytest.raises(KilledError):
        push(here, watched(bucket, die), None, SILENT)
    for head in bucket.list_manifests(pytest.fail):
        assert all(bucket.has(frame.key) for frame in bucket.read_manifest(head).frames)
    done = push(here, bucket, None, SILENT)
    assert done.num_entries + done.num_there == 3
    assert check_bucket(bucket, read_data=True).problems == []


def test_ctrl_c_ends_a_push_and_says_so(tmp_path: Path) -> None:
    here, bucket = local(tmp_path), in_bucket(tmp_path)

    class Interrupting(Listener):
        def show(self, what: str, unit: str, num_done: int, num_all: int, note: str = "") -> None:
            if num_done:
                raise KeyboardInterrupt

    assert push(here, bucket, None, Interrupting()).interrupted
    assert bucket.list_manifests() == []
    assert not push(here, bucket, None, SILENT).interrupted


def test_a_recording_with_a_damaged_entry_gets_no_manifest_in_the_bucket(tmp_path: Path) -> None:
    here, bucket = local(tmp_path), in_bucket(tmp_path)
    flip_bit(entry_files(here, key_of(1))[1], 77)
    found = push(here, bucket, None, SILENT)
    assert found.recordings == []
    assert "a-recording: 1 of 3 entries missing or damaged here" in found.missing[0]
    assert bucket.list_manifests() == []


def test_a_recording_that_is_damaged_in_the_bucket_gets_no_manifest_here(tmp_path: Path) -> None:
    bucket, there = in_bucket(tmp_path), new_store(tmp_path / "b")
    push(local(tmp_path / "a"), bucket, None, SILENT)
    Place(bucket).replace(key_of(1), "c.0.0.0", b"nonsense")
    found = pull(there, bucket, None, SILENT)
    assert (found.num_entries, len(found.missing)) == (2, 1)
    assert there.list_manifests() == []


def test_a_push_that_reads_mends_what_is_damaged_in_the_bucket(tmp_path: Path) -> None:
    here, bucket = local(tmp_path), in_bucket(tmp_path)
    push(here, bucket, None, SILENT)
    chunk = bytearray(Place(bucket).raw(key_of(1), "c.0.0.0"))
    chunk[9] ^= 4
    Place(bucket).replace(key_of(1), "c.0.0.0", bytes(chunk))
    assert [problem.kind for problem in check_bucket(bucket, read_data=True).problems] == ["damaged"]
    assert push(here, bucket, None, SILENT, read_data=True).num_entries == 1
    assert check_bucket(bucket, read_data=True).problems == []


def test_an_older_manifest_in_the_bucket_does_not_replace_a_newer_one_here(tmp_path: Path) -> None:
    here, bucket = local(tmp_path), in_bucket(tmp_path)
    push(here, bucket, None, SILENT)
    here.write_manifest(newer := manifest(2, created_at="2026-11-25T00:00:00Z"))
    pull(here, bucket, None, SILENT)
    assert here.read_manifest(here.list_manifests()[0]) == newer


def test_a_pull_stays_within_the_limit_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket, there = in_bucket(tmp_path), new_store(tmp_path / "b")
    push(local(tmp_path / "a"), bucket, None, SILENT)
    monkeypatch.setenv("SEEONCE_STORE_MAX", "3kB")
    with pytest.raises(StoreError, match="SEEONCE_STORE_MAX"):
        pull(there, bucket, None, SILENT)
    assert there.list_manifests() == []


def test_a_recording_that_is_nowhere_is_named(tmp_path: Path) -> None:
    bucket = in_bucket(tmp_path)
    with pytest.raises(NotEncodedError, match="no recording 'monday'"):
        push(local(tmp_path), bucket, "monday", SILENT)
    with pytest.raises(NotEncodedError, match="there is nothing in memory://"):
        pull(new_store(tmp_path / "b"), bucket, None, SILENT)


def test_a_pace_is_kept_by_all_threads_together() -> None:
    slept: list[float] = []
    with patch("cache.mirror.time.sleep", slept.append):
        pace = Pace(1000.0)
        for _ in range(4):
            pace(500)
    assert [round(seconds, 1) for seconds in slept] == [0.0, 0.5, 1.0, 1.5]


def test_a_miss_is_read_from_the_bucket_and_kept(tmp_path: Path) -> None:
    bucket, empty = in_bucket(tmp_path), new_store(tmp_path / "b")
    push(local(tmp_path / "a"), bucket, None, SILENT)
    store = with_remote(empty, {"SEEONCE_REMOTE": bucket.objects.address})
    assert same(store.read(key_of(1)), features(1))
    assert same(empty.read(key_of(1)), features(1))
    assert empty.check(key_of(1)) is None
    assert store.read(key_of(99)) is None


def test_what_is_damaged_in_the_bucket_is_a_miss_and_not_kept(tmp_path: Path) -> None:
    bucket, empty = in_bucket(tmp_path), new_store(tmp_path / "b")
    push(local(tmp_path / "a"), bucket, None, SILENT)
    chunk = Place(bucket).raw(key_of(1), "c.0.0.0")
    Place(bucket).replace(key_of(1), "c.0.0.0", chunk[:-8] + bytes(8))
    store = with_remote(empty, {"SEEONCE_REMOTE": bucket.objects.address})
    assert store.read(key_of(1)) is None
    assert not empty.exists(key_of(1))


def test_a_disk_that_does_not_keep_what_comes_is_told_from_a_damaged_bucket(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bucket, there = in_bucket(tmp_path), new_store(tmp_path / "b")
    push(local(tmp_path / "a"), bucket, None, SILENT)
    store = with_remote(there, {"SEEONCE_REMOTE": bucket.objects.address})
    with patch("cache.commit.os.preadv", lambda fd, buffers, offset: buffers[0].nbytes):
        with pytest.raises(StoreError, match="to continue; check the disk"):
            pull(there, bucket, None, SILENT)
        assert same(store.read(key_of(1)), features(1))
    assert "no copy is kept" in caplog.text
    assert set(there.keys()) == set()
    assert pull(there, bucket, None, SILENT).num_entries == 3


def test_a_bucket_that_cannot_be_reached_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = with_remote(local(tmp_path), {"SEEONCE_REMOTE": f"file://{tmp_path}/nowhere"})
    assert [store.read(key_of(number)) is None for number in (0, 98, 99)] == [False, True, True]
    assert [record.getMessage().partition(" is ")[0] for record in caplog.records] == ["SEEONCE_REMOTE"]


def test_a_remote_that_is_no_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no address"):
        with_remote(new_store(tmp_path), {"SEEONCE_REMOTE": "a-bucket"})


def test_manifests_that_only_the_bucket_has_come_by_themselves(tmp_path: Path) -> None:
    bucket, home = in_bucket(tmp_path), Home(tmp_path / "b")
    push(local(tmp_path / "a"), bucket, None, SILENT)
    environ = {"SEEONCE_REMOTE": bucket.objects.address}
    assert not fetch_manifests(home, "a-recording", {})
    assert not fetch_manifests(home, "monday", environ)
    assert fetch_manifests(home, "a-rec", environ)
    assert Store.open(home).list_manifests()[0].num_frames == 3


def test_a_check_finds_what_is_missing_damaged_and_unreadable(tmp_path: Path) -> None:
    bucket = in_bucket(tmp_path)
    push(local(tmp_path / "a", 4), bucket, None, SILENT)
    Place(bucket).remove(key_of(0), "zarr.json")
    Place(bucket).remove(key_of(1), "c.0.0.0")
    obstore.put(bucket.objects.store, metadata_name(key_of(2)), b"{}")
    head = str(bucket.list_manifests()[0].path)
    found = check_bucket(bucket)
    assert sorted(problem.kind for problem in found.problems) == ["damaged", "damaged", "missing"]
    obstore.put(bucket.objects.store, head, b"{}")
    assert "manifest" in [problem.kind for problem in check_bucket(bucket).problems]


def _marked_since(bucket: BucketStore, key: EntryKey) -> bool:
    return bucket.objects.head(marker_name(key)) is not None


def test_what_no_manifest_names_is_marked_first_and_goes_later(tmp_path: Path) -> None:
    bucket = in_bucket(tmp_path)
    push(local(tmp_path / "a"), bucket, None, SILENT)
    orphan = Place(bucket).write(7)
    half = Place(bucket).write(8)
    Place(bucket).remove(half, "zarr.json")
    would = collect_bucket(bucket, dry_run=True)
    assert (would.num_marked, _marked_since(bucket, orphan)) == (2, False)
    first = collect_bucket(bucket)
    assert (first.num_marked, first.num_entries) == (2, 0)
    assert collect_bucket(bucket).num_entries == 0
    assert bucket.read(orphan) is not None
    last = collect_bucket(bucket, grace_s=0)
    assert (last.num_entries, last.num_bytes > 0) == (1, True)
    names = [found["path"] for found in bucket.objects.list("frames")]
    assert len(names) == 6
    assert not _marked_since(bucket, orphan)
    assert check_bucket(bucket, read_data=True).problems == []


def test_what_is_named_again_is_no_longer_marked(tmp_path: Path) -> None:
    bucket = in_bucket(tmp_path)
    key = Place(bucket).write(0)
    collect_bucket(bucket)
    assert _marked_since(bucket, key)
    bucket.write_manifest(manifest(1))
    assert collect_bucket(bucket, grace_s=0).num_kept == 1
    assert bucket.has(key)
    assert not _marked_since(bucket, key)


def test_a_manifest_that_cannot_be_read_ends_a_collection(tmp_path: Path) -> None:
    bucket = in_bucket(tmp_path)
    bucket.write_manifest(manifest(1))
    obstore.put(bucket.objects.store, str(bucket.list_manifests()[0].path), b"{}")
    Place(bucket).write(5)
    with pytest.raises(StoreError, match="nothing is collected"):
        collect_bucket(bucket, grace_s=0)


def test_an_older_manifest_goes_with_its_parts_and_the_newest_stays(tmp_path: Path) -> None:
    bucket = in_bucket(tmp_path)
    bucket.write_manifest(manifest(1))
    bucket.write_manifest(newest := manifest(2, created_at="2026-11-23T00:00:00Z"))
    time.sleep(0.01)
    assert collect_bucket(bucket, grace_s=0).num_manifests == 1
    assert len(list(bucket.objects.list("recordings"))) == 2
    assert bucket.read_manifest(bucket.list_manifests()[0]) == newest


@pytest.mark.parametrize("died_at", range(4))
def test_a_collection_that_was_killed_is_finished_by_the_next(tmp_path: Path, died_at: int) -> None:
    bucket = in_bucket(tmp_path)
    Place(bucket).write(5)
    collect_bucket(bucket)
    deletions = iter(range(1000))

    def die(operation: str, name: str) -> None:
        if operation == "delete" and "clock" not in name and next(deletions) >= died_at:
            raise KilledError

    if died_at < 3:
        with pytest.raises(KilledError):
            collect_bucket(watched(bucket, die), grace_s=0)
    collect_bucket(bucket, grace_s=0)
    assert list(bucket.objects.list("frames")) == list(bucket.objects.list("trash")) == []


@pytest.mark.parametrize("at", range(8))
def test_a_manifest_written_while_a_collection_runs_keeps_its_entries(tmp_path: Path, at: int) -> None:
    bucket = in_bucket(tmp_path)
    key = Place(bucket).write(0)
    collect_bucket(bucket)
    requests = iter(range(100_000))

    def meanwhile(operation: str, name: str) -> None:
        """Do what a writer does before it waits: its manifest, then the markers."""
        if operation in ("delete", "head") and "clock" not in name and next(requests) == at:
            bucket.write_manifest(manifest(1))
            bucket.objects.delete(marker_name(key))

    collect_bucket(watched(bucket, meanwhile), grace_s=0)
    if bucket.list_manifests():
        require_entries(bucket, [key], lambda _: Place(bucket).write(0), settle_s=0)
        assert bucket.check(key) is None


def test_keys_are_sorted_into_groups_on_the_disk() -> None:
    keys = {key_of(number) for number in range(600)}
    with KeysOnDisk() as sorted_keys, patch("cache.bucket_upkeep._WAITING_BYTES", 64):
        sorted_keys.add(keys)
        sorted_keys.add(keys)
        assert {key for number in range(256) for key in sorted_keys.group(number)} == keys
        assert all(key.raw[0] == 3 for key in sorted_keys.group(3))


def test_the_commands_push_pull_check_and_collect(home: Path, run: Run, tmp_path: Path) -> None:
    store = Store.open(Home(home))
    write(store, 0)
    store.write_manifest(manifest(1))
    address = f"file://{tmp_path}/bucket"
    pushed = run("seeonce store push --json a-recording", address)
    assert pushed.json["num_entries"] == 1
    assert pushed.err.startswith(f"Pictures of screens go to {address}")
    assert run("seeonce store push", address, "--bandwidth", "1GB").out == (
        "pushed 0 entries (0 kB), 1 there before, 1 manifest.\n"
    )
    assert run("seeonce store check --read-data --json", address).json["problems"] == []
    assert run("seeonce store gc --json", address).json["num_entries"] == 0
    assert (tmp_path / "bucket").stat().st_mode & 0o777 == 0o700
    os.environ["SEEONCE_HOME"] = str(tmp_path / "other")
    assert run("seeonce store pull", address).out == "pulled 1 entry (0.4 kB), 0 there before, 1 manifest.\n"


def test_commands_with_a_wrong_address_say_what_is_expected(run: Run, home: Path, tmp_path: Path) -> None:
    Store.open(Home(home))
    assert "is no address of a bucket" in run("seeonce store push monday").error
    assert "there is no such folder" in run("seeonce store pull", f"file://{tmp_path}/nowhere").error
    assert "leave the address out" in run("seeonce store gc memory://x --yes").error
    assert "--bandwidth 0" in run("seeonce store push memory://x --bandwidth 0").error
    assert "is no address" in run("seeonce store check monday").error


def test_without_obstore_a_bucket_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with patch.dict("sys.modules", {"obstore": None}), pytest.raises(StoreError, match=r"seeonce\[bucket\]"):
        Objects.open("memory://nowhere")


def test_names_of_an_entry_are_under_its_group() -> None:
    assert marker_name(key_of(1)) == f"trash/{key_of(1).hex[:2]}/{key_of(1).hex}"
    assert chunk_name(key_of(1)).rpartition("/")[0] == metadata_name(key_of(1)).rpartition("/")[0]
