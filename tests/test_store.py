"""The store: what goes in comes out bit for bit, and what is wrong is a miss."""

import errno
import json
import os
import random
import shutil
import stat
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_samples import (
    GRID_THW,
    PROVENANCE,
    SPEC,
    entry_files,
    entry_folder,
    features,
    flip_bit,
    new_store,
    other_spec,
    pixels,
    same,
    write,
)

from cache.base.errors import NotEncodedError, StoreError
from cache.base.files import Folder
from cache.base.home import Home
from cache.entry import Features
from cache.key import entry_key
from cache.store import Durability, Store

MISSING = entry_key(pixels(999), SPEC.encoder_id)


def quarantined(store: Store) -> list[str]:
    return sorted(path.name for path in (store.path / "quarantine").iterdir() if path.is_dir())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("durability", list(Durability))
def test_what_goes_in_comes_out_bit_for_bit(tmp_path: Path, dtype: str, durability: Durability) -> None:
    store = new_store(tmp_path, durability)
    stored = features(1, dtype)
    key = store.write(pixels(1), SPEC, stored, PROVENANCE)
    assert same(store.read(key), stored)
    assert store.check(key) is None


def test_the_payload_of_a_nan_is_kept(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    bits = np.full((4, 6, 8), 0x7FC0_BEEF, np.uint32)
    key = store.write(pixels(1), SPEC, Features(bits.view(np.float32), "float32", GRID_THW, 2), PROVENANCE)
    found = store.read(key)
    assert found is not None
    assert np.array_equal(found.array.view(np.uint32), bits)


def test_an_entry_larger_than_a_slice_comes_back(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    array = np.random.default_rng(0).integers(0, 1 << 16, (4, 300, 1000), dtype=np.uint16)
    key = store.write(
        pixels(1), other_spec(out_hidden_size=1000), Features(array, "bfloat16", (1, 30, 40), 2), PROVENANCE
    )
    buffer = np.empty(4 << 20, np.uint8)
    found = store.read(key, buffer)
    assert found is not None
    assert np.array_equal(found.array, array)
    assert np.shares_memory(found.array, buffer)


def test_a_missing_entry_is_a_miss(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    assert not store.has(MISSING)
    assert store.read(MISSING) is None
    assert store.entry_info(MISSING) is None
    assert store.check(MISSING) == "there is no such entry"


def test_entry_info_says_what_was_written(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    info = store.entry_info(write(store, 3))
    assert info is not None
    assert (info.shape, info.dtype, info.grid_thw, info.nbytes) == ((4, 6, 8), "bfloat16", GRID_THW, 384)
    assert (info.pixels, info.encoder_id, info.provenance) == (pixels(3), SPEC.encoder_id, PROVENANCE)


def test_keys_lists_every_entry_and_nothing_else(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    written = {write(store, number) for number in range(5)}
    (store.path / "frames" / "00" / "stray").mkdir(parents=True)
    (store.path / "frames" / "note.txt").touch()
    assert set(store.keys()) == written


def test_the_same_frame_under_another_encoder_is_another_entry(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    first = store.write(pixels(1), SPEC, features(1), PROVENANCE)
    second = store.write(pixels(1), other_spec(epoch=2), features(2), PROVENANCE)
    assert same(store.read(first), features(1))
    assert same(store.read(second), features(2))


@pytest.mark.parametrize("changes", [{"deepstack_visual_indexes": (1,)}, {"out_hidden_size": 16}])
def test_features_of_another_encoder_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the encoder gives"):
        new_store(tmp_path).write(pixels(1), other_spec(**changes), features(1), PROVENANCE)


def test_the_first_writer_wins_and_the_second_accepts_it(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    key = write(store)
    before = entry_files(store, key)[0].stat().st_ino
    assert write(store) == key
    assert entry_files(store, key)[0].stat().st_ino == before
    assert list((store.path / "tmp").iterdir()) == []


def test_a_writer_replaces_a_damaged_entry(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    key = write(store)
    flip_bit(entry_files(store, key)[1], 17)
    write(store)
    assert same(store.read(key), features(0))
    assert len(quarantined(store)) == 1


@pytest.mark.parametrize("which", [0, 1], ids=["zarr.json", "chunk"])
@pytest.mark.parametrize("damage", ["delete", "empty", "cut", "longer", "zeros", "folder", "fifo", "symlink"])
def test_a_damaged_file_is_a_miss_and_goes_to_quarantine(tmp_path: Path, which: int, damage: str) -> None:
    store = new_store(tmp_path)
    key = write(store)
    path = entry_files(store, key)[which]
    content = path.read_bytes()
    path.unlink()
    match damage:
        case "empty":
            path.touch()
        case "cut":
            path.write_bytes(content[:-1])
        case "longer":
            path.write_bytes(content + b"\0")
        case "zeros":
            path.write_bytes(bytes(len(content)))
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "symlink":
            outside = tmp_path / "outside"
            outside.write_bytes(content)
            path.symlink_to(outside)
    assert store.check(key) is not None
    assert quarantined(store) == []
    assert store.read(key) is None
    assert [name[:64] for name in quarantined(store)] == [key.hex]
    assert not store.has(key)


def test_a_flipped_bit_anywhere_is_a_miss(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    key = write(store)
    chance = random.Random(7)
    kept = tmp_path / "kept"
    shutil.copytree(entry_folder(store, key), kept)
    for path in entry_files(store, key):
        num_bits = 8 * path.stat().st_size
        for position in {0, 1, num_bits - 1, *chance.sample(range(num_bits), 150)}:
            flip_bit(path, position)
            assert store.check(key) is not None
            assert store.read(key) is None
            shutil.copytree(kept, entry_folder(store, key))
    assert same(store.read(key), features(0))


def test_the_reason_of_a_quarantine_is_kept(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    key = write(store)
    flip_bit(entry_files(store, key)[1], 0)
    store.read(key)
    (note,) = (store.path / "quarantine").glob("*.reason.json")
    assert json.loads(note.read_text())["key"] == key.hex
    assert "crc32c" in json.loads(note.read_text())["reason"]


@pytest.mark.parametrize("which", [0, 1], ids=["zarr.json", "chunk"])
def test_files_swapped_between_two_entries_are_detected(tmp_path: Path, which: int) -> None:
    store = new_store(tmp_path)
    first, second = write(store, 1), write(store, 2)
    left, right = entry_files(store, first)[which], entry_files(store, second)[which]
    left_bytes, right_bytes = left.read_bytes(), right.read_bytes()
    left.write_bytes(right_bytes)
    right.write_bytes(left_bytes)
    assert store.read(first) is None
    assert store.read(second) is None


def test_whole_entries_that_changed_places_are_detected(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    first, second = write(store, 1), write(store, 2)
    shutil.rmtree(entry_folder(store, first))
    shutil.copytree(entry_folder(store, second), entry_folder(store, first))
    assert not store.has(first)
    assert same(store.read(second), features(2))


@pytest.mark.parametrize("level", ["entry", "group"])
def test_a_symlink_out_of_the_store_is_not_followed(tmp_path: Path, level: str) -> None:
    store = new_store(tmp_path)
    key = write(store)
    path = entry_folder(store, key) if level == "entry" else entry_folder(store, key).parent
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    assert store.read(key) is None
    assert not store.has(key)
    assert (tmp_path / "outside").is_dir()


def test_absurd_metadata_is_refused_without_reading_it(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    key = write(store)
    with entry_files(store, key)[0].open("r+b") as file:
        file.truncate(1 << 40)
    assert store.read(key) is None
    assert len(quarantined(store)) == 1


def test_no_memory_is_an_error_and_says_nothing_about_the_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(tmp_path)
    key = write(store)
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "read", _failing(errno.ENOMEM))
        with pytest.raises(StoreError, match="cannot read entry"):
            store.read(key)
    assert same(store.read(key), features(0))


def test_a_disk_that_cannot_read_an_entry_makes_it_a_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(tmp_path)
    key = write(store)
    monkeypatch.setattr(os, "readv", _failing(errno.EIO))
    assert store.read(key) is None
    assert len(quarantined(store)) == 1


def _failing(number: int) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["mkdir", "write", "fsync", "rename"])
def test_a_write_that_the_disk_refuses_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    store = new_store(tmp_path, Durability.batch)
    kept = write(store, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, _failing(number))
        with pytest.raises(StoreError, match="free some space" if number != errno.EIO else "check the disk"):
            write(store, 2)
    assert list((store.path / "tmp").iterdir()) == []
    assert set(store.keys()) == {kept}
    assert same(store.read(write(store, 2)), features(2))


def test_a_disk_that_writes_something_else_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(tmp_path)
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, content: real_write(fd, bytes(len(content))))
    with pytest.raises(StoreError, match="did not keep entry"):
        write(store)
    assert list(store.keys()) == []


def test_everything_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = Store.open(Home(tmp_path / "home"))
        flip_bit(entry_files(store, write(store, 1))[1], 0)
        store.read(entry_key(pixels(1), SPEC.encoder_id))
        write(store, 2)
    finally:
        os.umask(before)
    for path in [store.home.path, *store.home.path.rglob("*")]:
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_all_groups_are_made_once(tmp_path: Path) -> None:
    store = Store.open(Home(tmp_path / "home"))
    groups = {path.parent.name for path in (store.path / "frames").glob("*/zarr.json")}
    assert groups == {f"{number:02x}" for number in range(256)}
    before = (store.path / "frames").stat().st_mtime_ns
    write(Store.open(store.home))
    assert (store.path / "frames").stat().st_mtime_ns == before


def test_a_disk_without_hard_links_gets_the_same_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", _failing(errno.EPERM))
    store = Store.open(Home(tmp_path / "home"))
    assert len(list((store.path / "frames").glob("*/zarr.json"))) == 256
    assert Store.open(store.home).store_id == store.store_id
    assert store.has(write(store))


def test_opening_again_finds_the_same_store(tmp_path: Path) -> None:
    first = new_store(tmp_path)
    assert new_store(tmp_path).store_id == first.store_id


def test_opening_without_creating_names_the_command_that_creates(tmp_path: Path) -> None:
    with pytest.raises(NotEncodedError, match="seeonce encode"):
        Store.open(Home(tmp_path / "home"), create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = new_store(tmp_path).path / "store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2, "anything": "else"}))
    with pytest.raises(StoreError, match=r"has format 2, this seeonce reads format 1: upgrade"):
        new_store(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"format":1,"store_id":"x"}'])
def test_a_damaged_store_json_is_an_error_that_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    store = new_store(tmp_path)
    key = write(store)
    (store.path / "store.json").write_bytes(content)
    with pytest.raises(StoreError, match="remove that file"):
        new_store(tmp_path)
    (store.path / "store.json").unlink()
    assert new_store(tmp_path).has(key)


def test_a_group_that_was_removed_is_made_again(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    key = write(store)
    shutil.rmtree(entry_folder(store, key).parent)
    assert not store.has(key)
    write(store)
    assert store.has(key)


def test_a_read_only_store_serves_what_is_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = write(new_store(tmp_path), 1), write(new_store(tmp_path), 2)
    monkeypatch.setattr(os, "access", lambda *_: False)
    store = new_store(tmp_path)
    flip_bit(entry_files(store, bad)[1], 5)
    assert same(store.read(good), features(1))
    assert store.read(bad) is None
    assert quarantined(store) == []
    with pytest.raises(StoreError, match="read-only"):
        write(store, 3)


def test_a_hit_touches_its_entry_at_most_hourly(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    key = write(store)
    folder = entry_folder(store, key)
    os.utime(folder, (1, 1))
    assert store.has(key)
    touched = folder.stat().st_mtime_ns
    assert time.time() - touched / 1e9 < 60
    store.read(key)
    assert folder.stat().st_mtime_ns == touched


def test_leftovers_of_dead_processes_are_swept_after_a_day(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    for name in ("999999999.0123456789abcdef.0123456789abcdef", "young"):
        (store.path / "tmp" / name).mkdir()
        (store.path / "tmp" / name / "c.0.0.0").touch()
    os.utime(store.path / "tmp" / "999999999.0123456789abcdef.0123456789abcdef", (1, 1))
    assert store.sweep_tmp() == 1
    assert [path.name for path in (store.path / "tmp").iterdir()] == ["young"]


def test_sweeping_does_not_follow_symlinks(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    link = store.path / "tmp" / "link"
    link.symlink_to(tmp_path / "mine")
    os.utime(link, (1, 1), follow_symlinks=False)
    assert store.sweep_tmp() == 1
    assert (tmp_path / "mine" / "file").exists()
