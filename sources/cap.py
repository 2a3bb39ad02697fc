"""The source of recordings that are Cap bundles: folders ``*.cap`` with ``recording-meta.json``.

Owns where they lie and how a bundle becomes one timeline: its segments' videos of the screen, one
after the other. What the meta file says is ``cap_meta``'s. Reads only.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from cache.errors import InputError
from cache.manifest import RecordingInfo
from sources.cap_meta import META, CapMeta, read_meta
from sources.container import VideoHeader, read_header
from sources.recording import Recording, iso_utc, printable, recording_id, resolve
from sources.sampling import Track
from sources.source import FrameChoice, RecordingListing, Say
from sources.video import VIDEO_SUFFIXES, VideoRecording, open_tracks, track_of

KIND = "cap"
SUFFIX = ".cap"

# Cap keeps its recordings in its application data, of which there is one folder a release channel.
_PLACES = (
    "Library/Application Support/so.cap.desktop/recordings",
    "Library/Application Support/so.cap.desktop.dev/recordings",
)


@dataclass(frozen=True, slots=True)
class CapSource:
    """Cap's bundles: under CAP_RECORDINGS, else where Cap keeps them on macOS."""

    def listings(self, environ: Mapping[str, str], say: Say) -> Iterable[RecordingListing]:
        """List the bundles; one that cannot be read is told to ``say``, and the rest goes on."""
        for bundle in _bundles(environ, say):
            try:
                yield _listing(bundle)
            except InputError as error:
                say(str(error))

    def holds(self, path: Path) -> bool:
        """Tell whether a path is a folder that is called like a bundle, or has a bundle's meta file."""
        return path.is_dir() and (path.suffix.lower() == SUFFIX or (path / META).is_file())

    def listing(self, path: Path) -> RecordingListing | None:
        """Describe a bundle; None when it is none or cannot be read."""
        try:
            return _listing(path)
        except InputError:
            return None

    def open(self, path: Path, choice: FrameChoice) -> Recording:
        """Open a bundle; ``InputError`` when nothing of it can be read."""
        return open_cap(path, choice)


def open_cap(path: Path, choice: FrameChoice) -> VideoRecording:
    """List the frames of a bundle: of all its segments, as of one video.

    A segment whose video is missing, unreadable or outside the bundle is left out, and named in
    the recording's remarks.

    Raises:
        InputError: No bundle, a meta file that makes no sense, still being recorded, or no
            segment that can be read.
    """
    bundle = resolve(path)
    meta = read_meta(bundle)
    videos, remarks = _videos(bundle, meta)
    if not videos:
        raise InputError(remarks[0])
    info = RecordingInfo(
        id=recording_id(bundle),
        name=printable(meta.name),
        kind=KIND,
        path=printable(bundle),
        captured_at=_captured_at(meta, [header for _, header in videos]),
        num_frames=0,
        every_s=choice.every_s,
        limit=choice.limit,
        scene_change=choice.scene_change,
    )
    return open_tracks([track for track, _ in videos], info, choice, tuple(remarks))


def _listing(path: Path) -> RecordingListing:
    bundle = resolve(path)
    meta = read_meta(bundle)
    videos, remarks = _videos(bundle, meta)
    if not videos:
        raise InputError(remarks[0])
    headers = [header for _, header in videos]
    lengths_s = [header.length_s for header in headers if header.length_s is not None]
    return RecordingListing(
        id=recording_id(bundle),
        name=printable(meta.name),
        kind=KIND,
        path=bundle,
        captured_at=_captured_at(meta, headers),
        num_frames=None,
        length_s=float(sum(lengths_s, Fraction(0))) if len(lengths_s) == len(headers) else None,
    )


def _captured_at(meta: CapMeta, headers: list[VideoHeader]) -> str:
    return headers[0].captured_at if meta.captured_s is None else iso_utc(meta.captured_s)


def _bundles(environ: Mapping[str, str], say: Say) -> list[Path]:
    place = environ.get("CAP_RECORDINGS", "")
    homes = [Path(place)] if place else [Path.home() / name for name in _PLACES]
    found: list[Path] = []
    for home in homes:
        try:
            with os.scandir(resolve(home)) as entries:
                found += sorted(
                    Path(e.path) for e in entries if e.name.lower().endswith(SUFFIX) and e.is_dir()
                )
        except OSError as error:
            if place:
                say(f"CAP_RECORDINGS={printable(place)}: cannot be listed ({error.strerror})")
    return found


def _videos(bundle: Path, meta: CapMeta) -> tuple[list[tuple[Track, VideoHeader]], list[str]]:
    """Find the segments' videos, and say which cannot be used."""
    found: list[tuple[Track, VideoHeader]] = []
    remarks: list[str] = []
    for number, name in enumerate(meta.displays):
        try:
            video = _inside(bundle, name)
            found.append((track_of(video), read_header(video)))
        except InputError as error:
            remarks.append(f"segment {number} of {printable(bundle.name)} is left out: {error}")
    return found, remarks


def _inside(bundle: Path, name: str) -> Path:
    """Give the video that a meta file names, inside its bundle and nowhere else, links resolved."""
    if "\0" in name:
        raise InputError(f"{printable(name)}: no path has such a character; not opened")
    video = resolve(bundle / name)
    if not video.is_relative_to(bundle):
        raise InputError(f"{printable(name)}: a path that leaves the bundle; not opened")
    if video.is_dir():
        raise InputError(f"{printable(video)}: Cap has not put its fragments together; open it in Cap once")
    if video.suffix.lower() not in VIDEO_SUFFIXES:
        raise InputError(f"{printable(name)}: not named like a video ({', '.join(VIDEO_SUFFIXES)})")
    return video
