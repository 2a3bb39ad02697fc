"""Pass one from names to a manifest: checkpoint, recording, a look at the cost, the pipeline.

Owns the order of these steps and what the user is told before the long one starts. The command line
and the Python API both call ``encode``.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cache.errors import InputError, StoreError
from cache.home import Home
from cache.key import EncoderSpec
from cache.manifest import Manifest, ManifestRef, RecordingInfo, list_manifests, manifest_path, write_manifest
from cache.pixel_index import PixelIndex
from cache.sizes import megabytes
from cache.store import Durability, Store
from checkpoint.config import CheckpointConfig, read_config
from checkpoint.folder import CheckpointFolder, default_model, find_folder
from checkpoint.identity import encoder_spec, lowest_vision_bits
from precompute.encode import Encoder, EncodeResult, Progress, encode_recording, new_pictures, plan
from sources.recording import Frame, Recording
from sources.selectors import DEFAULT_EVERY_S, open_recording

_LEAST_VISION_BITS = 8


class Listener(Protocol):
    """Who is told how pass one goes."""

    def say(self, line: str) -> None:
        """Take one line for the user."""

    def progress(self, progress: Progress) -> None:
        """Take note of a finished frame."""


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """What to encode and how: the options of ``seeonce encode``."""

    recording: str = "latest"
    model: str | None = None
    max_pixels: int | None = None
    every_s: float | None = None
    limit: int | None = None
    durability: Durability = Durability.batch


@dataclass(frozen=True, slots=True)
class _Encoder:
    """The encoder that was asked for, not yet loaded."""

    folder: CheckpointFolder
    config: CheckpointConfig
    spec: EncoderSpec


def encode(home: Home, options: EncodeOptions, listener: Listener) -> EncodeResult:
    """Encode a recording into the store of ``home`` and write its manifest.

    Raises:
        InputError: no such recording, or nothing in it can be read.
        CheckpointError: the model is missing or not supported.
        StoreError: the disk is full, or the store cannot be written.
    """
    recording = _open(home, options)
    folder = find_folder(options.model or default_model(recording.info.id), listener.say)
    config = read_config(folder.path)
    store = Store.open(home, durability=options.durability)
    store.sweep_tmp()
    for warning in home.warnings():
        listener.say(f"warning: {warning}")
    with PixelIndex(home) as index:
        encoder = _Encoder(folder, config, encoder_spec(folder, config, index, options.max_pixels))
        try:
            result = _encode(recording, encoder, store, index, listener)
        finally:
            recording.close()
    if result.manifest.frames and not (result.interrupted and _had_more(home, result.manifest)):
        write_manifest(home, result.manifest, options.durability)
    elif not result.interrupted:
        raise InputError(f"No frame of {recording.info.id} can be read: {result.manifest.skipped[0].reason}")
    return result


def _had_more(home: Home, manifest: Manifest) -> bool:
    """Tell whether the manifest that is there names more frames: an interruption takes none away."""
    path = manifest_path(home, manifest.recording.id, manifest.encoder.encoder_id)
    return any(ref.path == path and ref.num_frames > len(manifest.frames) for ref in list_manifests(home))


def _open(home: Home, options: EncodeOptions) -> Recording:
    """Open the recording by what sources know, else by the path that an earlier manifest remembers."""
    selector = options.recording
    known = list_manifests(home) if home.store.is_dir() else []
    if selector == "latest" and not os.environ.get("SEEONCE_RECORDINGS") and known:
        selector = known[0].recording.id
    earlier = None
    if selector not in ("demo", "latest", "") and not Path(selector).exists():
        earlier = _earlier(known, selector)
    if earlier is None:
        every_s = DEFAULT_EVERY_S if options.every_s is None else options.every_s
        return open_recording(selector, every_s=every_s, limit=options.limit)
    # Named by its id: the same frames as before, unless the options say otherwise.
    every_s = (earlier.every_s or DEFAULT_EVERY_S) if options.every_s is None else options.every_s
    limit = earlier.limit if options.limit is None else options.limit
    return open_recording(earlier.path, every_s=every_s, limit=limit)


def _earlier(known: list[ManifestRef], selector: str) -> RecordingInfo | None:
    """Return the recording of the newest manifest whose id is, or alone begins with, ``selector``."""
    infos = {ref.recording.id: ref.recording for ref in reversed(known) if ref.recording.kind != "demo"}
    if selector in infos:
        return infos[selector]
    fits = [info for id_, info in infos.items() if id_.startswith(selector)]
    return fits[0] if len(fits) == 1 else None


def _encode(
    recording: Recording, encoder: _Encoder, store: Store, index: PixelIndex, listener: Listener
) -> EncodeResult:
    for remark in recording.remarks:
        listener.say(f"warning: {remark}")
    frames = recording.frames()
    others = plan(frames, encoder.spec, store, index).others
    if others:
        _prepare_for(others, recording, encoder, store, index, listener)
    else:
        listener.say(f"{recording.info.id}: all {len(frames)} frames are encoded already; nothing to do.")

    def load() -> Encoder:
        from precompute.vision import VisionEncoder

        return VisionEncoder(encoder.folder, encoder.config, encoder.spec)

    return encode_recording(recording, encoder.spec, store, index, load, listener.progress)


def _prepare_for(
    others: Sequence[Frame],
    recording: Recording,
    encoder: _Encoder,
    store: Store,
    index: PixelIndex,
    listener: Listener,
) -> None:
    """Say what the frames will cost, and refuse what the disk cannot hold.

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
    if store.free_bytes() < cost.num_bytes:
        listener.say("The disk may not hold that: looking which of these pictures are new.")
        cost = estimate(list(new_pictures(others, encoder.spec, store, index)), encoder.spec, preprocessor)
    if (free := store.free_bytes()) < cost.num_bytes:
        raise StoreError(
            f"Encoding needs up to {megabytes(cost.num_bytes)}, {megabytes(free)} are free in {store.path}: "
            "free space, lower --max-pixels or --limit, or set SEEONCE_HOME to another disk."
        )
