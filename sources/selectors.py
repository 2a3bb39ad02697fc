"""Where recordings are found, and which one a name on the command line means.

Owns selectors (`demo`, `latest`, an id, a name, a path), the order of the sources, and the listing of
their own places and of SEEONCE_RECORDINGS. Knows each source by its protocol only (`sources.source`),
and nothing of manifests: a recording whose frames are gone is not found here.
"""

import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cache.errors import InputError
from sources.cap import CapSource
from sources.escribano import EscribanoSource
from sources.folder import FolderRecording, FolderSource, open_folder
from sources.recording import Recording, printable, recording_id, resolve
from sources.source import FrameChoice, RecordingListing, Say, Source
from sources.video_files import VideoSource

__all__ = [
    "SOURCES",
    "FrameChoice",
    "RecordingListing",
    "latest_recording",
    "list_recordings",
    "open_recording",
    "recording_id",
]

# The first that holds a path opens it: those that are folders of a special kind come before folders.
SOURCES: tuple[Source, ...] = (EscribanoSource(), VideoSource(), CapSource(), FolderSource())

_NUM_NAMED = 5  # recordings that an error message names
_warn = logging.getLogger("seeonce.sources").warning


def open_recording(
    selector: str,
    choice: FrameChoice | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Recording:
    """Open what `selector` means: `demo`, `latest`, a path, an id, its start, a name.

    Raises:
        InputError: There is no such recording, several fit, or it cannot be read.
    """
    wanted = choice or FrameChoice()
    wanted.require_sound()
    if selector == "demo":
        return _open_demo(wanted.limit)
    return _open_path(_find(selector, environ), wanted)


def list_recordings(environ: Mapping[str, str] = os.environ, say: Say = _warn) -> list[RecordingListing]:
    """List what lies at the sources' own places and directly under SEEONCE_RECORDINGS, newest first.

    That folder itself counts when it is a recording. What a source cannot read is told to `say`.

    Raises:
        InputError: SEEONCE_RECORDINGS names what is no folder, or one that cannot be listed.
    """
    found: dict[str, RecordingListing] = {}
    for source in SOURCES:
        found.update((listing.id, listing) for listing in source.listings(environ, say))
    if place := environ.get("SEEONCE_RECORDINGS", ""):
        found.update((listing.id, listing) for listing in _under(place))
    return sorted(found.values(), key=lambda listing: (listing.captured_at, listing.id), reverse=True)


def latest_recording(environ: Mapping[str, str] = os.environ, say: Say = _warn) -> RecordingListing | None:
    """Give the newest recording that is listed and whose frames are there, None when there is none.

    Raises:
        InputError: As `list_recordings`.
    """
    return next((listing for listing in list_recordings(environ, say) if listing.is_there), None)


def _under(place: str) -> list[RecordingListing]:
    root = resolve(Path(place))
    try:
        children = [child for child in root.iterdir() if not child.name.startswith(".")]
    except OSError as error:
        raise InputError(
            f"SEEONCE_RECORDINGS={printable(place)}: cannot be listed ({error.strerror}); "
            "set it to the folder that holds your recordings"
        ) from error
    return [listing for path in (root, *children) if (listing := _listing(path)) is not None]


def _listing(path: Path) -> RecordingListing | None:
    source = _source_of(path)
    return source.listing(path) if source else None


def _source_of(path: Path) -> Source | None:
    return next((source for source in SOURCES if source.holds(path)), None)


def _open_demo(limit: int | None) -> FolderRecording:
    spec = importlib.util.find_spec("seeonce.demo")
    places = spec.submodule_search_locations if spec else None
    if not places:
        raise InputError("the demo recording is not installed; reinstall seeonce")
    recording = open_folder(Path(places[0]) / "recording", limit=limit)
    return replace(recording, info=replace(recording.info, id="demo", name="demo", kind="demo"))


def _open_path(path: Path, choice: FrameChoice) -> Recording:
    source = _source_of(path)
    if source is None:
        raise InputError(
            f"{printable(path)}: not a recording; expected a folder of images or a video (README, Sources)"
        )
    return source.open(path, choice)


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
        if _source_of(path) is not None or _exists(path):
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
