"""The embedding store of one home: entries by key, written once, checked on every read.

A store has no state but its path: threads and processes share it without locks.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cache.base.errors import NotEncodedError, StoreError, disk_error
from cache.base.files import Durability, Folder
from cache.base.home import STORE, Home
from cache.commit import CommitBatch, OnStep, no_fault, sync_entries
from cache.entry import DamagedError, EntryInfo, Features, Provenance
from cache.key import EncoderSpec, EntryKey, PixelDigest
from cache.layout import create_layout, entry_folder, read_store_id, stored_keys, sync_layout
from cache.manifest import (
    Manifest,
    ManifestHead,
    ManifestRef,
    list_manifests,
    read_manifest,
    write_manifest,
)
from cache.quarantine import quarantine, why_quarantined
from cache.reading import (
    TOUCH_AFTER_S,
    is_in_place,
    read_and_touch,
    read_info,
    read_payload,
    scan_payload,
    visit,
)
from cache.trash import sweep_tmp

__all__ = ["Durability", "Store"]

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
    def _root(self) -> str:
        return f"{self.home.path}/{STORE}"  # a pathlib join costs as much as opening a folder

    def has(self, key: EntryKey) -> bool:
        """Say whether the entry is there: metadata and length are checked, the payload is not."""
        return self.entry_info(key) is not None

    def entry_info(self, key: EntryKey) -> EntryInfo | None:
        """Return what an entry says about itself; None when it is missing or wrong.

        Raises:
            StoreError: the disk refuses for a reason that is not the entry's.
        """
        return read_and_touch(self._root, key, lambda entry: read_info(entry, key), writable=self.writable)

    def peek(self, key: EntryKey) -> EntryInfo | None:
        """Return what ``entry_info`` does, for counting: no use is remembered, nothing is moved."""
        try:
            return visit(self._root, key, lambda entry: read_info(entry, key))
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
            return info, read_payload(entry, info, buffer)

        return read_and_touch(self._root, key, checked, writable=self.writable)

    def check(self, key: EntryKey, *, payload: bool = True) -> str | None:
        """Check every byte of an entry, by BLAKE3 as well; say what is wrong, None when all is right.

        Nothing is moved. Without ``payload`` its metadata and length alone. Of an entry that lies in
        quarantine it says why.
        """
        try:
            if visit(self._root, key, lambda entry: _scanned(entry, key, payload)):
                return None
        except DamagedError as damage:
            return str(damage)
        return why_quarantined(self.path, key) or "there is no such entry"

    def quarantine_damaged(self, key: EntryKey) -> bool:
        """Move an entry to ``quarantine/`` if a full check finds it damaged; say whether it was."""
        try:
            visit(self._root, key, lambda entry: _scanned(entry, key, payload=True))
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
            ValueError: the features do not match the encoder's layers, hidden size or merge size.
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
        return is_in_place(self._root, key)

    def touch(self, key: EntryKey) -> None:
        """Remember that an entry will be used, as a hit does; nothing is opened. Best effort."""
        path = entry_folder(self._root, key)
        with suppress(OSError):
            if self.writable and time.time() - os.lstat(path).st_mtime > TOUCH_AFTER_S:
                os.utime(path, follow_symlinks=False)


def _scanned(entry: Folder, key: EntryKey, payload: bool) -> bool:
    info = read_info(entry, key)
    if payload:
        scan_payload(entry, info)
    return True
