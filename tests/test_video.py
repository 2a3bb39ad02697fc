"""Videos as recordings: which pictures are chosen, at which times, and that each is the right one."""

import gc
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from videos import Pixels, add_stream, make_video, number_of, picture, write_video

from cache.base.errors import InputError
from sources.container import open_container, read_header
from sources.pixels import read_image
from sources.recording import Frame, FrameChoice, Recording
from sources.video import open_video


def _open(path: Path, every_s: float = 10.0, limit: int | None = None) -> Recording:
    return open_video(path, FrameChoice(every_s, limit))


def _plainly_decoded(path: Path) -> list[tuple[float, Pixels]]:
    """Decode everything from the start: (seconds from the first picture, pixels)."""
    with av.open(str(path)) as container:
        decoded = [
            (frame.time, np.asarray(frame.to_ndarray(format="rgb24"), np.uint8))
            for frame in container.decode(video=0)
        ]
    return [(time - decoded[0][0], pixels) for time, pixels in decoded]


def _pixels(frame: Frame) -> Pixels:
    return np.asarray(frame.read())


CONTAINERS = [
    ("a.mp4", "libx264"),
    ("a.mov", "mpeg4"),
    ("a.mkv", "libx264"),
    ("a.webm", "libvpx"),
    ("a.avi", "mpeg4"),
]


@pytest.mark.parametrize(("name", "codec"), CONTAINERS)
def test_every_picture_is_that_of_a_plain_decode_at_its_time(name: str, codec: str, tmp_path: Path) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {codec}")
    video = make_video(tmp_path / name, range(0, 4000, 40), codec=codec)
    plain = _plainly_decoded(video)
    frames = _open(video, every_s=0.04).frames()
    assert [frame.timestamp_s for frame in frames] == pytest.approx([time for time, _ in plain])
    assert all(np.array_equal(_pixels(frame), plain[frame.index][1]) for frame in frames)


@pytest.mark.parametrize(("name", "codec"), CONTAINERS)
def test_going_back_and_skipping_ahead_find_the_same_pictures(name: str, codec: str, tmp_path: Path) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {codec}")
    frames = _open(make_video(tmp_path / name, range(0, 4000, 40), codec=codec), every_s=0.04).frames()
    for index in (70, 71, 3, 3, 99, 0, 50, 13, 98):
        assert number_of(_pixels(frames[index])) == index


def test_a_picture_is_taken_every_so_many_seconds(tmp_path: Path) -> None:
    recording = _open(make_video(tmp_path / "a.mp4", range(0, 7000, 100)), every_s=2.5)
    assert [frame.timestamp_s for frame in recording.frames()] == [0.0, 2.5, 5.0]
    assert [number_of(_pixels(frame)) for frame in recording.frames()] == [0, 25, 50]
    assert read_header(tmp_path / "a.mp4").length_s == pytest.approx(6.901)


def test_variable_frame_rates_keep_their_true_times(tmp_path: Path) -> None:
    times_ms = [0, 40, 80, 9_990, 10_030, 35_000, 35_040, 39_999, 40_000, 41_000]
    recording = _open(make_video(tmp_path / "vfr.mkv", times_ms), every_s=10)
    assert [frame.timestamp_s for frame in recording.frames()] == [0.0, 9.99, 10.03, 40.0]
    assert [number_of(_pixels(frame)) for frame in recording.frames()] == [0, 3, 4, 8]


STANDING_MS = [0, 1000, 600_000, 601_000]  # a screen stands from the first second to the last but one


@pytest.mark.parametrize(("name", "codec"), CONTAINERS[:-1])
def test_a_screen_that_stands_is_a_frame(name: str, codec: str, tmp_path: Path) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {codec}")
    video = make_video(tmp_path / name, STANDING_MS, codec=codec)
    for choice in (FrameChoice(10), FrameChoice(10, scene_change=0)):
        frames = open_video(video, choice).frames()
        assert [number_of(_pixels(frame)) for frame in frames] == [0, 1, 2]
        assert [frame.timestamp_s for frame in frames] == [0, 1, 600]  # when each appeared


def test_a_screen_that_stands_beyond_a_cut_is_the_first_frame(tmp_path: Path) -> None:
    shown = [(time_ms, picture(number)) for number, time_ms in enumerate([-30_000, 20_000, 21_000, 45_000])]
    video = tmp_path / "trimmed.mp4"
    write_video(video, shown, container={"avoid_negative_ts": "disabled"})  # an edit list begins at 0
    frames = _open(video, every_s=10).frames()
    assert [(frame.timestamp_s, number_of(_pixels(frame))) for frame in frames] == [(0, 0), (20, 1), (21, 2)]
    again = [number_of(_pixels(frames[index])) for index in (2, 0, 1, 0)]
    assert again == [2, 0, 1, 0]


def test_the_last_screen_counts_as_long_as_the_video_lasts(tmp_path: Path) -> None:
    frames = _open(make_video(tmp_path / "a.mkv", [0, 9000]), every_s=10).frames()
    assert [number_of(_pixels(frame)) for frame in frames] == [0]  # it ends before the tenth second
    frames = _open(make_video(tmp_path / "b.mkv", [0, 9000, 10_000]), every_s=10).frames()
    assert [number_of(_pixels(frame)) for frame in frames] == [0, 2]
    frames = _open(make_video(tmp_path / "late.mkv", [30_000, 39_000]), every_s=10).frames()
    assert [number_of(_pixels(frame)) for frame in frames] == [0]  # its header counts from 0


def test_frames_are_found_by_the_pictures_that_a_manifest_names(tmp_path: Path) -> None:
    video = make_video(tmp_path / "a.mp4", STANDING_MS)
    named = {f"{video}#pts={int(time_ms * 16)}" for time_ms in (0, 600_000)}  # an older rule's choice
    frames = open_video(video, FrameChoice(10, only=frozenset(named))).frames()
    assert [(frame.timestamp_s, number_of(_pixels(frame))) for frame in frames] == [(0, 0), (600, 2)]


def test_times_count_from_the_first_picture(tmp_path: Path) -> None:
    recording = _open(make_video(tmp_path / "late.mkv", range(5000, 8000, 100)), every_s=1)
    assert [frame.timestamp_s for frame in recording.frames()] == [0.0, 1.0, 2.0]
    assert [number_of(_pixels(frame)) for frame in recording.frames()] == [0, 10, 20]


def test_steps_that_floats_cannot_hold_hit_every_mark(tmp_path: Path) -> None:
    frames = _open(make_video(tmp_path / "a.mkv", range(0, 5000, 100)), every_s=0.1).frames()
    assert [round(frame.timestamp_s * 10) for frame in frames] == list(range(50))


def test_the_limit_takes_the_first_frames(tmp_path: Path) -> None:
    recording = _open(make_video(tmp_path / "a.mp4", range(0, 4000, 100)), every_s=1, limit=2)
    assert [frame.timestamp_s for frame in recording.frames()] == [0.0, 1.0]
    assert (recording.info.num_frames, recording.info.every_s, recording.info.limit) == (2, 1, 2)
    assert (recording.info.kind, recording.max_readers) == ("video", 1)


def test_frames_name_their_position_in_the_file(tmp_path: Path) -> None:
    video = make_video(tmp_path / "a.mkv", range(0, 3000, 100))
    frame = _open(video, every_s=1).frames()[2]
    assert frame.source.endswith("a.mkv#pts=2000")
    assert frame.stamp.position == "pts=2000"
    assert frame.stamp.size == video.stat().st_size


def test_listing_decodes_nothing_and_opens_no_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = make_video(tmp_path / "a.mp4", range(0, 3000, 100))
    opened: list[Path] = []

    def count(file: Path) -> object:
        opened.append(file)
        return open_container(file)

    monkeypatch.setattr("sources.decoder.open_container", count)
    recording = _open(video, every_s=1)
    assert len(recording.frames()) == 3
    assert not opened
    recording.frames()[0].read()
    assert opened == [video]


def test_a_closed_recording_opens_again_when_it_is_read(tmp_path: Path) -> None:
    recording = _open(make_video(tmp_path / "a.mp4", range(0, 3000, 100)), every_s=1)
    first = _pixels(recording.frames()[1])
    recording.close()
    recording.close()
    assert np.array_equal(_pixels(recording.frames()[1]), first)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_turned_and_mirrored_videos_come_upright(turn: int, mirror: bool, tmp_path: Path) -> None:
    flat = _pixels(_open(make_video(tmp_path / "flat.mp4", [0, 100])).frames()[0])
    frame = _open(make_video(tmp_path / "turned.mp4", [0, 100], turn=turn, mirror=mirror)).frames()[0]
    upright = np.rot90(flat, turn // 90)
    assert np.array_equal(_pixels(frame), upright[:, ::-1] if mirror else upright)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg command")
@pytest.mark.parametrize("turn", [90, 180, 270])
def test_rotation_is_applied_as_ffmpeg_does(turn: int, tmp_path: Path) -> None:
    video = make_video(tmp_path / "turned.mp4", [0, 100], turn=turn)
    shown_at = tmp_path / "f.png"
    command = ["ffmpeg", "-v", "error", "-i", str(video), "-frames:v", "1", str(shown_at)]
    subprocess.run(command, check=True, capture_output=True)
    shown = np.asarray(read_image(shown_at)).astype(int)
    ours = _pixels(_open(video).frames()[0]).astype(int)
    assert shown.shape == ours.shape
    assert np.abs(shown - ours).max() <= 4  # the command converts colours by another path


def test_a_broken_tail_leaves_what_came_before(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    video = make_video(tmp_path / "cut.mkv", range(0, 8000, 40))
    video.write_bytes(video.read_bytes()[: video.stat().st_size * 6 // 10])
    frames = _open(video, every_s=0.04).frames()
    assert 50 < len(frames) < 200
    assert [number_of(_pixels(frame)) for frame in frames[:50]] == list(range(50))
    assert capfd.readouterr() == ("", "")


def _damaged(path: Path) -> Path:
    """Overwrite the packets of pictures 40 to 44, which stand between keyframes."""
    make_video(path, range(0, 4000, 40), codec="mpeg4")
    with av.open(str(path)) as container:
        spans = [(p.pos, p.size) for p in container.demux(video=0) if p.size and p.pos is not None]
    content = bytearray(path.read_bytes())
    for position, size in spans[40:45]:
        content[position : position + size] = bytes(size)
    path.write_bytes(content)
    return path


def _read_all(frames: Sequence[Frame]) -> Iterator[int | None]:
    for frame in frames:
        try:
            yield number_of(_pixels(frame))
        except InputError:
            yield None


def test_damage_costs_the_damaged_pictures_alone(tmp_path: Path) -> None:
    frames = _open(_damaged(tmp_path / "damaged.mp4"), every_s=0.04).frames()
    numbers = list(_read_all(frames))
    assert None in numbers[38:46]
    assert numbers[:38] == list(range(38))
    assert numbers[48:] == list(range(48, 100))  # from the next keyframe on


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    frames = _open(_damaged(tmp_path / "damaged.mp4"), every_s=0.04).frames()
    damaged = frames[list(_read_all(frames)).index(None)]
    with pytest.raises(InputError, match=r"damaged\.mp4#pts=\d+: damaged picture"):
        damaged.read()


def _audio_only(path: Path) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        output.mux(stream.encode(sound))
        output.mux(stream.encode(None))
    return path


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video\n")
    (tmp_path / "empty.mov").touch()
    (tmp_path / "folder.mkv").mkdir()
    for name, said in [
        ("text.mp4", "not a video that can be read"),
        ("empty.mov", "not a video that can be read"),
        ("folder.mkv", "not a file"),
        ("gone.mp4", "cannot be read"),
    ]:
        with pytest.raises(InputError, match=said):
            _open(tmp_path / name)
    with pytest.raises(InputError, match="no video stream"):
        _open(_audio_only(tmp_path / "sound.mp4"))


def test_a_recording_that_lost_its_index_says_what_to_do(tmp_path: Path) -> None:
    video = make_video(tmp_path / "cut.mov", range(0, 2000, 40))  # the index is written last
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    with pytest.raises(InputError, match="cut off may lack its index"):
        _open(video)


def test_a_playlist_that_calls_itself_a_video_opens_nothing_else(tmp_path: Path) -> None:
    make_video(tmp_path / "real.mp4", [0, 100])
    (tmp_path / "list.mp4").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://localhost:1/a.ts\n"
    )
    (tmp_path / "near.mp4").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nreal.mp4\n#EXT-X-ENDLIST\n"
    )
    (tmp_path / "concat.mp4").write_text("ffconcat version 1.0\nfile real.mp4\n")
    for name in ("list.mp4", "near.mp4", "concat.mp4"):
        with pytest.raises(InputError, match="not a video that can be read"):
            _open(tmp_path / name)


def test_the_containers_date_wins_over_the_files(tmp_path: Path) -> None:
    for name, made in [("dated.mp4", "2026-03-01T08:30:00.000000Z"), ("undated.mp4", "1904-01-01T00:00:00Z")]:
        with av.open(str(tmp_path / name), "w") as output:
            output.metadata["creation_time"] = made
            stream = add_stream(output, "mpeg4")
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture(0), "rgb24")))
            output.mux(stream.encode(None))
    assert _open(tmp_path / "dated.mp4").info.captured_at == "2026-03-01T08:30:00.000+00:00"
    assert _open(tmp_path / "undated.mp4").info.captured_at > "2026"


def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    frames = _open(make_video(tmp_path / "long.mp4", range(0, 1200 * 40, 40)), every_s=0.04).frames()
    assert len(frames) == 1200
    for frame in frames[:200]:
        frame.read()
    before_bytes = _peak_memory_bytes()
    gc.collect()
    gc.disable()  # a picture that only the collector can free is held for too long
    try:
        assert all(number_of(_pixels(frame)) == frame.index for frame in frames[200:])
        num_held = sum(isinstance(thing, av.VideoFrame) for thing in gc.get_objects())
    finally:
        gc.enable()
    assert num_held <= 20  # what the codec reorders comes out at once at the end
    assert _peak_memory_bytes() - before_bytes < 4_000_000  # all pictures together would be 9 MB


def _peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def test_neither_pyav_nor_pillow_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, sources.recordings; print([m for m in ('av', 'PIL', 'mlx', 'zarr') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"


def test_vp8_pictures_that_are_never_shown_are_no_frames(tmp_path: Path) -> None:
    if "libvpx" not in av.codecs_available:
        pytest.skip("this build of PyAV has no libvpx")
    shown = make_video(tmp_path / "shown.webm", range(0, 400, 40), codec="libvpx")
    with av.open(str(shown)) as source, av.open(str(tmp_path / "hidden.webm"), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            content = bytearray(bytes(packet))
            if number == 4:
                content[0] &= ~0x10  # the frame tag's show_frame
            if content:
                copy = av.Packet(bytes(content))
                copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
                copy.is_keyframe, copy.stream = packet.is_keyframe, stream
                output.mux(copy)
    frames = _open(tmp_path / "hidden.webm", every_s=0.04).frames()
    assert [number_of(_pixels(frame)) for frame in frames] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
