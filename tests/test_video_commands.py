"""Videos and Cap bundles through the commands: encoded once, found again, and what is missing is said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from videos import make_video, picture, write_video

from cache.base.home import Home
from cache.manifest import Manifest, list_manifests, read_manifest
from sources import decoder
from sources.picture_times import Pick

STEADY = range(0, 6000, 100)


@pytest.fixture(autouse=True)
def files_are_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was changed just now is not remembered as unchanged: here it is."""
    monkeypatch.setattr("cache.pixel_index.RACY_NS", 0)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A Cap bundle of two segments of six seconds."""
    path = tmp_path / "a.cap"
    segments = []
    for number in range(2):
        name = f"content/segments/segment-{number}/display.mp4"
        (path / name).parent.mkdir(parents=True)
        make_video(path / name, STEADY)
        segments.append({"display": {"path": name}})
    (path / "recording-meta.json").write_text(json.dumps({"pretty_name": "Demo", "segments": segments}))
    return path


@pytest.fixture
def changing(tmp_path: Path) -> Path:
    """A video of six seconds that changes at 2 and at 4."""
    return write_video(tmp_path / "a.mp4", [(ms, picture(ms // 2000 * 5)) for ms in STEADY])


def _manifest(home: Path) -> Manifest:
    return read_manifest(list_manifests(Home(home))[0].path)


def _forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr(decoder.Decoder, "picture", refuse)


def test_a_bundle_is_encoded_once_and_not_decoded_again(
    run: Run, home: Path, bundle: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("seeonce encode", bundle, "--model", plain, "--every", 2).code == 0
    first = _manifest(home)
    assert [frame.timestamp_s for frame in first.frames] == pytest.approx([0, 2, 4, 5.901, 7.901, 9.901])
    assert (first.recording.name, first.recording.kind) == ("Demo", "cap")
    _forbid_decoding(monkeypatch)
    ended = run("seeonce encode", bundle, "--model", plain, "--every", 2)
    assert (ended.code, "nothing to do" in ended.err) == (0, True)
    assert _manifest(home).frames == first.frames


def test_scene_changes_are_encoded_once_found_by_id_and_not_decoded_again(
    run: Run, home: Path, changing: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run("seeonce encode", changing, "--model", plain, "--scene-change", 0.01)
    assert (first.code, "scan: 100%" in first.err, "/6" in first.err) == (0, True, True)
    manifest = _manifest(home)
    assert [frame.timestamp_s for frame in manifest.frames] == [0, 2, 4]
    assert (manifest.recording.scene_change, manifest.recording.every_s) == (0.01, 1.0)
    _forbid_decoding(monkeypatch)
    again = run("seeonce encode", manifest.recording.id, "--model", plain)
    assert (again.code, "scan:" in again.err) == (0, False)
    assert _manifest(home).frames == manifest.frames


def test_verify_cache_finds_scene_changes_again(run: Run, changing: Path, plain: Path) -> None:
    assert run("seeonce encode", changing, "--model", plain, "--scene-change", 0.01, "--limit", 2).code == 0
    ended = run("verify-cache", changing, "--model", plain, "--level", "embeddings", "--sample", "all")
    assert ended.code == 0, ended.out


@pytest.mark.parametrize("options", [("--every", 1), ("--scene-change", 0.01)])
def test_a_video_is_encoded_again_as_it_was_by_path_and_by_id(
    options: tuple[str, float], run: Run, home: Path, changing: Path, plain: Path
) -> None:
    assert run("seeonce encode", changing, "--model", plain, *options).code == 0
    first = _manifest(home)
    for selector in (changing, first.recording.id):
        again = run("seeonce encode", selector, "--model", plain)
        assert (
            f"Using {'--every 1' if '--every' in options else '--every 1 --scene-change 0.01'} as before;"
            in again.err
        )
        assert _manifest(home).frames == first.frames


def test_fewer_frames_of_a_video_are_asked_for_and_said(
    run: Run, home: Path, changing: Path, plain: Path
) -> None:
    assert run("seeonce encode", changing, "--model", plain, "--every", 1).code == 0
    ended = run("seeonce encode", changing, "--model", plain, "--every", 3)
    assert "A manifest of 2 frames replaces one of 6" in ended.err
    assert len(_manifest(home).frames) == 2


def test_a_look_for_changes_does_not_take_the_step_of_an_earlier_encode(
    run: Run, home: Path, changing: Path, plain: Path
) -> None:
    assert run("seeonce encode", changing, "--model", plain).code == 0
    assert run("seeonce encode", changing, "--model", plain, "--scene-change", 0.01).code == 0
    assert [frame.timestamp_s for frame in _manifest(home).frames] == [0, 2, 4]


def test_scene_changes_of_a_bundle_go_on_over_its_segments(
    run: Run, home: Path, bundle: Path, plain: Path
) -> None:
    arguments = ("--model", plain, "--scene-change", 0.05, "--every", 2)
    assert run("seeonce encode", bundle, *arguments).code == 0
    segments = {Path(frame.source).parent.name for frame in _manifest(home).frames}
    assert segments == {"segment-0", "segment-1"}


def test_a_missing_segment_is_a_warning_and_the_rest_is_encoded(run: Run, bundle: Path, plain: Path) -> None:
    (bundle / "content/segments/segment-0/display.mp4").unlink()
    ended = run("seeonce encode", bundle, "--model", plain)
    assert ended.code == 0
    assert "warning: segment 0 of a.cap is left out" in ended.err


def test_a_video_that_is_replaced_while_it_is_encoded_gives_no_wrong_frame(
    run: Run, home: Path, changing: Path, tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_video(tmp_path / "b.mp4", [(ms, picture(99)) for ms in STEADY])
    _after(monkeypatch, 3, lambda: other.exists() and other.replace(changing))
    ended = run("seeonce encode", changing, "--model", plain, "--every", 1)
    assert ended.code in (1, 3)  # by how many frames were encoded before
    assert "changed since it was listed" in ended.err
    encoded = [read_manifest(ref.path) for ref in list_manifests(Home(home))]
    assert all(frame.timestamp_s < 3 for manifest in encoded for frame in manifest.frames)


def _after(monkeypatch: pytest.MonkeyPatch, num_pictures: int, then: Callable[[], Any]) -> None:
    """Do something when so many pictures have been asked for."""
    really, asked = decoder.Decoder.picture, list[int]()

    def picture_of(self: decoder.Decoder, pick: Pick) -> Any:
        asked.append(pick.pts)
        if len(asked) > num_pictures:
            then()
        return really(self, pick)

    monkeypatch.setattr(decoder.Decoder, "picture", picture_of)
