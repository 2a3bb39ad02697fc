"""What a collection removes, and what it never does."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from screens import noise
from store_samples import (
    SPEC,
    entry_files,
    entry_folder,
    features,
    manifest,
    new_store,
    pixels,
    same,
    write,
)

from cache.base.errors import StoreError
from cache.base.files import Folder
from cache.commit import CommitStep
from cache.gc import GRACE_S, Collection, CollectStep, collect
from cache.key import EntryKey, entry_key
from cache.leases import held_lease
from cache.manifest import manifest_path, write_manifest
from cache.store import Store
from cache.thumbnails import Thumbnails
from cache.trash import move_to, new_batch, remove_from

DAYS_AGO_S = 2 * GRACE_S


def age(store: Store, key: EntryKey, by_s: float = DAYS_AGO_S) -> None:
    used_s = time.time() - by_s
    os.utime(entry_folder(store, key), (used_s, used_s))


def old_entry(store: Store, number: int = 1) -> EntryKey:
    key = write(store, number)
    age(store, key)
    return key


def at(step: CollectStep, act: Callable[[], object]) -> Callable[[CollectStep], None]:
    """Return what acts once, when a collection comes to that step."""
    done: list[object] = []
    return lambda now: done.append(act()) if now is step and not done else None


def counts(found: Collection) -> tuple[int, int]:
    return found.num_entries, found.num_kept


def test_an_entry_that_nobody_names_or_uses_goes(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    key = old_entry(store)
    size = sum(path.stat().st_size for path in entry_files(store, key))
    found = collect(store)
    assert (found.num_entries, found.num_bytes) == (1, size)
    assert store.read(key) is None
    assert list((store.path / "trash").iterdir()) == []


def test_a_dry_run_counts_the_same_and_removes_nothing(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    key = old_entry(store)
    planned = collect(store, dry_run=True)
    assert store.exists(key)
    done = collect(store)
    assert (planned.num_entries, planned.num_bytes) == (done.num_entries, done.num_bytes)


def test_an_entry_that_a_manifest_names_stays_however_old(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    keys = [old_entry(store, number) for number in range(4)]
    write_manifest(store.home, manifest(3))
    assert counts(collect(store)) == (1, 0)
    assert [store.exists(key) for key in keys] == [True, True, True, False]


def test_an_entry_that_was_hit_within_a_day_stays(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    key = old_entry(store)
    assert store.has(key)
    assert counts(collect(store)) == (0, 0)


def test_an_entry_from_the_future_stays(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    age(store, write(store), by_s=-DAYS_AGO_S)
    assert counts(collect(store)) == (0, 0)


def test_an_entry_from_the_future_goes_a_day_after_it_was_first_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, later_s = new_store(tmp_path), time.time() + GRACE_S + 60
    keys = [write(store, number) for number in range(3)]
    write_manifest(store.home, manifest(1))
    for key in keys:
        age(store, key, by_s=-10 * 365 * GRACE_S)
    assert collect(store, dry_run=True).num_entries == 0
    assert counts(collect(store)) == (0, 0)
    monkeypatch.setattr("time.time", lambda: later_s)
    os.utime(entry_folder(store, keys[2]), (later_s, later_s))  # a hit meanwhile
    assert counts(collect(store)) == (1, 0)
    assert [store.exists(key) for key in keys] == [True, False, True]


def test_a_thumbnail_from_the_future_goes_a_day_after_it_was_first_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, later_s = new_store(tmp_path), time.time() + GRACE_S + 60
    assert Thumbnails(store.home).write(pixels(1), noise(1))
    os.utime(store.path / "thumbs" / pixels(1).hex, (2 * later_s, 2 * later_s))
    assert collect(store).num_thumbnails == 0
    monkeypatch.setattr("time.time", lambda: later_s)
    assert collect(store).num_thumbnails == 1


def test_nothing_is_collected_while_a_manifest_cannot_be_read(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    key = old_entry(store, 9)
    write_manifest(store.home, manifest(1))
    path = manifest_path(store.home, "a-recording", SPEC.encoder_id)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"manifest .* expected"):
        collect(store)
    assert store.exists(key)


def test_nothing_is_collected_when_the_manifests_are_gone(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    key = old_entry(store)
    (store.path / "recordings").rmdir()
    with pytest.raises(StoreError, match="nothing is collected"):
        collect(store)
    assert store.exists(key)


def test_a_manifest_that_becomes_unreadable_brings_back_what_was_taken(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    key = old_entry(store)
    bad = store.path / "recordings" / "r" / "e"

    def spoil() -> None:
        assert not store.exists(key)
        bad.mkdir(parents=True)
        (bad / "manifest.json").write_bytes(b"{}")

    with pytest.raises(StoreError):
        collect(store, on_step=at(CollectStep.moved, spoil))
    assert same(store.read(key), features(1))


def test_an_interrupted_collection_brings_back_what_was_taken(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    key = old_entry(store)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(store, on_step=at(CollectStep.judged, interrupt))
    assert same(store.read(key), features(1))


@pytest.mark.parametrize("step", list(CollectStep)[:3])
def test_a_manifest_written_during_a_collection_is_heeded_or_its_writer_sees(
    tmp_path: Path, step: CollectStep
) -> None:
    store = new_store(tmp_path)
    key = old_entry(store, 0)
    seen: list[bool] = []

    def finish_an_encode() -> None:
        write_manifest(store.home, manifest(1))
        seen.append(store.exists(key))

    collect(store, on_step=at(step, finish_an_encode))
    assert store.exists(key) or seen == [False]
    assert store.exists(key) == (step is not CollectStep.judged)


@pytest.mark.parametrize("step", list(CollectStep)[:3])
def test_a_hit_during_a_collection_saves_the_entry_or_is_a_miss(tmp_path: Path, step: CollectStep) -> None:
    store = new_store(tmp_path)
    key = old_entry(store)
    hits: list[bool] = []
    collect(store, on_step=at(step, lambda: hits.append(store.has(key))))
    assert store.exists(key) == hits[0] == (step is CollectStep.planned)


def test_a_reader_who_touches_an_entry_that_was_just_taken_has_a_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(tmp_path)
    key = old_entry(store)
    original = Folder.touch

    def collected_before(folder: Folder, older_than_s: float) -> bool:
        monkeypatch.setattr(Folder, "touch", original)
        assert collect(store).num_entries == 1  # the reader has read all, and not yet touched
        return original(folder, older_than_s)

    monkeypatch.setattr(Folder, "touch", collected_before)
    assert not store.has(key)


def test_a_reader_who_touches_just_before_the_look_gets_the_entry_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(tmp_path)
    key = old_entry(store)
    hits: list[bool] = []

    def reader_who_has_opened_it() -> None:
        os.utime(next((store.path / "trash").glob(f"*/{key.hex}")))  # through the folder that he holds open
        hits.append(store.exists(key))

    found = collect(store, on_step=at(CollectStep.moved, reader_who_has_opened_it))
    assert (counts(found), hits) == ((0, 1), [False])
    assert same(store.read(key), features(1))


@pytest.mark.parametrize("step", list(CollectStep))
def test_an_entry_written_during_a_collection_is_there_afterwards(tmp_path: Path, step: CollectStep) -> None:
    store = new_store(tmp_path)
    key = old_entry(store)
    collect(store, on_step=at(step, lambda: write(store, 1)))
    assert same(store.read(key), features(1))


@pytest.mark.parametrize("step", list(CollectStep)[:3])
def test_two_collections_at_once_remove_it_once(tmp_path: Path, step: CollectStep) -> None:
    store = new_store(tmp_path)
    keys = [old_entry(store, number) for number in range(3)]
    inner: list[Collection] = []
    outer = collect(store, on_step=at(step, lambda: inner.append(collect(store))))
    assert outer.num_entries + inner[0].num_entries == 3
    assert not any(store.exists(key) for key in keys)


def test_while_a_lease_is_held_nothing_goes_that_was_used_since_or_the_day_before(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    keys = [old_entry(store, number) for number in range(2)]
    with held_lease(store, "encode demo"):
        age(store, keys[0], GRACE_S - 60)
        found = collect(store)
        assert [lease.purpose for lease in found.leases] == ["encode demo"]
    assert [store.exists(key) for key in keys] == [True, False]


def test_a_lease_of_days_keeps_what_was_used_when_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(tmp_path)
    key = write(store)
    with held_lease(store, "encode a long one"):
        later_s = time.time() + 5 * GRACE_S
        monkeypatch.setattr(time, "time", lambda: later_s)  # the lease is expired, its process lives
        monkeypatch.setattr("cache.leases.DOUBT_S", 10 * GRACE_S)
        assert counts(collect(store)) == (0, 0)
    assert counts(collect(store)) == (1, 0)
    assert not store.exists(key)


def test_a_lease_taken_during_a_collection_is_heeded(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    key = write(store, 1)  # used now: only forgetting it takes it away
    lease = held_lease(store, "describe")
    found = collect(store, only=frozenset({key}), on_step=at(CollectStep.moved, lease.__enter__))
    lease.__exit__(None, None, None)
    assert counts(found) == (0, 1)
    assert same(store.read(key), features(1))


def test_entries_to_be_forgotten_go_at_once_and_no_others(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    keys = [write(store, number) for number in range(3)]
    write_manifest(store.home, manifest(1))
    assert collect(store, only=frozenset(keys[:2])).num_entries == 1
    assert [store.exists(key) for key in keys] == [True, False, True]


def test_what_a_killed_collection_had_taken_is_judged_again(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    keys = [old_entry(store, number) for number in range(2)]
    batch = store.path / "trash" / "999999999.0123456789abcdef.0123456789abcdef"
    batch.mkdir()
    for key in keys:
        entry_folder(store, key).rename(batch / key.hex)
    (batch / "1.2.3").mkdir()
    os.utime(batch, (1, 1))
    write_manifest(store.home, manifest(1))
    assert collect(store).num_trash == 1
    assert [store.exists(key) for key in keys] == [True, False]
    assert not batch.exists()


def test_a_batch_whose_collection_may_still_run_is_left_alone(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    batch = store.path / "trash" / "999999999.0123456789abcdef.0123456789abcdef"
    (batch / entry_key(pixels(1), SPEC.encoder_id).hex).mkdir(parents=True)
    assert collect(store).num_trash == 0
    assert len(list(batch.iterdir())) == 1


def test_what_killed_writers_left_goes_after_a_day(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    folder = write_manifest(store.home, manifest(1)).parent
    left = [
        folder / ".manifest.json.0123456789abcdef",
        store.path / "leases" / ".x.json.0123456789abcdef",
        store.path / "tmp" / "1.2.3",
    ]
    for path in left:
        path.touch()
        os.utime(path, (1, 1))
    (folder / ".manifest.json.fedcba9876543210").touch()
    found = collect(store)
    assert (found.num_files, found.num_tmp) == (2, 1)
    assert sorted(path.name for path in folder.iterdir()) == [
        ".manifest.json.fedcba9876543210",
        "manifest.json",
    ]
    assert not any(path.exists() for path in left)


def test_a_writer_whose_unfinished_folder_was_swept_publishes_nothing(tmp_path: Path) -> None:
    store = new_store(tmp_path)

    def swept(step: CommitStep) -> None:
        if step is CommitStep.folder_synced:
            with new_batch(store.path) as batch, Folder.open(store.path / "tmp") as tmp:
                for name in tmp.names():
                    assert move_to(batch, tmp, name)
                    remove_from(batch, name)

    with pytest.raises(StoreError, match="cannot write entry"):
        write(replace(store, on_step=swept), 1)
    assert list(store.keys()) == []


def test_a_read_only_store_is_not_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old_entry(new_store(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)
    store = new_store(tmp_path)
    with pytest.raises(StoreError, match="read-only"):
        collect(store)
    assert collect(store, dry_run=True).num_entries == 1
