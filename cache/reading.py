"""The one way an entry is read, from a file or a stream: all that it says about itself is checked each time.

The payload is copied into memory slice by slice and checked there: a memory map can re-read a page after
it was checked, and raises SIGBUS when the file was cut. A slice of 1 MiB is still in the processor's
cache when its checksum is taken, so checking costs a quarter of the read.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import google_crc32c
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from cache.base.files import Folder
from cache.entry import (
    CHECKSUM_BYTES,
    CHUNK_NAME,
    MAX_METADATA_BYTES,
    METADATA_NAME,
    STORED_DTYPES,
    DamagedError,
    EntryInfo,
    decode_entry,
)
from cache.key import EntryKey

SLICE_BYTES = 1 << 20

# What a disk answers when the entry is at fault. The rest (no memory, no permission, too many open
# files) says nothing about the entry and must not send it to quarantine.
_DAMAGE = frozenset(
    {errno.ENOENT, errno.EIO, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.EFBIG}
)


@contextmanager
def damage_from_disk() -> Iterator[None]:
    """Turn what the disk says of a broken entry into ``DamagedError``; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DAMAGE:
            raise
        raise DamagedError(f"{error.filename or 'the entry'}: {error.strerror}") from None


def read_info(entry: Folder, key: EntryKey) -> EntryInfo:
    """Read and check an entry's metadata and the exact length of its chunk; not the payload.

    Raises:
        DamagedError: something is missing or wrong.
    """
    with damage_from_disk():
        info = decode_entry(entry.read(METADATA_NAME, MAX_METADATA_BYTES), key)
        check_length(entry.file_size(CHUNK_NAME), info)
    return info


def read_payload(entry: Folder, info: EntryInfo, buffer: NDArray[np.uint8] | None = None) -> NDArray[Any]:
    """Read an entry's payload, every byte checked, as an array of ``info.shape``.

    The array lies in ``buffer`` (contiguous uint8) when that is large enough, else in a new one.

    Raises:
        DamagedError: the chunk is missing, cut, or differs from either checksum.
    """
    payload = payload_buffer(info, buffer)
    with damage_from_disk(), entry.open_file(CHUNK_NAME) as fd:
        check_length(os.fstat(fd).st_size, info)
        check_payload(partial(_fill, fd), info, payload)
    return shaped(payload, info)


def payload_buffer(info: EntryInfo, buffer: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """Return room for the payload: the start of ``buffer`` if that is large enough, else a new array."""
    if buffer is None or buffer.nbytes < info.nbytes:
        buffer = np.empty(info.nbytes, np.uint8)
    return buffer[: info.nbytes]


def shaped(payload: NDArray[np.uint8], info: EntryInfo) -> NDArray[Any]:
    """Return the bytes of a payload as an array of ``info.shape``."""
    return payload.view(STORED_DTYPES[info.dtype]).reshape(info.shape)


def scan_payload(entry: Folder, info: EntryInfo) -> None:
    """Check every byte of an entry's payload by crc32c and by BLAKE3, without keeping it.

    Raises:
        DamagedError: as ``read_payload``, or the BLAKE3 differs.
    """
    hasher = blake3()
    with damage_from_disk(), entry.open_file(CHUNK_NAME) as fd:
        check_length(os.fstat(fd).st_size, info)
        check_payload(partial(_fill, fd), info, None, hasher)
    check_blake3(hasher, info)


def check_blake3(hasher: blake3, info: EntryInfo) -> None:
    """Compare the BLAKE3 of a payload.

    Raises:
        DamagedError: it is another.
    """
    if hasher.digest() != info.blake3:
        raise DamagedError(f"payload: expected BLAKE3 {info.blake3.hex()}, got {hasher.hexdigest()}")


Fill = Callable[[NDArray[np.uint8]], None]
"""Puts the next bytes of a chunk into an array, all of it; raises ``DamagedError`` when there are no more."""


def check_payload(
    fill: Fill, info: EntryInfo, payload: NDArray[np.uint8] | None, hasher: blake3 | None = None
) -> None:
    """Take a chunk from its start through its checksums, into ``payload`` if there is one.

    Raises:
        DamagedError: it is too short, or a checksum differs.
    """
    scratch = np.empty(min(SLICE_BYTES, info.nbytes), np.uint8) if payload is None else None
    crc32c = 0
    for start in range(0, info.nbytes, SLICE_BYTES):
        stop = min(start + SLICE_BYTES, info.nbytes)
        part = scratch[: stop - start] if scratch is not None else payload[start:stop]  # type: ignore[index]
        fill(part)
        crc32c = google_crc32c.extend(crc32c, part)
        if hasher is not None:
            hasher.update(part.data)
    own = np.empty(CHECKSUM_BYTES, np.uint8)
    fill(own)
    # Two chunks that changed places each carry a valid checksum of their own: compare with both.
    for name, expected in (
        ("the chunk's own", int.from_bytes(own.tobytes(), "little")),
        ("the", info.crc32c),
    ):
        if crc32c != expected:
            raise DamagedError(f"payload: {name} crc32c is {expected:08x}, its bytes give {crc32c:08x}")


def _fill(fd: int, part: NDArray[np.uint8]) -> None:
    filled = 0
    while filled < part.nbytes:
        count = os.readv(fd, [part[filled:].data])
        if count == 0:
            raise DamagedError("the chunk was cut while it was read")
        filled += count


def check_length(found: int | None, info: EntryInfo) -> None:
    """Compare the length of a chunk, None when there is none.

    Raises:
        DamagedError: it is another.
    """
    if found is None:
        raise DamagedError(f"{CHUNK_NAME} is missing")
    if found != (expected := info.nbytes + CHECKSUM_BYTES):
        raise DamagedError(f"{CHUNK_NAME} should have {expected} bytes, it has {found}")
