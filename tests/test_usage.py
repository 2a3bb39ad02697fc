"""What a store was used for: entries in use are kept, hits and misses are noted, old notes go."""

import os
import time
from pathlib import Path

import pytest
from conftest import Run
from store_samples import SPEC, entry_files, entry_folder, flip_bit, frame, manifest, new_store, write

from cache.gc import collect
from cache.leases import entries_in_use, recent_uses, record_use
from cache.manifest import manifest_path, stored_recordings, write_manifest
from cache.store import Store


def filled(tmp_path: Path) -> Store:
    store = new_store(tmp_path)
    for number in range(3):
        os.utime(entry_folder(store, write(store, number)), (1, 1))
    write_manifest(store.home, manifest(3))
    return store


def test_entries_in_use_are_kept_when_their_manifest_goes(tmp_path: Path) -> None:
    store = filled(tmp_path)
    with entries_in_use(store, "describe", manifest(3)):
        manifest_path(store.home, "a-recording", SPEC.encoder_id).unlink()
        assert collect(store).num_entries == 0
    assert all(store.exists(frame(number).key) for number in range(3))


def test_a_use_is_the_last_use_of_its_recording(tmp_path: Path) -> None:
    store = filled(tmp_path)
    folder = manifest_path(store.home, "a-recording", SPEC.encoder_id).parent
    os.utime(folder, (1, 1))
    with entries_in_use(store, "describe", manifest(3)):
        pass
    assert time.time() - stored_recordings(store.home)[0].used_s < 60


def test_hits_and_misses_of_pass_two_are_noted(tmp_path: Path) -> None:
    store = filled(tmp_path)
    with entries_in_use(store, "describe", manifest(4)):
        flip_bit(entry_files(store, frame(1).key)[1], 40)
        store.read(frame(1).key)
    [use] = recent_uses(store.path)
    assert (use.kind, use.recording, use.num_hits, use.num_misses) == ("describe", "a-recording", 2, 2)


def test_notes_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    store = filled(tmp_path)
    record_use(store, "encode", "monday", 1, 2, 3)
    (store.path / "usage" / "9.json").write_bytes(b"{")
    (store.path / "usage" / "8.json").symlink_to("/nowhere")
    assert [use.recording for use in recent_uses(store.path)] == ["monday"]


def test_a_store_that_takes_no_note_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path)
    (store.path / "usage").rmdir()
    (store.path / "usage").touch()
    record_use(store, "encode", "monday", 1, 2, 3)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with entries_in_use(new_store(tmp_path), "describe", manifest(3)):
        pass


def test_stats_show_the_last_runs_and_what_a_collection_would_free(run: Run, home: Path) -> None:
    store = filled(home.parent)
    os.utime(entry_folder(store, write(store, 9)), (1, 1))
    record_use(store, "encode", "monday", 5, 2, 3)
    out = run("seeonce store stats").out
    assert "gc would free           2.0 kB in 1 entry" in out
    assert "last encode             5 hits, 2 misses, 20" in out
    found = run("seeonce store stats --json").json
    assert found["reclaimable"]["num_entries"] == 1
    assert found["runs"][0]["num_misses"] == 2
