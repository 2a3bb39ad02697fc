"""What to encode: the options of ``seeonce encode``, and the recording and the frames that they mean."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cache.base.errors import InputError
from cache.base.listener import Listener
from cache.base.text import printable
from cache.manifest import Manifest, ManifestRef, RecordingInfo, matching_recording, read_manifest
from cache.objects import check_address, is_address
from cache.store import Durability
from sources.folder import LIST, is_image_path, open_list, reopen_list
from sources.recording import DEFAULT_EVERY_S, DEFAULT_SCAN_EVERY_S, FrameChoice, PendingNotes, Recording
from sources.recordings import (
    is_since,
    latest_recording,
    list_recordings,
    locate,
    open_recording,
    parse_since,
)


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """What to encode and how: the options of ``seeonce encode``.

    ``images``, if given, are together one recording, and ``recording`` is not looked at. A frame whose
    perceptual hash is within ``near_duplicates`` bits of the last kept one uses that one's entry.
    """

    recording: str = "latest"
    model: str | None = None
    max_pixels: int | None = None
    every_s: float | None = None
    limit: int | None = None
    durability: Durability = Durability.batch
    images: tuple[Path | str, ...] = ()
    thumbnails: bool = True
    scene_change: float | None = None
    near_duplicates: int | None = None


def options_of_each(
    options: EncodeOptions, selectors: Sequence[str], listed: Sequence[str], since: str | None
) -> list[EncodeOptions]:
    """Return the options for each recording: selectors, paths piped in for ``-``, or all since a time.

    Raises:
        InputError: ``--since`` together with names, nothing since then, or an empty list.
    """
    if since is not None:
        if selectors:
            raise InputError("--since chooses by date: leave RECORDING out, or leave --since out")
        return [replace(options, recording=name) for name in _since(since)]
    if "-" in selectors and not listed:
        raise InputError("- reads paths from standard input, and there was none: pipe them in, one a line")
    others = [path for path in listed if not is_image_path(path)]
    images = tuple(path if is_address(path) else Path(path) for path in listed if is_image_path(path))
    names = [name for name in selectors if name != "-"]
    each = [replace(options, recording=name) for name in dict.fromkeys([*names, *others])]
    return [*each, *([replace(options, images=images)] if images else [])] or [options]


def frame_choice(
    options: EncodeOptions,
    earlier: RecordingInfo | None = None,
    notes: PendingNotes | None = None,
    listener: Listener | None = None,
) -> FrameChoice:
    """Return which frames are asked for; what ``options`` leave open is as it was in ``earlier``."""
    every_s, scene_change = options.every_s, options.scene_change
    # A step of seconds between frames says nothing of how often to look for pictures that differ.
    if earlier is not None and (scene_change is None or earlier.scene_change is not None):
        every_s = earlier.every_s if every_s is None else every_s
        scene_change = earlier.scene_change if scene_change is None else scene_change
    if every_s is None:
        every_s = DEFAULT_EVERY_S if scene_change is None else DEFAULT_SCAN_EVERY_S
    return FrameChoice(every_s, options.limit, scene_change, notes, listener)


def open_named(
    known: Sequence[ManifestRef], options: EncodeOptions, notes: PendingNotes, listener: Listener
) -> Recording:
    """Open the recording of ``options``: as the newest of its manifests has it, where nothing else is said.

    An earlier limit holds again only for a recording named by its id.

    Raises:
        InputError: no such recording, or it cannot be read.
    """
    if options.images:
        choice = frame_choice(options)
        choice.require_sound()
        return open_list(options.images, limit=choice.limit)
    path, earlier, is_id = _named(known, options.recording)
    if earlier is None:
        return open_recording(path, frame_choice(options, None, notes, listener))
    info = earlier.recording
    if is_id and options.limit is None:
        options = replace(options, limit=info.limit)
    choice = frame_choice(options, info, notes, listener)
    if info.kind == LIST:
        if not earlier.complete:
            raise InputError(f"{info.id} was interrupted, and its list is not known: pipe it in again")
        return _list_again(read_manifest(earlier.path), choice)
    if words := _as_before(options, choice, frame_choice(options)):
        listener.say(f"Using {words} as before; pass another value to change it.")
    return open_recording(path, choice)


def _named(known: Sequence[ManifestRef], selector: str) -> tuple[str, ManifestRef | None, bool]:
    """Return the path of what ``selector`` means, its newest manifest if there is one, and if it is an id."""
    if selector == "demo":
        return selector, None, False
    if selector == "latest" and known and latest_recording() is None:
        selector = known[0].recording.id
    if is_address(selector):
        place = check_address(selector)
        return place, next((ref for ref in known if ref.recording.path == place), None), False
    is_name = selector not in ("latest", "") and not os.path.lexists(selector)
    if is_name and (earlier := _earlier(known, selector)) is not None:
        return earlier.recording.path, earlier, True
    path = locate(selector)
    place = printable(path)
    return str(path), next((ref for ref in known if ref.recording.path == place), None), False


def _as_before(options: EncodeOptions, choice: FrameChoice, default: FrameChoice) -> str:
    """Write the options of a video that nobody gave this time and that are not the default ones."""
    words = []
    if options.every_s is None and choice.every_s != default.every_s:
        words.append(f"--every {choice.every_s:g}")
    if options.scene_change is None and choice.scene_change is not None:
        words.append(f"--scene-change {choice.scene_change:g}")
    return " ".join(words)


def reopen(manifest: Manifest) -> Recording:
    """Open the recording of a manifest again, the same frames of it.

    Raises:
        InputError: it is gone or cannot be read.
    """
    info: RecordingInfo = manifest.recording
    choice = frame_choice(EncodeOptions(limit=info.limit), info)
    if info.kind == LIST:
        return _list_again(manifest, choice)
    if info.every_s is not None and (manifest.complete or choice.scene_change is not None):
        # Of a video these very pictures, by whatever rule they were chosen, and without decoding for it.
        sources = {frame.source for frame in manifest.frames} | {frame.source for frame in manifest.skipped}
        choice = replace(choice, only=frozenset(sources), scene_change=None, limit=None)
    return open_recording("demo" if info.kind == "demo" else info.path, choice)


def _since(text: str) -> list[str]:
    since = parse_since(text)
    found = [listing for listing in list_recordings() if is_since(listing.captured_at, since)]
    there = [listing.id for listing in found if listing.is_there]
    if not there:
        raise InputError(f"No recording since {text}: see what there is with seeonce recordings")
    return there


def _list_again(manifest: Manifest, choice: FrameChoice) -> Recording:
    named = {frame.index: (frame.index, frame.timestamp_s, frame.source) for frame in manifest.frames}
    named |= {frame.index: (frame.index, frame.timestamp_s, frame.source) for frame in manifest.skipped}
    info = replace(manifest.recording, limit=choice.limit)
    return reopen_list(info, [named[index] for index in sorted(named)][: choice.limit])


def _earlier(known: Sequence[ManifestRef], selector: str) -> ManifestRef | None:
    """Return the newest manifest of the only recording whose id is, or begins with, ``selector``."""
    refs = [ref for ref in known if ref.recording.kind != "demo"]
    found = None
    with suppress(InputError):  # of several that fit, sources may list one
        found = matching_recording(selector, (ref.recording for ref in refs))
    if found is None or not found.startswith(selector):  # a newer recording may have that name: sources say
        return None
    return next(ref for ref in refs if ref.recording.id == found)
