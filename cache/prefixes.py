"""A bounded cache on disk of what a decoder keeps of the beginnings of prompts, each named by its content.

It lies beside the store, in ``prefixes/``, laid out and read as a store is: every byte that is used was
checked. Nothing of it is needed: nothing is made durable, and losing it costs time only.
"""

import errno
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from cache.base.canonical_json import SEAL_FIELD, UNSEALED, record_to_json, seal, unseal
from cache.base.errors import StoreError
from cache.base.files import OCCUPIED, Durability, Folder, preallocate, write_all
from cache.base.home import Home
from cache.base.text import parse_size
from cache.entry import CHECKSUM_BYTES, CHUNK_NAME, MAX_METADATA_BYTES, DamagedError, checksum
from cache.key import Digest, EntryKey
from cache.layout import (
    FRAMES,
    QUARANTINE,
    TMP,
    TRASH,
    StoredEntry,
    group_name,
    names_in,
    now,
    stored_entries,
)
from cache.quarantine import quarantined, remove_quarantined
from cache.reading import (
    SLICE_BYTES,
    check_length,
    check_payload,
    is_in_place,
    read_and_touch,
    reader_of,
    visit,
)
from cache.trash import is_ended, move_to, new_batch, remove_from, sweep_tmp, tmp_name

PREFIX_CACHE = "SEEONCE_PREFIX_CACHE"
OPTION = "--prefix-cache"
METADATA_NAME = "prefix.json"
PREFIX_FORMAT = 1
_FOLDER = "prefixes"
_FILES = (CHUNK_NAME, METADATA_NAME)
_LEFT_FREE = 1 << 30  # of a disk, or a twentieth of it if that is less


@dataclass(frozen=True, slots=True)
class PrefixKey(Digest):
    """Names a prefix: its tokens, its frames, and what computed it."""


@dataclass(frozen=True, slots=True)
class PrefixInfo:
    """What a kept prefix says of itself.

    ``keys`` are the entries of its frames, in order. ``nbytes`` and ``crc32c`` are of the payload.
    ``prefill_s`` is how long it took to compute, as far as that was measured.
    """

    key: PrefixKey
    keys: tuple[EntryKey, ...]
    num_tokens: int
    prefill_s: float
    nbytes: int = 0
    crc32c: int = 0
    created_at: str = ""


def prefix_cache_bytes(option: str | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Return how large the cache may be, by the option or else by SEEONCE_PREFIX_CACHE; 0 is no cache.

    Raises:
        InputError: it is no size.
    """
    if option is not None:
        return parse_size(option, OPTION)
    text = environ.get(PREFIX_CACHE, "").strip()
    return parse_size(text, PREFIX_CACHE) if text else 0


class PrefixStore:
    """The cache of one home, at most ``max_bytes``; threads and processes share it without locks."""

    def __init__(self, home: Home, max_bytes: int) -> None:
        """Nothing is opened until it is asked."""
        self.path, self.max_bytes = home.path / _FOLDER, max_bytes
        self._root = str(self.path)

    def prepare(self) -> None:
        """Make what is missing of its folders; remove what killed processes left, and what is too much.

        Raises:
            OSError: the disk refuses.
        """
        with Folder.open_root(self.path.parent) as home:
            home.make_folder(_FOLDER, exist_ok=True)
            with home.folder(_FOLDER) as root:
                for name in (FRAMES, TMP, TRASH, QUARANTINE):
                    root.make_folder(name, exist_ok=True)
        sweep(self.path)
        shrink(self.path, self.max_bytes)

    def has(self, key: PrefixKey) -> bool:
        """Say whether there is a prefix of that name, right or wrong: one look, nothing is opened."""
        return is_in_place(self._root, key)

    def read(
        self, key: PrefixKey, num_bytes: int, buffer: NDArray[np.uint8] | None = None
    ) -> tuple[PrefixInfo, NDArray[np.uint8]] | None:
        """Return what is kept under ``key``, every byte checked; None when it is missing or wrong.

        The payload lies in ``buffer`` (contiguous uint8) when that is large enough. One that has not
        ``num_bytes`` is wrong, and refused unread. What is wrong goes to quarantine.

        Raises:
            StoreError: the disk refuses for a reason that is not the prefix's.
        """

        def work(folder: Folder) -> tuple[PrefixInfo, NDArray[np.uint8]]:
            info = _read_info(folder, key)
            if info.nbytes != num_bytes:
                raise DamagedError(f"the prefix should have {num_bytes} bytes, it says {info.nbytes}")
            whole = (
                buffer if buffer is not None and buffer.nbytes >= num_bytes else np.empty(num_bytes, np.uint8)
            )
            payload = whole[:num_bytes]
            with folder.open_file(CHUNK_NAME) as fd:
                check_length(os.fstat(fd).st_size, info.nbytes)
                check_payload(reader_of(fd), info.nbytes, info.crc32c, payload)
            return info, payload

        try:
            return read_and_touch(
                self._root, key, work, writable=os.access(self._root, os.W_OK), touch_after_s=0
            )
        except StoreError as error:
            raise StoreError(str(error).replace("entry", "the prefix", 1)) from error

    def write(self, info: PrefixInfo, parts: Sequence[NDArray[np.uint8]]) -> bool:
        """Keep ``parts``, one after the other, in place of what was used least; False when they do not fit.

        ``info`` is all but what the payload tells.

        Raises:
            OSError: the disk refuses, or is nearly full; nothing half written is left.
        """
        num_bytes = sum(part.nbytes for part in parts)
        if not self._make_room(num_bytes + CHECKSUM_BYTES):
            return False
        disk = shutil.disk_usage(self.path)
        if disk.free < num_bytes + min(_LEFT_FREE, disk.total // 20):
            raise OSError(errno.ENOSPC, "the disk is nearly full", str(self.path))
        with Folder.open(self.path) as root, root.folder(TMP) as tmp, root.folder(FRAMES) as frames:
            name = tmp_name()
            try:
                tmp.make_folder(name)
                with tmp.folder(name) as folder:
                    _write_files(folder, info, parts, num_bytes)
                frames.make_folder(group_name(info.key), exist_ok=True)
                with frames.folder(group_name(info.key)) as group:
                    tmp.rename(name, group, info.key.hex)
            except OSError as error:
                if error.errno not in OCCUPIED:
                    raise
            finally:
                tmp.remove_tree(name)  # gone when it was renamed; another was first, or the disk refused
        return True

    def _make_room(self, num_bytes: int) -> bool:
        if num_bytes > self.max_bytes:
            return False
        shrink(self.path, self.max_bytes - num_bytes)
        return True


def _write_files(
    folder: Folder, info: PrefixInfo, parts: Iterable[NDArray[np.uint8]], num_bytes: int
) -> None:
    """Write the payload with its checksum, then what is said of it; each slice is hashed while it is hot."""
    crc32c = 0
    with folder.create(CHUNK_NAME) as fd:
        preallocate(fd, num_bytes + CHECKSUM_BYTES)
        for part in parts:
            for start in range(0, part.nbytes, SLICE_BYTES):
                piece = part[start : start + SLICE_BYTES]
                crc32c = int(google_crc32c.extend(crc32c, piece))
                write_all(fd, piece.data)
        write_all(fd, checksum(crc32c).data)
    whole = replace(info, nbytes=num_bytes, crc32c=crc32c, created_at=now())
    document = {**record_to_json(whole), "format": PREFIX_FORMAT, SEAL_FIELD: UNSEALED}
    folder.write(METADATA_NAME, seal(document), Durability.none)


def _read_info(folder: Folder, key: Digest) -> PrefixInfo:
    try:
        document = unseal(folder.read(METADATA_NAME, MAX_METADATA_BYTES), METADATA_NAME)
        if (version := document.integer("format")) != PREFIX_FORMAT:
            raise DamagedError(f"expected prefix format {PREFIX_FORMAT}, got {version}")
        info = document.record(PrefixInfo)
    except DamagedError:
        raise
    except (StoreError, ValueError) as error:
        raise DamagedError(str(error)) from None
    if info.key.raw != key.raw:
        raise DamagedError(f"the folder is {key}, its metadata is of {info.key}")
    return info


def stored_prefixes(path: Path) -> list[StoredEntry]:
    """Return what is kept, the least recently used first; nothing through a symlink."""
    if path.is_symlink() or (path / FRAMES).is_symlink():
        return []
    return sorted(stored_entries(path, _FILES), key=lambda found: (found.used_s, found.key.raw))


def shrink(path: Path, max_bytes: int) -> tuple[int, int]:
    """Remove the least recently used until at most so much is kept; return how many went, and their bytes.

    What lies in quarantine counts, and goes first.

    Raises:
        OSError: the disk refuses.
    """
    kept = stored_prefixes(path)
    damaged = quarantined(path)
    num_bytes = sum(found.num_bytes for found in kept) + sum(
        _size(path / QUARANTINE / name) for name in damaged
    )
    if num_bytes <= max_bytes:
        return 0, 0
    for name in damaged:
        num_bytes -= _size(path / QUARANTINE / name)
        remove_quarantined(path, name)
    going = []
    for found in kept:
        if num_bytes <= max_bytes:
            break
        going.append(found)
        num_bytes -= found.num_bytes
    return _remove(path, going)


def _size(folder: Path) -> int:
    num_bytes = 0
    for name in _FILES:
        with suppress(OSError):
            num_bytes += os.lstat(folder / name).st_size
    return num_bytes


def _remove(path: Path, going: Sequence[StoredEntry]) -> tuple[int, int]:
    gone = []
    if going:
        with Folder.open(path / FRAMES) as frames, new_batch(path) as batch:
            for found in going:
                with suppress(FileNotFoundError), frames.folder(group_name(found.key)) as group:
                    if move_to(batch, group, found.key.hex):
                        remove_from(batch, found.key.hex)
                        gone.append(found)
    return len(gone), sum(found.num_bytes for found in gone)


def sweep(path: Path) -> None:
    """Remove what killed processes of this machine left, and of others what is a day old; best effort."""
    with suppress(OSError):
        sweep_tmp(path)
    for folder in (TMP, TRASH):
        with suppress(OSError), Folder.open(path / folder) as opened:
            for name in filter(is_ended, names_in(path / folder)):
                opened.remove_tree(name)


def prefix_totals(home: Home) -> tuple[int, int]:
    """Return how many prefixes the cache of a home holds, and their bytes."""
    kept = stored_prefixes(home.path / _FOLDER)
    return len(kept), sum(found.num_bytes for found in kept)


def collect_prefixes(
    home: Home, needed: frozenset[EntryKey], *, before_s: float = inf, dry_run: bool = False
) -> tuple[int, int]:
    """Remove prefixes over a frame that is not ``needed``, used last before that time.

    One that cannot be read is over such a frame. What killed processes left and what lies in quarantine goes
    too. Returns how many prefixes went, and their bytes.

    Raises:
        OSError: the disk refuses.
    """
    path = home.path / _FOLDER
    going = [
        found
        for found in stored_prefixes(path)
        if found.used_s < before_s and not _is_needed(path, found, needed)
    ]
    if dry_run:
        return len(going), sum(found.num_bytes for found in going)
    sweep(path)
    for name in quarantined(path):
        remove_quarantined(path, name)
    return _remove(path, going)


def _is_needed(path: Path, found: StoredEntry, needed: frozenset[EntryKey]) -> bool:
    """Say whether all frames of a prefix are needed; one that cannot be read is of unknown frames."""
    with suppress(DamagedError, StoreError):
        info = visit(str(path), found.key, lambda folder: _read_info(folder, found.key))
        return info is None or needed.issuperset(info.keys)
    return False
