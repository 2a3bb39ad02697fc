"""Which recordings there are: those that sources find, and those of which only the store knows.

Owns joining the two for ``seeonce recordings`` and for ``latest``. Decodes and loads nothing.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from cache.home import Home
from cache.manifest import ManifestRef, list_manifests
from sources.selectors import latest_recording, list_recordings
from sources.since import is_since, parse_since
from sources.source import RecordingListing, Say


@dataclass(frozen=True, slots=True)
class Encoding:
    """How much of a recording is encoded under one encoder. ``created_at`` is ISO 8601."""

    encoder_id: str
    num_encoded: int
    num_skipped: int
    complete: bool
    compute_dtype: str
    max_pixels: int
    created_at: str


@dataclass(frozen=True, slots=True)
class KnownRecording:
    """A recording, and under which encoders it is encoded. ``length_s`` is in seconds.

    ``is_there`` is false when no frame of it can be read any more, as far as a listing tells.
    """

    id: str
    name: str
    kind: str
    path: str
    captured_at: str
    num_frames: int | None
    length_s: float | None
    encodings: tuple[Encoding, ...]
    is_there: bool = True


def known_recordings(
    home: Home, environ: Mapping[str, str], say: Say, since: str | None = None
) -> list[KnownRecording]:
    """Return every recording that sources list or the store names, newest first.

    ``since`` leaves out what is older (``sources.since``). What cannot be read is told to ``say``.

    Raises:
        InputError: SEEONCE_RECORDINGS cannot be listed, or ``since`` is no time.
    """
    start = parse_since(since) if since is not None else None
    refs_of: dict[str, list[ManifestRef]] = {}
    for ref in list_manifests(home, say) if home.store.is_dir() else []:
        refs_of.setdefault(ref.recording.id, []).append(ref)
    listings = {listing.id: listing for listing in list_recordings(environ, say)}
    known = [_join(listings.get(id_), refs_of.get(id_, [])) for id_ in dict.fromkeys([*listings, *refs_of])]
    if start is not None:
        known = [recording for recording in known if is_since(recording.captured_at, start)]
    return sorted(known, key=lambda recording: recording.captured_at, reverse=True)


def newest_listed_id(environ: Mapping[str, str]) -> str | None:
    """Return the id of the newest recording that sources list, ``None`` when there is none."""
    newest = latest_recording(environ)
    return newest.id if newest else None


def _join(listing: RecordingListing | None, refs: list[ManifestRef]) -> KnownRecording:
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
        return KnownRecording(
            id=listing.id,
            name=listing.name,
            kind=listing.kind,
            path=str(listing.path),
            captured_at=listing.captured_at,
            num_frames=listing.num_frames if listing.num_frames is not None else _frames_of(refs),
            length_s=listing.length_s,
            encodings=encodings,
            is_there=listing.is_there,
        )
    info = refs[0].recording
    return KnownRecording(
        id=info.id,
        name=info.name,
        kind=info.kind,
        path=info.path,
        captured_at=info.captured_at,
        num_frames=info.num_frames,
        length_s=None,
        encodings=encodings,
        is_there=info.kind in ("demo", "list") or os.path.exists(info.path),  # noqa: PTH110 (never raises)
    )


def _frames_of(refs: list[ManifestRef]) -> int | None:
    return refs[0].recording.num_frames if refs else None
