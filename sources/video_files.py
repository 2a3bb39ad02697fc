"""The source of recordings that are video files: which paths are videos, and what a listing tells.

Does not own what is inside one (``sources.video``); a listing reads its header alone.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cache.errors import InputError
from sources.container import VideoHeader, read_header
from sources.recording import Recording, iso_utc, printable, recording_id, resolve
from sources.source import FrameChoice, RecordingListing, Say
from sources.video import VIDEO_SUFFIXES, open_video


@dataclass(frozen=True, slots=True)
class VideoSource:
    """Video files, wherever they are named."""

    def listings(self, environ: Mapping[str, str], say: Say) -> Iterable[RecordingListing]:  # noqa: ARG002
        """List nothing: videos have no place of their own."""
        return ()

    def holds(self, path: Path) -> bool:
        """Tell whether a path is called like a video and is no folder."""
        there = os.path.exists(path) and not os.path.isdir(path)  # noqa: PTH110, PTH112 (never raise)
        return there and path.suffix.lower() in VIDEO_SUFFIXES

    def listing(self, path: Path) -> RecordingListing | None:
        """Describe a video by its header; one that cannot be read by its file alone."""
        video = resolve(path)
        try:
            header, is_there = _header(video)
        except OSError:
            return None
        return RecordingListing(
            id=recording_id(video),
            name=printable(video.name),
            kind="video",
            path=video,
            captured_at=header.captured_at,
            num_frames=None,
            length_s=None if header.length_s is None else float(header.length_s),
            is_there=is_there,
        )

    def open(self, path: Path, choice: FrameChoice) -> Recording:
        """Open a video; ``InputError`` when it cannot be read."""
        return open_video(path, choice)


def _header(video: Path) -> tuple[VideoHeader, bool]:
    """Read the header; what has none, such as a recording that goes on, is no video yet."""
    try:
        return read_header(video), True
    except InputError:
        return VideoHeader(iso_utc(video.stat().st_mtime), None), False
