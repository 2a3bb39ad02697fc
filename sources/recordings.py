"""Which recordings there are: those that sources find, and those that only the store knows."""

import logging
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cache.base.errors import InputError, StoreError
from cache.base.home import Home
from cache.base.text import printable
from cache.manifest import ManifestRef, list_manifests, read_manifest
from cache.objects import check_address, is_address
from sources import cap, escribano, folder, video
from sources.container import VIDEO_SUFFIXES
from sources.recording import Encoding, FrameChoice, Recording, RecordingListing, Say, Source, resolve

# The first that holds a path opens it: those that are folders of a special kind come before folders.
SOURCES: tuple[Source, ...] = (escribano, video, cap, folder)

_NUM_NAMED = 5  # recordings that an error message names
_AGO = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DEMO = Path(__file__).parents[1] / "seeonce" / "demo" / "recording"
_warn = logging.getLogger("seeonce.sources").warning


def open_recording(
    selector: str,
    choice: FrameChoice | None = None,
) -> Recording:
    """Open what `selector` means: `demo`, `latest`, a path, an address, an id, its start, a name.

    Raises:
        InputError: There is no such recording, several fit, or it cannot be read.
    """
    wanted = choice or FrameChoice()
    wanted.require_sound()
    if selector == "demo":
        return _open_demo(wanted.limit)
    if is_address(selector):
        address = check_address(selector)
        if address.lower().endswith(VIDEO_SUFFIXES):
            return video.open_address(address, wanted)
        return folder.open_address(address, limit=wanted.limit)
    path = locate(selector)
    source = _source_of(path)
    if source is None:
        raise InputError(
            f"{printable(path)}: not a recording; expected a folder of images, an image or a video, a bundle "
            "of Cap or Escribano's database (docs/guides/describe.md)"
        )
    return source.open_path(path, wanted)


def list_recordings(say: Say = _warn) -> list[RecordingListing]:
    """List what lies at the sources' own places and directly under SEEONCE_RECORDINGS, newest first.

    That folder itself counts when it is a recording. What a source cannot read is reported to `say`.

    Raises:
        InputError: SEEONCE_RECORDINGS names what is no folder, or one that cannot be listed.
    """
    found: dict[str, RecordingListing] = {}
    for source in SOURCES:
        found.update((listing.id, listing) for listing in source.listings(say))
    if place := os.environ.get("SEEONCE_RECORDINGS", ""):
        found.update((listing.id, listing) for listing in _under(place))
    return sorted(found.values(), key=lambda listing: (listing.captured_at, listing.id), reverse=True)


def latest_recording() -> RecordingListing | None:
    """Give the newest recording that is listed and whose frames are there, None when there is none.

    Raises:
        InputError: As `list_recordings`.
    """
    return next((listing for listing in list_recordings() if listing.is_there), None)


def _under(place: str) -> list[RecordingListing]:
    root = resolve(Path(place))
    try:
        children = [child for child in root.iterdir() if not child.name.startswith(".")]
    except OSError as error:
        raise InputError(
            f"SEEONCE_RECORDINGS={printable(place)}: cannot be listed ({error.strerror}); "
            "set it to the folder that holds your recordings"
        ) from error
    sources = ((path, _source_of(path)) for path in (root, *children))
    found = (source.listing(path) for path, source in sources if source is not None)
    return [listing for listing in found if listing is not None]


def _source_of(path: Path) -> Source | None:
    return next((source for source in SOURCES if source.holds(path)), None)


def _open_demo(limit: int | None) -> Recording:
    if not _DEMO.is_dir():
        raise InputError("the demo recording is not installed; reinstall seeonce")
    recording = folder.open_folder(_DEMO, limit=limit)
    info = replace(recording.info, id="demo", name="demo", kind="demo")
    return replace(recording, info=info, remarks=(), left_out=())


def locate(selector: str) -> Path:
    """Return the path of what `selector` means, but for `demo`: `latest`, a path, an id, its start, a name.

    Raises:
        InputError: There is no such recording, or several fit.
    """
    if selector == "latest":
        latest = latest_recording()
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
    return _match(selector, list_recordings()).path


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


def parse_since(text: str, now: datetime | None = None) -> datetime:
    """Read ``2d``, ``12h``, ``30m``, ``1w``, or a date or time in ISO 8601 (local unless it says).

    Raises:
        InputError: it is none of these.
    """
    try:
        if ago := _AGO.fullmatch(text.strip().lower()):
            return (now or datetime.now(UTC)) - timedelta(**{_UNITS[ago[2]]: float(ago[1])})
        return datetime.fromisoformat(text.strip()).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise InputError(
            f"--since is {text!r}; expected an age as in 2d, 12h, 30m or 1w, or a date as in 2026-11-20"
        ) from None


def is_since(captured_at: str, since: datetime) -> bool:
    """Tell whether a recording was made at or after a time; one of unknown time was not."""
    try:
        made = datetime.fromisoformat(captured_at)
    except ValueError:
        return False
    return (made if made.tzinfo else made.replace(tzinfo=UTC)) >= since


def known_recordings(home: Home, say: Say, since: str | None = None) -> list[RecordingListing]:
    """Return every recording that sources list or the store names, newest first.

    ``since`` leaves out what is older. What cannot be read is reported to ``say``.

    Raises:
        InputError: SEEONCE_RECORDINGS cannot be listed, or ``since`` is no time.
    """
    start = parse_since(since) if since is not None else None
    refs_of: dict[str, list[ManifestRef]] = {}
    for ref in list_manifests(home, say):
        refs_of.setdefault(ref.recording.id, []).append(ref)
    listings = {listing.id: listing for listing in list_recordings(say)}
    known = [_join(listings.get(id_), refs_of.get(id_, [])) for id_ in dict.fromkeys([*listings, *refs_of])]
    if start is not None:
        known = [recording for recording in known if is_since(recording.captured_at, start)]
    return sorted(known, key=lambda recording: recording.captured_at, reverse=True)


def _join(listing: RecordingListing | None, refs: list[ManifestRef]) -> RecordingListing:
    """Add the encodings of a recording; one that no source lists is as its manifest has it."""
    encodings = tuple(
        Encoding(
            encoder_id=ref.encoder_id.hex,
            num_encoded=ref.num_frames,
            num_skipped=ref.num_skipped,
            complete=ref.complete,
            compute_dtype=ref.encoder.compute_dtype,
            max_pixels=ref.encoder.preprocessing.max_pixels,
            created_at=ref.created_at,
        )
        for ref in refs
    )
    if listing is not None:
        listing = replace(listing, encodings=encodings)
        if refs and listing.num_frames is None:
            listing = replace(listing, num_frames=refs[0].recording.num_frames)
        return listing if listing.length_s is not None else replace(listing, length_s=_length_s(refs))
    info = refs[0].recording
    is_there = info.kind in ("demo", folder.LIST) or is_address(info.path) or os.path.exists(info.path)  # noqa: PTH110 (never raises)
    found = RecordingListing.of(info, Path(info.path), _length_s(refs), info.num_frames, is_there=is_there)
    return replace(found, encodings=encodings)


def _length_s(refs: list[ManifestRef]) -> float | None:
    """Return the time from the first frame that is encoded to the last; None where nobody knows times."""
    with suppress(StoreError, IndexError):
        frames = read_manifest(refs[0].path).frames
        if folder.has_times(refs[0].recording.kind, [frame.source for frame in frames]):
            return frames[-1].timestamp_s - frames[0].timestamp_s
    return None
