"""Entries that are committed together: none is visible before all are durable, and each is whole."""

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from store_samples import (
    PROVENANCE,
    SPEC,
    entry_files,
    features,
    flip_bit,
    new_store,
    other_spec,
    pixels,
    same,
    write,
)

from cache.base.errors import StoreError
from cache.base.home import Home
from cache.commit import CommitBatch
from cache.key import EntryKey, entry_key
from cache.store import Durability, Store
from precompute.writer import EntryWriter


def add(batch: CommitBatch, number: int) -> EntryKey:
    return batch.add(pixels(number), SPEC, features(number), PROVENANCE)


def key_of(number: int) -> EntryKey:
    return entry_key(pixels(number), SPEC.encoder_id)


def put(writer: EntryWriter, *numbers: int) -> None:
    for number in numbers:
        writer.put(pixels(number), features(number), PROVENANCE)


def left_under_tmp(store: Store) -> list[Path]:
    return list((store.path / "tmp").iterdir())


@pytest.mark.parametrize("durability", list(Durability))
def test_a_batch_becomes_visible_when_it_is_committed(tmp_path: Path, durability: Durability) -> None:
    store = new_store(tmp_path, durability)
    with store.batch() as batch:
        keys = [add(batch, number) for number in range(5)]
        assert (batch.num_entries, batch.num_bytes, list(store.keys())) == (5, 5 * 384, [])
        assert batch.commit() == tuple(keys)
        assert batch.num_entries == 0
    assert all(same(store.read(key), features(number)) for number, key in enumerate(keys))
    assert left_under_tmp(store) == []


def test_a_batch_that_is_left_uncommitted_leaves_nothing(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with store.batch() as batch:
        add(batch, 1)
        assert len(left_under_tmp(store)) == 1
    assert left_under_tmp(store) == []
    assert list(store.keys()) == []


def test_a_batch_takes_a_key_twice_and_one_that_is_there(tmp_path: Path) -> None:
    store = new_store(tmp_path, Durability.batch)
    there = write(store, 1)
    before = entry_files(store, there)[0].stat().st_ino
    with store.batch() as batch:
        keys = [add(batch, number) for number in (1, 2, 2)]
        assert batch.commit() == tuple(keys)
    assert set(store.keys()) == {key_of(1), key_of(2)}
    assert entry_files(store, there)[0].stat().st_ino == before


def test_after_an_entry_that_does_not_fit_the_others_can_be_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(tmp_path)
    with store.batch() as batch:
        key = add(batch, 1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", _full)
            with pytest.raises(StoreError, match="free some space"):
                add(batch, 2)
        with pytest.raises(ValueError, match="the encoder gives"):
            batch.add(pixels(3), other_spec(out_hidden_size=16), features(3), PROVENANCE)
        assert batch.commit() == (key,)
    assert list(store.keys()) == [key]


def _failing(code: int) -> Callable[..., int]:
    def fail(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    return fail


_full = _failing(errno.ENOSPC)


def test_one_fsync_for_each_group_however_many_entries_it_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(tmp_path, Durability.batch)
    numbers = [number for number in range(3000) if key_of(number).hex.startswith("00")][:6]
    write(store, numbers[0])
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    with store.batch() as batch:
        for number in numbers[1:]:
            add(batch, number)
        batch.commit()
    group = (store.path / "frames" / "00").stat().st_ino
    assert (len(synced), synced.count(group), synced[-1]) == (5 * 3 + 1, 1, group)


def test_a_race_that_is_lost_to_a_damaged_entry_is_run_again(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    faster = write(store, 1)
    flip_bit(entry_files(store, faster)[1], 3)
    rounds: list[EntryKey] = []

    def damaged_then_damaged_again(key: EntryKey) -> bool:
        rounds.append(key)
        right = store.read(key) is not None
        if len(rounds) == 1:
            write(store, 1)
            flip_bit(entry_files(store, key)[1], 3)
        return right

    with CommitBatch(store.home, Durability.none, lambda _: None, damaged_then_damaged_again) as batch:
        add(batch, 1)
        batch.commit()
    assert len(rounds) == 2
    assert same(store.read(faster), features(1))


def test_the_writer_acknowledges_everything_at_its_end(tmp_path: Path) -> None:
    store = new_store(tmp_path, Durability.batch)
    with EntryWriter(store, SPEC) as writer:
        put(writer, *range(40))
    assert [digest for digest, _ in writer.acknowledged()] == [pixels(number) for number in range(40)]
    assert len(list(store.keys())) == 40


@pytest.mark.parametrize("num_entries", [1, 3, 40], ids="{} put".format)
def test_a_writer_whose_disk_breaks_says_so_and_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_entries: int
) -> None:
    store = new_store(tmp_path, Durability.batch)
    monkeypatch.setattr(os, "fsync", _full)
    writer = EntryWriter(store, SPEC)
    with pytest.raises(StoreError, match="cannot write entry"), writer:
        put(writer, *range(num_entries))
    assert list(writer.acknowledged()) == []
    assert left_under_tmp(store) == []


@pytest.mark.parametrize(
    ("durability", "expected"),
    [
        (Durability.none, []),
        (Durability.batch, [*["barrier"] * 6, "flush"]),
        (Durability.full, ["flush"] * 7),
    ],
)
def test_on_macos_a_batch_keeps_its_order_and_empties_the_drives_cache_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability, expected: list[str]
) -> None:
    store = new_store(tmp_path)
    commands = {85: "barrier", 51: "flush"}
    asked: list[str] = []
    one_group = [number for number in range(3000) if key_of(number).hex.startswith("00")][:2]
    write(store, one_group[0])
    shutil.rmtree(store.path / "frames" / "00" / key_of(one_group[0]).hex)
    monkeypatch.setattr("cache.base.files.sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(
        "cache.base.files.fcntl",
        SimpleNamespace(F_FULLFSYNC=51, fcntl=lambda _, what: asked.append(commands[what])),
    )
    with replace(store, durability=durability).batch() as batch:
        for number in one_group:
            add(batch, number)
        batch.commit()
    assert asked == expected


def test_a_filesystem_that_cannot_sync_a_folder_is_told_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network filesystems and FUSE answer so."""
    monkeypatch.setattr(os, "fsync", _failing(errno.EINVAL))
    store = Store.open(Home(tmp_path / "new" / "home"), durability=Durability.none)
    assert write(store)
    with pytest.raises(StoreError, match="encode with --durability none"):
        write(replace(store, durability=Durability.batch), 1)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_on_macos_a_disk_that_fails_to_empty_its_cache_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """fsync after it may well succeed: the system tells an error once."""
    store = new_store(tmp_path, Durability.batch)
    monkeypatch.setattr("cache.base.files.sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr("cache.base.files.fcntl", SimpleNamespace(F_FULLFSYNC=51, fcntl=_failing(code)))
    with pytest.raises(StoreError, match="cannot write entry"):
        write(store)
    assert list(store.keys()) == []


def test_on_a_disk_that_knows_no_barrier_fsync_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(tmp_path)
    synced: list[int] = []
    monkeypatch.setattr("cache.base.files.sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(
        "cache.base.files.fcntl", SimpleNamespace(F_FULLFSYNC=51, fcntl=_failing(errno.ENOTSUP))
    )
    monkeypatch.setattr(os, "fsync", synced.append)
    write(replace(store, durability=Durability.full))
    assert len(synced) >= 4
