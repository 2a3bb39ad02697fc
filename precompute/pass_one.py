"""Pass one from names to a manifest: find the checkpoint and the recording, report the cost, encode."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from cache.base.errors import InputError, StoreError
from cache.base.home import Home
from cache.base.listener import Listener
from cache.base.text import counted, megabytes
from cache.key import EncoderSpec
from cache.leases import held_lease, record_use
from cache.manifest import Manifest, list_manifests, manifest_path, read_manifest, write_manifest
from cache.pixel_index import PixelIndex
from cache.stats import StoreLimit
from cache.store import Store
from cache.thumbnails import Thumbnails
from checkpoint.backend import memory_bytes
from checkpoint.config import Checkpoint
from checkpoint.folder import DEFAULT_MODEL, SMALL_MODEL, find_checkpoint
from checkpoint.identity import encoder_spec, model_of, remember_model, with_max_pixels
from precompute.cost import not_encoded, report_cost
from precompute.loaded import Loaded, load_encoder
from precompute.options import EncodeOptions, frame_choice, open_named
from precompute.pipeline import EncodeResult, Progress, encode_recording
from sources.near_duplicates import NearDuplicates, require_distance
from sources.recording import PendingNotes, Recording

if TYPE_CHECKING:
    from precompute.encoder import VisionEncoder

EncodeOne = Callable[[Home, EncodeOptions, Listener, Loaded], EncodeResult]

_PUT_BACK_S = 5.0
_LOOK_AGAIN_S = 0.05


def encode_each(
    home: Home, wanted: Sequence[EncodeOptions], listener: Listener, encode_one: EncodeOne | None = None
) -> Iterator[EncodeResult | InputError]:
    """Encode several recordings, one after the other, with one load of the encoder.

    ``encode_one`` is ``encode``, if nothing else is given.

    One that is not found or cannot be read gives its error, and the rest goes on. An interruption ends all.

    Raises:
        InputError: the only one is not found or cannot be read.
        CheckpointError: the model is missing or not supported.
        StoreError: the disk is full, or the store cannot be written.
    """
    loaded: Loaded = {}
    for options in wanted:
        try:
            result = (encode_one or encode)(home, options, listener, loaded)
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
    loaded: Loaded | None = None,
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
    known = list_manifests(home)
    recording = open_named(known, options, notes, listener)
    earlier = [ref.encoder for ref in known if ref.recording.id == recording.info.id]
    model = options.model or model_of(home, recording.info.id, earlier[0].encoder_id if earlier else None)
    if model in (DEFAULT_MODEL, SMALL_MODEL) and not earlier and not options.model:
        listener.say(
            f"{model} is the default with {memory_bytes() / 1e9:.0f} GB of memory; --model or SEEONCE_MODEL "
            "names another."
        )
    checkpoint = find_checkpoint(model, listener.say)
    store = Store.open(home, durability=options.durability)
    store.sweep_tmp()
    for warning in (*home.warnings(), *recording.remarks):
        listener.say(f"warning: {warning}")
    with held_lease(store, f"encode {recording.info.id}"), PixelIndex(home) as index:
        notes.write(index)
        spec = chosen_encoder(checkpoint, index, options, earlier, model, listener.say)
        load = partial(load_encoder, checkpoint, spec, {} if loaded is None else loaded)
        try:
            result = _encode(recording, options, spec, store, index, load, listener)
        finally:
            recording.close()
        write_result(store, result, listener.say)
    return result


def chosen_encoder(
    checkpoint: Checkpoint,
    index: PixelIndex,
    options: EncodeOptions,
    earlier: Sequence[EncoderSpec],
    model: str,
    say: Callable[[str], None],
) -> EncoderSpec:
    """Return the encoder of a checkpoint with the size of frames that is asked for, or that of before.

    ``earlier`` are the recording's encoders, newest first. It is noted in ``index`` that ``model`` has it.
    """
    spec = encoder_spec(checkpoint, index, options.max_pixels)
    if options.max_pixels is None:
        spec = _with_pixels_of(earlier, spec, say)
    remember_model(index, spec.encoder_id, model, checkpoint)
    return spec


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
        report_cost(others, name, spec, store, index, limit, listener.say)
    else:
        are = "the frame is" if len(frames) == 1 else f"all {len(frames)} frames are"
        listener.say(f"{name}: {are} encoded already; nothing to do.")

    show = partial(show_progress, listener)
    result = encode_recording(recording, spec, store, index, load, show, thumbnails, limit, near)
    if thumbnails is not None and thumbnails.problem is not None:
        listener.say(f"warning: no thumbnails, so reports lack pictures: {thumbnails.problem}")
    return result


def show_progress(listener: Listener, progress: Progress) -> None:
    """Show how far pass one is."""
    counts = f"{progress.num_hits} hits, {progress.num_new} new, {megabytes(progress.num_bytes)}"
    listener.show("encode", "frame", progress.num_done, progress.num_frames, counts)


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
