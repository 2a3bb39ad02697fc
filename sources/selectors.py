"""Where recordings are found, and which one a name on the command line means.

Owns selectors (`demo`, `latest`, an id, a name, a path) and the listing of SEEONCE_RECORDINGS.
Knows each kind of source by its opener only (`folder`, `video`; later others behind the same
`Recording`), and nothing of manifests: a recording whose frames are gone is not found here.
"""

import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cache.errors import InputError
from sources.folder import FolderRecording, open_folder
from sources.recording import Recording, iso_utc, printable, recording_id, resolve
from sources.video import VIDEO_SUFFIXES, open_video

__all__ = [
    "RecordingListing",
    "latest_recording",
    "list_recordings",
    "open_recording",
    "recording_id",
]

DEFAULT_EVERY_S = 10.0  # of a video, a frame every so many seconds
_NUM_NAMED = 5  # recordings that an error message names


@dataclass(frozen=True, slots=True)
class RecordingListing:
    """A recording that was found, as cheaply as that goes: no video is opened for it.

    `captured_at` is ISO 8601 in UTC; of a video it is the file's modification time.
    `num_frames` and `length_s` (seconds) are None where they are not known without opening.
    """

    id: str
    name: str
    kind: str
    path: Path
    captured_at: str
    num_frames: int | None
    length_s: float | None


def open_recording(
    selector: str,
    *,
    every_s: float = DEFAULT_EVERY_S,
    limit: int | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Recording:
    """Open what `selector` means: `demo`, `latest`, a folder or video file, an id, its start, a name.

    A video is sampled every `every_s` seconds; of anything only the first `limit` frames are
    taken, if given.

    Raises:
        InputError: There is no such recording, several fit, or it cannot be read.
    """
    if not (math.isfinite(every_s) and every_s > 0):
        raise InputError(f"--every is {every_s}; expected a number of seconds above 0, as in --every 10")
    if limit is not None and limit <= 0:
        raise InputError(f"--limit is {limit}; expected a number of frames above 0, as in --limit 100")
    if selector == "demo":
        return _open_demo(limit)
    return _open_path(_find(selector, environ), every_s, limit)


def list_recordings(environ: Mapping[str, str] = os.environ) -> list[RecordingListing]:
    """List the folders with images and the videos directly under SEEONCE_RECORDINGS, newest first.

    That folder itself counts when it holds images. Empty when the variable is not set.

    Raises:
        InputError: SEEONCE_RECORDINGS names what is no folder, or one that cannot be listed.
    """
    place = environ.get("SEEONCE_RECORDINGS", "")
    if not place:
        return []
    root = resolve(Path(place))
    try:
        children = [child for child in root.iterdir() if not child.name.startswith(".")]
    except OSError as error:
        raise InputError(
            f"SEEONCE_RECORDINGS={printable(place)}: cannot be listed ({error.strerror}); "
            "set it to the folder that holds your recordings"
        ) from error
    found = [listing for path in (root, *children) if (listing := _listing(path)) is not None]
    return sorted(found, key=lambda listing: (listing.captured_at, listing.id), reverse=True)


def latest_recording(environ: Mapping[str, str] = os.environ) -> RecordingListing | None:
    """Give the newest recording under SEEONCE_RECORDINGS, None when there is none.

    Raises:
        InputError: As `list_recordings`.
    """
    return next(iter(list_recordings(environ)), None)


def _open_demo(limit: int | None) -> FolderRecording:
    spec = importlib.util.find_spec("demo")
    places = spec.submodule_search_locations if spec else None
    if not places:
        raise InputError("the demo recording is not installed; reinstall seeonce")
    recording = open_folder(Path(places[0]) / "recording", limit=limit)
    return replace(recording, info=replace(recording.info, id="demo", name="demo", kind="demo"))


def _open_path(path: Path, every_s: float, limit: int | None) -> Recording:
    if path.is_dir():
        return open_folder(path, limit=limit)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return open_video(path, every_s=every_s, limit=limit)
    raise InputError(
        f"{printable(path)}: not a recording; expected a folder of images or a video "
        f"({', '.join(VIDEO_SUFFIXES)})"
    )


def _find(selector: str, environ: Mapping[str, str]) -> Path:
    if selector == "latest":
        latest = latest_recording(environ)
        if latest is None:
            raise InputError(
                "no recording found: set SEEONCE_RECORDINGS to the folder that holds yours, "
                "name one, or try `seeonce encode demo`"
            )
        return latest.path
    if selector and "\0" not in selector:
        path = resolve(Path(selector))
        if _exists(path):
            return path
    return _match(selector, list_recordings(environ)).path


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:  # no permission, a loop of links
        raise InputError(f"{printable(path)}: cannot be read ({error.strerror})") from error
    return True


def _match(selector: str, listings: Sequence[RecordingListing]) -> RecordingListing:
    """Find the one recording that is called so: by id, by name, by the start of an id."""
    for fits in (
        [listing for listing in listings if listing.id == selector],
        [listing for listing in listings if listing.name == selector],
        [listing for listing in listings if selector and listing.id.startswith(selector)],
    ):
        if len(fits) == 1:
            return fits[0]
        if fits:
            raise InputError(f"{printable(selector)!r} fits {_named(fits)}; name one by its id")
    there = f"there are {_named(listings)}" if listings else "none is listed"
    raise InputError(
        f"no recording {printable(selector)!r}: no such path, id or name; {there} "
        "(see `seeonce recordings`, or try `seeonce encode demo`)"
    )


def _named(listings: Sequence[RecordingListing]) -> str:
    more = f" and {len(listings) - _NUM_NAMED} more" if len(listings) > _NUM_NAMED else ""
    return ", ".join(listing.id for listing in listings[:_NUM_NAMED]) + more


def _listing(path: Path) -> RecordingListing | None:
    """Describe a folder with images or a video; None for anything else, or what cannot be read."""
    try:
        if path.is_dir():
            return _folder_listing(path)
        if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
            return _video_listing(path)
    except (InputError, OSError):
        return None
    return None


def _folder_listing(path: Path) -> RecordingListing:
    recording = open_folder(path)
    info = recording.info
    return RecordingListing(
        id=info.id,
        name=info.name,
        kind=info.kind,
        path=resolve(path),
        captured_at=info.captured_at,
        num_frames=info.num_frames,
        length_s=recording.length_s,
    )


def _video_listing(path: Path) -> RecordingListing:
    video = resolve(path)
    return RecordingListing(
        id=recording_id(video),
        name=printable(video.name),
        kind="video",
        path=video,
        captured_at=iso_utc(video.stat().st_mtime),
        num_frames=None,
        length_s=None,
    )
