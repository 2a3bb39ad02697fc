"""How entries are committed: staged under ``tmp/``, read back and compared, made durable, renamed into place.

``zarr.json`` is written last.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Self

import google_crc32c
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from cache.base.errors import StoreError, disk_error
from cache.base.files import (
    OCCUPIED,
    Durability,
    Folder,
    flush_fd,
    preallocate,
    sync_fd,
    write_all,
    write_back,
)
from cache.base.home import Home
from cache.entry import (
    CHECKSUM_BYTES,
    CHUNK_NAME,
    METADATA_NAME,
    DamagedError,
    EntryInfo,
    Features,
    Provenance,
    checksum,
    encode_entry,
)
from cache.key import EncoderSpec, EntryKey, PixelDigest, entry_key
from cache.layout import FRAMES, TMP, group_name, make_group, now
from cache.reading import SLICE_BYTES, read_info
from cache.trash import tmp_name

# Each lost race needs another writer who was faster, and a damaged entry of its own: more is no race.
_MAX_RACES = 8
_STREAM_BYTES = 1 << 20  # more than a connection gives at once, so that little of it is cut
_WRITE_BACK_BYTES = 8 << 20

Read = Callable[[int], NDArray[np.uint8]]
"""Returns the next bytes of a chunk, at least one and at most so many; raises ``DamagedError`` at its end."""


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
class StagedEntry:
    """An entry that lies complete and verified under ``tmp/``, neither durable nor visible yet.

    Its files stay open: the error of a write that the system postponed is reported by the fsync of the
    descriptor that wrote, not surely by that of one opened later. Closing ``opened`` removes what was
    not renamed away.
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


def stage_entry(tmp: Folder, features: Features, info: EntryInfo, on_step: OnStep) -> StagedEntry:
    """Build an entry under ``tmp/``, which stays open until the entry is closed, and verify it.

    ``info`` lacks the digests of the payload, which are taken as it is written.

    Raises:
        StoreError: what was read back is not what was written.
        OSError: the disk refuses; nothing is left.
    """
    payload = features.array.reshape(-1).view(np.uint8)

    def write(fd: int) -> tuple[int, bytes]:
        # Hashed in another thread while this one writes: together they take as long as the longer.
        with ThreadPoolExecutor(1, "seeonce-blake3") as threads:
            digest = threads.submit(lambda: blake3(payload.data, max_threads=blake3.AUTO).digest())
            crc32c = _write_chunk(fd, _slices(payload), info)
        return crc32c, digest.result()

    return _stage(tmp, info, write, on_step)


def stage_stream(
    tmp: Folder, read: Read, info: EntryInfo, payload: NDArray[np.uint8] | None, on_step: OnStep
) -> StagedEntry:
    """Build an entry, as ``stage_entry`` does, of a chunk that comes part by part from another store.

    BLAKE3 is taken of what was read back, which is left in ``payload`` if that is given. The checksum at
    the chunk's end need only be the one in ``info``, whose writer took both of the same bytes.

    Raises:
        DamagedError: what was read back is not what ``info`` tells of, for the stream's fault or the disk's.
        StoreError: as ``read`` raises.
        OSError: the disk refuses; nothing is left.
    """

    def write(fd: int) -> tuple[int, bytes]:
        hasher, start = blake3(), 0
        scratch = np.empty(_STREAM_BYTES, np.uint8)
        preallocate(fd, info.nbytes + CHECKSUM_BYTES)
        while start < info.nbytes:
            part = read(min(_STREAM_BYTES, info.nbytes - start))
            found = _write_and_read(fd, part, start, scratch if payload is None else payload[start:])
            hasher.update(found.data)
            start += part.nbytes
            if start % _WRITE_BACK_BYTES < part.nbytes:
                write_back(fd)
        own = b""
        while len(own) < CHECKSUM_BYTES:
            own += read(CHECKSUM_BYTES - len(own)).tobytes()
        found = _write_and_read(fd, np.frombuffer(own, np.uint8), info.nbytes, scratch)
        return int.from_bytes(found.tobytes(), "little"), hasher.digest()

    return _stage(tmp, info, write, on_step)


def _stage(
    tmp: Folder, info: EntryInfo, write: Callable[[int], tuple[int, bytes]], on_step: OnStep
) -> StagedEntry:
    name = tmp_name()
    with ExitStack() as opened:
        opened.callback(tmp.remove_tree, name)
        tmp.make_folder(name)
        folder = opened.enter_context(tmp.folder(name))
        on_step(CommitStep.folder_made)
        chunk_fd = opened.enter_context(folder.create(CHUNK_NAME))
        crc32c, digest = write(chunk_fd)
        on_step(CommitStep.chunk_written)
        info = with_digests(info, crc32c, digest)
        metadata_fd = opened.enter_context(folder.create(METADATA_NAME))
        write_all(metadata_fd, memoryview(encode_entry(info)))
        on_step(CommitStep.metadata_written)
        _verify_metadata(folder, info)
        on_step(CommitStep.verified)
        return StagedEntry(info.key, name, info.nbytes, folder, (chunk_fd, metadata_fd), opened.pop_all())


def new_entry(
    pixels: PixelDigest, spec: EncoderSpec, features: Features, provenance: Provenance
) -> EntryInfo:
    """Return what a new entry says about itself, but for the digests of its payload.

    Raises:
        ValueError: the features do not match the encoder's layers, hidden size or merge size.
    """
    layers, num_tokens, hidden = features.array.shape
    expected = (spec.num_layers, spec.out_hidden_size, spec.preprocessing.merge_size)
    if (found := (layers, hidden, features.merge_size)) != expected:
        raise ValueError(f"the encoder gives (layers, hidden, merge_size) {expected}, got {found}")
    return EntryInfo(
        key=entry_key(pixels, spec.encoder_id),
        shape=(layers, num_tokens, hidden),
        dtype=features.dtype,
        grid_thw=features.grid_thw,
        merge_size=features.merge_size,
        pixels=pixels,
        encoder=spec,
        crc32c=0,
        blake3=b"",
        provenance=provenance,
        created_at=now(),
    )


def with_digests(info: EntryInfo, crc32c: int, digest: bytes) -> EntryInfo:
    """Return ``info`` with the digests of its payload, if it has none yet.

    Raises:
        DamagedError: it has others.
    """
    if info.blake3 and digest != info.blake3:
        raise DamagedError(f"payload: expected BLAKE3 {info.blake3.hex()}, got {digest.hex()}")
    if info.blake3 and crc32c != info.crc32c:
        raise DamagedError(f"chunk: expected crc32c {info.crc32c:08x}, got {crc32c:08x}")
    return replace(info, crc32c=crc32c, blake3=digest)


def _slices(payload: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    return (payload[start : start + SLICE_BYTES] for start in range(0, payload.nbytes, SLICE_BYTES))


def _write_chunk(fd: int, slices: Iterable[NDArray[np.uint8]], info: EntryInfo) -> int:
    """Write payload and checksum, each slice read back and compared while it is in the cache."""
    scratch = np.empty(min(SLICE_BYTES, max(info.nbytes, CHECKSUM_BYTES)), np.uint8)
    crc32c = start = 0
    preallocate(fd, info.nbytes + CHECKSUM_BYTES)
    for part in slices:
        crc32c = int(google_crc32c.extend(crc32c, part))
        _write_verified(fd, part, start, scratch, info.key)
        start += part.nbytes
    _write_verified(fd, checksum(crc32c), info.nbytes, scratch, info.key)
    return crc32c


def _write_verified(
    fd: int, part: NDArray[np.uint8], offset: int, scratch: NDArray[np.uint8], key: EntryKey
) -> None:
    if not _equal(_write_and_read(fd, part, offset, scratch), part):
        raise _not_kept(key, f"{CHUNK_NAME} reads differently from byte {offset} on")


def _write_and_read(
    fd: int, part: NDArray[np.uint8], offset: int, scratch: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Write a part at the end of a file, and return what reads there, in ``scratch``."""
    write_all(fd, part.data)
    return scratch[: os.preadv(fd, [scratch[: part.nbytes].data], offset)]


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


class CommitBatch:
    """Entries on their way into a store; to be used in ``with``, by one thread.

    What was added but not committed is removed at the end. After an error of ``add`` the entries that
    were added before can still be committed; after one of ``commit`` none is acknowledged.
    """

    __slots__ = ("_durability", "_home", "_is_intact", "_on_step", "_staged", "_tmp")

    def __init__(
        self, home: Home, durability: Durability, on_step: OnStep, is_intact: Callable[[EntryKey], bool]
    ) -> None:
        """``is_intact`` reads an entry, quarantines it when it is damaged, and says whether it was intact."""
        self._home, self._durability, self._on_step, self._is_intact = home, durability, on_step, is_intact
        self._tmp: Folder | None = None
        self._staged: list[StagedEntry] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    @property
    def num_entries(self) -> int:
        """How many entries wait to be committed."""
        return len(self._staged)

    @property
    def num_bytes(self) -> int:
        """Bytes of their payloads: on the disk, but not yet durable."""
        return sum(staged.num_bytes for staged in self._staged)

    def add(
        self, pixels: PixelDigest, spec: EncoderSpec, features: Features, provenance: Provenance
    ) -> EntryKey:
        """Stage an entry; until this returns the features must not change, afterwards they may go.

        Raises:
            ValueError: the features do not match the encoder's layers, hidden size or merge size.
            StoreError: the disk is full or broken; nothing of this entry is left.
        """
        info = new_entry(pixels, spec, features, provenance)
        return self._add(info, lambda tmp: stage_entry(tmp, features, info, self._on_step))

    def copy(self, info: EntryInfo, read: Read, payload: NDArray[np.uint8] | None = None) -> EntryKey:
        """Stage an entry of another store as it is, provenance and time included.

        Its chunk comes part by part; the payload is left in ``payload`` if that is given.

        Raises:
            DamagedError: what is on the disk is not what ``info`` tells of: it came so, or was not kept.
            StoreError: as for ``add``, or as ``read`` raises.
        """
        return self._add(info, lambda tmp: stage_stream(tmp, read, info, payload, self._on_step))

    def _add(self, info: EntryInfo, stage: Callable[[Folder], StagedEntry]) -> EntryKey:
        try:
            self._staged.append(stage(self._opened_tmp()))
        except OSError as error:
            raise disk_error(self._home.path, f"cannot write entry {info.key}", error) from error
        return info.key

    def commit(self) -> tuple[EntryKey, ...]:
        """Make all entries durable and visible; acknowledge them by returning their keys.

        When another writer was first, its entry stays: same key, same features.

        Raises:
            StoreError: the disk refuses; whole entries may be visible, but none is acknowledged.
        """
        keys = tuple(staged.key for staged in self._staged)
        try:
            if self._staged:
                self._commit(self._opened_tmp())
        except OSError as error:
            what = f"cannot write entry {keys[0]}" + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")
            raise disk_error(self._home.path, what, error) from error
        finally:
            self._close()
        return keys

    def _commit(self, tmp: Folder) -> None:
        for staged in self._staged:
            staged.sync(self._durability, self._on_step)
        with Folder.open_root(self._home.store) as root, root.folder(FRAMES) as frames, ExitStack() as open_:
            groups: dict[str, Folder] = {}
            for staged in self._staged:
                name = group_name(staged.key)
                if name not in groups:
                    groups[name] = open_.enter_context(_open_group(frames, name, self._durability))
                self._publish(tmp, staged, groups[name])
                self._on_step(CommitStep.renamed)
            _sync_groups(groups.values(), self._durability)
            self._on_step(CommitStep.groups_synced)
        self._on_step(CommitStep.acknowledged)

    def _publish(self, tmp: Folder, staged: StagedEntry, group: Folder) -> None:
        for races in range(_MAX_RACES + 1):
            try:
                return tmp.rename(staged.name, group, staged.key.hex)
            except OSError as error:
                if error.errno not in OCCUPIED or races == _MAX_RACES:
                    raise
            if self._is_intact(staged.key):
                with suppress(FileNotFoundError):  # removed again: the place is free, ours goes there
                    return _sync_entry(group, staged.key, self._durability)
        return None  # pragma: no cover - the last race raises

    def _opened_tmp(self) -> Folder:
        if self._tmp is None:
            with Folder.open_root(self._home.store) as root:
                root.make_folder(TMP, exist_ok=True)
                self._tmp = root.folder(TMP)
        return self._tmp

    def _close(self) -> None:
        """Close what is open, and remove under ``tmp/`` what was not renamed away."""
        for staged in self._staged:
            staged.opened.close()
        self._staged.clear()
        if self._tmp is not None:
            self._tmp.close()
            self._tmp = None


def sync_entries(store: Path, keys: Iterable[EntryKey], durability: Durability) -> None:
    """Make durable what others wrote and may not have made durable yet; an entry that is gone is left out.

    Raises:
        OSError: the disk refuses.
    """
    with ExitStack() as open_:
        frames = open_.enter_context(Folder.open(store / FRAMES))
        groups: dict[str, Folder] = {}
        for key in keys:
            with suppress(FileNotFoundError):
                name = group_name(key)
                if name not in groups:
                    groups[name] = open_.enter_context(frames.folder(name))
                _sync_entry(groups[name], key, durability)
        _sync_groups(groups.values(), durability)


def _open_group(frames: Folder, name: str, durability: Durability) -> Folder:
    try:
        return frames.folder(name)
    except FileNotFoundError:
        make_group(frames, name)
        sync_fd(frames.fd, durability)
        return frames.folder(name)


def _sync_entry(group: Folder, key: EntryKey, durability: Durability) -> None:
    """Make another writer's entry durable: we acknowledge it, and that writer may not be so far yet."""
    with group.folder(key.hex) as entry:
        for name in (CHUNK_NAME, METADATA_NAME):
            with entry.open_file(name) as fd:
                sync_fd(fd, durability)
        sync_fd(entry.fd, durability)


def _sync_groups(groups: Iterable[Folder], durability: Durability) -> None:
    """Make the new names durable; the last call also empties the drive's own cache."""
    waiting = list(groups)
    for group in waiting[:-1]:
        sync_fd(group.fd, durability)
    for group in waiting[-1:]:
        flush_fd(group.fd, durability)
