"""Repair: damaged entries go to quarantine, and what is missing is encoded again when its frames exist."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from screens import folder_of, noise
from store_samples import (
    PROVENANCE,
    SPEC,
    entry_files,
    entry_folder,
    features,
    flip_bit,
    frame,
    manifest,
    new_store,
    write,
)

from cache import check
from cache.base.errors import InputError, StoreError
from cache.base.home import Home
from cache.check import EncodeAgain, RepairReport
from cache.layout import stored_bytes
from cache.manifest import FrameEntry, Manifest, list_manifests, manifest_path, read_manifest, write_manifest
from cache.stats import StoreLimit
from cache.store import Store


def encoder_of(store: Store) -> EncodeAgain:
    """Encode all frames but the last of a recording, whose picture is gone."""

    def encode_again(
        manifest: Manifest, frames: list[FrameEntry], limit: StoreLimit
    ) -> Iterator[tuple[FrameEntry, str | None]]:
        for one in frames:
            if one == manifest.frames[-1]:
                yield one, "its picture is gone"
            else:
                limit.take(features(one.index).nbytes)
                store.write(one.pixels, SPEC, features(one.index), PROVENANCE)
                yield one, None

    return encode_again


def repair(store: Store, **options: Any) -> RepairReport:
    return check.repair(store, encoder_of(store), **options)


def filled(tmp_path: Path) -> Store:
    store = new_store(tmp_path)
    for number in range(4):
        write(store, number)
    write_manifest(store.home, manifest(4))
    return store


def test_a_sound_store_is_left_as_it_is(tmp_path: Path) -> None:
    report = repair(filled(tmp_path), read_data=True)
    assert (report.num_quarantined, report.num_encoded, report.remaining) == (0, 0, [])


def test_damaged_and_missing_entries_are_encoded_again(tmp_path: Path) -> None:
    store = filled(tmp_path)
    flip_bit(entry_files(store, frame(0).key)[0], 40)
    flip_bit(entry_files(store, frame(1).key)[1], 40)
    shutil.rmtree(entry_folder(store, frame(2).key))
    report = repair(store, read_data=True)
    assert (report.num_quarantined, report.num_encoded, report.remaining) == (2, 3, [])
    assert [store.check(frame(number).key) for number in range(4)] == [None] * 4
    assert len(list((store.path / "quarantine").glob("*.reason.json"))) == 2


def test_what_is_in_quarantine_already_is_encoded_again(tmp_path: Path) -> None:
    store = filled(tmp_path)
    flip_bit(entry_files(store, frame(0).key)[1], 40)
    assert store.read(frame(0).key) is None
    assert repair(store).num_encoded == 1
    assert store.check(frame(0).key) is None


def test_what_cannot_be_encoded_is_listed_with_the_reason(tmp_path: Path) -> None:
    store = filled(tmp_path)
    for number in (0, 3):
        shutil.rmtree(entry_folder(store, frame(number).key))
    report = repair(store)
    assert report.num_encoded == 1
    [problem] = report.remaining
    assert (problem.kind, problem.what) == ("missing", frame(3).key.hex)
    assert problem.reason == "frame 3 of a-recording: its picture is gone"


def test_a_damaged_manifest_remains(tmp_path: Path) -> None:
    store = filled(tmp_path)
    flip_bit(manifest_path(store.home, "a-recording", SPEC.encoder_id), 999)
    assert [problem.kind for problem in repair(store).remaining] == ["manifest"]


def test_a_full_disk_is_an_error_and_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path)
    shutil.rmtree(entry_folder(store, frame(0).key))

    def full(*_: object) -> None:
        raise StoreError("cannot write entry: No space left on device")

    monkeypatch.setattr(Store, "write", full)
    with pytest.raises(StoreError, match="No space left"):
        repair(store)


def test_repair_stops_at_the_limit_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, lines = filled(tmp_path), list[str]()
    write_manifest(store.home, manifest(4, "b-recording"))
    max_bytes = stored_bytes(store.path)
    for number in range(3):
        shutil.rmtree(entry_folder(store, frame(number).key))
    monkeypatch.setenv("SEEONCE_STORE_MAX", str(max_bytes - 500))  # room for two of the three
    report = repair(store, say=lines.append)
    assert (report.num_encoded, stored_bytes(store.path) <= max_bytes - 500) == (2, True)
    assert sorted(problem.reason for problem in report.remaining) == [
        f"frame 2 of {id_}-recording: SEEONCE_STORE_MAX allows no more" for id_ in ("a", "b")
    ]
    [stopped] = [
        line
        for line in lines
        if line.startswith("stopped: what is there stays, and nothing more is written: ")
    ]
    assert "or raise SEEONCE_STORE_MAX" in stopped


def test_a_limit_that_is_no_size_is_refused_before_anything_is_quarantined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path)
    flip_bit(entry_files(store, frame(0).key)[0], 40)
    monkeypatch.setenv("SEEONCE_STORE_MAX", "much")
    with pytest.raises(InputError, match="SEEONCE_STORE_MAX is 'much'"):
        repair(store)
    assert entry_folder(store, frame(0).key).exists()


def test_a_read_only_store_is_not_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(StoreError, match="read-only"):
        repair(new_store(tmp_path))


@pytest.fixture
def encoded(run: Run, home: Path, plain: Path, tmp_path: Path) -> Store:
    """A recording of three frames, encoded by ``plain``."""
    assert run("seeonce encode", folder_of(tmp_path / "monday"), "--model", plain).code == 0
    return Store.open(Home(home))


def test_the_command_encodes_again_bit_for_bit(run: Run, encoded: Store, plain: Path) -> None:
    frames = read_manifest(list_manifests(encoded.home)[0].path).frames
    before = [entry_files(encoded, one.key)[1].read_bytes() for one in frames]
    flip_bit(entry_files(encoded, frames[0].key)[1], 40)
    shutil.rmtree(entry_folder(encoded, frames[1].key))
    ended = run("seeonce store repair --read-data --json --model", plain)
    assert (ended.code, ended.json["num_put_away"], ended.json["num_encoded"]) == (0, 1, 2)
    assert [entry_files(encoded, one.key)[1].read_bytes() for one in frames] == before
    assert run("seeonce store check --read-data").code == 0


def test_the_command_stops_at_the_limit_of_the_store(
    run: Run, encoded: Store, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = read_manifest(list_manifests(encoded.home)[0].path).frames
    monkeypatch.setenv("SEEONCE_STORE_MAX", str(stored_bytes(encoded.path)))
    for one in frames[:2]:
        shutil.rmtree(entry_folder(encoded, one.key))
    shutil.copytree(entry_folder(encoded, frames[2].key), encoded.path / "frames" / "00" / ("00" * 32))
    ended = run("seeonce store repair --model", plain)
    assert ended.code == 3
    assert f"frame {frames[1].index} of monday" in ended.out
    assert "SEEONCE_STORE_MAX allows no more" in ended.out
    assert "1 encoded again" in ended.out


def test_the_command_says_why_frames_cannot_be_encoded(
    run: Run, encoded: Store, plain: Path, moe: Path, tmp_path: Path
) -> None:
    for one in read_manifest(list_manifests(encoded.home)[0].path).frames:
        shutil.rmtree(entry_folder(encoded, one.key))
    assert "give the same checkpoint with --model" in run("seeonce store repair --model", moe).out
    noise(99).save(tmp_path / "monday" / "000_0.0s.png")
    (tmp_path / "monday" / "001_10.0s.png").unlink()
    ended = run("seeonce store repair --model", plain)
    assert ended.code == 3
    assert "000_0.0s.png is another picture now" in ended.out
    assert "001_10.0s.png is gone or cannot be read" in ended.out
    assert ended.out.endswith("0 damaged entries moved to quarantine, 1 encoded again, 2 problems remain.\n")
    shutil.rmtree(tmp_path / "monday")
    assert "monday is gone or cannot be read" in run("seeonce store repair --model", plain).out
