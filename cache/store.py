"""The embedding store of one home: entries by key, written once, checked on every read.

A store has no state but its path: threads and processes share it without locks.
"""

import errno
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from cache.base.errors import NotEncodedError, StoreError, disk_error
from cache.base.files import Durability, Folder
from cache.base.home import STORE, Home
from cache.commit import CommitBatch, OnStep, no_fault, sync_entries
from cache.entry import DamagedError, EntryInfo, Features, Provenance
from cache.key import EncoderSpec, EntryKey, PixelDigest
from cache.layout import FRAMES, create_layout, group_name, read_store_id, stored_keys, sync_layout
from cache.manifest import (
    Manifest,
    ManifestHead,
    ManifestRef,
    list_manifests,
    read_manifest,
    write_manifest,
)
from cache.quarantine import quarantine, why_quarantined
from cache.reading import damage_from_disk, read_info, read_payload, scan_payload
from cache.trash import sweep_tmp

__all__ = ["Durability", "EntryInfo", "Store"]

TOUCH_AFTER_S = 3600
_TRIES = 8  # against a collection or another writer that moves the same entry at the same moment

Result = TypeVar("Result")

_log = logging.getLogger("seeonce.cache")


@dataclass(frozen=True, slots=True)
class Store:
    """An open store. ``on_step`` is where a test injects faults into a commit.

    ``elsewhere`` gives the features of an entry that ``read`` does not find here.
    """

    home: Home
    store_id: str
    durability: Durability
    writable: bool
    on_step: OnStep = no_fault
    elsewhere: Callable[[EntryKey], Features | None] | None = None

    @classmethod
    def open(
        cls,
        home: Home,
        *,
        create: bool = True,
        durability: Durability = Durability.batch,
        on_step: OnStep = no_fault,
    ) -> Self:
        """Open the store of a home; make it first when there is none and ``create`` is set.

        Raises:
            NotEncodedError: there is none, and ``create`` is not set.
            StoreError: it is of a newer format, damaged, or cannot be made.
        """
        store_id = read_store_id(home.store)
        if create:
            try:
                if store_id is None:
                    home.prepare()
                    create_layout(home.store, durability)
                    store_id = read_store_id(home.store)
                elif os.access(home.store, os.W_OK | os.X_OK):
                    sync_layout(home.store, durability)
            except OSError as error:
                raise disk_error(home.path, f"cannot make the store {home.store}", error) from error
        if store_id is None:
            raise NotEncodedError(
                f"there is no store at {home.store}: run seeonce encode first, or set SEEONCE_HOME"
            )
        return cls(home, store_id, durability, os.access(home.store, os.W_OK | os.X_OK), on_step)

    @property
    def path(self) -> Path:
        """The folder of the store."""
        return self.home.store

    @property
    def _frames(self) -> str:
        return f"{self.home.path}/{STORE}/{FRAMES}"  # a pathlib join costs as much as opening a folder

    def has(self, key: EntryKey) -> bool:
        """Say whether the entry is there: metadata and length are checked, the payload is not."""
        return self.entry_info(key) is not None

    def entry_info(self, key: EntryKey) -> EntryInfo | None:
        """Return what an entry says about itself; None when it is missing or wrong.

        Raises:
            StoreError: the disk refuses for a reason that is not the entry's.
        """
        return self._read_and_touch(key, lambda entry: read_info(entry, key))

    def peek(self, key: EntryKey) -> EntryInfo | None:
        """Return what ``entry_info`` does, for counting: no use is remembered, nothing is moved."""
        try:
            return self._visit(key, lambda entry: read_info(entry, key))
        except DamagedError:
            return None

    def read(self, key: EntryKey, buffer: NDArray[np.uint8] | None = None) -> Features | None:
        """Return the features of an entry, every byte checked; None when it is missing or wrong.

        They lie in ``buffer`` (contiguous uint8, to be reused) when it is large enough. What is wrong
        is moved to ``quarantine/``.

        Raises:
            StoreError: the disk refuses for a reason that is not the entry's.
        """

        found = self.read_entry(key, buffer)
        if found is not None:
            return found[1]
        return None if self.elsewhere is None else self.elsewhere(key)

    def read_entry(
        self, key: EntryKey, buffer: NDArray[np.uint8] | None = None
    ) -> tuple[EntryInfo, Features] | None:
        """Return an entry whole, as ``read`` does, from this disk alone."""

        def checked(entry: Folder) -> tuple[EntryInfo, Features]:
            info = read_info(entry, key)
            return info, Features(
                read_payload(entry, info, buffer), info.dtype, info.grid_thw, info.merge_size
            )

        return self._read_and_touch(key, checked)

    def check(self, key: EntryKey, *, payload: bool = True) -> str | None:
        """Check every byte of an entry, by BLAKE3 as well; say what is wrong, None when all is right.

        Nothing is moved. Without ``payload`` its metadata and length alone. Of an entry that lies in
        quarantine it says why.
        """
        try:
            if self._visit(key, lambda entry: _scanned(entry, key, payload)):
                return None
        except DamagedError as damage:
            return str(damage)
        return why_quarantined(self.path, key) or "there is no such entry"

    def quarantine_damaged(self, key: EntryKey) -> bool:
        """Move an entry to ``quarantine/`` if a full check finds it damaged; say whether it was."""
        try:
            self._visit(key, lambda entry: _scanned(entry, key, payload=True))
        except DamagedError as damage:
            quarantine(self.path, key, damage.identity, str(damage))
            return True
        return False

    def write(
        self, pixels: PixelDigest, spec: EncoderSpec, features: Features, provenance: Provenance
    ) -> EntryKey:
        """Commit an entry; when it returns, the entry is as durable as the store was opened for.

        When another writer was first, its entry stays: same key, same features.

        Raises:
            ValueError: the features are not such as the encoder gives.
            StoreError: the disk is full, broken or read-only; nothing half written is left.
        """
        with self.batch() as batch:
            batch.add(pixels, spec, features, provenance)
            return batch.commit()[0]

    def batch(self) -> CommitBatch:
        """Return a batch, to be used in ``with``: its entries are made durable and acknowledged together.

        Raises:
            StoreError: the store is read-only.
        """
        if not self.writable:
            raise StoreError(
                f"the store {self.path} is read-only: set SEEONCE_HOME to a folder you can write to"
            )
        return CommitBatch(self.home, self.durability, self.on_step, lambda key: self.read(key) is not None)

    def make_durable(self, keys: Iterable[EntryKey]) -> None:
        """Make entries of other writers durable: they can be seen a moment before they are.

        Raises:
            StoreError: the disk refuses.
        """
        if self.durability is Durability.none or not self.writable:
            return
        try:
            sync_entries(self.path, keys, self.durability)
        except OSError as error:
            raise disk_error(self.home.path, "cannot make entries durable", error) from error

    def list_manifests(self, on_problem: Callable[[str], None] = _log.warning) -> list[ManifestRef]:
        """Return all manifests, newest first. ``on_problem`` receives a line for each that cannot be read."""
        return list_manifests(self.home, on_problem)

    def read_manifest(self, head: ManifestHead) -> Manifest:
        """Read a manifest with its frames.

        Raises:
            StoreError: it is missing, damaged or of a newer format.
        """
        return read_manifest(head.path)

    def write_manifest(self, manifest: Manifest) -> None:
        """Write a manifest, replacing the one before it at once.

        Raises:
            ValueError: the manifest has problems.
            StoreError: a bad recording id, or the disk refuses.
        """
        write_manifest(self.home, manifest, self.durability)

    def keys(self) -> Iterator[EntryKey]:
        """Yield the key of every entry, in no particular order; entries are not opened."""
        return stored_keys(self.path)

    def free_bytes(self) -> int:
        """Return how many bytes the disk of the store can still take."""
        return shutil.disk_usage(self.path).free

    def sweep_tmp(self) -> int:
        """Remove what dead processes left under ``tmp/`` more than a day ago; return how many."""
        try:
            return sweep_tmp(self.path) if self.writable else 0
        except OSError:  # another process sweeps, or the disk refuses: it is only rubbish
            return 0

    def exists(self, key: EntryKey) -> bool:
        """Say whether there is an entry of that name, right or wrong: one look, nothing is opened."""
        return self._is_in_place(key, None)

    def touch(self, key: EntryKey) -> None:
        """Remember that an entry will be used, as a hit does; nothing is opened. Best effort."""
        path = f"{self._frames}/{group_name(key)}/{key.hex}"
        with suppress(OSError):
            if self.writable and time.time() - os.lstat(path).st_mtime > TOUCH_AFTER_S:
                os.utime(path, follow_symlinks=False)

    def _read_and_touch(self, key: EntryKey, work: Callable[[Folder], Result]) -> Result | None:
        """Read an entry that is wanted, touch it, and move it to quarantine when it is damaged."""

        def used(entry: Folder) -> tuple[Result, bool]:
            result = work(entry)
            if self.writable:
                entry.touch(TOUCH_AFTER_S)
            # First the touch, then a look whether the entry is in its place still. A collection first
            # moves it away, then looks for a touch: whoever comes second sees the other. The look is
            # taken always: a folder that is being removed seems to have been touched just now.
            return result, self._is_in_place(key, entry.identity())

        try:
            for _ in range(_TRIES):
                found = self._visit(key, used)
                if found is None:
                    return None
                if found[1]:
                    return found[0]
            return None
        except DamagedError as damage:
            if self.writable:
                quarantine(self.path, key, damage.identity, str(damage))
            else:
                _log.warning("entry %s is damaged: %s", key, damage)
            return None

    def _is_in_place(self, key: EntryKey, identity: tuple[int, int] | None) -> bool:
        try:
            found = os.lstat(f"{self._frames}/{group_name(key)}/{key.hex}")
        except OSError:
            return False
        return identity is None or identity == (found.st_dev, found.st_ino)

    def _visit(self, key: EntryKey, work: Callable[[Folder], Result]) -> Result | None:
        """Open an entry's folder for ``work``; None when there is none."""
        identity = None
        try:
            with Folder.open(self._frames) as frames, frames.folder(group_name(key)) as group:
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
            raise StoreError(f"cannot read entry {key}: {error.strerror}; check {self.path}") from error


def _scanned(entry: Folder, key: EntryKey, payload: bool) -> bool:
    info = read_info(entry, key)
    if payload:
        scan_payload(entry, info)
    return True
