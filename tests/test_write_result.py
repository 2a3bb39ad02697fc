"""The manifest that pass one leaves."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from store_samples import entry_folder, manifest, new_store, write

from cache.base.errors import StoreError
from cache.gc import collect
from cache.leases import recent_uses
from cache.manifest import Manifest, list_manifests
from cache.store import Store
from precompute.pass_one import write_result
from precompute.pipeline import EncodeResult, Progress


def leave(store: Store, made: Manifest, *, interrupted: bool = False) -> list[str]:
    for frame in made.frames:
        write(store, frame.index)
    said: list[str] = []
    write_result(store, EncodeResult(made, Progress(3, 3, 2, 1, 0, 384), interrupted), said.append)
    return said


def limited(num_frames: int) -> Manifest:
    made = manifest(num_frames)
    return replace(made, recording=replace(made.recording, limit=num_frames))


def named(store: Store) -> list[int]:
    return [ref.num_frames for ref in list_manifests(store.home)]


def test_the_first_frames_alone_do_not_replace_a_manifest_of_all(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    leave(store, manifest(5))
    assert leave(store, limited(2)) == ["The manifest of 5 frames stays: it names more than these."]
    assert named(store) == [5]


def test_more_frames_replace_a_manifest_without_a_word(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    leave(store, limited(2))
    assert leave(store, manifest(5)) == []
    assert named(store) == [5]


def test_a_recording_that_shrank_replaces_its_manifest_and_says_so(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    leave(store, manifest(5))
    assert leave(store, manifest(3))[0].startswith("A manifest of 3 frames replaces one of 5:")
    assert named(store) == [3]


def test_a_limit_over_other_frames_replaces_the_manifest_and_says_so(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    leave(store, manifest(5))
    other = limited(2)
    moved = replace(other, frames=tuple(replace(frame, source="new.png") for frame in other.frames))
    assert leave(store, moved)[0].startswith("A manifest of 2 frames replaces one of 5:")


def test_an_interruption_takes_no_frame_away(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    leave(store, manifest(5))
    leave(store, replace(manifest(3), complete=False), interrupted=True)
    assert named(store) == [5]


def test_an_entry_that_went_away_before_the_manifest_came_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(tmp_path)
    made = manifest(2)
    keys = [write(store, number) for number in range(2)]
    os.utime(entry_folder(store, keys[1]), (1, 1))
    collect(store)
    monkeypatch.setattr("precompute.pass_one._PUT_BACK_S", 0.1)
    with pytest.raises(StoreError, match="1 entry of a-recording was removed while it was encoded"):
        write_result(store, EncodeResult(made, Progress(2, 2, 2, 0, 0, 0), False), print)


def test_hits_and_misses_are_kept_of_the_last_runs(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    for _ in range(25):
        leave(store, manifest(3))
    uses = recent_uses(store.path)
    assert len(uses) == 20
    assert (uses[0].kind, uses[0].num_hits, uses[0].num_misses, uses[0].num_bytes) == ("encode", 2, 1, 384)
