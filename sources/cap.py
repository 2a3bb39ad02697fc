"""Cap bundles: folders ``*.cap`` whose segments' videos of the screen make one timeline."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from cache.base.errors import InputError
from cache.base.text import printable
from cache.manifest import RecordingInfo
from sources.container import VIDEO_SUFFIXES, VideoHeader, read_header
from sources.decoder import Decoder
from sources.name_times import moment_of
from sources.recording import FrameChoice, Recording, RecordingListing, Say, iso_utc, recording_id, resolve
from sources.video import decoder_of, open_videos

META = "recording-meta.json"

_INSTANT_VIDEO = "content/output.mp4"  # the meta file of an instant recording does not name it
_MAX_BYTES = 16_000_000  # a real one has kilobytes
_UNIX_SINCE_S = 1_000_000_000.0  # Cap has written start_time in Unix seconds, and from the recording's start
_UNIX_UNTIL_S = 100_000_000_000.0
KIND = "cap"
SUFFIX = ".cap"
# Cap keeps its recordings in its application data, of which there is one folder a release channel.
_PLACES = (
    "Library/Application Support/so.cap.desktop/recordings",
    "Library/Application Support/so.cap.desktop.dev/recordings",
)


@dataclass(frozen=True, slots=True)
class CapMeta:
    """One bundle. ``displays`` are paths as they were written; ``captured_s`` are Unix seconds if told."""

    name: str
    captured_s: float | None
    displays: tuple[str, ...]


def read_meta(bundle: Path) -> CapMeta:
    """Read a bundle's meta file.

    Raises:
        InputError: There is none, it makes no sense, or the bundle is not finished.
    """
    document = _document(bundle / META)
    _require_finished(document, bundle)
    displays = _displays(document)
    if not displays:
        raise InputError(
            f"{printable(bundle / META)}: names no video of a screen; expected segments[].display.path"
        )
    name = document.get("pretty_name")
    title = name if isinstance(name, str) and name.strip() else bundle.stem
    return CapMeta(title, _captured_s(document, title), displays)


def _document(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"{printable(path)}: cannot be read ({error.strerror}); a Cap bundle has this file"
        ) from error
    try:
        if len(raw) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES:,} bytes")
        document = json.loads(raw)
        if not isinstance(document, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{printable(path)}: not what Cap writes ({printable(reason)})") from error
    return document


def _require_finished(document: dict[str, object], bundle: Path) -> None:
    status = _object(document.get("status")).get("status")
    if status == "InProgress" or document.get("recording") is True:
        raise InputError(
            f"{printable(bundle)}: still being recorded; stop it in Cap, or open it there once if Cap crashed"
        )


def _displays(document: dict[str, object]) -> tuple[str, ...]:
    """List the videos of the screen, in order."""
    segments = document.get("segments")
    several = [_display(segment) for segment in segments] if isinstance(segments, list) else []
    if any(several):
        return tuple(path or "" for path in several)
    single = _display(document)
    if single:
        return (single,)
    instant = "fps" in document or "error" in document or "recording" in document
    return (_INSTANT_VIDEO,) if instant else ()


def _display(segment: object) -> str | None:
    """Give the path, with the separators that it has on every system."""
    path = _object(_object(segment).get("display")).get("path")
    return path.replace("\\", "/") if isinstance(path, str) else None


def _object(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _captured_s(document: dict[str, object], name: str) -> float | None:
    """Say when it was recorded: by the first segment's clock, else by the name, in local time."""
    segments = document.get("segments")
    first = segments[0] if isinstance(segments, list) and segments else document
    start = _object(_object(first).get("display")).get("start_time")
    if isinstance(start, int | float) and _UNIX_SINCE_S <= start <= _UNIX_UNTIL_S:
        return float(start)
    return moment_of(name)


def listings(say: Say) -> Iterable[RecordingListing]:
    """List the bundles; ``say`` receives a line for one that cannot be read, and the rest goes on."""
    for bundle in _bundles(say):
        try:
            yield _listing(bundle)
        except InputError as error:
            say(str(error))


def holds(path: Path) -> bool:
    """Tell whether a path is a folder that is called like a bundle, or has a bundle's meta file."""
    # os.path, since Path.is_dir and Path.is_file raise where there is no permission to look
    is_named = path.suffix.lower() == SUFFIX
    return os.path.isdir(path) and (is_named or os.path.isfile(path / META))  # noqa: PTH112, PTH113


def listing(path: Path) -> RecordingListing | None:
    """Describe a bundle; None when it is not one or cannot be read."""
    try:
        return _listing(path)
    except InputError:
        return None


def open_path(path: Path, choice: FrameChoice) -> Recording:
    """List the frames of a bundle: of all its segments, as of one video.

    A segment whose video is missing, unreadable or outside the bundle is left out, and named in
    the recording's remarks.

    Raises:
        InputError: No bundle, a meta file that makes no sense, still being recorded, or no
            segment that can be read.
    """
    bundle = resolve(path)
    meta, videos, remarks = _read(bundle)
    decoders = [decoder for decoder, _ in videos]
    return open_videos(decoders, _info(bundle, meta, videos, choice), choice, tuple(remarks))


def _listing(path: Path) -> RecordingListing:
    bundle = resolve(path)
    meta, videos, _ = _read(bundle)
    lengths_s = [header.length_s for _, header in videos if header.length_s is not None]
    length_s = float(sum(lengths_s, Fraction(0))) if len(lengths_s) == len(videos) else None
    return RecordingListing.of(_info(bundle, meta, videos, FrameChoice()), bundle, length_s, None)


def _info(
    bundle: Path, meta: CapMeta, videos: Sequence[tuple[Decoder, VideoHeader]], choice: FrameChoice
) -> RecordingInfo:
    return RecordingInfo(
        id=recording_id(bundle),
        name=printable(meta.name),
        kind=KIND,
        path=printable(bundle),
        captured_at=videos[0][1].captured_at if meta.captured_s is None else iso_utc(meta.captured_s),
        num_frames=0,
        every_s=choice.every_s,
        limit=choice.limit,
        scene_change=choice.scene_change,
    )


def places() -> list[Path]:
    """Return the folders in which Cap keeps its recordings, those that are there."""
    return [resolve(home) for home in _homes() if os.path.isdir(home)]  # noqa: PTH112 (never raises)


def _homes() -> list[Path]:
    place = os.environ.get("CAP_RECORDINGS", "")
    return [Path(place)] if place else [Path.home() / name for name in _PLACES]


def _bundles(say: Say) -> list[Path]:
    place = os.environ.get("CAP_RECORDINGS", "")
    found: list[Path] = []
    for home in _homes():
        try:
            with os.scandir(resolve(home)) as entries:
                found += sorted(
                    Path(e.path) for e in entries if e.name.lower().endswith(SUFFIX) and e.is_dir()
                )
        except OSError as error:
            if place:
                say(f"CAP_RECORDINGS={printable(place)}: cannot be listed ({error.strerror})")
    return found


def _read(bundle: Path) -> tuple[CapMeta, list[tuple[Decoder, VideoHeader]], list[str]]:
    """Read the meta file, find the segments' videos, and say which cannot be used: not all of them."""
    meta = read_meta(bundle)
    found: list[tuple[Decoder, VideoHeader]] = []
    remarks: list[str] = []
    for number, name in enumerate(meta.displays):
        try:
            video = _inside(bundle, name)
            found.append((decoder_of(video), read_header(video)))
        except InputError as error:
            remarks.append(f"segment {number} of {printable(bundle.name)} is left out: {error}")
    if not found:
        raise InputError(remarks[0])
    return meta, found, remarks


def _inside(bundle: Path, name: str) -> Path:
    """Give the video that a meta file names, inside its bundle and nowhere else, links resolved."""
    if "\0" in name:
        raise InputError(f"{printable(name)}: no path has such a character; not opened")
    video = resolve(bundle / name)
    if not video.is_relative_to(bundle):
        raise InputError(f"{printable(name)}: a path that leaves the bundle; not opened")
    if os.path.isdir(video):  # noqa: PTH112 (never raises)
        raise InputError(f"{printable(video)}: Cap has not put its fragments together; open it in Cap once")
    if video.suffix.lower() not in VIDEO_SUFFIXES:
        raise InputError(f"{printable(name)}: not named like a video ({', '.join(VIDEO_SUFFIXES)})")
    return video
