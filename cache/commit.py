"""How one entry is built aside: written under ``tmp/``, read back and compared, later made durable.

Owns: these steps of one entry and the names of all steps of a commit. Does not own: the order over
several entries, the rename, a lost race (``cache.batch``). ``zarr.json`` is written last.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum

import google_crc32c
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from cache.entry import DamagedError, EntryInfo, Features, Provenance
from cache.entry_json import CHECKSUM_BYTES, CHUNK_NAME, METADATA_NAME, encode_entry
from cache.errors import StoreError
from cache.files import Durability, Folder, preallocate, sync_fd, write_all
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
    chunk_synced = "chunk_synced"
    metadata_synced = "metadata_synced"
    folder_synced = "folder_synced"
    renamed = "renamed"
    groups_synced = "groups_synced"
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


@dataclass(frozen=True, slots=True)
class BuiltEntry:
    """An entry that lies complete and verified under ``tmp/``, neither durable nor visible yet.

    Its files stay open: the error of a write that the system postponed is told by the fsync of the
    descriptor that wrote, not surely by that of one opened later.
    """

    key: EntryKey
    name: str
    num_bytes: int
    folder: Folder
    fds: tuple[int, int]
    opened: ExitStack

    def sync(self, durability: Durability, on_step: OnStep) -> None:
        """Make the files and their names durable."""
        for fd, step in zip(self.fds, (CommitStep.chunk_synced, CommitStep.metadata_synced), strict=True):
            sync_fd(fd, durability)
            on_step(step)
        sync_fd(self.folder.fd, durability)
        on_step(CommitStep.folder_synced)

    def close(self) -> None:
        """Close the files; what was not renamed away is removed."""
        self.opened.close()


def build_aside(tmp: Folder, entry: NewEntry, on_step: OnStep) -> BuiltEntry:
    """Build an entry under ``tmp/``, which stays open until the entry is closed, and verify it.

    Raises:
        StoreError: what was read back is not what was written.
        OSError: the disk refuses; nothing is left.
    """
    name = tmp_name()
    with ExitStack() as opened:
        opened.callback(tmp.remove_tree, name)
        tmp.make_folder(name)
        folder = opened.enter_context(tmp.folder(name))
        on_step(CommitStep.folder_made)
        payload = entry.features.array.reshape(-1).view(np.uint8)
        chunk_fd = opened.enter_context(folder.create(CHUNK_NAME))
        with _blake3_aside(payload) as payload_blake3:
            crc32c = _write_chunk(chunk_fd, payload, entry.key)
            on_step(CommitStep.chunk_written)
        info = _info(entry, crc32c, payload_blake3())
        metadata_fd = opened.enter_context(folder.create(METADATA_NAME))
        write_all(metadata_fd, memoryview(encode_entry(info)))
        on_step(CommitStep.metadata_written)
        _verify_metadata(folder, info)
        on_step(CommitStep.verified)
        return BuiltEntry(entry.key, name, payload.nbytes, folder, (chunk_fd, metadata_fd), opened.pop_all())


def _write_chunk(fd: int, payload: NDArray[np.uint8], key: EntryKey) -> int:
    """Write payload and checksum, each slice read back and compared while it is in the cache."""
    scratch = np.empty(min(SLICE_BYTES, max(payload.nbytes, CHECKSUM_BYTES)), np.uint8)
    crc32c = 0
    preallocate(fd, payload.nbytes + CHECKSUM_BYTES)
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
