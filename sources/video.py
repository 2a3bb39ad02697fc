"""Recordings that are videos: one file, or several that make one timeline."""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cache.base.errors import InputError
from cache.base.text import printable
from cache.manifest import RecordingInfo
from cache.pixel_index import FileStamp
from sources.container import VIDEO_SUFFIXES, VideoHeader, read_header
from sources.decoder import Decoder, Player
from sources.in_bucket import Copy
from sources.picture_times import Pick, PictureTimes
from sources.recording import (
    Frame,
    FrameChoice,
    Recording,
    RecordingListing,
    Say,
    id_of,
    iso_utc,
    recording_id,
    resolve,
)
from sources.video_sampling import select

if TYPE_CHECKING:
    from PIL import Image


def open_video(path: Path, choice: FrameChoice) -> Recording:
    """List a video's frames: for k = 0, 1, 2, … the picture on the screen at `k * every_s` seconds.

    Seconds count from the first picture. A picture that stands for longer than `every_s` is
    listed once, at the time when it appears. With a `scene_change`, only those that differ so much
    from the last one listed: that decodes them.

    Raises:
        InputError: No such file, no permission, no video in it, or no picture in that.
    """
    video = resolve(path)
    return open_videos([decoder_of(video)], _info(video, read_header(video), choice), choice)


def _info(video: Path, header: VideoHeader, choice: FrameChoice) -> RecordingInfo:
    return RecordingInfo(
        id=recording_id(video),
        name=printable(video.name),
        kind="video",
        path=printable(video),
        captured_at=header.captured_at,
        num_frames=0,
        every_s=choice.every_s,
        limit=choice.limit,
        scene_change=choice.scene_change,
    )


open_path = open_video


def open_address(address: str, choice: FrameChoice) -> Recording:
    """List the frames of a video in a bucket, which is copied to this disk as long as one of them is held.

    Raises:
        InputError: as `open_video`, or it cannot be copied.
    """
    copy = Copy(address)
    if choice.only is not None:
        there, here = printable(copy.address), printable(copy.path)
        choice = replace(choice, only=frozenset(source.replace(there, here, 1) for source in choice.only))
    with copy.named():
        opened = open_video(copy.path, replace(choice, notes=None))

    def decode(frame: Frame) -> "Image.Image":
        with copy.named():
            return frame.read()

    info = replace(
        opened.info,
        id=id_of(copy.path.name, "recording", address.encode()),
        path=printable(address),
    )
    frames = tuple(
        replace(
            frame,
            source=copy.rename(frame.source),
            stamp=copy.at(frame.stamp.position),
            _decode=partial(decode, frame),
        )
        for frame in opened.frames()
    )
    return replace(opened, info=info, _frames=frames, remarks=tuple(map(copy.rename, opened.remarks)))


def decoder_of(video: Path) -> Decoder:
    """Take the stamp of a video; ``InputError`` when it is not there."""
    try:
        return Decoder(FileStamp.of(video))
    except OSError as error:
        raise InputError(f"{printable(video)}: cannot be read ({error.strerror})") from error


def open_videos(
    videos: Sequence[Decoder], info: RecordingInfo, choice: FrameChoice, remarks: tuple[str, ...] = ()
) -> Recording:
    """Make one recording of videos; `info` is given the number of its frames.

    Raises:
        InputError: None of them has a picture.
    """
    player = Player()
    chosen, missing = select(videos, choice, player)
    frames = tuple(
        _frame(index, one.timestamp_s, one.pick, videos[one.video], player)
        for index, one in enumerate(chosen)
    )
    info = replace(info, num_frames=len(frames))
    return Recording(info, frames, 1, remarks + missing, _close=player.close)


def _frame(
    index: int, timestamp_s: float, pick: Pick, video: Decoder, player: Player, row: str = ""
) -> Frame:
    return Frame(
        index=index,
        timestamp_s=timestamp_s,
        source=f"{printable(video.stamp.path)}#pts={pick.pts}{row}",
        stamp=replace(video.stamp, position=f"pts={pick.pts}"),
        _decode=partial(player.read, video, pick),
    )


def listings(say: Say) -> Iterable[RecordingListing]:  # noqa: ARG001
    """List nothing: videos have no place of their own."""
    return ()


def holds(path: Path) -> bool:
    """Tell whether a path is called like a video and is no folder."""
    there = os.path.exists(path) and not os.path.isdir(path)  # noqa: PTH110, PTH112 (never raise)
    return there and path.suffix.lower() in VIDEO_SUFFIXES


def listing(path: Path) -> RecordingListing | None:
    """Describe a video by its header; one that cannot be read by its file alone."""
    video = resolve(path)
    try:
        header, is_there = _header(video)
    except OSError:
        return None
    length_s = None if header.length_s is None else float(header.length_s)
    return RecordingListing.of(_info(video, header, FrameChoice()), video, length_s, None, is_there=is_there)


def _header(video: Path) -> tuple[VideoHeader, bool]:
    """Read the header; what has none, such as a recording that goes on, is no video yet."""
    try:
        return read_header(video), True
    except InputError:
        return VideoHeader(iso_utc(video.stat().st_mtime), None), False


@dataclass(frozen=True, slots=True)
class MomentPictures:
    """The pictures of one video at given moments. One decoder, so one reader at a time."""

    _video: Decoder
    _player: Player
    _picks: dict[float, Pick]
    _end: str

    def frame(self, index: int, moment_s: float, row: str) -> Frame:
        """Make a frame of the picture at a moment that was asked for; ``row`` ends its source.

        Raises:
            InputError: the video ends before.
        """
        pick = self._picks.get(moment_s)
        if pick is None:
            raise InputError(self._end)
        return _frame(index, moment_s, pick, self._video, self._player, f"&{row}")

    def close(self) -> None:
        """Close the video; reading a frame opens it again."""
        self._player.close()


def open_moments(video: Path, moments_s: Sequence[float]) -> MomentPictures:
    """Find the pictures of a video at moments in seconds from its first picture, in any order.

    Raises:
        InputError: no video, or none that can be read.
    """
    decoder = decoder_of(video)
    times = PictureTimes(video)
    picks: dict[float, Pick] = {}
    try:
        for moment_s in sorted(set(moments_s)):
            found = times.shown_at(times.start + math.floor(Fraction(str(moment_s)) / times.time_base))
            if found is None:
                break
            picks[moment_s] = found[0]
        end = times.missing() or f"{printable(video)}: ends before that moment"
    finally:
        times.close()
    return MomentPictures(decoder, Player(), picks, end)
