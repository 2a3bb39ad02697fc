"""Folders as recordings: which files count, their order, and the times that their names tell."""

import os
import random
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from other_environ import list_recordings, open_recording
from PIL import Image

from cache.base.errors import InputError
from cache.pixel_index import FileStamp
from sources.folder import natural_key, open_folder


def _fill(folder: Path, *names: str) -> Path:
    """Put files there that need not be images: listing never opens one."""
    shuffled = random.Random(3).sample(names, len(names))
    for name in shuffled:
        (folder / name).write_bytes(b"x")
    return folder


def _listed(folder: Path) -> list[str]:
    return [Path(frame.source).name for frame in open_folder(folder).frames()]


def _times(folder: Path) -> list[float]:
    return [frame.timestamp_s for frame in open_folder(folder).frames()]


def test_frames_come_in_natural_order(tmp_path: Path) -> None:
    names = ["Frame1.png", "frame2.PNG", "frame10.jpg", "frame10b.jpeg", "frame100.webp", "écran3.png"]
    assert _listed(_fill(tmp_path, *names)) == names


def test_only_images_count(tmp_path: Path) -> None:
    names = ["a.png", "b.gif", "c.bmp", "d.JFIF", "e.tiff", "f.tif", "g.avif", "h.heic", "i.webp", "j.jpeg"]
    _fill(tmp_path, *names, ".hidden.png", "._a.png", "notes.txt", "a.png.part", "png", "Thumbs.db")
    (tmp_path / "folder.png").mkdir()
    assert _listed(tmp_path) == names


def test_what_is_left_out_is_named_with_its_number(tmp_path: Path) -> None:
    _fill(tmp_path, "a.png", "b.mp4", "c.MOV", ".DS_Store", *(f"{number}.txt" for number in range(12)))
    (tmp_path / "sub").mkdir()
    recording = open_folder(tmp_path)
    assert len(recording.left_out) == 15
    assert {"sub/", "b.mp4", "0.txt"} < set(recording.left_out)
    assert recording.remarks[0].endswith(
        "left out are 1 folder (sub/), 2 videos (b.mp4, c.MOV), 12 other files (0.txt, 1.txt, 2.txt, …); "
        "encode folders and videos by their own paths"
    )
    (tmp_path / "sub" / "b.png").write_bytes(b"x")
    assert open_folder(tmp_path / "sub").remarks == ()


def test_a_single_picture_is_a_recording(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6), "red").save(tmp_path / "Screenshot 2026-11-21 at 10.32.05.tiff")
    recording = open_recording(str(tmp_path / "Screenshot 2026-11-21 at 10.32.05.tiff"))
    assert (recording.info.kind, recording.info.num_frames) == ("picture", 1)
    assert recording.info.captured_at == open_folder(tmp_path).info.captured_at
    assert recording.frames()[0].read().getpixel((0, 0)) == (255, 0, 0)
    assert open_recording(recording.info.path).info == recording.info
    assert [found.kind for found in list_recordings({"SEEONCE_RECORDINGS": str(tmp_path)})] == ["folder"]


def test_without_times_in_the_names_the_index_is_the_time(tmp_path: Path) -> None:
    recording = open_folder(_fill(tmp_path, "a1.png", "a2.png", "a10.png"))
    assert [frame.timestamp_s for frame in recording.frames()] == [0.0, 1.0, 2.0]
    assert [frame.index for frame in recording.frames()] == [0, 1, 2]
    assert recording.length_s is None


def test_seconds_at_the_end_of_names_are_taken_as_they_are(tmp_path: Path) -> None:
    _fill(tmp_path, "0000_5.5s.png", "0001_70.0s.png", "frame-120s.jpg", "0002_9s.png")
    assert _times(tmp_path) == [5.5, 9.0, 70.0, 120.0]
    assert open_folder(tmp_path).length_s == 114.5


@pytest.mark.parametrize(
    ("names", "times"),
    [
        (["Screenshot 2026-11-21 at 10.32.05.png", "Screenshot 2026-11-21 at 10.32.07.png"], [0, 2]),
        (
            ["Screen Shot 2026-11-21 at 9.05.01 AM.png", "Screen Shot 2026-11-21 at 1.05.01\u202fPM.png"],
            [0, 14400],
        ),
        (
            ["Screenshot 2026-11-21 at 12.00.00 AM.png", "Screenshot 2026-11-21 at 12.00.00 PM.png"],
            [0, 43200],
        ),
        (["2026-11-21T10-32-05.png", "2026-11-21T10-32-05.250.png"], [0, 0.25]),
        (["2026-11-21T23-59-59.5Z.webp", "2026-11-22T00-00-00Z.webp"], [0, 0.5]),
        (["20261121_103205.jpg", "20261121_103206_750.jpg"], [0, 1.75]),
        (["Screenshot from 2026-11-21 10-32-05.png", "Screenshot from 2026-11-21 10-33-05.png"], [0, 60]),
        (["Bildschirmfoto 2026-11-21 um 10.32.05.png", "Bildschirmfoto 2026-11-21 um 10.32.06.png"], [0, 1]),
        (["20261121103205.png", "20261121103210.png"], [0, 5]),
        (["20261121_10h32m05s.png", "20261121_10h33m05s.png"], [0, 60]),
        (["1795257125.png", "1795257127.png"], [0, 2]),
        (["shot_1795257125000.png", "shot_1795257125532.png"], [0, 0.532]),
    ],
    ids=lambda value: str(value[0]),
)
def test_dates_in_names_become_seconds_from_the_first(
    names: list[str], times: list[float], tmp_path: Path
) -> None:
    assert _times(_fill(tmp_path, *names)) == pytest.approx(times, abs=1e-6)


def test_order_is_by_time_where_names_tell_it(tmp_path: Path) -> None:
    names = [
        "b 2026-11-21 at 9.59.59.png",
        "a 2026-11-21 at 10.00.00.png",
        "a 2026-11-21 at 10.00.00 (2).png",
    ]
    assert _listed(_fill(tmp_path, *names)) == names


def test_equal_times_are_in_natural_order_and_the_original_before_its_copies(tmp_path: Path) -> None:
    names = [f"shot 20261121_103205{end}.png" for end in ("", " 2", " 10", "_9", "_10", "_11")]
    assert _listed(_fill(tmp_path, *names)) == names
    assert set(_times(tmp_path)) == {0.0}


def test_one_name_without_a_time_comes_last_and_changes_no_other(tmp_path: Path) -> None:
    names = [f"Screenshot 2026-11-21 at {hour}.00.00 AM.png" for hour in (9, 10, 11)]
    before = open_folder(_fill(tmp_path, *names)).frames()
    recording = open_folder(_fill(tmp_path, "image.png"))
    assert recording.frames()[:3] == before
    assert (_listed(tmp_path)[3], _times(tmp_path)[3], recording.length_s) == ("image.png", 7200.0, 7200.0)
    assert recording.remarks == (
        "1 of 4 names tell no time as the others do (image.png): they come last, at the last known time",
    )
    assert recording.info.captured_at == open_folder(tmp_path, limit=3).info.captured_at


def test_half_of_the_names_order_a_folder(tmp_path: Path) -> None:
    names = ["2026-11-21 10.00.00.png", "2026-11-21 10.00.05.png", "a.png", "b.png"]
    assert _listed(_fill(tmp_path, *names)) == names
    assert _times(tmp_path) == [0.0, 5.0, 5.0, 5.0]


def test_one_name_with_a_time_does_not_order_the_others(tmp_path: Path) -> None:
    _fill(tmp_path, "1.png", "2.png", "3.png", "Screenshot 2026-11-21 at 10.32.05.png")
    recording = open_folder(tmp_path)
    assert _times(tmp_path) == [0.0, 1.0, 2.0, 3.0]
    assert "3 of 4 names tell no time" in recording.remarks[0]
    assert "all times are 0, 1, 2" in recording.remarks[0]


@pytest.mark.parametrize(
    "names",
    [
        ["0007_70.0s.png", "0008_80.0.png"],
        ["2026-11-21T10-32-05.png", "1795257125.png"],
        ["2026-13-21T10-32-05.png", "2026-14-21T10-32-05.png"],
        ["Screenshot 2026-11-21 at 13.00.00 PM.png", "Screenshot 2026-11-21 at 14.00.00 PM.png"],
        ["0000000001.png", "0000000005.png"],
    ],
    ids=["mixed-seconds", "mixed-dates", "no-such-month", "no-such-hour", "counters"],
)
def test_names_that_mostly_tell_no_time_fall_back_to_the_order(names: list[str], tmp_path: Path) -> None:
    assert _times(_fill(tmp_path, *names)) == [0.0, 1.0]


def test_dates_of_unknown_order_are_not_guessed_and_that_is_said(tmp_path: Path) -> None:
    recording = open_folder(_fill(tmp_path, "shot 02-01-2025 16.12.30.png", "shot 01-02-2025 16.12.30.png"))
    assert [frame.timestamp_s for frame in recording.frames()] == [0.0, 1.0]
    assert [remark for remark in recording.remarks if "write the year first" in remark]


def test_capture_is_dated_by_the_names_else_by_the_oldest_file(tmp_path: Path) -> None:
    dated, plain = tmp_path / "dated", tmp_path / "plain"
    dated.mkdir()
    plain.mkdir()
    _fill(dated, "2026-11-21T10-32-05Z.png", "2026-11-21T10-32-06Z.png")
    _fill(plain, "a.png", "b.png")
    os.utime(plain / "b.png", (1_700_000_000, 1_700_000_000))
    assert open_folder(dated).info.captured_at == "2026-11-21T10:32:05.000+00:00"
    assert open_folder(plain).info.captured_at == datetime.fromtimestamp(1_700_000_000, UTC).isoformat(
        timespec="milliseconds"
    )


def test_the_limit_takes_the_first_frames(tmp_path: Path) -> None:
    recording = open_folder(_fill(tmp_path, "1.png", "2.png", "3.png"), limit=2)
    assert [Path(frame.source).name for frame in recording.frames()] == ["1.png", "2.png"]
    assert (recording.info.num_frames, recording.info.limit, recording.info.kind) == (2, 2, "folder")


def test_frames_carry_the_stamp_of_their_file_and_read_its_picture(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 6), (10, 20, 30, 40)).save(tmp_path / "a.png")
    frame = open_folder(tmp_path).frames()[0]
    assert frame.stamp == FileStamp.of(Path(os.path.realpath(tmp_path / "a.png")))
    assert np.asarray(frame.read()).tolist() == np.full((6, 8, 3), (10, 20, 30)).tolist()


def test_unreadable_images_are_listed_and_fail_alone(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "b.png")
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "c.png").symlink_to(tmp_path / "c.png")
    broken_link, good, loop = open_folder(tmp_path).frames()
    assert good.read().size == (8, 6)
    for frame in (broken_link, loop):
        with pytest.raises(InputError):
            frame.read()


def test_a_folder_without_images_says_what_counts(tmp_path: Path) -> None:
    _fill(tmp_path, "notes.txt")
    with pytest.raises(
        InputError, match=r"no images.*\.png, \.jpg, .*left out is 1 other file \(notes\.txt\)"
    ):
        open_folder(tmp_path)
    with pytest.raises(InputError, match="cannot list"):
        open_folder(tmp_path / "gone")
    with pytest.raises(InputError, match="cannot list"):
        open_folder(tmp_path / "notes.txt")


def test_names_that_are_no_unicode_can_be_listed_and_printed(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    frame = open_folder(tmp_path).frames()[0]
    assert frame.source.encode("utf-8")
    with pytest.raises(InputError, match="no PNG"):
        frame.read()


def test_ten_thousand_files_are_listed_in_order_of_their_times(tmp_path: Path) -> None:
    for i in range(10_000):
        (tmp_path / f"{i:05}_{i * 10}.0s.png").touch()
    frames = open_folder(tmp_path).frames()
    assert [frame.timestamp_s for frame in frames] == [10.0 * number for number in range(10_000)]


@settings(deadline=None)
@given(st.lists(st.text(), max_size=20))
def test_any_names_have_a_natural_order(names: list[str]) -> None:
    in_order = sorted(names, key=natural_key)
    names.reverse()
    assert sorted(names, key=natural_key) == in_order


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**12), min_size=2, unique=True))
def test_numbered_names_sort_by_their_number(numbers: list[int]) -> None:
    names = [f"frame{number}.png" for number in numbers]
    assert sorted(names, key=natural_key) == [f"frame{number}.png" for number in sorted(numbers)]
