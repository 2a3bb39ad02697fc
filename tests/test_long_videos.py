"""Long videos in bounded memory: peak memory of a process that reads all frames, long against short.

A thirtieth of the lengths always, three hours against ten minutes in the campaign, which prints them.
"""

from fractions import Fraction
from pathlib import Path

import av
import pytest
from screens import python
from videos import add_stream, picture

RATE = 30
SIZE = (320, 240)
# By which the longer one may be above the shorter: FFmpeg holds an MP4 file's index, a line for each
# picture. The pictures themselves would be 75 gigabytes.
BOUND_BYTES = 48_000_000
READ = """
import resource, sys, time
from pathlib import Path
from sources.recording import FrameChoice
from sources.video import open_video
start = time.perf_counter()
threshold = float(sys.argv[3]) if len(sys.argv) > 3 else None
recording = open_video(Path(sys.argv[1]), FrameChoice(float(sys.argv[2]), scene_change=threshold))
for frame in recording.frames():
    frame.read()
status = Path("/proc/self/status")  # there getrusage counts what the parent held before exec
if status.exists():
    peak = int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(recording.frames()), recording.frames()[-1].timestamp_s, peak, time.perf_counter() - start)
"""


def _long_video(path: Path, length_s: int) -> Path:
    """Write a video of so many seconds at 30 pictures a second: ten seconds of them, again and again."""
    with av.open(str(path), "w") as output:
        stream = add_stream(output, "libx264", SIZE, {"g": "300", "preset": "ultrafast", "bf": "2"})
        stream.codec_context.time_base = Fraction(1, RATE)
        once = []
        for number in range(RATE * 10):
            shown = av.VideoFrame.from_ndarray(picture(number // RATE, *SIZE), "rgb24")
            shown.pts, shown.time_base = number, Fraction(1, RATE)
            once += stream.encode(shown)
        once += stream.encode(None)
        for repeat in range(length_s // 10):
            for packet in once:
                copy = av.Packet(bytes(packet))
                copy.pts = (packet.pts or 0) + repeat * RATE * 10
                copy.dts = (packet.dts or 0) + repeat * RATE * 10
                copy.stream, copy.time_base, copy.is_keyframe = stream, Fraction(1, RATE), packet.is_keyframe
                output.mux(copy)
    return path


def _read_all(video: Path, *arguments: float) -> tuple[int, float, int, float]:
    """Read every frame in a process of its own: how many, the last one's time, peak bytes, seconds."""
    process = python(READ, video, *arguments)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    num_frames, last_s, peak_bytes, took_s = out.split()
    return int(num_frames), float(last_s), int(peak_bytes), float(took_s)


@pytest.mark.parametrize(
    ("long_s", "short_s"), [(360, 20), pytest.param(10_800, 600, marks=pytest.mark.campaign)]
)
@pytest.mark.parametrize("name", ["a.mp4", pytest.param("a.mkv", marks=pytest.mark.campaign)])
def test_memory_does_not_grow_with_the_length(name: str, long_s: int, short_s: int, tmp_path: Path) -> None:
    peaks = []
    for length_s in (short_s, long_s):
        num_frames, last_s, peak_bytes, took_s = _read_all(_long_video(tmp_path / name, length_s), 10)
        assert num_frames == length_s // 10
        assert last_s == pytest.approx(length_s - 10)
        print(f"{name} {length_s} s: {num_frames} frames, peak {peak_bytes / 1e6:.0f} MB, {took_s:.1f} s")
        peaks.append(peak_bytes)
    assert peaks[1] - peaks[0] < BOUND_BYTES


@pytest.mark.campaign
def test_scene_changes_of_three_hours_are_found_in_bounded_memory(tmp_path: Path) -> None:
    peaks = []
    for length_s in (600, 10_800):
        num_frames, _, peak_bytes, took_s = _read_all(_long_video(tmp_path / "a.mp4", length_s), 1, 0.01)
        assert num_frames == length_s  # each second shows another number
        print(f"{length_s} s: {num_frames} scene changes, peak {peak_bytes / 1e6:.0f} MB, {took_s:.1f} s")
        peaks.append(peak_bytes)
    assert peaks[1] - peaks[0] < 2 * BOUND_BYTES  # 10,200 more frames, and the file's index is open twice
