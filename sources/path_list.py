"""Recordings that are lists of image files, as typed or read from standard input.

Owns how such a list is split and what recording its images make. What is no image file is a recording
of its own, and is none of this module's business. Decodes nothing.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from blake3 import blake3

from cache.manifest import RecordingInfo
from sources.folder import IMAGE_SUFFIXES, FolderRecording, recording_of_files, stamped_files
from sources.recording import Frame, iso_utc, resolve

KIND = "list"


def split_paths(raw: bytes) -> list[str]:
    """Split what was piped in: by NUL where there is one (``find -print0``), else by line."""
    parts = raw.split(b"\0") if b"\0" in raw else raw.splitlines()
    return [os.fsdecode(part) for part in parts if part.strip()]


def is_image_path(path: str) -> bool:
    """Tell whether a path is named like an image and is no folder."""
    return path.lower().endswith(IMAGE_SUFFIXES) and not os.path.isdir(path)  # noqa: PTH112 (never raises)


def open_list(paths: Sequence[Path], *, limit: int | None = None) -> FolderRecording:
    """Make one recording of image files: by time where every name tells one, else as given.

    A file that is given twice is one frame. One that cannot be read counts; reading it raises.
    """
    places = list(dict.fromkeys(resolve(path) for path in paths))
    digest = blake3(b"\0".join(os.fsencode(place) for place in places)).hexdigest()[:8]
    timed = recording_of_files(stamped_files(places))
    frames = timed.frames[:limit]
    info = RecordingInfo(
        id=f"list-{digest}",
        name=f"{len(places)} listed images",
        kind=KIND,
        path="-",
        captured_at=iso_utc(timed.started_s),
        num_frames=len(frames),
        every_s=None,
        limit=limit,
    )
    return FolderRecording(info, timed.length_s, frames)


def reopen_list(info: RecordingInfo, frames: Sequence[tuple[int, float, str]]) -> FolderRecording:
    """Make a list's recording again from the indexes, times and sources of its frames, in order.

    What a list was is known to its manifest alone: part of it might tell other times by its names.
    """
    files = stamped_files([Path(source) for _, _, source in frames])
    again = tuple(
        Frame(index, timestamp_s, source, file.stamp)
        for (index, timestamp_s, source), file in zip(frames, files, strict=True)
    )
    return FolderRecording(replace(info, num_frames=len(again)), None, again)
