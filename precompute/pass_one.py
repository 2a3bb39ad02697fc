"""Pass one from names to a manifest: checkpoint, recording, a look at the cost, the pipeline.

Owns the order of these steps and what the user is told before the long one starts. The command line
and the Python API both call ``encode``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from cache.errors import InputError, StoreError
from cache.home import Home
from cache.key import EncoderSpec
from cache.leases import held_lease
from cache.limit import StoreLimit
from cache.pixel_index import PixelIndex
from cache.sizes import megabytes
from cache.store import Durability, Store
from cache.thumbs import Thumbnails
from checkpoint.config import CheckpointConfig, read_config
from checkpoint.folder import CheckpointFolder, default_model, find_folder
from checkpoint.identity import encoder_spec, lowest_vision_bits
from precompute.encode import Encoder, EncodeResult, Progress, encode_recording, new_pictures, plan
from precompute.leaving import leave_manifest
from precompute.selection import NotesToKeep, Wanted, open_wanted
from sources.near_duplicates import NearDuplicates, require_distance
from sources.recording import Frame, Recording

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
            from precompute.vision import VisionEncoder

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
    from precompute.estimate import estimate  # imports mlx-vlm, which takes seconds
    from precompute.vision import Preprocessor

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
