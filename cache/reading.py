"""The one way an entry is read, from a file or a stream: all that it says about itself is checked each time.

The payload is copied into memory slice by slice and checked there: a memory map can re-read a page after
it was checked, and raises SIGBUS when the file was cut. A slice of 256 KiB is still in the processor's
cache when its checksum is taken, also where eight entries come at once.
"""

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import google_crc32c
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from cache.base.errors import StoreError
from cache.base.files import Folder
from cache.entry import (
    CHECKSUM_BYTES,
    CHUNK_NAME,
    MAX_METADATA_BYTES,
    METADATA_NAME,
    STORED_DTYPES,
    DamagedError,
    EntryInfo,
    Features,
    decode_entry,
)
from cache.key import Digest, EntryKey
from cache.layout import FRAMES, entry_folder, group_name
from cache.quarantine import quarantine

Result = TypeVar("Result")

_log = logging.getLogger("seeonce.cache")

SLICE_BYTES = 256 << 10
TOUCH_AFTER_S = 3600
_TRIES = 8  # against a collection or another writer that moves the same entry at the same moment

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
        check_length(entry.file_size(CHUNK_NAME), info.nbytes)
    return info


def read_payload(entry: Folder, info: EntryInfo, buffer: NDArray[np.uint8] | None = None) -> Features:
    """Read an entry's features, every byte checked.

    They lie in ``buffer`` (contiguous uint8) when that is large enough, else in a new one.

    Raises:
        DamagedError: the chunk is missing, cut, or differs from either checksum.
    """
    payload = payload_buffer(info, buffer)
    with damage_from_disk(), entry.open_file(CHUNK_NAME) as fd:
        check_length(os.fstat(fd).st_size, info.nbytes)
        check_payload(reader_of(fd), info.nbytes, info.crc32c, payload)
    return features_of(payload, info)


def payload_buffer(info: EntryInfo, buffer: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """Return room for the payload: the start of ``buffer`` if that is large enough, else a new array."""
    if buffer is None or buffer.nbytes < info.nbytes:
        buffer = np.empty(info.nbytes, np.uint8)
    return buffer[: info.nbytes]


def features_of(payload: NDArray[np.uint8], info: EntryInfo) -> Features:
    """Return the bytes of a payload as features."""
    array = payload.view(STORED_DTYPES[info.dtype]).reshape(info.shape)
    return Features(array, info.dtype, info.grid_thw, info.merge_size)


def scan_payload(entry: Folder, info: EntryInfo) -> None:
    """Check every byte of an entry's payload by crc32c and by BLAKE3, without keeping it.

    Raises:
        DamagedError: as ``read_payload``, or the BLAKE3 differs.
    """
    hasher = blake3()
    with damage_from_disk(), entry.open_file(CHUNK_NAME) as fd:
        check_length(os.fstat(fd).st_size, info.nbytes)
        check_payload(reader_of(fd), info.nbytes, info.crc32c, None, hasher)
    check_blake3(hasher, info)


def check_blake3(hasher: blake3, info: EntryInfo) -> None:
    """Compare the BLAKE3 of a payload.

    Raises:
        DamagedError: it is another.
    """
    if hasher.digest() != info.blake3:
        raise DamagedError(f"payload: expected BLAKE3 {info.blake3.hex()}, got {hasher.hexdigest()}")


ReadInto = Callable[[NDArray[np.uint8]], None]
"""Puts the next bytes of a chunk into an array, all of it; raises ``DamagedError`` when there are no more."""


def check_payload(
    readinto: ReadInto,
    num_bytes: int,
    expected_crc32c: int | None,
    payload: NDArray[np.uint8] | None,
    hasher: blake3 | None = None,
) -> int:
    """Read a chunk, payload and checksum, into ``payload`` if there is one.

    ``num_bytes`` and ``expected_crc32c`` are what its metadata says; None where there is nothing to compare
    with. Returns the crc32c of the payload.

    Raises:
        DamagedError: it is too short, or a checksum differs.
    """
    scratch = np.empty(min(SLICE_BYTES, num_bytes), np.uint8) if payload is None else None
    crc32c = 0
    for start in range(0, num_bytes, SLICE_BYTES):
        stop = min(start + SLICE_BYTES, num_bytes)
        part = scratch[: stop - start] if scratch is not None else payload[start:stop]  # type: ignore[index]
        readinto(part)
        crc32c = int(google_crc32c.extend(crc32c, part))
        if hasher is not None:
            hasher.update(part.data)
    own = np.empty(CHECKSUM_BYTES, np.uint8)
    readinto(own)
    # Two chunks that changed places each carry a valid checksum of their own: compare with both.
    for name, expected in (
        ("the chunk's own", int.from_bytes(own.tobytes(), "little")),
        ("the", expected_crc32c),
    ):
        if expected not in (None, crc32c):
            raise DamagedError(f"payload: {name} crc32c is {expected:08x}, its bytes give {crc32c:08x}")
    return crc32c


def reader_of(fd: int) -> ReadInto:
    """Return what takes the bytes of an open chunk, from where it stands."""
    return partial(_readinto, fd)


def _readinto(fd: int, part: NDArray[np.uint8]) -> None:
    filled = 0
    while filled < part.nbytes:
        count = os.readv(fd, [part[filled:].data])
        if count == 0:
            raise DamagedError("the chunk was cut while it was read")
        filled += count


def check_length(found: int | None, num_bytes: int) -> None:
    """Compare the length of a chunk, None when there is none, with that of its payload and checksum.

    Raises:
        DamagedError: it is another.
    """
    if found is None:
        raise DamagedError(f"{CHUNK_NAME} is missing")
    if found != (expected := num_bytes + CHECKSUM_BYTES):
        raise DamagedError(f"{CHUNK_NAME} should have {expected} bytes, it has {found}")


def is_in_place(root: str, key: Digest, identity: tuple[int, int] | None = None) -> bool:
    """Say whether there is a folder of that name, and of that (device, inode); nothing is opened."""
    try:
        found = os.lstat(entry_folder(root, key))
    except OSError:
        return False
    return identity is None or identity == (found.st_dev, found.st_ino)


def visit(root: str, key: Digest, work: Callable[[Folder], Result]) -> Result | None:
    """Open the folder of ``key`` below ``root`` for ``work``; None when there is none.

    Raises:
        DamagedError: it is not what its key promises.
        StoreError: the disk refuses for a reason that is not the folder's.
    """
    identity = None
    try:
        with Folder.open(f"{root}/{FRAMES}") as frames, frames.folder(group_name(key)) as group:
            try:
                entry = group.folder(key.hex)
            except FileNotFoundError:
                return None
            except OSError:  # what lies there is no folder
                identity = group.identity_of(key.hex)
                if identity is None:
                    return None
                with damage_from_disk():
                    raise
            with entry, damage_from_disk():
                identity = entry.identity()
                return work(entry)
    except DamagedError as damage:
        damage.identity = identity
        raise
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):  # a group that is no folder holds no entry
            return None
        raise StoreError(f"cannot read entry {key}: {error.strerror}; check {root}") from error


def read_and_touch(
    root: str,
    key: Digest,
    work: Callable[[Folder], Result],
    *,
    writable: bool,
    touch_after_s: float = TOUCH_AFTER_S,
) -> Result | None:
    """Read what is wanted, touch it, and move it to quarantine when it is damaged; None is a miss.

    Raises:
        StoreError: as ``visit``.
    """

    def used(entry: Folder) -> tuple[Result, bool]:
        result = work(entry)
        if writable:
            entry.touch(touch_after_s)
        # First the touch, then a look whether the entry is in its place still. A collection first
        # moves it away, then looks for a touch: whoever comes second sees the other. The look is
        # taken always: a folder that is being removed seems to have been touched just now.
        return result, is_in_place(root, key, entry.identity())

    try:
        for _ in range(_TRIES):
            found = visit(root, key, used)
            if found is None:
                return None
            if found[1]:
                return found[0]
        return None
    except DamagedError as damage:
        if writable:
            quarantine(Path(root), key, damage.identity, str(damage))
        else:
            _log.warning("entry %s is damaged: %s", key, damage)
        return None
