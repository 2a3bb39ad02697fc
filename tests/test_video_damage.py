"""Videos that are not as they should be: what decodes is used, what does not is said, and nothing crashes."""

import io
import random
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from test_image_damage import damaged
from videos import Pixels, add_stream, make_video, number_of, picture, write_video

from cache.base.errors import InputError
from sources.recording import FrameChoice, Recording
from sources.video import open_video

STEADY = range(0, 8000, 40)


def _cut(video: Path, share: float) -> Path:
    content = video.read_bytes()
    video.write_bytes(content[: int(len(content) * share)])
    return video


def _damaged(video: Path, since: float, until: float, seed: int = 1) -> Path:
    """Overwrite a part of a file with noise."""
    content = bytearray(video.read_bytes())
    start, end = int(len(content) * since), int(len(content) * until)
    content[start:end] = random.Random(seed).randbytes(end - start)
    video.write_bytes(content)
    return video


def _readable(recording: Recording) -> dict[int, Pixels]:
    """Read what can be read: pixels by presentation timestamp."""
    found: dict[int, Pixels] = {}
    for frame in recording.frames():
        try:
            found[int(frame.stamp.position.removeprefix("pts="))] = np.asarray(frame.read())
        except InputError:
            continue
    return found


def _pixels_of(video: Path) -> dict[int, Pixels]:
    with av.open(str(video)) as container:
        pictures = container.decode(video=0)
        return {shown.pts or 0: np.asarray(shown.to_ndarray(format="rgb24")) for shown in pictures}


@pytest.mark.parametrize(
    ("name", "every_s"), [("a.mp4", 0.04), ("a.mp4", 1.5), ("a.mkv", 0.04), ("a.mkv", 1.5), ("a.webm", 0.5)]
)
def test_a_cut_file_gives_what_it_holds_and_says_where_it_ends(
    name: str, every_s: float, tmp_path: Path
) -> None:
    codec = "libvpx" if name.endswith("webm") else "libx264"
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {codec}")
    video = make_video(tmp_path / name, STEADY, codec=codec)
    whole = _pixels_of(video)
    recording = open_video(_cut(video, 0.6), FrameChoice(every_s))
    [remark] = recording.remarks
    assert f"{name}: breaks off" in remark
    found = _readable(recording)
    assert 1 < len(found) * every_s < 7
    assert all(np.array_equal(pixels, whole[pts]) for pts, pixels in found.items())


def test_fragments_that_were_still_being_written_are_used(tmp_path: Path) -> None:
    pictures = [(time_ms, picture(number)) for number, time_ms in enumerate(STEADY)]
    flags = {"movflags": "frag_keyframe+empty_moov"}
    video = write_video(tmp_path / "a.mp4", pictures, container=flags)
    content = video.read_bytes()
    video.write_bytes(content[: content.rfind(b"mdat", 0, len(content) * 6 // 10) + 100])
    recording = open_video(video, FrameChoice(0.04))
    assert 40 < len(_readable(recording)) < 160
    assert "a.mp4: breaks off" in recording.remarks[0]


@pytest.mark.parametrize("damage", [b"\0" * 8, b"\xff" * 8, b"\0\0\1\0xxxx"])
def test_damage_between_fragments_is_said(damage: bytes, tmp_path: Path) -> None:
    pictures = [(time_ms, picture(number)) for number, time_ms in enumerate(STEADY)]
    flags = {"movflags": "frag_keyframe+empty_moov"}
    video = write_video(tmp_path / "a.mp4", pictures, container=flags)
    content = video.read_bytes()
    assert open_video(video, FrameChoice(0.04)).remarks == ()
    place = content.find(b"moof", len(content) // 2) - 4
    video.write_bytes(content[:place] + damage + content[place + 8 :])
    [remark] = open_video(video, FrameChoice(0.04)).remarks
    assert f"a.mp4: damaged about {place / len(content):.0%} into the file" in remark


def test_a_limit_within_what_is_there_says_nothing_of_the_end(tmp_path: Path) -> None:
    video = _cut(make_video(tmp_path / "a.mp4", STEADY), 0.6)
    assert open_video(video, FrameChoice(0.5, limit=3)).remarks == ()


@pytest.mark.parametrize("late_s", [0, 6])
@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "pcm_s16le"), ("a.mkv", "aac"), ("a.mp4", "aac")])
def test_the_last_picture_stands_while_the_sound_goes_on(
    name: str, codec: str, late_s: int, tmp_path: Path
) -> None:
    with av.open(str(tmp_path / name), "w") as output:
        video = output.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = output.add_stream(codec, rate=8000)
        assert isinstance(sound, av.AudioStream)
        for number in (0, 19):
            shown = av.VideoFrame.from_ndarray(picture(number), "rgb24")
            shown.pts, shown.time_base = number + 10 * late_s, Fraction(1, 10)
            output.mux(video.encode(shown))
        output.mux(video.encode(None))
        for second in range(10 + late_s):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
            samples.sample_rate, samples.pts = 8000, second * 8000
            output.mux(sound.encode(samples))
        output.mux(sound.encode(None))
    recording = open_video(tmp_path / name, FrameChoice(1.0))
    frames = recording.frames()
    assert [(frame.timestamp_s, number_of(np.asarray(frame.read()))) for frame in frames] == [
        (0, 0),
        (1.9, 19),
    ]
    assert recording.remarks == ()


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "mjpeg"])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_pictures_that_build_on_damage_are_left_out(name: str, codec: str, tmp_path: Path) -> None:
    if (name, codec) == ("a.mp4", "mjpeg"):
        name = "a.mov"
    video = make_video(tmp_path / name, STEADY, codec=codec)
    whole = _pixels_of(video)
    found = _readable(open_video(_damaged(video, 0.5, 0.52), FrameChoice(0.04)))
    wrong = [pts for pts, pixels in found.items() if not np.array_equal(pixels, whole[pts])]
    assert len(wrong) <= 3  # a codec need not object to noise; with one thread it objects a picture later
    assert 100 < len(found) < 200


def test_damage_that_swallows_a_part_of_the_file_is_said(tmp_path: Path) -> None:
    # A cluster a second, behind which FFmpeg finds its way again, and zeros: noise may look like an element.
    shown = [(time_ms, picture(number)) for number, time_ms in enumerate(STEADY)]
    video = write_video(tmp_path / "a.mkv", shown, container={"cluster_time_limit": "1000"})
    content = video.read_bytes()
    start, end = int(len(content) * 0.4), int(len(content) * 0.6)
    video.write_bytes(content[:start] + bytes(end - start) + content[end:])
    recording = open_video(video, FrameChoice(0.04))
    assert any("a.mkv: damaged somewhere between" in remark for remark in recording.remarks)
    assert max(_readable(recording)) > 7000


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_noise_anywhere_never_crashes_or_hangs(name: str, seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    video = make_video(tmp_path / name, range(0, 2000, 40))
    since = chance.random() * 0.9
    _damaged(video, since, since + chance.choice([0.001, 0.05, 0.5]), seed)
    if chance.random() < 0.3:
        _cut(video, 0.2 + chance.random() * 0.8)
    with suppress(InputError):
        _readable(open_video(video, FrameChoice(chance.choice([0.04, 0.7]))))


@pytest.mark.parametrize("every_s", [0.01, 1000.0])
def test_one_picture_is_one_frame(every_s: float, tmp_path: Path) -> None:
    [frame] = open_video(make_video(tmp_path / "a.mp4", [0]), FrameChoice(every_s)).frames()
    assert (frame.index, frame.timestamp_s, number_of(np.asarray(frame.read()))) == (0, 0, 0)


def test_a_still_image_in_a_video_file_is_one_frame(tmp_path: Path) -> None:
    video = write_video(tmp_path / "still.mov", [(0, picture(9))], codec="png")
    [frame] = open_video(video, FrameChoice()).frames()
    assert np.array_equal(np.asarray(frame.read()), picture(9))


@pytest.mark.parametrize(
    ("codec", "format_"), [("libx264", "yuv420p10le"), ("ffv1", "gbrp10le"), ("ffv1", "gray")]
)
def test_deep_and_odd_pixel_formats_become_rgb(codec: str, format_: str, tmp_path: Path) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {codec}")
    video = write_video(
        tmp_path / "a.mkv", [(0, picture(5)), (100, picture(6))], codec=codec, pix_fmt=format_
    )
    numbers = [number_of(np.asarray(frame.read())) for frame in open_video(video, FrameChoice(0.1)).frames()]
    assert numbers == [5, 6]


def test_odd_sizes_are_kept(tmp_path: Path) -> None:
    video = write_video(
        tmp_path / "a.mkv", [(0, np.zeros((49, 65, 3), np.uint8))], codec="ffv1", pix_fmt="yuv444p"
    )
    assert open_video(video, FrameChoice()).frames()[0].read().size == (65, 49)


def test_a_size_that_changes_in_the_middle_changes_the_frames(tmp_path: Path) -> None:
    sizes = [(64, 48), (64, 48), (128, 96), (80, 60)]
    with av.open(str(tmp_path / "a.mkv"), "w") as output:
        stream = output.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number, (width, height) in enumerate(sizes):
            jpeg = io.BytesIO()
            Image.fromarray(picture(number, width, height)).save(jpeg, "JPEG")
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.pts, packet.dts = stream, number, number
            packet.time_base, packet.is_keyframe = Fraction(1, 10), True
            output.mux(packet)
    frames = open_video(tmp_path / "a.mkv", FrameChoice(0.01)).frames()
    assert [frame.read().size for frame in frames] == sizes
    changing = open_video(tmp_path / "a.mkv", FrameChoice(0.01, scene_change=1.0)).frames()
    assert [frame.read().size for frame in changing] == [(64, 48), (128, 96), (80, 60)]


def test_a_video_that_is_replaced_after_it_was_listed_gives_no_picture(tmp_path: Path) -> None:
    video = make_video(tmp_path / "a.mp4", STEADY)
    frames = open_video(video, FrameChoice(1.0)).frames()
    assert number_of(np.asarray(frames[0].read())) == 0
    make_video(tmp_path / "b.mp4", range(0, 8000, 50)).replace(video)
    with pytest.raises(InputError, match=r"a\.mp4: changed since it was listed; run the same command again"):
        frames[1].read()


def test_a_video_that_is_gone_after_it_was_listed_gives_no_picture(tmp_path: Path) -> None:
    video = make_video(tmp_path / "a.mp4", STEADY)
    frames = open_video(video, FrameChoice(1.0)).frames()
    video.unlink()
    with pytest.raises(InputError, match=r"a\.mp4: cannot be read"):
        frames[1].read()


def test_pixels_are_taken_as_square(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as output:
        stream = add_stream(output, "libx264")
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        output.mux(stream.encode(av.VideoFrame.from_ndarray(picture(3), "rgb24")))
        output.mux(stream.encode(None))
    with av.open(str(tmp_path / "a.mp4")) as written:
        assert written.streams.video[0].sample_aspect_ratio == 2
    assert open_video(tmp_path / "a.mp4", FrameChoice()).frames()[0].read().size == (64, 48)


_WRITTEN = (
    ("a.mp4", "libx264"),
    ("a.mkv", "libx264"),
    ("a.webm", "libvpx"),
    ("a.avi", "mpeg4"),
    ("a.mov", "mpeg4"),
)


@pytest.mark.parametrize(
    "seeds", [range(40), pytest.param(range(40, 3000), marks=pytest.mark.campaign)], ids=["few", "many"]
)
def test_whatever_is_damaged_in_a_video_is_refused_by_name(
    seeds: range, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    written = [(n, c) for n, c in _WRITTEN if c in av.codecs_available]
    videos = [make_video(tmp_path / name, range(0, 3000, 100), codec=codec) for name, codec in written]
    whole = [(video, video.read_bytes()) for video in videos]
    for seed in seeds:
        chance = random.Random(seed)
        video, content = chance.choice(whole)
        video.write_bytes(damaged(content, chance))
        with suppress(InputError):
            recording = open_video(video, FrameChoice(0.3, scene_change=chance.choice((None, 0.0))))
            for frame in recording.frames():
                with suppress(InputError):
                    frame.read()
            recording.close()
    assert capfd.readouterr() == ("", "")
