"""Frames that differ: the measure, which are taken, and that an unchanged video is not decoded again."""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw
from videos import number_of, picture, write_video

from cache.base.errors import InputError
from cache.base.home import Home
from sources import decoder
from sources import video_sampling as selection
from sources.picture_times import Pick
from sources.recording import FrameChoice, PendingNotes, Recording
from sources.video import open_video
from sources.video_sampling import difference, small_luma


def _screen(*boxes: tuple[int, int, int, int], shade: int = 0) -> Image.Image:
    """Draw a light screen of 1920 x 1080 with filled boxes on it."""
    image = Image.new("RGB", (1920, 1080), (250, 250, 250))
    for box in boxes:
        ImageDraw.Draw(image).rectangle(box, fill=(shade, shade, shade))
    return image


def _difference(one: Image.Image, other: Image.Image) -> float:
    lumas = [small_luma(av.VideoFrame.from_ndarray(np.asarray(image), "rgb24")) for image in (one, other)]
    return difference(*lumas)


def test_the_measure_is_the_share_of_the_screen_times_how_much_it_changes() -> None:
    assert _difference(_screen(), _screen()) == 0
    assert _difference(_screen(), _screen((0, 0, 959, 539))) == pytest.approx(0.25 * 250 / 255, abs=0.01)
    assert _difference(_screen(), _screen((0, 0, 959, 539), shade=200)) == pytest.approx(0.049, abs=0.005)
    black, white = (Image.new("RGB", (640, 480), colour) for colour in ("black", "white"))
    assert _difference(black, white) == 1


def _steps(path: Path, numbers: Sequence[int]) -> Path:
    """Write a video that shows each of these numbers for a second, ten pictures a second."""
    pictures = [(index * 100, picture(numbers[index // 10])) for index in range(len(numbers) * 10)]
    return write_video(path, pictures)


def _shown(recording: Recording) -> list[tuple[float, int]]:
    return [(frame.timestamp_s, number_of(np.asarray(frame.read()))) for frame in recording.frames()]


def test_only_pictures_that_differ_from_the_last_taken_are_frames(tmp_path: Path) -> None:
    video = _steps(tmp_path / "a.mp4", [0, 0, 0, 7, 7, 0, 1, 1])
    recording = open_video(video, FrameChoice(1.0, scene_change=0.01))
    assert _shown(recording) == [(0, 0), (3, 7), (5, 0), (6, 1)]
    assert [frame.index for frame in recording.frames()] == [0, 1, 2, 3]
    assert recording.info.scene_change == 0.01


def test_many_small_changes_add_up_to_one(tmp_path: Path) -> None:
    grey = [np.full((48, 64, 3), 60 + 2 * number, np.uint8) for number in range(40)]
    video = write_video(tmp_path / "fade.mkv", [(100 * number, one) for number, one in enumerate(grey)])
    taken = open_video(video, FrameChoice(0.1, scene_change=0.1)).frames()
    assert [frame.timestamp_s for frame in taken] == pytest.approx([0, 1.3, 2.6, 3.9], abs=0.11)


def test_a_higher_threshold_takes_no_more_and_zero_takes_all(tmp_path: Path) -> None:
    video = _steps(tmp_path / "a.mp4", [0, 1, 3, 0, 15, 15, 0, 2])
    thresholds = (0.0, 0.01, 0.1, 0.2, 1.0)
    counts = [len(open_video(video, FrameChoice(0.5, scene_change=at)).frames()) for at in thresholds]
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (16, 1)


def test_the_frames_are_among_those_of_the_same_step_alone(tmp_path: Path) -> None:
    video = _steps(tmp_path / "a.mp4", [0, 0, 5, 5, 6])
    every = {frame.source: frame.timestamp_s for frame in open_video(video, FrameChoice(0.5)).frames()}
    for frame in open_video(video, FrameChoice(0.5, scene_change=0.01)).frames():
        assert every[frame.source] == frame.timestamp_s


def test_each_picture_is_looked_at_once_and_none_behind_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    really = decoder.Decoder.picture

    def look(self: decoder.Decoder, pick: Pick) -> av.VideoFrame:
        looked.append(pick.pts)
        return really(self, pick)

    monkeypatch.setattr(decoder.Decoder, "picture", look)
    video = _steps(tmp_path / "a.mkv", [0, 0, 7, 7, 0, 0])
    open_video(video, FrameChoice(0.5, scene_change=0.01))
    assert looked == list(range(0, 6000, 500))
    looked.clear()
    open_video(video, FrameChoice(0.5, limit=2, scene_change=0.01))
    assert looked == list(range(0, 2500, 500))


def test_an_unchanged_video_is_not_decoded_again_and_another_threshold_is_another_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = _aged(_steps(tmp_path / "a.mp4", [0, 0, 7, 7]), monkeypatch)
    notes = PendingNotes(Home(tmp_path))
    choice = FrameChoice(1.0, scene_change=0.01, notes=notes)
    first = open_video(video, choice)
    monkeypatch.setattr(selection, "Timeline", None)  # whoever looks again fails
    again = open_video(video, choice)
    assert again.frames() == first.frames()
    assert _shown(again) == [(0, 0), (2, 7)]
    with pytest.raises(TypeError):
        open_video(video, FrameChoice(1.0, scene_change=0.02, notes=notes))


def test_a_changed_video_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = PendingNotes(Home(tmp_path))
    choice = FrameChoice(1.0, scene_change=0.01, notes=notes)
    open_video(_aged(_steps(tmp_path / "a.mp4", [0, 0, 7, 7]), monkeypatch), choice)
    assert _shown(open_video(_steps(tmp_path / "a.mp4", [0, 5, 7, 7]), choice)) == [(0, 0), (1, 5), (2, 7)]


def _aged(video: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the clock of the index be such that the file was written long ago."""
    monkeypatch.setattr("cache.pixel_index.RACY_NS", 0)
    return video


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_that_is_none_is_refused(threshold: float) -> None:
    with pytest.raises(InputError, match="expected 0 to 1"):
        FrameChoice(scene_change=threshold).require_sound()
