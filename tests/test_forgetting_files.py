"""A purge leaves nothing of a recording's files in the index: no path, no digest of a picture."""

import os
import shutil
from pathlib import Path

import pytest
from conftest import Run
from screens import folder_of
from videos import picture, write_video

from cache import pixel_index
from cache.base.errors import StoreError
from cache.base.home import Home
from cache.base.sqlite import DisposableDatabase
from cache.forget import forget
from cache.key import PixelDigest
from cache.manifest import ManifestNames, list_manifests, manifest_names
from cache.pixel_index import PixelIndex
from cache.store import Store
from sources.recordings import open_recording


@pytest.fixture(autouse=True)
def files_are_remembered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_index, "RACY_NS", 0)


def named(home: Path) -> dict[str, ManifestNames]:
    return {ref.recording.name: manifest_names(ref.path) for ref in list_manifests(Home(home))}


def left_in(home: Path, texts: list[bytes]) -> list[bytes]:
    """Return which of some texts stand in any file of a home."""
    files = [path.read_bytes() for path in home.rglob("*") if path.is_file()]
    return [text for text in texts if any(text in content for content in files)]


def digests(pixels: frozenset[PixelDigest]) -> list[bytes]:
    return [form for digest in pixels for form in (digest.raw, digest.hex.encode())]


def num_known(home: Path, folder: Path) -> int:
    with PixelIndex(Home(home)) as index:
        return len(index.get_many([frame.stamp for frame in open_recording(str(folder)).frames()]))


def test_no_path_and_no_digest_of_a_purged_recording_is_left(
    run: Run, home: Path, plain: Path, tmp_path: Path
) -> None:
    monday, tuesday = folder_of(tmp_path / "monday", 4), folder_of(tmp_path / "tuesday", 4, first=3)
    assert run("seeonce encode --near-duplicates 0 --model", plain, monday, tuesday).code == 0
    assert run("seeonce describe --max-tokens 2 --model", plain, monday).code == 0
    before = named(home)
    own = digests(before["monday"].pixels - before["tuesday"].pixels)
    assert len(own) == 6  # one picture of four is on both days
    assert left_in(home, [os.fsencode(monday), *own]) != []
    assert run("seeonce store forget monday --purge --json").json["num_files"] == 4
    assert left_in(home, [os.fsencode(monday), b"monday", *own]) == []
    assert num_known(home, tuesday) == 4


def test_scene_changes_of_a_purged_video_are_forgotten(
    run: Run, home: Path, plain: Path, tmp_path: Path
) -> None:
    frames = [(ms, picture(ms // 2000 * 5)) for ms in range(0, 6000, 500)]
    video = write_video(tmp_path / 'a "day" é.mp4', frames)
    assert run("seeonce encode --every 1 --scene-change 0.01 --model", plain, video).code == 0
    assert left_in(home, [b"chosen pictures"]) != []
    assert run("seeonce store forget --purge", video).code == 0
    assert left_in(home, [b"chosen pictures", b"a \\", os.fsencode(video)]) == []


def test_files_that_the_manifest_no_longer_names_are_forgotten_too(
    run: Run, home: Path, plain: Path, tmp_path: Path
) -> None:
    monday = folder_of(tmp_path / "monday", 3)
    assert run("seeonce encode --model", plain, monday).code == 0
    next(monday.iterdir()).unlink()
    assert run("seeonce encode --model", plain, monday).code == 0
    assert run("seeonce store forget --purge --json", monday).json["num_files"] == 3
    assert left_in(home, [os.fsencode(monday)]) == []


def test_a_recording_below_a_purged_one_is_still_known(
    run: Run, home: Path, plain: Path, tmp_path: Path
) -> None:
    week = folder_of(tmp_path / "week", 2)
    monday = folder_of(week / "monday", 2, first=5)
    assert run("seeonce encode --model", plain, week, monday).code == 0
    assert run("seeonce store forget --purge", week).code == 0
    assert (num_known(home, week), num_known(home, monday)) == (0, 2)


def test_an_index_that_cannot_be_changed_stops_a_purge_before_anything_is_gone(
    run: Run, home: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("seeonce encode --model", plain, folder_of(tmp_path / "monday", 2)).code == 0
    store = Store.open(Home(home))
    [ref] = list_manifests(store.home)
    monkeypatch.setattr(DisposableDatabase, "work", lambda *_: None)
    with pytest.raises(StoreError, match=r"pixels-1.sqlite is in use or cannot be written"):
        forget(store, ref.recording.id, purge=True)
    assert ref.path.exists()
    shutil.rmtree(store.path / "index")
    assert forget(store, ref.recording.id, purge=True)[0].num_files == 0
