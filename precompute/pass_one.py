"""Pass one from names to a manifest: checkpoint, recording, a look at the cost, the pipeline.

Owns the order of these steps and what the user is told before the long one starts. The command line
and the Python API both call ``encode``.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from cache.base.errors import InputError, StoreError
from cache.base.home import Home
from cache.base.text import megabytes
from cache.key import EncoderSpec
from cache.leases import held_lease, record_use
from cache.manifest import (
    Manifest,
    ManifestRef,
    RecordingInfo,
    list_manifests,
    manifest_path,
    read_manifest,
    write_manifest,
)
from cache.pixel_index import PixelIndex
from cache.stats import StoreLimit
from cache.store import Durability, Store
from cache.thumbnails import Thumbnails
from checkpoint.config import CheckpointConfig, read_config
from checkpoint.folder import CheckpointFolder, default_model, find_folder
from checkpoint.identity import encoder_spec, lowest_vision_bits
from precompute.encode import Encoder, EncodeResult, Progress, encode_recording, new_pictures, plan
from sources.folder import KIND as LIST
from sources.folder import is_image_path, open_list, reopen_list
from sources.near_duplicates import NearDuplicates, require_distance
from sources.recording import DEFAULT_EVERY_S, DEFAULT_LOOK_S, Frame, FrameChoice, Looked, Notes, Recording
from sources.recordings import is_since, latest_recording, list_recordings, open_recording, parse_since
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


_PUT_BACK_S = 5.0
_LOOK_AGAIN_S = 0.05


def leave_manifest(store: Store, result: EncodeResult, say: Callable[[str], None]) -> None:
    """Write the manifest of a run, unless the one that is there names all of it and more.

    Raises:
        InputError: no frame could be read.
        StoreError: the disk refuses, or entries went away meanwhile.
    """
    manifest, progress = result.manifest, result.progress
    record_use(
        store, "encode", manifest.recording.id, progress.num_hits, progress.num_new, progress.num_bytes
    )
    cut_short = result.interrupted or bool(result.stopped)
    if not manifest.frames:
        if not cut_short:
            raise InputError(f"No frame of {manifest.recording.id} can be read: {manifest.skipped[0].reason}")
        return
    earlier = _leaving_earlier(store, manifest)
    if earlier is not None and len(earlier.frames) > len(manifest.frames):
        if cut_short or _is_part_of(manifest, earlier):
            say(f"The manifest of {len(earlier.frames)} frames stays: it names more than these.")
            return
        say(
            f"A manifest of {len(manifest.frames)} frames replaces one of {len(earlier.frames)}: "
            "the recording or the selection has changed."
        )
    write_manifest(store.home, manifest, store.durability)
    _require_entries(store, manifest)


def _leaving_earlier(store: Store, manifest: Manifest) -> Manifest | None:
    path = manifest_path(store.home, manifest.recording.id, manifest.encoder.encoder_id)
    try:
        return read_manifest(path) if path.exists() else None
    except StoreError:  # damaged: what it named nobody knows, and it is replaced
        return None


def _is_part_of(manifest: Manifest, earlier: Manifest) -> bool:
    """Say whether ``--limit`` alone made a manifest shorter: the same frames, only fewer."""
    known = {(frame.index, frame.source, frame.key) for frame in earlier.frames}
    same = all((frame.index, frame.source, frame.key) in known for frame in manifest.frames)
    return same and manifest.recording.limit is not None


def _require_entries(store: Store, manifest: Manifest) -> None:
    """Look once more whether all entries are there, now that a collection would see the manifest.

    A collection that took one of them a moment before puts it back when it sees the manifest.
    """
    gone = taken = {frame.key for frame in manifest.frames if not store.is_there(frame.key)}
    until_s = time.monotonic() + _PUT_BACK_S
    while gone := {key for key in gone if not store.is_there(key)}:
        if time.monotonic() > until_s:
            raise StoreError(
                f"{len(gone)} entries of {manifest.recording.id} were removed while it was encoded: "
                "run the same command again"
            )
        time.sleep(_LOOK_AGAIN_S)
    store.make_durable(taken)


_LEAST_VISION_BITS = 8


class Listener(Protocol):
    """Who is told how pass one goes."""

    def say(self, line: str) -> None:
        """Take one line for the user."""

    def looked(self, num_s: float, length_s: float) -> None:
        """Take note of how far the look for pictures that differ is, in seconds of the recording."""

    def progress(self, progress: Progress) -> None:
        """Take note of a finished frame."""


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
    images: tuple[Path, ...] = ()
    thumbnails: bool = True
    scene_change: float | None = None
    near_duplicates: int | None = None


@dataclass(frozen=True, slots=True)
class _Encoder:
    """The encoder that was asked for, not yet loaded."""

    folder: CheckpointFolder
    config: CheckpointConfig
    spec: EncoderSpec


class _Loaded:
    """The vision encoder that was used last, kept for the next recording; never two at once."""

    def __init__(self) -> None:
        self._what: _Encoder | None = None
        self._encoder: Encoder | None = None

    def get(self, what: _Encoder) -> Encoder:
        if self._encoder is None or self._what != what:
            from precompute.encoder import VisionEncoder

            self._encoder = None
            self._encoder = VisionEncoder(what.folder, what.config, what.spec)
            self._what = what
        return self._encoder


@dataclass(frozen=True, slots=True)
class Refusal:
    """A recording among several that could not be encoded, and why."""

    recording: str
    reason: str


def encode_each(
    home: Home, wanted: Sequence[Wanted], options: EncodeOptions, listener: Listener
) -> Iterator[EncodeResult | Refusal]:
    """Encode several recordings, one after the other, with one load of the encoder.

    One that is not found or cannot be read is refused, and the rest goes on. An interruption ends all.

    Raises:
        InputError: the only one is not found or cannot be read.
        CheckpointError: the model is missing or not supported.
        StoreError: the disk is full, or the store cannot be written.
    """
    loaded = _Loaded()
    for one in wanted:
        try:
            result = encode(
                home, replace(options, recording=one.selector, images=one.images), listener, loaded
            )
        except InputError as error:
            if len(wanted) == 1:
                raise
            yield Refusal(one.selector, str(error))
            continue
        yield result
        if result.interrupted or result.stopped:
            return


def encode(
    home: Home, options: EncodeOptions, listener: Listener, loaded: _Loaded | None = None
) -> EncodeResult:
    """Encode a recording into the store of ``home`` and write its manifest.

    Raises:
        InputError: no such recording, or nothing in it can be read.
        CheckpointError: the model is missing or not supported.
        StoreError: the disk is full, or the store cannot be written.
    """
    if options.near_duplicates is not None:
        require_distance(options.near_duplicates)
    notes = NotesToKeep(home)
    recording = _open(home, options, notes, listener)
    folder = find_folder(options.model or default_model(recording.info.id), listener.say)
    config = read_config(folder.path)
    store = Store.open(home, durability=options.durability)
    store.sweep_tmp()
    for warning in home.warnings():
        listener.say(f"warning: {warning}")
    with held_lease(store, f"encode {recording.info.id}"), PixelIndex(home) as index:
        notes.keep(index)
        encoder = _Encoder(folder, config, encoder_spec(folder, config, index, options.max_pixels))
        try:
            thumbnails = Thumbnails(home) if options.thumbnails else None
            near = _near(recording, options, index)
            result = _encode(
                recording, encoder, store, index, listener, loaded or _Loaded(), thumbnails, near
            )
        finally:
            recording.close()
        leave_manifest(store, result, listener.say)
    return result


def _open(home: Home, options: EncodeOptions, notes: NotesToKeep, listener: Listener) -> Recording:
    """Open the recording; with a scene change its pictures are looked at, unless they were before."""
    wanted = Wanted(
        options.recording,
        options.images,
        options.every_s,
        options.limit,
        options.scene_change,
        notes,
        listener.looked,
    )
    wanted.choice().require_sound()
    if options.scene_change is not None:
        listener.say("Looking for pictures that differ, which decodes a video that is new.")
    return open_wanted(home, wanted)


def _near(recording: Recording, options: EncodeOptions, index: PixelIndex) -> NearDuplicates | None:
    if options.near_duplicates is None:
        return None
    return NearDuplicates(options.near_duplicates, recording.frames(), index)


def _encode(
    recording: Recording,
    encoder: _Encoder,
    store: Store,
    index: PixelIndex,
    listener: Listener,
    loaded: _Loaded,
    thumbnails: Thumbnails | None,
    near: NearDuplicates | None,
) -> EncodeResult:
    for remark in recording.remarks:
        listener.say(f"warning: {remark}")
    frames = recording.frames()
    limit = StoreLimit.of(store)
    kept = [frame for frame in frames if near is None or frame.index not in near.likely]
    others = plan(kept, encoder.spec, store, index).others
    if others:
        _prepare_for(others, recording, encoder, store, index, listener, limit)
    else:
        listener.say(f"{recording.info.id}: all {len(frames)} frames are encoded already; nothing to do.")
    result = encode_recording(
        recording,
        encoder.spec,
        store,
        index,
        lambda: loaded.get(encoder),
        listener.progress,
        thumbnails,
        limit,
        near,
    )
    if thumbnails is not None and thumbnails.problem is not None:
        listener.say(f"warning: no thumbnails, so reports lack pictures: {thumbnails.problem}")
    return result


def _prepare_for(
    others: Sequence[Frame],
    recording: Recording,
    encoder: _Encoder,
    store: Store,
    index: PixelIndex,
    listener: Listener,
    limit: StoreLimit,
) -> None:
    """Say what the frames will cost, and refuse what the disk or the limit of the store cannot hold.

    Frames that were moved or repeat themselves have entries already: before a refusal they are looked at.
    """
    from precompute.encoder import (
        Preprocessor,
        estimate,  # imports mlx-vlm, which takes seconds
    )

    bits = lowest_vision_bits(encoder.spec)
    if bits is not None and bits < _LEAST_VISION_BITS:
        listener.say(
            f"warning: the vision tower is quantised to {bits} bits, which destroys small text; prefer a "
            "checkpoint with an unquantised or 8-bit vision tower"
        )
    preprocessor = Preprocessor(encoder.folder, encoder.config, encoder.spec)
    cost = estimate(others, encoder.spec, preprocessor)
    listener.say(f"{recording.info.id}: {cost}")
    if store.free_bytes() < cost.num_bytes or not limit.fits(cost.num_bytes, cost.num_frames):
        listener.say("The store may not hold that: looking which of these pictures are new.")
        cost = estimate(list(new_pictures(others, encoder.spec, store, index)), encoder.spec, preprocessor)
    if (free := store.free_bytes()) < cost.num_bytes:
        raise StoreError(
            f"Encoding needs up to {megabytes(cost.num_bytes)}, {megabytes(free)} are free in {store.path}: "
            "free space, lower --max-pixels or --limit, or set SEEONCE_HOME to another disk."
        )
    limit.require(cost.num_bytes, cost.num_frames)
