"""The manifest that pass one leaves: when it replaces the one before it, and what is looked at then.

Owns: that choice. Does not own: the writing (``cache.manifest``).
"""

import time
from collections.abc import Callable

from cache.errors import InputError, StoreError
from cache.manifest import Manifest, manifest_path, read_manifest, write_manifest
from cache.store import Store
from cache.usage import record_use
from precompute.encode import EncodeResult

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
    earlier = _earlier(store, manifest)
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


def _earlier(store: Store, manifest: Manifest) -> Manifest | None:
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
