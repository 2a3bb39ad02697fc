"""A video file as FFmpeg opens it: its one moving picture, its packets, what its header says.

PyAV is imported when a video is opened, not before.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, BinaryIO

from cache.base.errors import InputError
from cache.base.text import printable
from sources.recording import iso_utc

if TYPE_CHECKING:
    from av import Packet
    from av.container import InputContainer
    from av.video.stream import VideoStream

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".m4v", ".avi")

_UNIX_EPOCH_S = 2_082_844_800  # of 1970, in seconds since 1904
_MAX_BOXES = 10_000
_MAX_FRAGMENT_BOXES = 1_000_000  # two for each fragment, and a fragment may be one picture
_BESIDE_OTHERS = frozenset(
    b"ftyp pdin moov moof mfra mdat imda free skip meta meco styp sidx ssix prft emsg uuid wide udta".split()
)
_UNKNOWN = (0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
_CLOCK_SET_SINCE_S = 315_532_800.0  # 1980: a recorder without a clock writes 1904 or 1970
_CLOCK_SET_UNTIL_S = 100_000_000_000.0
_HEADER_ALONE = {"probesize": "32", "analyzeduration": "0"}  # no look at packets for a frame rate
# What lists other files (ffconcat, HLS, DASH) is no video of a screen, whatever it is called. The file itself
# decides by its content, and another of these containers under a wrong name is read.
_ITSELF_ALONE = {"protocol_whitelist": "file", "format_whitelist": "mov,matroska,avi,mpegts,flv"}
_MAX_FAILURES = 16  # errors without a packet between them; then the file has ended, whatever it says


def read_movie_header(path: Path) -> tuple[float | None, Fraction | None] | None:
    """Read when an MP4 file was made (Unix seconds) and how long it is (seconds), each None if left open.

    None when there is no movie header, in whatever kind of file. Raises ``OSError``.
    """
    with path.open("rb") as file:
        for kind, start, end in _boxes(file, 0, path.stat().st_size):
            if kind == b"moov":
                inside = (at for name, at, _ in _boxes(file, start, end) if name == b"mvhd")
                if (header := next(inside, None)) is not None:
                    file.seek(header)
                    return _parse(file.read(32))
                return None
    return None


def first_gap(path: Path) -> float | None:
    """Say how far into a fragmented file, 0 to 1, the first bytes lie that are no box of it.

    None when there are none, or the file is not fragmented. Raises ``OSError``.
    """
    size, reached = path.stat().st_size, 0
    is_fragmented, gaps = False, []
    with path.open("rb") as file:
        for kind, start, end in _boxes(file, 0, size, _MAX_FRAGMENT_BOXES):
            is_fragmented |= kind == b"moof"
            if kind not in _BESIDE_OTHERS:
                gaps.append(start)
            reached = end
    if reached < size:
        gaps.append(reached)
    return gaps[0] / size if is_fragmented and gaps else None


def _boxes(
    file: BinaryIO, position: int, end: int, max_boxes: int = _MAX_BOXES
) -> Iterator[tuple[bytes, int, int]]:
    """Walk over boxes: kind, and where its content starts and ends. Stops at what is no box."""
    for _ in range(max_boxes):
        if position + 8 > end:
            return
        file.seek(position)
        head = file.read(16)
        if len(head) < 8:
            return
        size, kind = struct.unpack_from(">I4s", head)
        start = position + 8
        if size == 1 and len(head) == 16:
            size, start = struct.unpack_from(">Q", head, 8)[0], position + 16
        until = end if size == 0 else min(end, position + size)
        if until < start or not kind.isalnum():
            return
        yield kind, start, until
        position = until


def _parse(content: bytes) -> tuple[float | None, Fraction | None] | None:
    """Read version 0 (32 bits) or 1 (64 bits): version and flags, made, changed, time scale, length."""
    layout = ">4xIIII" if content[:1] == b"\0" else ">4xQQIQ"
    if len(content) < struct.calcsize(layout):
        return None
    made, _, scale, length = struct.unpack_from(layout, content)
    # Some writers count from 1970: what lies before that in seconds since 1904 is meant so.
    made_s = float(made - _UNIX_EPOCH_S if made >= _UNIX_EPOCH_S else made)
    known = scale > 0 and length > 0 and length not in _UNKNOWN
    return made_s if made else None, Fraction(length, scale) if known else None


@dataclass(frozen=True, slots=True)
class VideoHeader:
    """What a video says of itself before a packet is read. ``length_s`` is None when not told."""

    captured_at: str
    length_s: Fraction | None


def read_header(video: Path) -> VideoHeader:
    """Read what a video says of itself: of an MP4 or QuickTime file one box, of others as FFmpeg opens them.

    Raises:
        InputError: No such file, no permission, or nothing in it that says so.
    """
    try:
        movie = read_movie_header(video) if S_ISREG(video.stat().st_mode) else None
        if movie is not None:
            return VideoHeader(_said_or_modified(movie[0], video), movie[1])
    except OSError as error:
        raise InputError(f"{printable(video)}: cannot be read ({error.strerror})") from error
    with open_container(video, _HEADER_ALONE) as container:
        stream = video_stream(container, video)
        return VideoHeader(_captured_at(container, video), promised_length_s(container, stream))


def open_container(video: Path, options: Mapping[str, str] | None = None) -> "InputContainer":
    """Open a video file, with FFmpeg's ``options``; nothing in it can make FFmpeg open another place.

    Raises:
        InputError: No such file, no permission, or not a video.
    """
    try:
        if not S_ISREG(video.stat().st_mode):
            raise InputError(f"{printable(video)}: not a file; name a video file")
    except OSError as error:
        raise InputError(f"{printable(video)}: cannot be read ({error.strerror})") from error
    import av

    try:
        return av.open(str(video), options=_ITSELF_ALONE | dict(options or {}), metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"{printable(video)}: not a video that can be read ({reason}); "
            "a recording that was cut off may lack its index: record or convert it again"
        ) from error


def video_stream(container: "InputContainer", video: Path) -> "VideoStream":
    """Choose the moving picture (no cover art), and have nothing else read.

    Raises:
        InputError: There is none, or nothing here decodes it.
    """
    from av.stream import Discard, Disposition

    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise InputError(f"{printable(video)}: no video stream in this file; name a video of a screen")
    if getattr(streams[0], "codec_context", None) is None:
        raise InputError(f"{printable(video)}: a video format without a decoder here; convert it to H.264")
    for other in container.streams:
        if other is not streams[0]:
            other.discard = Discard.all
    return streams[0]


def packets(container: "InputContainer", stream: "VideoStream") -> "Iterator[Packet[VideoStream]]":
    """Read packet after packet, over damage; a tail that gives nothing but errors is the end."""
    import av

    num_failures = 0
    while num_failures < _MAX_FAILURES:
        try:
            for packet in container.demux(stream):
                if packet.size:
                    num_failures = 0
                    yield packet
        except av.FFmpegError:
            num_failures += 1
        else:
            return


def promised_length_s(container: "InputContainer", stream: "VideoStream") -> Fraction | None:
    """Give the length that the header tells, from the first picture to the end of the last."""
    if stream.duration and stream.time_base is not None:
        return stream.duration * stream.time_base
    if not container.duration:
        return None
    return Fraction(container.duration - max(0, container.start_time or 0), 1_000_000)


def _captured_at(container: "InputContainer", video: Path) -> str:
    try:
        made = datetime.fromisoformat(container.metadata.get("creation_time", ""))
    except ValueError:
        return _said_or_modified(None, video)
    return _said_or_modified((made if made.tzinfo else made.replace(tzinfo=UTC)).timestamp(), video)


def _said_or_modified(made_s: float | None, video: Path) -> str:
    """Give when a recording was made: by its container's clock, else when the file was last written."""
    if made_s is None or not _CLOCK_SET_SINCE_S <= made_s < _CLOCK_SET_UNTIL_S:
        return iso_utc(video.stat().st_mtime)
    return iso_utc(made_s)
