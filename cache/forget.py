"""Forgetting whole recordings: by name, or the least recently used first.

A manifest is all that a recording is to the store: without it, its entries are collected when nobody has
used them for a day.
"""

import math
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cache.base.errors import NotEncodedError, StoreError
from cache.base.files import Folder
from cache.base.home import Home
from cache.gc import References, collect
from cache.layout import RECORDINGS, names_in, stored_entries
from cache.manifest import (
    MANIFEST_FILE,
    ManifestNames,
    StoredRecording,
    list_manifests,
    manifest_names,
    matching_recording,
    stored_recordings,
)
from cache.pixel_index import PixelIndex
from cache.prefixes import collect_prefixes
from cache.quarantine import quarantined, remove_quarantined
from cache.store import Store
from cache.thumbnails import Thumbnails


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What went. ``num_left`` entries stay for now: others name them, or a running command uses them.

    ``num_files`` files, or places in them, were remembered with the digests of their pictures, and
    ``num_prefixes`` lay in the prefix cache.
    """

    recording: str
    num_manifests: int = 0
    num_entries: int = 0
    num_bytes: int = 0
    num_left: int = 0
    num_thumbnails: int = 0
    num_quarantined: int = 0
    num_runs: int = 0
    num_files: int = 0
    num_prefixes: int = 0


def find_recording_id(home: Home, selector: str) -> str:
    """Return the id of a recording in the store: by its id, path, name or the start of its id.

    A manifest that cannot be read has an id too: that of its folder.

    Raises:
        NotEncodedError: no recording fits.
        InputError: several fit.
    """
    folders = [name for name in names_in(home.store / RECORDINGS) if not name.startswith(".")]
    refs = list_manifests(home, lambda _: None)
    found = matching_recording(selector, (ref.recording for ref in refs), unreadable=folders)
    if found is not None:
        return found
    raise NotEncodedError(f"{selector!r} is not in the store: see what there is with seeonce store ls.")


def forget(store: Store, recording_id: str, *, purge: bool = False) -> tuple[Forgotten, ManifestNames]:
    """Remove the manifests of a recording, and with ``purge`` what is remembered of its files.

    Returns what went, and for ``purge_entries`` what the manifests named.

    Raises:
        StoreError: the disk refuses, or another manifest cannot be read, so that nobody knows what it needs.
    """
    if not store.writable:
        raise StoreError(f"the store {store.path} is read-only: nothing can be forgotten")
    folder = store.path / RECORDINGS / recording_id
    named, num_files = ManifestNames(), 0
    for encoder in names_in(folder):
        with suppress(StoreError):  # one that cannot be read names nothing that we could remove
            named |= manifest_names(folder / encoder / MANIFEST_FILE)
    if purge:  # first of all: without a manifest nobody knows which files are its own
        with PixelIndex(store.home) as index:
            num_files = index.forget(named, References(store.home, leave_out=recording_id).names)
    try:
        num_manifests = _remove_manifests(store, folder)
    except OSError as error:
        raise StoreError(f"cannot remove {error.filename or folder}: {error.strerror}") from error
    num_left = sum(map(store.exists, named.keys))
    return Forgotten(recording_id, num_manifests, num_left=num_left, num_files=num_files), named


def purge_entries(store: Store, found: Forgotten, named: ManifestNames) -> Forgotten:
    """Remove at once the entries, thumbnails and copies in quarantine that nothing else needs.

    Raises:
        StoreError: the disk refuses, or a manifest cannot be read.
    """
    collected, needed = collect(store, only=named.keys), References(store.home).names
    num_prefixes = purge_prefixes(store)
    copies = [name for key in named.keys - needed.keys for name in quarantined(store.path, key)]
    for name in copies:
        remove_quarantined(store.path, name)
    return replace(
        found,
        num_entries=collected.num_entries,
        num_bytes=collected.num_bytes,
        num_left=sum(map(store.exists, named.keys)),
        num_thumbnails=sum(map(Thumbnails(store.home).remove, named.pixels - needed.pixels)),
        num_quarantined=len(copies),
        num_prefixes=num_prefixes,
    )


def purge_prefixes(store: Store) -> int:
    """Remove at once the prefixes over frames that no recording names; return how many there were.

    Raises:
        StoreError: the disk refuses, or a manifest cannot be read.
    """
    needed = References(store.home).names.keys
    try:
        return collect_prefixes(store.home, needed)[0]
    except OSError as error:
        raise StoreError(f"cannot remove prefixes: {error.strerror}; check the disk") from error


def _remove_manifests(store: Store, path: Path) -> int:
    num_removed = 0
    with Folder.open(path.parent) as recordings, recordings.folder(path.name) as folder:
        for encoder in folder.names():
            with suppress(FileNotFoundError, NotADirectoryError), folder.folder(encoder) as under:
                num_removed += MANIFEST_FILE in under.names()
                under.unlink(MANIFEST_FILE)
                under.sync(store.durability)
            folder.remove_empty(encoder)
        recordings.remove_empty(path.name)
    return num_removed


def least_used(
    store: Store, *, max_bytes: int | None = None, max_age_s: float | None = None
) -> list[tuple[StoredRecording, int]]:
    """Return the recordings to forget so that the store is no larger, and none is older, than asked.

    With the bytes that each frees, the least recently used first. One whose entries others name too is left
    out when that frees nothing.
    """
    recordings = stored_recordings(store.home)
    sizes = {entry.key: entry.num_bytes for entry in stored_entries(store.path)}
    oldest_s = -math.inf if max_age_s is None else time.time() - max_age_s
    num_naming = Counter(key for recording in recordings for key in recording.keys)

    def own_bytes(recording: StoredRecording) -> int:
        """Return the bytes of its entries that no recording names that stays."""
        return sum(sizes.get(key, 0) for key in recording.keys if not num_naming[key])

    # What no recording names goes by itself.
    num_bytes, chosen = sum(sizes.get(key, 0) for key in num_naming), list[StoredRecording]()
    limit = num_bytes if max_bytes is None else max_bytes
    for recording in recordings:
        if recording.used_s < oldest_s or num_bytes > limit:
            num_naming.subtract(recording.keys)
            num_bytes -= own_bytes(recording)
            chosen.append(recording)
    for recording in reversed(chosen.copy()):
        more = own_bytes(recording)
        if recording.used_s >= oldest_s and (more == 0 or num_bytes + more <= limit):
            num_naming.update(recording.keys)
            num_bytes += more
            chosen.remove(recording)
    num_naming = Counter(key for recording in recordings for key in recording.keys)
    found = []
    for recording in chosen:
        num_naming.subtract(recording.keys)
        found.append((recording, own_bytes(recording)))
    return found
