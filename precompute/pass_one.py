"""Pass one from names to a manifest: find the checkpoint and the recording, report the cost, encode."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cache.base.errors import InputError, StoreError
from cache.base.home import Home
from cache.base.text import counted, megabytes, printable
from cache.key import EncoderId, EncoderSpec
from cache.leases import held_lease, record_use
from cache.manifest import (
    Manifest,
    ManifestRef,
    RecordingInfo,
    list_manifests,
    manifest_path,
    matching_recording,
    read_manifest,
    write_manifest,
)
from cache.pixel_index import PixelIndex
from cache.stats import StoreLimit
from cache.store import Durability, Store
from cache.thumbnails import Thumbnails
from checkpoint.backend import memory_bytes
from checkpoint.config import CheckpointConfig, read_config
from checkpoint.folder import DEFAULT_MODEL, SMALL_MODEL, CheckpointFolder, find_folder
from checkpoint.identity import (
    encoder_spec,
    lowest_vision_bits,
    model_of,
    remember_model,
    with_max_pixels,
)
from precompute.encode import EncodeResult, Progress, encode_recording, new_pictures, not_encoded
from sources.folder import KIND as LIST
from sources.folder import is_image_path, open_list, reopen_list
from sources.near_duplicates import NearDuplicates, require_distance
from sources.recording import (
    DEFAULT_EVERY_S,
    DEFAULT_SCAN_EVERY_S,
    Frame,
    FrameChoice,
    OnScan,
    Recording,
)
from sources.recordings import (
    is_since,
    latest_recording,
    list_recordings,
    locate,
    open_recording,
    parse_since,
)

if TYPE_CHECKING:
    from precompute.encoder import VisionEncoder

_LEAST_VISION_BITS = 8
_PUT_BACK_S = 5.0
_LOOK_AGAIN_S = 0.05


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


class Listener(Protocol):
    """What pass one reports to."""

    def say(self, line: str) -> None:
        """Take one line for the user."""

    def scan_progress(self, num_s: float, length_s: float) -> None:
        """Take note of how far a video was scanned for pictures that differ, in seconds of the recording."""

    def progress(self, progress: Progress) -> None:
        """Take note of a finished frame."""


class PendingNotes:
    """Notes made before it is known whether there is anything to encode: a refusal leaves no store behind."""

    def __init__(self, home: Home) -> None:
        """Read from the index of ``home``, if it is there; write to it only in ``write``."""
        self._home = home
        self._made: dict[str, str] = {}

    def get_note(self, name: str) -> str | None:
        """Return the text last put under a name, or None."""
        if name in self._made or not self._home.store.is_dir():
            return self._made.get(name)
        with PixelIndex(self._home) as index:
            return index.get_note(name)

    def put_note(self, name: str, text: str) -> None:
        """Hold a small text until ``write``."""
        self._made[name] = text

    def write(self, index: PixelIndex) -> None:
        """Write down what was put."""
        for name, text in self._made.items():
            index.put_note(name, text)


def encode_each(
    home: Home, wanted: Sequence[EncodeOptions], listener: Listener
) -> Iterator[EncodeResult | InputError]:
    """Encode several recordings, one after the other, with one load of the encoder.

    One that is not found or cannot be read gives its error, and the rest goes on. An interruption ends all.

    Raises:
        InputError: the only one is not found or cannot be read.
        CheckpointError: the model is missing or not supported.
        StoreError: the disk is full, or the store cannot be written.
    """
    loaded: dict[EncoderId, VisionEncoder] = {}
    for options in wanted:
        try:
            result = encode(home, options, listener, loaded)
        except InputError as error:
            if len(wanted) == 1:
                raise
            yield error
            continue
        yield result
        if result.interrupted or result.stopped:
            return


def encode(
    home: Home,
    options: EncodeOptions,
    listener: Listener,
    loaded: "dict[EncoderId, VisionEncoder] | None" = None,
) -> EncodeResult:
    """Encode a recording into the store of ``home`` and write its manifest.

    The encoder is taken from ``loaded`` if it is there, else put there in the place of another.

    Raises:
        InputError: no such recording, or nothing in it can be read.
        CheckpointError: the model is missing or not supported.
        StoreError: the disk is full, or the store cannot be written.
    """
    if options.near_duplicates is not None:
        require_distance(options.near_duplicates)
    frame_choice(options).require_sound()
    if options.scene_change is not None:
        listener.say("Looking for pictures that differ, which decodes a video that is new.")
    notes = PendingNotes(home)
    known = list_manifests(home) if home.store.is_dir() else []
    recording = open_named(known, options, notes, listener)
    earlier = [ref.encoder for ref in known if ref.recording.id == recording.info.id]
    model = options.model or model_of(home, recording.info.id, earlier[0].encoder_id if earlier else None)
    if model in (DEFAULT_MODEL, SMALL_MODEL) and not earlier and not options.model:
        listener.say(
            f"{model} is the default with {memory_bytes() / 1e9:.0f} GB of memory; --model or SEEONCE_MODEL "
            "names another."
        )
    folder = find_folder(model, listener.say)
    config = read_config(folder.path)
    store = Store.open(home, durability=options.durability)
    store.sweep_tmp()
    for warning in (*home.warnings(), *recording.remarks):
        listener.say(f"warning: {warning}")
    with held_lease(store, f"encode {recording.info.id}"), PixelIndex(home) as index:
        notes.write(index)
        spec = encoder_spec(folder, config, index, options.max_pixels)
        if options.max_pixels is None:
            spec = _with_pixels_of(earlier, spec, listener.say)
        remember_model(index, spec.encoder_id, model, folder)
        load = partial(_encoder, folder, config, spec, {} if loaded is None else loaded)
        try:
            result = _encode(recording, options, spec, store, index, load, listener)
        finally:
            recording.close()
        write_result(store, result, listener.say)
    return result


def _with_pixels_of(
    earlier: Sequence[EncoderSpec], spec: EncoderSpec, say: Callable[[str], None]
) -> EncoderSpec:
    """Lower the size of frames to that which the newest of the earlier encoders with these weights had."""
    sizes = (one.preprocessing.max_pixels for one in earlier if one.weights == spec.weights)
    max_pixels = next(sizes, spec.preprocessing.max_pixels)
    if max_pixels >= spec.preprocessing.max_pixels:
        return spec
    say(f"Using --max-pixels {max_pixels} as before; pass another value to change it.")
    return with_max_pixels(spec, max_pixels)


def _encoder(
    folder: CheckpointFolder,
    config: CheckpointConfig,
    spec: EncoderSpec,
    loaded: "dict[EncoderId, VisionEncoder]",
) -> "VisionEncoder":
    from precompute.encoder import VisionEncoder

    if spec.encoder_id not in loaded:
        loaded.clear()  # never two at once
        loaded[spec.encoder_id] = VisionEncoder(folder, config, spec)
    return loaded[spec.encoder_id]


def _encode(
    recording: Recording,
    options: EncodeOptions,
    spec: EncoderSpec,
    store: Store,
    index: PixelIndex,
    load: "Callable[[], VisionEncoder]",
    listener: Listener,
) -> EncodeResult:
    name, frames = recording.info.id, recording.frames()
    near = None
    if options.near_duplicates is not None:
        near = NearDuplicates(options.near_duplicates, frames, index)
    thumbnails = Thumbnails(store.home) if options.thumbnails else None
    limit = StoreLimit.of(store)
    others = not_encoded(
        [frame for frame in frames if near is None or frame.index not in near.likely], spec, store, index
    )
    if others:
        _report_cost(others, name, spec, store, index, limit, listener.say)
    else:
        are = "the frame is" if len(frames) == 1 else f"all {len(frames)} frames are"
        listener.say(f"{name}: {are} encoded already; nothing to do.")
    result = encode_recording(recording, spec, store, index, load, listener.progress, thumbnails, limit, near)
    if thumbnails is not None and thumbnails.problem is not None:
        listener.say(f"warning: no thumbnails, so reports lack pictures: {thumbnails.problem}")
    return result


def _report_cost(
    others: Sequence[Frame],
    name: str,
    spec: EncoderSpec,
    store: Store,
    index: PixelIndex,
    limit: StoreLimit,
    say: Callable[[str], None],
) -> None:
    """Say what the frames will cost, and refuse what the disk or the limit of the store cannot hold.

    Frames that were moved or repeat themselves have entries already: before a refusal they are looked at.
    """
    from precompute.encoder import estimate

    bits = lowest_vision_bits(spec)
    if bits is not None and bits < _LEAST_VISION_BITS:
        say(
            f"warning: the vision tower is quantised to {bits} bits, which destroys small text; prefer a "
            "checkpoint with an unquantised or 8-bit vision tower"
        )
    cost = estimate(others, spec)
    say(f"{name}: {cost}")
    if cost.num_huge:
        say(f"warning: larger than any screen, and shrunk for the model: {cost.num_huge} of these pictures")
    if cost.num_animated:
        say(f"warning: animated or of several pages, the first is taken: {cost.num_animated} of these files")
    if store.free_bytes() < cost.num_bytes or not limit.fits(cost.num_bytes, cost.num_frames):
        say("The store may not hold that: looking which of these pictures are new.")
        cost = estimate(list(new_pictures(others, spec, store, index)), spec)
    if (free := store.free_bytes()) < cost.num_bytes:
        raise StoreError(
            f"Encoding needs up to {megabytes(cost.num_bytes)}, {megabytes(free)} are free in {store.path}: "
            "free space, lower --max-pixels or --limit, or set SEEONCE_HOME to another disk."
        )
    limit.require(cost.num_bytes, cost.num_frames)


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
    images = tuple(Path(path) for path in listed if is_image_path(path))
    names = [name for name in selectors if name != "-"]
    each = [replace(options, recording=name) for name in dict.fromkeys([*names, *others])]
    return [*each, *([replace(options, images=images)] if images else [])] or [options]


def frame_choice(
    options: EncodeOptions,
    earlier: RecordingInfo | None = None,
    notes: PendingNotes | None = None,
    on_scan: OnScan | None = None,
) -> FrameChoice:
    """Return the frames that are asked for, of a video as they were chosen before where nothing is said.

    A limit stays for a recording that is named by its id; for a path it is for one time (``_named``).
    """
    every_s, scene_change = options.every_s, options.scene_change
    # A step of seconds between frames says nothing of how often to look for pictures that differ.
    if earlier is not None and (scene_change is None or earlier.scene_change is not None):
        every_s = earlier.every_s if every_s is None else every_s
        scene_change = earlier.scene_change if scene_change is None else scene_change
    if every_s is None:
        every_s = DEFAULT_EVERY_S if scene_change is None else DEFAULT_SCAN_EVERY_S
    return FrameChoice(every_s, options.limit, scene_change, notes, on_scan)


def open_named(
    known: Sequence[ManifestRef], options: EncodeOptions, notes: PendingNotes, listener: Listener
) -> Recording:
    """Open the recording of ``options``: as the newest of its manifests has it, where nothing else is said.

    Raises:
        InputError: no such recording, or it cannot be read.
    """
    if options.images:
        choice = frame_choice(options)
        choice.require_sound()
        return open_list(options.images, limit=choice.limit)
    path, earlier, is_id = _named(known, options.recording)
    if earlier is None:
        return open_recording(path, frame_choice(options, None, notes, listener.scan_progress))
    info = earlier.recording
    if is_id and options.limit is None:
        options = replace(options, limit=info.limit)
    choice = frame_choice(options, info, notes, listener.scan_progress)
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
    if selector == "latest" and known and latest_recording(os.environ) is None:
        selector = known[0].recording.id
    is_name = selector not in ("latest", "") and not os.path.lexists(selector)
    if is_name and (earlier := _earlier(known, selector)) is not None:
        return earlier.recording.path, earlier, True
    path = locate(selector, os.environ)
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
    found = [listing for listing in list_recordings(os.environ) if is_since(listing.captured_at, since)]
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


def write_result(store: Store, result: EncodeResult, say: Callable[[str], None]) -> None:
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
    earlier = _earlier_manifest(store, manifest)
    if earlier is not None and len(earlier.frames) > len(manifest.frames):
        if cut_short or _is_part_of(manifest, earlier):
            say(f"The manifest of {len(earlier.frames)} frames stays: it names more than these.")
            return
        say(
            f"A manifest of {len(manifest.frames)} frames replaces one of {len(earlier.frames)}: "
            "the recording or the selection has changed."
        )
    elif earlier is not None and (num_other := _num_other(manifest, earlier)):
        say(
            f"{num_other} of the {len(earlier.frames)} frames that were encoded before are others now: "
            "the recording, the selection or the way in which pictures are read has changed."
        )
    write_manifest(store.home, manifest, store.durability)
    _require_entries(store, manifest)


def _earlier_manifest(store: Store, manifest: Manifest) -> Manifest | None:
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


def _num_other(manifest: Manifest, earlier: Manifest) -> int:
    """Count the frames of an earlier manifest that this one has no more."""
    there = {(frame.source, frame.key) for frame in manifest.frames}
    return sum((frame.source, frame.key) not in there for frame in earlier.frames)


def _require_entries(store: Store, manifest: Manifest) -> None:
    """Look once more whether all entries are there, now that a collection would see the manifest.

    A collection that took one of them a moment before puts it back when it sees the manifest.
    """
    gone = taken = {frame.key for frame in manifest.frames if not store.exists(frame.key)}
    until_s = time.monotonic() + _PUT_BACK_S
    while gone := {key for key in gone if not store.exists(key)}:
        if time.monotonic() > until_s:
            raise StoreError(
                f"{counted(len(gone), 'entry')} of {manifest.recording.id} "
                f"{'was' if len(gone) == 1 else 'were'} removed while it was encoded: "
                "run the same command again"
            )
        time.sleep(_LOOK_AGAIN_S)
    store.make_durable(taken)
