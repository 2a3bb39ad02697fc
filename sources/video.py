"""Recordings that are video files.

Owns which pictures of a video are frames (chosen by their true presentation timestamps, so
variable frame rates are right) and how one of them is decoded: forward, with a seek to the
keyframe before it where that skips pictures. Timestamps are listed without decoding. PyAV is
imported when a video is opened, not before. Pixels are taken as square.
"""

import math
import os
import threading
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from functools import partial
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache.errors import InputError
from cache.manifest import RecordingInfo
from cache.pixel_index import FileStamp
from sources.pixels import check_size
from sources.recording import Frame, iso_utc, printable, recording_id, resolve

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream
    from PIL import Image
    from PIL.Image import Transpose

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".m4v", ".avi")

_MAX_DECODER_THREADS = 4
_CLOCK_SET_SINCE_YEAR = 1980  # a recorder without a clock writes 1904 or 1970


@dataclass(frozen=True, slots=True)
class VideoRecording:
    """The chosen pictures of one video. One decoder, so one reader at a time."""

    info: RecordingInfo
    length_s: float  # from the first picture of the video to its last, chosen or not
    remarks: tuple[str, ...]
    _frames: tuple[Frame, ...]
    _decoder: "_Decoder"

    @property
    def max_readers(self) -> int:
        """One thread reads, best in ascending order."""
        return 1

    def frames(self) -> Sequence[Frame]:
        """List the frames in order."""
        return self._frames

    def close(self) -> None:
        """Close the video; reading a frame opens it again."""
        self._decoder.close()


@dataclass(frozen=True, slots=True)
class _Listing:
    """The video's presentation timestamps in ticks of `time_base`, without a picture."""

    pts: NDArray[np.int64]  # ascending, of every picture that is shown
    key_pts: NDArray[np.int64]  # ascending, of every keyframe
    time_base: Fraction
    captured_at: str


@dataclass(frozen=True, slots=True)
class _Pick:
    """One chosen picture, and the keyframe that decoding it needs. Places count shown pictures."""

    pts: int
    place: int
    key_pts: int
    key_place: int


def open_video(path: Path, *, every_s: float = 10.0, limit: int | None = None) -> VideoRecording:
    """List a video's frames: for k = 0, 1, 2, … the first picture at or after `k * every_s` seconds.

    Seconds count from the first picture. A picture that stands for longer than `every_s` is
    listed once. At most `limit` frames if given.

    Raises:
        InputError: No such file, no permission, no video in it, or no picture in that.
    """
    video = resolve(path)
    listing = _list_pictures(video)
    picks = _choose(listing, every_s)[:limit]
    decoder = _Decoder(video)
    stamp = FileStamp.of(video)
    frames = tuple(
        Frame(
            index=index,
            timestamp_s=float((pick.pts - picks[0].pts) * listing.time_base),
            source=f"{printable(video)}#pts={pick.pts}",
            stamp=replace(stamp, position=f"pts={pick.pts}"),
            _decode=partial(decoder.read, pick),
        )
        for index, pick in enumerate(picks)
    )
    info = RecordingInfo(
        id=recording_id(video),
        name=printable(video.name),
        kind="video",
        path=printable(video),
        captured_at=listing.captured_at,
        num_frames=len(frames),
        every_s=every_s,
        limit=limit,
    )
    length_s = float(int(listing.pts[-1] - listing.pts[0]) * listing.time_base)
    return VideoRecording(info, length_s, (), frames, decoder)


def _choose(listing: _Listing, every_s: float) -> list[_Pick]:
    """Pick the pictures; exact, because `k * every_s` in floats may miss a picture on the mark."""
    every = Fraction(str(every_s)) / listing.time_base  # in ticks
    start, last = int(listing.pts[0]), int(listing.pts[-1])
    picks: list[_Pick] = []
    due = start
    while due <= last:
        pick = _pick(listing, bisect_left(listing.pts, due))
        picks.append(pick)
        steps = math.floor((pick.pts - start) / every) + 1
        due = start + math.ceil(steps * every)
    return picks


def _pick(listing: _Listing, place: int) -> _Pick:
    pts = int(listing.pts[place])
    key_pts = int(listing.key_pts[bisect_right(listing.key_pts, pts) - 1])
    return _Pick(pts, place, key_pts, bisect_left(listing.pts, key_pts))


def _list_pictures(video: Path) -> _Listing:
    """Read every packet's timestamp; a broken tail ends the list."""
    with _open(video) as container:
        stream = _video_stream(container, video)
        pts, key_pts = _timestamps(container, stream)
        time_base = stream.time_base
        captured_at = _captured_at(container, stream, video)
    if not len(pts) or time_base is None:
        raise InputError(f"{printable(video)}: a video without a single picture; record it again")
    return _Listing(pts, key_pts, time_base, captured_at)


def _timestamps(
    container: "InputContainer", stream: "VideoStream"
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the timestamps of shown pictures and of keyframes, ascending.

    What comes before the first keyframe cannot be decoded. What an edit list cuts away is
    decoded and not shown, and may still be the keyframe of what is shown.
    """
    shown, keys = array("q"), array("q")
    for packet in _packets(container, stream):
        pts = packet.pts if packet.pts is not None else packet.dts
        if pts is None or not packet.size:
            continue
        if packet.is_keyframe:
            keys.append(pts)
        if keys and pts >= keys[0] and not packet.is_discard and not _is_hidden(packet):
            shown.append(pts)
    return np.sort(np.array(shown, np.int64)), np.sort(np.array(keys, np.int64))


def _is_hidden(packet: "Packet[VideoStream]") -> bool:
    """Tell VP8's reference pictures that are decoded and never shown, by their frame tag (RFC 6386, 9.1)."""
    return packet.stream.codec_context.name == "vp8" and not memoryview(packet)[0] & 0x10


def _packets(container: "InputContainer", stream: "VideoStream") -> "Iterator[Packet[VideoStream]]":
    """Read packet after packet; a broken tail ends the video as its end does."""
    import av

    try:
        yield from container.demux(stream)
    except av.FFmpegError:
        return


def _open(video: Path) -> "InputContainer":
    try:
        if not S_ISREG(video.stat().st_mode):
            raise InputError(f"{printable(video)}: not a file; name a video file")
    except OSError as error:
        raise InputError(f"{printable(video)}: cannot be read ({error.strerror})") from error
    import av

    try:  # nothing in a file may make FFmpeg open another place
        return av.open(str(video), options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"{printable(video)}: not a video that can be read ({reason}); "
            "a recording that was cut off may lack its index: record or convert it again"
        ) from error


def _video_stream(container: "InputContainer", video: Path) -> "VideoStream":
    """Choose the moving picture (no cover art), and have nothing else read."""
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


def _captured_at(container: "InputContainer", stream: "VideoStream", video: Path) -> str:
    """Give when the recording was made: the container's word, else the file's modification time."""
    for tags in (container.metadata, stream.metadata):
        try:
            made = datetime.fromisoformat(tags.get("creation_time", ""))
        except ValueError:
            continue
        if made.year >= _CLOCK_SET_SINCE_YEAR:
            return iso_utc((made if made.tzinfo else made.replace(tzinfo=UTC)).timestamp())
    return iso_utc(video.stat().st_mtime)


class _Shown(NamedTuple):
    at: int  # its pts; in an AVI file its place
    picture: "VideoFrame"


class _Decoder:
    """Decodes chosen pictures of one video; holds one picture besides those inside the codec."""

    def __init__(self, video: Path) -> None:
        self._video = video
        self._lock = threading.Lock()
        self._container: InputContainer | None = None
        self._shown: Iterator[_Shown] = iter(())
        self._ahead: _Shown | None = None  # decoded in search of an earlier one, or to see where a seek went
        self._place = -1  # of the last pick that was looked for
        self._counts = False  # AVI has no presentation times: pictures are counted from the start
        self._num_threads = min(_MAX_DECODER_THREADS, os.cpu_count() or 1)  # one, once damage is met
        self._seeks = True  # until a seek landed behind what it was for
        self._damage = ""  # what the codec objected to since the last pick
        self._turns: dict[int, Transpose | None] = {}

    def read(self, pick: _Pick) -> "Image.Image":
        """Decode one picture, upright and RGB.

        Raises:
            InputError: This picture is damaged or cannot be found; others may be fine.
        """
        import av

        name = f"{printable(self._video)}#pts={pick.pts}"
        with self._lock:
            picture = self._find(pick)
            if self._num_threads > 1 and (picture is None or self._damage):
                self._close()  # with several threads an error takes the pictures beside it along
                self._num_threads = 1
                picture = self._find(pick)
            if picture is None or picture.is_corrupt:
                reason = self._damage or "nothing decodes to it"
                raise InputError(f"{name}: damaged picture ({reason}); it is left out")
            check_size(picture.width, picture.height, name)
            try:
                return self._upright(picture)
            except (av.FFmpegError, ValueError) as error:
                raise InputError(f"{name}: cannot be shown as RGB ({error}); convert the video") from error

    def close(self) -> None:
        """Close the file and forget the position."""
        with self._lock:
            self._close()

    def _find(self, pick: _Pick) -> "VideoFrame | None":
        """Give the picture; None where the codec shows none at that time."""
        self._damage = ""
        self._go_before(pick)
        self._place = pick.place
        target = pick.place if self._counts else pick.pts
        while (shown := self._next()) is not None:
            if shown.at > target:
                self._ahead = shown
                return None
            if shown.at == target:
                return shown.picture
        return None

    def _upright(self, picture: "VideoFrame") -> "Image.Image":
        """Convert to RGB; turn and mirror as the file says, asked once for each rotation."""
        image: Image.Image = picture.to_image()  # type: ignore[no-untyped-call]
        if picture.rotation not in self._turns:
            self._turns[picture.rotation] = _turn(picture)
        turn = self._turns[picture.rotation]
        return image if turn is None else image.transpose(turn)

    def _next(self) -> _Shown | None:
        if self._ahead is None:
            return next(self._shown, None)
        shown, self._ahead = self._ahead, None
        return shown

    def _go_before(self, pick: _Pick) -> None:
        """Stand somewhere before the picture; seek only to go back or to skip pictures."""
        if self._container is None:
            self._restart()
        goes_back = pick.place <= self._place
        skips = self._seeks and pick.key_place > self._place + 1
        if self._seeks and (goes_back or skips):
            self._seeks = self._seek(pick)
            if not self._seeks:
                self._restart()
        elif goes_back:
            self._restart()

    def _seek(self, pick: _Pick) -> bool:
        """Go to the keyframe before the picture; False when decoding would start behind the picture."""
        import av

        container = self._container
        if container is None:
            return False
        try:
            container.seek(pick.key_pts, stream=_video_stream(container, self._video))
        except av.FFmpegError:
            return False
        self._shown = self._decode(container)
        self._ahead = next(self._shown, None)
        return bool(self._damage) or (self._ahead is not None and self._ahead.at <= pick.pts)

    def _restart(self) -> None:
        self._close()
        self._container = _open(self._video)
        stream = _video_stream(self._container, self._video)
        stream.thread_type = "AUTO"
        stream.thread_count = self._num_threads
        self._counts = self._container.format.name == "avi"
        self._seeks = self._seeks and not self._counts
        self._shown = self._decode(self._container)

    def _decode(self, container: "InputContainer") -> Iterator[_Shown]:
        """Decode from where the container stands, in presentation order, over damage."""
        import av

        stream = _video_stream(container, self._video)
        place = 0
        for packet in _packets(container, stream):
            try:
                pictures = packet.decode()
            except av.FFmpegError as error:
                self._damage = error.strerror or str(error)
                place += 1
                continue
            pictures.reverse()
            while pictures:
                picture = pictures.pop()
                at = place if self._counts else picture.pts
                place += 1
                if at is not None:
                    yield _Shown(at, picture)

    def _close(self) -> None:
        self._shown, self._ahead, self._place = iter(()), None, -1
        if self._container is not None:
            self._container.close()
            self._container = None


def _turn(picture: "VideoFrame") -> "Transpose | None":
    """Give what makes the picture upright by its display matrix; None when nothing need be done.

    Costs a reference cycle that holds the picture until the next garbage collection: PyAV keeps
    the side data in the picture and the picture in the side data.
    """
    from av.buffer import Buffer
    from PIL.Image import Transpose

    matrix = picture.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, Buffer):
        return None
    a, b, _, c, d = np.sign(np.frombuffer(bytes(matrix), np.int32)[:5]).tolist()
    return {
        (-1, 0, 0, 1): Transpose.FLIP_LEFT_RIGHT,
        (1, 0, 0, -1): Transpose.FLIP_TOP_BOTTOM,
        (-1, 0, 0, -1): Transpose.ROTATE_180,
        (0, -1, 1, 0): Transpose.ROTATE_90,
        (0, 1, -1, 0): Transpose.ROTATE_270,
        (0, 1, 1, 0): Transpose.TRANSPOSE,
        (0, -1, -1, 0): Transpose.TRANSVERSE,
    }.get((a, b, c, d))
