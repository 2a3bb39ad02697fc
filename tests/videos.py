"""Small videos for recordings: each picture tells its number."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

_PIXEL_FORMATS = {"mjpeg": "yuvj420p", "png": "rgb24"}


def picture(number: int, width: int = 64, height: int = 48) -> Pixels:
    """Draw a picture that tells its number: its rows are light where the number's bits are set."""
    rows = np.repeat([60 + 120 * (number >> bit & 1) for bit in range(12)], height // 12)
    return np.broadcast_to(rows[:, None, None], (height, width, 3)).astype(np.uint8)


def number_of(pixels: Pixels) -> int:
    rows = pixels.reshape(12, -1).mean(axis=1) > 120
    return int(sum(int(bit) << place for place, bit in enumerate(rows)))


def add_stream(
    output: OutputContainer,
    codec: str,
    size: tuple[int, int] = (64, 48),
    options: Mapping[str, str] | None = None,
) -> VideoStream:
    """Add a stream of a picture a millisecond at most; keyframes every 12 pictures unless told otherwise."""
    stream = output.add_stream(codec, rate=1000, options=dict(options or {}))
    assert isinstance(stream, VideoStream)
    (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
    if options is None:
        stream.codec_context.gop_size = 12
    stream.codec_context.time_base = Fraction(1, 1000)
    return stream


def make_video(
    path: Path,
    times_ms: Sequence[int],
    *,
    codec: str = "libx264",
    turn: int = 0,
    mirror: bool = False,
    size: tuple[int, int] = (64, 48),
) -> Path:
    """Write a video whose i-th picture has number i and is shown at `times_ms[i]`."""
    shown = [(time_ms, picture(number, *size)) for number, time_ms in enumerate(times_ms)]
    return write_video(path, shown, codec=codec, turn=turn, mirror=mirror)


def write_video(
    path: Path,
    shown: Sequence[tuple[int, Pixels]],
    *,
    codec: str = "libx264",
    turn: int = 0,
    mirror: bool = False,
    options: Mapping[str, str] | None = None,
    container: Mapping[str, str] | None = None,
    pix_fmt: str = "",
) -> Path:
    """Write a video of pictures of one size, each with the milliseconds at which it is shown."""
    flags = dict(container or ({"movflags": "faststart"} if path.suffix == ".mp4" else {}))
    height, width = shown[0][1].shape[:2]
    with av.open(str(path), "w", options=flags) as output:
        stream = add_stream(output, codec, (width, height), options)
        stream.pix_fmt = pix_fmt or _PIXEL_FORMATS.get(codec, "yuv420p")
        if turn or mirror:
            stream.set_display_rotation(turn, hflip=mirror)
        for time_ms, pixels in shown:
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path
