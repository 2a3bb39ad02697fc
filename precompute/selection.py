"""Which recordings the words of ``seeonce encode`` mean, and opening one again as it was.

Owns the step from selectors, a list on standard input and ``--since`` to recordings, and the way back
from a manifest to its frames. Sources do the finding (``sources.selectors``).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cache.errors import InputError
from cache.home import Home
from cache.manifest import Manifest, ManifestRef, RecordingInfo, list_manifests, read_manifest
from cache.pixel_index import PixelIndex
from sources.path_list import KIND as LIST
from sources.path_list import is_image_path, open_list, reopen_list
from sources.recording import Recording
from sources.selectors import latest_recording, list_recordings, open_recording
from sources.since import is_since, parse_since
from sources.source import DEFAULT_EVERY_S, DEFAULT_LOOK_S, FrameChoice, Looked, Notes
from sources.video import VideoRecording


class NotesToKeep:
    """Notes made before it is known whether there is anything to encode: a refusal leaves no store behind."""

    def __init__(self, home: Home) -> None:
        """Read from the index of ``home``, if it is there; write to it only in ``keep``."""
        self._home = home
        self._made: dict[str, str] = {}

    def get_note(self, name: str) -> str | None:
        """Return the text last put under a name, or None."""
        if name in self._made or not self._home.store.is_dir():
            return self._made.get(name)
        with PixelIndex(self._home) as index:
            return index.get_note(name)

    def put_note(self, name: str, text: str) -> None:
        """Hold a small text until ``keep``."""
        self._made[name] = text

    def keep(self, index: PixelIndex) -> None:
        """Write down what was put."""
        for name, text in self._made.items():
            index.put_note(name, text)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One recording as it was asked for: a selector, or images that together are one.

    ``every_s``, ``limit`` and ``scene_change`` are None where nothing was said: then they are as before,
    or the default.
    """

    selector: str = "latest"
    images: tuple[Path, ...] = ()
    every_s: float | None = None
    limit: int | None = None
    scene_change: float | None = None
    notes: Notes | None = None
    looked: Looked | None = None

    def choice(self, earlier: RecordingInfo | None = None) -> FrameChoice:
        """Give the frames that are wanted, with earlier values where nothing was said."""
        every_s, limit, scene_change = self.every_s, self.limit, self.scene_change
        if earlier is not None:
            every_s = earlier.every_s if every_s is None else every_s
            limit = earlier.limit if limit is None else limit
            scene_change = earlier.scene_change if scene_change is None else scene_change
        if every_s is None:
            every_s = DEFAULT_EVERY_S if scene_change is None else DEFAULT_LOOK_S
        return FrameChoice(every_s, limit, scene_change, self.notes, self.looked)


def wanted_of(selectors: Sequence[str], listed: Sequence[str], since: str | None) -> list[Wanted]:
    """Return what a command line asks for: selectors, paths piped in for ``-``, or all since a time.

    Raises:
        InputError: ``--since`` together with names, nothing since then, or an empty list.
    """
    if since is not None:
        if selectors:
            raise InputError("--since chooses by date: leave RECORDING out, or leave --since out")
        return [Wanted(selector) for selector in _since(since)]
    if "-" in selectors and not listed:
        raise InputError("- reads paths from standard input, and there was none: pipe them in, one a line")
    others = [path for path in listed if not is_image_path(path)]
    images = tuple(Path(path) for path in listed if is_image_path(path))
    names = [name for name in selectors if name != "-"]
    wanted = [Wanted(name) for name in dict.fromkeys([*names, *others])]
    return [*wanted, *([Wanted(images=images)] if images else [])] or [Wanted()]


def open_wanted(home: Home, wanted: Wanted) -> Recording:
    """Open a recording by what sources know, else as an earlier manifest remembers it.

    Raises:
        InputError: no such recording, or it cannot be read.
    """
    if wanted.images:
        choice = wanted.choice()
        choice.require_sound()
        return open_list(wanted.images, limit=choice.limit)
    selector = wanted.selector
    known = list_manifests(home) if home.store.is_dir() else []
    if selector == "latest":
        if (latest := latest_recording(os.environ)) is not None:
            return open_recording(str(latest.path), wanted.choice())
        selector = known[0].recording.id if known else selector
    earlier = None
    if selector not in ("demo", "latest", "") and not Path(selector).exists():
        earlier = _earlier(known, selector)
    if earlier is None:
        return open_recording(selector, wanted.choice())
    # Named by its id: the same frames as before, unless the options say otherwise.
    info = earlier.recording
    choice = wanted.choice(info)
    if info.kind == LIST:
        if not earlier.complete:
            raise InputError(f"{info.id} was interrupted, and its list is not known: pipe it in again")
        return _list_again(read_manifest(earlier.path), choice)
    return open_recording(info.path, choice)


def reopen(manifest: Manifest) -> Recording:
    """Open the recording of a manifest again, the same frames of it.

    Raises:
        InputError: it is gone or cannot be read.
    """
    info: RecordingInfo = manifest.recording
    choice = Wanted().choice(info)
    if choice.scene_change is not None:
        return _changes_again(manifest, choice)
    if info.kind == LIST:
        return _list_again(manifest, choice)
    return open_recording("demo" if info.kind == "demo" else info.path, choice)


def _since(text: str) -> list[str]:
    since = parse_since(text)
    found = [listing for listing in list_recordings(os.environ) if is_since(listing.captured_at, since)]
    there = [listing.id for listing in found if listing.is_there]
    if not there:
        raise InputError(f"No recording since {text}: see what there is with seeonce recordings")
    return there


def _changes_again(manifest: Manifest, choice: FrameChoice) -> Recording:
    """Find scene changes without decoding: they are among the pictures that were looked at."""
    looked_at = open_recording(manifest.recording.path, replace(choice, scene_change=None, limit=None))
    taken = {frame.source for frame in manifest.frames} | {frame.source for frame in manifest.skipped}
    return looked_at.only(frozenset(taken)) if isinstance(looked_at, VideoRecording) else looked_at


def _list_again(manifest: Manifest, choice: FrameChoice) -> Recording:
    named = {frame.index: (frame.index, frame.timestamp_s, frame.source) for frame in manifest.frames}
    named |= {frame.index: (frame.index, frame.timestamp_s, frame.source) for frame in manifest.skipped}
    info = replace(manifest.recording, limit=choice.limit)
    return reopen_list(info, [named[index] for index in sorted(named)][: choice.limit])


def _earlier(known: list[ManifestRef], selector: str) -> ManifestRef | None:
    """Return the newest manifest whose recording's id is, or alone begins with, ``selector``."""
    refs = {ref.recording.id: ref for ref in reversed(known) if ref.recording.kind != "demo"}
    if selector in refs:
        return refs[selector]
    fits = [ref for id_, ref in refs.items() if id_.startswith(selector)]
    return fits[0] if len(fits) == 1 else None
