"""Forgetting recordings: what goes with them, and what stays because others need it."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Run
from screens import noise
from store_samples import SPEC, entry_files, flip_bit, frame, manifest, new_store, pixels, write

from cache.base.errors import InputError, NotEncodedError, StoreError
from cache.forget import Forgotten, find_recording_id, forget, least_used, purge_entries
from cache.gc import collect
from cache.leases import held_lease
from cache.manifest import list_manifests, manifest_path, write_manifest
from cache.store import Store
from cache.thumbnails import Thumbnails
from seeonce.runs.find import remove_runs

DAY_S = 86400


def recorded(store: Store, recording_id: str, numbers: range, used_s: float = 0) -> None:
    """Write entries, thumbnails, a run and the manifest of a recording."""
    for number in numbers:
        write(store, number)
        assert Thumbnails(store.home).write(pixels(number), noise(number))
    made = manifest(0, recording_id, created_at="2020-01-01T00:00:00Z")
    path = write_manifest(store.home, replace(made, frames=tuple(map(frame, numbers))))
    run = store.home.runs / f"run-{recording_id}"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"recording": recording_id}))
    if used_s:
        old_s = path.stat().st_mtime - used_s
        os.utime(path.parent, (old_s, old_s))


def purged(store: Store, recording_id: str) -> Forgotten:
    return purge_entries(store, *forget(store, recording_id, purge=True))


def there(store: Store, numbers: range) -> list[int]:
    return [number for number in numbers if store.exists(frame(number).key)]


def test_forgetting_removes_the_manifest_alone(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    recorded(store, "monday", range(3))
    found, _ = forget(store, "monday")
    assert (found.num_manifests, found.num_left) == (1, 3)
    assert list_manifests(store.home) == []
    assert list((store.path / "recordings").iterdir()) == []
    assert there(store, range(3)) == [0, 1, 2]
    assert (store.home.runs / "run-monday").exists()


def test_purging_removes_all_that_nothing_else_needs(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    recorded(store, "monday", range(4))
    recorded(store, "tuesday", range(3, 6))
    found = purged(store, "monday")
    assert (found.num_entries, found.num_thumbnails, found.num_left) == (3, 3, 1)
    assert there(store, range(6)) == [3, 4, 5]
    assert sorted(Thumbnails(store.home).digests(), key=str) == [pixels(number) for number in (3, 4, 5)]


def test_purging_removes_damaged_copies_too(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    recorded(store, "monday", range(2))
    flip_bit(entry_files(store, frame(0).key)[1], 40)
    assert store.read(frame(0).key) is None
    assert purged(store, "monday").num_quarantined == 1
    assert list((store.path / "quarantine").iterdir()) == []


def test_what_a_running_command_uses_is_not_purged(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    recorded(store, "monday", range(2))
    with held_lease(store, "describe monday"):
        assert purged(store, "monday").num_left == 2
    assert there(store, range(2)) == [0, 1]


def test_thumbnails_of_a_forgotten_recording_are_collected_when_old(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    recorded(store, "monday", range(2))
    recorded(store, "tuesday", range(1, 3))
    forget(store, "monday")
    for path in (store.path / "thumbs").iterdir():
        os.utime(path, (1, 1))
    assert collect(store, dry_run=True).num_thumbnails == 1
    assert collect(store).num_thumbnails == 1
    assert not Thumbnails(store.home).has(pixels(0))
    assert Thumbnails(store.home).has(pixels(1))


def test_a_recording_whose_manifest_is_damaged_can_be_forgotten(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    recorded(store, "monday", range(2))
    flip_bit(manifest_path(store.home, "monday", SPEC.encoder_id), 999)
    assert find_recording_id(store.home, "mon") == "monday"
    assert purged(store, "monday").num_manifests == 1


def test_a_recording_is_found_by_id_path_name_or_start(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    recorded(store, "monday-1", range(2))
    for selector in ("monday-1", "/frames", "A recording", "mon"):
        assert find_recording_id(store.home, selector) == "monday-1"
    with pytest.raises(NotEncodedError, match="seeonce store ls"):
        find_recording_id(store.home, "")
    recorded(store, "monday-2", range(2))
    with pytest.raises(InputError, match="fits several recordings"):
        find_recording_id(store.home, "mon")


def test_another_manifest_that_cannot_be_read_keeps_all_entries(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    recorded(store, "monday", range(2))
    recorded(store, "tuesday", range(2))
    flip_bit(manifest_path(store.home, "tuesday", SPEC.encoder_id), 999)
    with pytest.raises(StoreError, match="tuesday"):
        purged(store, "monday")
    assert there(store, range(2)) == [0, 1]


def test_the_least_recently_used_go_first_until_it_fits(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    recorded(store, "old", range(2), used_s=30 * DAY_S)
    recorded(store, "older", range(2, 4), used_s=60 * DAY_S)
    recorded(store, "new", range(4, 6))
    size = sum(path.stat().st_size for path in entry_files(store, frame(0).key))
    chosen = least_used(store, max_bytes=2 * size + 100)
    assert [(one.id, round(num_bytes / size)) for one, num_bytes in chosen] == [("older", 2), ("old", 2)]
    assert [one.id for one, _ in least_used(store, max_bytes=5 * size)] == ["older"]
    assert least_used(store, max_bytes=7 * size) == []


def test_a_recording_that_frees_nothing_is_not_forgotten_for_size(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    recorded(store, "shared", range(2), used_s=60 * DAY_S)
    recorded(store, "other", range(2, 4), used_s=30 * DAY_S)
    recorded(store, "new", range(2))
    size = sum(path.stat().st_size for path in entry_files(store, frame(0).key))
    assert [one.id for one, _ in least_used(store, max_bytes=3 * size)] == ["other"]


def test_recordings_that_share_all_entries_go_together(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    recorded(store, "one", range(2), used_s=60 * DAY_S)
    recorded(store, "two", range(2))
    assert [one.id for one, _ in least_used(store, max_bytes=0)] == ["one", "two"]


def test_recordings_not_used_for_long_are_named(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    recorded(store, "old", range(2), used_s=31 * DAY_S)
    recorded(store, "new", range(2))
    assert [one.id for one, _ in least_used(store, max_age_s=30 * DAY_S)] == ["old"]


def test_gc_lists_what_it_would_forget_and_forgets_with_yes_only(run: Run, home: Path) -> None:
    store = new_store(home.parent)
    recorded(store, "monday", range(2))
    listed = run("seeonce store gc --max-size 1kB")
    assert "would forget monday, last used 20" in listed.out
    assert "--yes forgets them" in listed.out
    assert len(list_manifests(store.home)) == 1
    assert run("seeonce store gc --max-size 1kB --yes --dry-run").out.startswith("would forget")
    assert run("seeonce store gc --max-size 1kB --yes --json").json["forgotten"] is True
    assert list_manifests(store.home) == []
    assert there(store, range(2)) == [0, 1]  # used today


def test_forget_says_what_is_gone(run: Run, home: Path) -> None:
    store = new_store(home.parent)
    recorded(store, "monday", range(2))
    recorded(store, "tuesday", range(2, 3))
    assert run("seeonce store forget tues --json").json["num_left"] == 1
    assert run("seeonce store forget monday --purge").out.startswith(
        "monday: 1 manifests removed, 2 entries ("
    )
    assert [one.name for one in store.home.runs.iterdir()] == ["run-tuesday"]
    assert run("seeonce store forget monday").error == (
        "error: 'monday' is not in the store: see what there is with seeonce store ls."
    )


def test_what_was_forgotten_without_its_runs_can_still_be_purged(run: Run, home: Path) -> None:
    store = new_store(home.parent)
    recorded(store, "monday", range(2))
    assert run("seeonce store forget monday").code == 0
    assert list(store.home.runs.iterdir()) != []
    assert run("seeonce store forget monday --purge --json").json["num_runs"] == 1
    assert list(store.home.runs.iterdir()) == []
    assert "no run is of it" in run("seeonce store forget monday --purge").error


def test_runs_go_first_of_what_is_purged(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = new_store(home.parent)
    recorded(store, "monday", range(2))

    def refuse(*_: object) -> None:
        raise StoreError("the disk refuses")

    monkeypatch.setattr("seeonce.commands.store.purge_entries", refuse)
    assert "the disk refuses" in run("seeonce store forget monday --purge").error
    assert list(store.home.runs.iterdir()) == []


def test_a_run_whose_file_cannot_be_read_is_kept(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    deep = "[" * 100_000
    for name, content in (("a", "{"), ("b", "[]"), ("c", '{"recording": "monday"}'), ("d", deep)):
        (store.home.runs / name).mkdir(parents=True)
        (store.home.runs / name / "run.json").write_text(content)
    assert remove_runs(store.home, "monday") == 1
    assert sorted(path.name for path in store.home.runs.iterdir()) == ["a", "b", "d"]


def test_a_run_that_may_still_be_written_is_kept(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    for name, status in (("a", "running"), ("b", "done")):
        (store.home.runs / name).mkdir(parents=True)
        text = json.dumps({"recording": "monday", "status": status})
        (store.home.runs / name / "run.json").write_text(text)
    with held_lease(store, "describe monday"):
        assert remove_runs(store.home, "monday") == 1
    assert [path.name for path in store.home.runs.iterdir()] == ["a"]
    assert remove_runs(store.home, "monday") == 1
