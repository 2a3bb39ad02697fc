"""Seeks of videos: the pictures that decoding through gives, pixel for pixel, from fewer packets."""

import math
import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
from videos import Pixels, picture, write_video

from sources import decoder
from sources.picture_times import PictureTimes
from sources.recording import FrameChoice
from sources.video import open_video

STEADY = range(0, 5000, 40)
GAPS = [0, 40, 80, 81, 3000, 3040, 3041, 3060, 20_000, 20_040, *range(20_080, 22_000, 40), 60_000]
STEPS_S = (0.04, 0.3, 2.5, 7.0, 1000.0)


class _Kind(NamedTuple):
    name: str
    codec: str = "libx264"
    times_ms: Sequence[int] = STEADY
    options: dict[str, str] = {}  # noqa: RUF012 (never changed)
    container: dict[str, str] = {}  # noqa: RUF012


B_FRAMES = {"bf": "4", "g": "25", "x264-params": "b-pyramid=normal:open-gop=1"}
KINDS = [
    _Kind("b-frames.mp4", options=B_FRAMES),
    _Kind("b-frames.mkv", options=B_FRAMES),
    _Kind("gaps.mp4", times_ms=GAPS, options=B_FRAMES),
    _Kind("gaps.mkv", times_ms=GAPS),
    _Kind("gaps.mov", "mpeg4", GAPS),
    _Kind("late.mkv", times_ms=range(5000, 10_000, 40)),
    _Kind("edit-list.mp4", times_ms=range(-490, 4510, 40), container={"avoid_negative_ts": "disabled"}),
    _Kind("one-keyframe.mp4", options={"g": "9999", "keyint_min": "9999", "sc_threshold": "0"}),
    _Kind("only-keyframes.mp4", options={"g": "1"}),
    _Kind("fragments.mp4", options={"g": "25"}, container={"movflags": "frag_keyframe+empty_moov"}),
    _Kind("no-index.mkv", options={"g": "25"}, container={"live": "1"}),
    _Kind("vp9.webm", "libvpx-vp9", options={"g": "25", "deadline": "realtime", "cpu-used": "8"}),
    _Kind("hevc.mkv", "libx265", options={"x265-params": "keyint=25:bframes=4:open-gop=1:log-level=none"}),
]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a video of each kind that this build of PyAV can write."""
    folder = tmp_path_factory.mktemp("videos")
    for kind in KINDS:
        if kind.codec in av.codecs_available:
            shown = [(time_ms, picture(number)) for number, time_ms in enumerate(kind.times_ms)]
            write_video(
                folder / kind.name, shown, codec=kind.codec, options=kind.options, container=kind.container
            )
    return folder


def _video(videos: Path, kind: _Kind) -> Path:
    if kind.codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {kind.codec}")
    return videos / kind.name


def decoded_through(video: Path) -> list[tuple[int, Pixels]]:
    with av.open(str(video)) as container:
        pictures = container.decode(video=0)
        return [(shown.pts or 0, np.asarray(shown.to_ndarray(format="rgb24"))) for shown in pictures]


def marked(pts: Sequence[int], time_base: Fraction, every_s: float) -> list[int]:
    """Choose by the definition: for each mark what is on the screen then, each picture once."""
    every = Fraction(str(every_s))
    seconds = [(ticks - pts[0]) * time_base for ticks in pts]
    num_marks = [math.ceil(later / every) for later in seconds[1:]] + [math.floor(seconds[-1] / every) + 1]
    before = [0, *num_marks]  # marks before a picture, and those before the next one
    return [ticks for ticks, one, other in zip(pts, before, num_marks, strict=False) if other > one]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_step_gives_the_pictures_of_decoding_through(kind: _Kind, videos: Path) -> None:
    video = _video(videos, kind)
    through = decoded_through(video)
    times = PictureTimes(video)
    times.close()
    for every_s in STEPS_S:
        expected = marked([pts for pts, _ in through], times.time_base, every_s)
        frames = open_video(video, FrameChoice(every_s)).frames()
        assert [frame.stamp.position for frame in frames] == [f"pts={pts}" for pts in expected]
        pixels = dict(through)
        for frame, pts in zip(frames, expected, strict=True):
            assert np.array_equal(np.asarray(frame.read()), pixels[pts])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_any_order_gives_the_same_pictures(kind: _Kind, videos: Path) -> None:
    video = _video(videos, kind)
    pixels = {f"pts={pts}": picture for pts, picture in decoded_through(video)}
    frames = list(open_video(video, FrameChoice(0.5)).frames())
    random.Random(7).shuffle(frames)
    assert all(np.array_equal(np.asarray(frame.read()), pixels[frame.stamp.position]) for frame in frames)


def test_an_edit_list_cuts_what_lies_before_the_start(videos: Path) -> None:
    through = decoded_through(videos / "edit-list.mp4")
    assert len(through) < len(STEADY)
    frames = open_video(videos / "edit-list.mp4", FrameChoice(0.04)).frames()
    assert len(frames) == len(through)
    assert frames[0].timestamp_s == 0


def _num_packets(video: Path, every_s: float) -> int:
    """Count the packets that are read to find the frames."""
    times = PictureTimes(video)
    due: int = times.start
    while (found := times.shown_at(due)) is not None and found[1] is not None:
        due = max(found[1], due + math.floor(every_s / times.time_base))
    times.close()
    return times.num_packets


@pytest.mark.parametrize("name", ["b-frames.mp4", "b-frames.mkv", "only-keyframes.mp4", "fragments.mp4"])
def test_listing_does_not_read_every_packet(name: str, videos: Path) -> None:
    assert _num_packets(videos / name, every_s=4) < 0.7 * len(STEADY)
    assert len(STEADY) <= _num_packets(videos / name, every_s=0.04) <= len(STEADY) + 1


def _num_decoded(video: Path, every_s: float, monkeypatch: pytest.MonkeyPatch) -> int:
    made: list[decoder.Decoder] = []
    really = decoder.Decoder.__init__

    def note(self: decoder.Decoder, *stamp: object) -> None:
        really(self, *stamp)  # type: ignore[arg-type]
        made.append(self)

    monkeypatch.setattr(decoder.Decoder, "__init__", note)
    for frame in open_video(video, FrameChoice(every_s)).frames():
        frame.read()
    return sum(one.num_decoded for one in made)


@pytest.mark.parametrize(
    ("name", "every_s", "at_most"),
    [
        ("only-keyframes.mp4", 2.0, 4),  # each is found by a seek
        ("only-keyframes.mp4", 0.04, 200),  # a seek to the next picture would gain nothing
        ("b-frames.mp4", 4.0, 40),  # half of it lies between keyframes that are not needed
        ("b-frames.mkv", 4.0, 40),
        ("b-frames.mp4", 0.04, 200),
        ("one-keyframe.mp4", 0.3, 200),  # no seek would help: decoded through, once
    ],
)
def test_a_seek_is_used_where_it_saves_pictures(
    name: str, every_s: float, at_most: int, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _num_decoded(videos / name, every_s, monkeypatch) <= at_most


def test_random_access_costs_a_distance_between_keyframes_not_the_whole_video(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = open_video(videos / "b-frames.mp4", FrameChoice(0.2))
    frames = list(recording.frames())
    random.Random(3).shuffle(frames)
    costs: list[decoder.Decoder] = []
    really = decoder.Decoder.picture

    def note(self: decoder.Decoder, pick: object) -> av.VideoFrame:
        costs.append(self)
        return really(self, pick)  # type: ignore[arg-type]

    monkeypatch.setattr(decoder.Decoder, "picture", note)
    for frame in frames:
        frame.read()
    assert costs[0].num_decoded <= len(frames) * (25 + 4)  # a keyframe every 25, and what is shown before it


def test_the_limit_reads_no_further_than_its_last_frame(videos: Path) -> None:
    times = PictureTimes(videos / "one-keyframe.mp4")
    assert times.num_packets < 30
    times.close()
    frames = open_video(videos / "one-keyframe.mp4", FrameChoice(2.0, limit=2)).frames()
    assert [frame.timestamp_s for frame in frames] == [0, 2]


def test_an_index_that_leads_astray_is_given_up_for_reading_through(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [frame.source for frame in open_video(videos / "b-frames.mp4", FrameChoice(2.5)).frames()]
    monkeypatch.setattr(PictureTimes, "_seek", lambda self, *_: self._read_one() and False)
    frames = open_video(videos / "b-frames.mp4", FrameChoice(2.5)).frames()
    assert [frame.source for frame in frames] == expected
