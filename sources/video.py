"""Recordings that are videos: one file, or several that make one timeline.

Owns what such a recording is. Chosen pictures come from ``selection``, decoded ones from
``decoder``. Timestamps are listed without decoding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cache.errors import InputError
from cache.manifest import RecordingInfo
from sources.container import read_header
from sources.decoder import Player
from sources.recording import Frame, printable, recording_id, resolve
from sources.sampling import Chosen, Track
from sources.selection import Selection, select
from sources.source import FrameChoice

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".m4v", ".avi")


@dataclass(frozen=True, slots=True)
class VideoRecording:
    """The chosen pictures of one timeline. One decoder, so one reader at a time."""

    info: RecordingInfo
    remarks: tuple[str, ...]
    _frames: tuple[Frame, ...]
    _player: Player

    @property
    def max_readers(self) -> int:
        """One thread reads, best in ascending order."""
        return 1

    def frames(self) -> Sequence[Frame]:
        """List the frames in order."""
        return self._frames

    def only(self, sources: frozenset[str]) -> "VideoRecording":
        """Leave out every frame but these, and count anew, as a choice that takes only these does."""
        kept = (frame for frame in self._frames if frame.source in sources)
        frames = tuple(replace(frame, index=index) for index, frame in enumerate(kept))
        return replace(self, info=replace(self.info, num_frames=len(frames)), _frames=frames)

    def close(self) -> None:
        """Close the video; reading a frame opens it again."""
        self._player.close()


def open_video(path: Path, choice: FrameChoice) -> VideoRecording:
    """List a video's frames: for k = 0, 1, 2, … the first picture at or after `k * every_s` seconds.

    Seconds count from the first picture. A picture that stands for longer than `every_s` is
    listed once. With a `scene_change`, only those that differ so much from the last one listed:
    that decodes them.

    Raises:
        InputError: No such file, no permission, no video in it, or no picture in that.
    """
    video = resolve(path)
    info = RecordingInfo(
        id=recording_id(video),
        name=printable(video.name),
        kind="video",
        path=printable(video),
        captured_at=read_header(video).captured_at,
        num_frames=0,
        every_s=choice.every_s,
        limit=choice.limit,
        scene_change=choice.scene_change,
    )
    return open_tracks([track_of(video)], info, choice)


def track_of(video: Path) -> Track:
    """Take the stamp of a video; ``InputError`` when it is not there."""
    try:
        return Track.of(video)
    except OSError as error:
        raise InputError(f"{printable(video)}: cannot be read ({error.strerror})") from error


def open_tracks(
    tracks: Sequence[Track], info: RecordingInfo, choice: FrameChoice, remarks: tuple[str, ...] = ()
) -> VideoRecording:
    """Make one recording of videos; `info` is given the number of its frames.

    Raises:
        InputError: None of them has a picture.
    """
    player = Player()
    selection = select(tracks, choice, player)
    frames = _frames(tracks, selection, player)
    info = replace(info, num_frames=len(frames))
    return VideoRecording(info, remarks + selection.remarks, frames, player)


def _frames(tracks: Sequence[Track], selection: Selection, player: Player) -> tuple[Frame, ...]:
    return tuple(_frame(index, one, tracks[one.track], player) for index, one in enumerate(selection.chosen))


def _frame(index: int, one: Chosen, track: Track, player: Player) -> Frame:
    return Frame(
        index=index,
        timestamp_s=one.timestamp_s,
        source=f"{printable(track.stamp.path)}#pts={one.pick.pts}",
        stamp=replace(track.stamp, position=f"pts={one.pick.pts}"),
        _decode=partial(player.read, track.decoder, one.pick),
    )
