"""Finding recordings: what is listed, what a name on the command line means, and what is refused."""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from other_environ import latest_recording, list_recordings, open_recording
from PIL import Image
from screens import python
from videos import make_video

from cache.base.errors import InputError
from sources.recording import FrameChoice, recording_id


def _folder(path: Path, captured_s: int, num_frames: int = 2) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for i in range(num_frames):
        Image.new("RGB", (8, 6), (i, 0, 0)).save(path / f"{i}_{i * 5}.0s.png")
        os.utime(path / f"{i}_{i * 5}.0s.png", (captured_s + i, captured_s + i))
    return path


def _video(path: Path, captured_s: int) -> Path:
    make_video(path, [0])
    os.utime(path, (captured_s, captured_s))
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A recordings folder with two folders and a video, the newest of them `monday.mp4`."""
    root = tmp_path / "recordings"
    _folder(root / "standup", 1_700_000_000)
    _folder(root / "Standup notes", 1_700_000_100, num_frames=3)
    _video(root / "monday.mp4", 1_700_000_200)
    _folder(root / ".hidden", 1_800_000_000)
    (root / "empty").mkdir()
    (root / "notes.txt").write_text("x")
    return root


def _environ(place: Path) -> Mapping[str, str]:
    return {"SEEONCE_RECORDINGS": str(place)}


def test_folders_and_videos_are_listed_newest_first(place: Path) -> None:
    listings = list_recordings(_environ(place))
    assert [(found.name, found.kind) for found in listings] == [
        ("monday.mp4", "video"),
        ("Standup notes", "folder"),
        ("standup", "folder"),
    ]
    assert [found.num_frames for found in listings] == [None, 3, 2]
    assert [found.length_s for found in listings] == [0.001, 10.0, 5.0]


def test_listings_and_opened_recordings_agree(place: Path) -> None:
    listing = list_recordings(_environ(place))[1]
    info = open_recording(str(listing.path)).info
    assert (info.id, info.name, info.kind, Path(info.path)) == (
        listing.id,
        listing.name,
        listing.kind,
        listing.path,
    )
    assert (info.captured_at, info.num_frames) == (listing.captured_at, listing.num_frames)


def test_the_recordings_folder_itself_counts_when_it_holds_images(place: Path) -> None:
    _folder(place, 1_700_000_300)
    assert list_recordings(_environ(place))[0].name == "recordings"


def test_a_folder_with_an_odd_name_is_listed_printably_and_opens(tmp_path: Path) -> None:
    _folder(tmp_path / "two\nlines", 1_700_000_000)
    (found,) = list_recordings(_environ(tmp_path))
    assert found.name == r"two\nlines"
    assert len(open_recording(found.id, environ=_environ(tmp_path)).frames()) == 2


def test_latest_is_the_newest_that_is_listed(place: Path) -> None:
    (place / "monday.mp4").unlink()
    latest = latest_recording(_environ(place))
    assert latest is not None
    assert latest.name == "Standup notes"
    assert open_recording("latest", environ=_environ(place)).info.id == latest.id


def test_a_video_that_is_still_written_is_listed_but_not_the_latest(place: Path) -> None:
    (place / "running.mp4").write_bytes(b"no index yet")
    newest = list_recordings(_environ(place))[0]
    assert (newest.name, newest.is_there) == ("running.mp4", False)
    assert open_recording("latest", environ=_environ(place)).info.name == "monday.mp4"


def test_what_a_source_cannot_read_is_a_plain_warning_on_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "escribano.db").write_bytes(b"none" * 100)
    command = python(
        "from seeonce.__main__ import main; main()", "encode", ESCRIBANO_DB=str(tmp_path / "escribano.db")
    )
    _, err = command.communicate(timeout=60)
    assert f"warning: {tmp_path}/escribano.db: not a SQLite database" in err.splitlines()[0]


@pytest.mark.parametrize("environ", [{}, {"SEEONCE_RECORDINGS": ""}])
def test_without_recordings_latest_names_the_demo(environ: dict[str, str]) -> None:
    assert list_recordings(environ) == []
    assert latest_recording(environ) is None
    with pytest.raises(InputError, match=r"SEEONCE_RECORDINGS.*`seeonce encode demo`"):
        open_recording("latest", environ=environ)


def test_a_recordings_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"SEEONCE_RECORDINGS=.*gone: cannot be listed"):
        list_recordings(_environ(tmp_path / "gone"))


def test_a_recording_is_found_by_path_id_start_of_id_and_name(place: Path) -> None:
    folder = place / "Standup notes"
    wanted = recording_id(folder)
    for selector in (str(folder), wanted, "standup-notes", "Standup notes"):
        assert open_recording(selector, environ=_environ(place)).info.id == wanted


def test_a_name_wins_over_the_start_of_another_id(place: Path) -> None:
    assert open_recording("standup", environ=_environ(place)).info.name == "standup"


def test_an_ambiguous_start_names_what_fits(place: Path) -> None:
    with pytest.raises(InputError, match=r"'stand' fits standup-notes-[0-9a-f]{8}, standup-[0-9a-f]{8}"):
        open_recording("stand", environ=_environ(place))


def test_an_unknown_name_says_what_there_is(place: Path) -> None:
    with pytest.raises(InputError, match=r"no recording 'tuesday'.*monday\.mp4-.*`seeonce recordings`"):
        open_recording("tuesday", environ=_environ(place))
    for selector in ("", "no\0thing", "https://example.org/a.mp4", "x" * 200):
        with pytest.raises(InputError, match="no recording"):
            open_recording(selector, environ={})


def test_a_path_of_another_kind_says_what_is_expected(place: Path) -> None:
    with pytest.raises(
        InputError, match=r"notes\.txt: not a recording; expected a folder of images, an image or a video"
    ):
        open_recording(str(place / "notes.txt"))
    with pytest.raises(InputError, match="no images in this folder"):
        open_recording(str(place / "empty"))
    (place / "monday.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match="not a video that can be read"):
        open_recording(str(place / "monday.mp4"))


@pytest.mark.parametrize("every_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_step_that_is_no_step_is_refused(every_s: float, place: Path) -> None:
    with pytest.raises(InputError, match="--every"):
        open_recording(str(place / "standup"), FrameChoice(every_s=every_s))


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_is_refused(limit: int, place: Path) -> None:
    with pytest.raises(InputError, match="--limit"):
        open_recording(str(place / "standup"), FrameChoice(limit=limit))


def test_demo_is_the_bundled_recording_whatever_else_has_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _folder(tmp_path / "demo" / "recording", 1_700_000_000)
    (tmp_path / "demo" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "demo", raising=False)
    recording = open_recording("demo", FrameChoice(limit=1))
    info = recording.info
    assert (info.id, info.name, info.kind, info.num_frames) == ("demo", "demo", "demo", 1)
    assert recording.frames()[0].read().size == (1280, 800)


def test_an_id_is_the_same_before_and_after_the_frames_are_gone(tmp_path: Path) -> None:
    folder = tmp_path / "Café — Büro 3"
    before = recording_id(folder)
    folder.mkdir()
    assert recording_id(folder) == before
    assert recording_id(folder / ".." / folder.name) == before
    assert re.fullmatch(r"cafe-buro-3-[0-9a-f]{8}", before)


def test_recordings_of_one_name_in_two_places_differ(tmp_path: Path) -> None:
    assert recording_id(tmp_path / "a" / "rec") != recording_id(tmp_path / "b" / "rec")


@settings(deadline=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_ids_can_be_folder_names_whatever_the_recording_is_called(name: str) -> None:
    found = recording_id(Path("/recordings") / name)
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*-[0-9a-f]{8}", found)
    assert ".." not in found  # which a manifest refuses


@pytest.mark.parametrize("name", ["My talk ….cap", "a..b", "v1....2"])
def test_an_id_has_no_two_dots_in_a_row(name: str) -> None:
    assert ".." not in recording_id(Path("/recordings") / name)
