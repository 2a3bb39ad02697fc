"""How an entry becomes visible: built aside, verified, made durable, then renamed into place.

Owns: the order of these steps. Does not own: who may write, or what a lost race means
(``cache.store``). ``zarr.json`` is the commit record: it is written last.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

import google_crc32c
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from cache.entry import DamagedError, EntryInfo, Features, Provenance
from cache.entry_json import CHECKSUM_BYTES, CHUNK_NAME, METADATA_NAME, encode_entry
from cache.errors import StoreError
from cache.files import Durability, Folder, sync_fd, write_all
from cache.key import EncoderSpec, EntryKey, PixelDigest
from cache.layout import now
from cache.reading import SLICE_BYTES, read_info
from cache.tmp import tmp_name


class CommitStep(StrEnum):
    """The points of a commit at which a fault can be injected."""

    folder_made = "folder_made"
    chunk_written = "chunk_written"
    metadata_written = "metadata_written"
    verified = "verified"
    synced = "synced"
    renamed = "renamed"
    acknowledged = "acknowledged"


OnStep = Callable[[CommitStep], None]


def no_fault(_: CommitStep) -> None:
    """Go on: what happens at every step unless a test injects a fault."""


@dataclass(frozen=True, slots=True)
class NewEntry:
    """What is to be committed."""

    key: EntryKey
    pixels: PixelDigest
    encoder: EncoderSpec
    features: Features
    provenance: Provenance


@contextmanager
def built_aside(tmp: Folder, entry: NewEntry, durability: Durability, on_step: OnStep) -> Iterator[str]:
    """Build an entry under ``tmp/``, verify it, make it durable, and yield its folder's name.

    The folder is removed afterwards unless it was renamed away.

    Raises:
        StoreError: what was read back is not what was written.
        OSError: the disk refuses.
    """
    name = tmp_name()
    try:
        tmp.make_folder(name)
        with tmp.folder(name) as folder:
            on_step(CommitStep.folder_made)
            _build(folder, entry, durability, on_step)
        yield name
    finally:
        tmp.remove_tree(name)


def _build(folder: Folder, entry: NewEntry, durability: Durability, on_step: OnStep) -> None:
    payload = entry.features.array.reshape(-1).view(np.uint8)
    with _blake3_aside(payload) as payload_blake3, folder.create(CHUNK_NAME) as fd:
        crc32c = _write_chunk(fd, payload, entry.key)
        on_step(CommitStep.chunk_written)
        sync_fd(fd, durability)
    info = _info(entry, crc32c, payload_blake3())
    folder.write(METADATA_NAME, encode_entry(info), durability)
    on_step(CommitStep.metadata_written)
    _verify_metadata(folder, info)
    on_step(CommitStep.verified)
    folder.sync(durability)
    on_step(CommitStep.synced)


def _write_chunk(fd: int, payload: NDArray[np.uint8], key: EntryKey) -> int:
    """Write payload and checksum, each slice read back and compared while it is in the cache."""
    scratch = np.empty(min(SLICE_BYTES, max(payload.nbytes, CHECKSUM_BYTES)), np.uint8)
    crc32c = 0
    for start in range(0, payload.nbytes, SLICE_BYTES):
        part = payload[start : start + SLICE_BYTES]
        crc32c = int(google_crc32c.extend(crc32c, part))
        _write_verified(fd, part, start, scratch, key)
    checksum = np.frombuffer(crc32c.to_bytes(CHECKSUM_BYTES, "little"), np.uint8)
    _write_verified(fd, checksum, payload.nbytes, scratch, key)
    return crc32c


def _write_verified(
    fd: int, part: NDArray[np.uint8], offset: int, scratch: NDArray[np.uint8], key: EntryKey
) -> None:
    write_all(fd, part.data)
    found = scratch[: part.nbytes]
    if os.preadv(fd, [found.data], offset) != part.nbytes or not _equal(found, part):
        raise _not_kept(key, f"{CHUNK_NAME} reads differently from byte {offset} on")


def _equal(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> bool:
    whole = left.nbytes // 8 * 8  # eight bytes at a time: an eighth of the comparisons
    words = np.array_equal(left[:whole].view(np.uint64), right[:whole].view(np.uint64))
    return words and np.array_equal(left[whole:], right[whole:])


def _verify_metadata(folder: Folder, info: EntryInfo) -> None:
    try:
        found = read_info(folder, info.key)
    except DamagedError as error:
        raise _not_kept(info.key, str(error)) from None
    if found != info:
        raise _not_kept(info.key, "the metadata reads differently")


def _not_kept(key: EntryKey, reason: str) -> StoreError:
    return StoreError(f"the disk did not keep entry {key} as written: {reason}; check the disk")


def _info(entry: NewEntry, crc32c: int, payload_blake3: bytes) -> EntryInfo:
    features = entry.features
    layers, num_tokens, hidden = features.array.shape
    return EntryInfo(
        key=entry.key,
        shape=(int(layers), int(num_tokens), int(hidden)),
        dtype=features.dtype,
        grid_thw=features.grid_thw,
        merge_size=features.merge_size,
        pixels=entry.pixels,
        encoder=entry.encoder,
        crc32c=crc32c,
        blake3=payload_blake3,
        provenance=entry.provenance,
        created_at=now(),
    )


@contextmanager
def _blake3_aside(payload: NDArray[np.uint8]) -> Iterator[Callable[[], bytes]]:
    """Hash in another thread while this one writes: together they take as long as the longer."""
    digests: list[bytes] = []

    def work() -> None:
        digests.append(blake3(payload.data, max_threads=blake3.AUTO).digest())

    thread = threading.Thread(target=work, name="seeonce-blake3")
    thread.start()

    def result() -> bytes:
        thread.join()
        return digests[0]

    try:
        yield result
    finally:
        thread.join()
