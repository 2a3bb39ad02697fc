"""Forgetting whole recordings: by name, or the least recently used first.

A manifest is all that a recording is to the store: without it, its entries are collected when nobody has
used them for a day.
"""

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cache.base.errors import InputError, NotEncodedError, StoreError
from cache.base.files import Folder
from cache.base.home import Home
from cache.base.text import user_path
from cache.gc import References, collect
from cache.key import EntryKey
from cache.layout import RECORDINGS, names_in, stored_entries
from cache.leases import forget_uses
from cache.manifest import MANIFEST_FILE, ManifestNames, list_manifests, manifest_names
from cache.pixel_index import PixelIndex
from cache.quarantine import quarantined_entries, remove_quarantined
from cache.recordings import StoredRecording, stored_recordings
from cache.store import Store
from cache.thumbnails import Thumbnails

RemoveRuns = Callable[[Home, str], int]
"""Removes the runs of a recording, and returns how many there were."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What went. ``num_left`` entries stay for now: others name them, or a running command uses them.

    ``num_files`` files, or places in them, were remembered with the digests of their pictures.
    """

    recording: str
    num_manifests: int
    num_entries: int
    num_bytes: int
    num_left: int
    num_thumbnails: int
    num_quarantined: int
    num_runs: int
    num_files: int


@dataclass(frozen=True, slots=True)
class ToForget:
    """A recording that would go, and what that would free once nobody has used it for a day."""

    recording: str
    used_s: float
    num_bytes: int


def find_recording_id(home: Home, selector: str) -> str:
    """Return the id of a recording in the store: by its id, path, name or the start of its id.

    A manifest that cannot be read has an id too: that of its folder.

    Raises:
        NotEncodedError: there is none.
        InputError: several fit.
    """
    infos = {ref.recording.id: ref.recording for ref in list_manifests(home, lambda _: None)}
    ids = sorted({*infos, *(name for name in names_in(home.store / RECORDINGS) if not name.startswith("."))})
    path = os.path.realpath(user_path(selector)) if selector else ""
    for fits in (
        [id_ for id_ in ids if id_ == selector],
        [id_ for id_, info in infos.items() if os.path.realpath(info.path) == path],
        [id_ for id_, info in infos.items() if info.name == selector],
        [id_ for id_ in ids if selector and id_.startswith(selector)],
    ):
        if len(fits) > 1:
            raise InputError(f"{selector!r} fits several recordings: give one of {', '.join(fits[:6])}.")
        if fits:
            return fits[0]
    raise NotEncodedError(f"{selector!r} is not in the store: see what there is with seeonce store ls.")


def forget(store: Store, recording_id: str, *, purge: bool, remove_runs: RemoveRuns) -> Forgotten:
    """Remove the manifests of a recording; with ``purge`` also what nothing else needs of it.

    Raises:
        StoreError: the disk refuses, or another manifest cannot be read, so that nobody knows what it needs.
    """
    if not store.writable:
        raise StoreError(f"the store {store.path} is read-only: nothing can be forgotten")
    folder = store.path / RECORDINGS / recording_id
    named = _named_by(folder)
    keys = named.keys
    num_files = _forget_files(store, recording_id, named) if purge else 0
    try:
        num_manifests = _remove_manifests(store, folder)
    except OSError as error:
        raise StoreError(f"cannot remove {error.filename or folder}: {error.strerror}") from error
    if not purge:
        return Forgotten(recording_id, num_manifests, 0, 0, sum(map(store.is_there, keys)), 0, 0, 0, 0)
    # Runs first: they are text, and the likeliest to be read by somebody.
    num_runs = _remove_runs(store, recording_id, remove_runs)
    collected = collect(store, only=keys)
    needed = References(store.home)
    thumbnails = Thumbnails(store.home)
    return Forgotten(
        recording=recording_id,
        num_manifests=num_manifests,
        num_entries=collected.num_entries,
        num_bytes=collected.num_bytes,
        num_left=sum(map(store.is_there, keys)),
        num_thumbnails=sum(thumbnails.remove(digest) for digest in named.pixels - needed.names.pixels),
        num_quarantined=_remove_quarantined(store, keys - needed.names.keys),
        num_runs=num_runs,
        num_files=num_files,
    )


def purge_runs(store: Store, recording_id: str, remove_runs: RemoveRuns) -> Forgotten:
    """Remove the runs of a recording that is not in the store, as it was forgotten before.

    Raises:
        NotEncodedError: nothing is known of it.
    """
    num_runs = _remove_runs(store, recording_id, remove_runs)
    if not num_runs:
        raise NotEncodedError(
            f"{recording_id!r} is not in the store, and no run is of it: see what there is with "
            "seeonce store ls."
        )
    return Forgotten(recording_id, 0, 0, 0, 0, 0, 0, num_runs, 0)


def least_used(
    store: Store, *, max_bytes: int | None = None, max_age_s: float | None = None
) -> list[ToForget]:
    """Name the recordings to forget so that the store is no larger, and none is older, than asked.

    The least recently used come first; one whose entries others name too is left out when that frees nothing.
    """
    recordings = stored_recordings(store.home)
    sizes = {entry.key: entry.num_bytes for entry in stored_entries(store.path)}
    oldest_s = -math.inf if max_age_s is None else time.time() - max_age_s
    kept, chosen = _Kept(recordings, sizes), list[StoredRecording]()
    limit = kept.num_bytes if max_bytes is None else max_bytes
    for recording in recordings:
        if recording.used_s < oldest_s or kept.num_bytes > limit:
            kept.drop(recording)
            chosen.append(recording)
    for recording in reversed(chosen):
        cost = kept.cost(recording)
        if recording.used_s >= oldest_s and (cost == 0 or kept.num_bytes + cost <= limit):
            kept.take_back(recording)
            chosen = [one for one in chosen if one.id != recording.id]
    kept = _Kept(recordings, sizes)
    return [ToForget(recording.id, recording.used_s, kept.drop(recording)) for recording in chosen]


class _Kept:
    """Counts the bytes of entries that some recording still names; what none names goes by itself."""

    def __init__(self, recordings: Sequence[StoredRecording], sizes: Mapping[EntryKey, int]) -> None:
        self._sizes = sizes
        self._num_naming = Counter(key for recording in recordings for key in recording.keys)
        self.num_bytes = sum(sizes.get(key, 0) for key in self._num_naming)

    def drop(self, recording: StoredRecording) -> int:
        self._num_naming.subtract(recording.keys)
        freed = self.cost(recording)
        self.num_bytes -= freed
        return freed

    def cost(self, recording: StoredRecording) -> int:
        """Return the bytes that a dropped recording would bring back."""
        return sum(self._sizes.get(key, 0) for key in recording.keys if not self._num_naming[key])

    def take_back(self, recording: StoredRecording) -> None:
        self.num_bytes += self.cost(recording)
        self._num_naming.update(recording.keys)


def _named_by(folder: Path) -> ManifestNames:
    found = []
    for encoder in names_in(folder):
        with suppress(StoreError):  # one that cannot be read names nothing that we could remove
            found.append(manifest_names(folder / encoder / MANIFEST_FILE))
    return ManifestNames.of_all(found)


def _forget_files(store: Store, recording_id: str, named: ManifestNames) -> int:
    """Remove what is remembered of files: first of all, as nobody knows which they are without a manifest."""
    with PixelIndex(store.home) as index:
        return index.forget(named, References(store.home, leave_out=recording_id).names)


def _remove_runs(store: Store, recording_id: str, remove_runs: RemoveRuns) -> int:
    forget_uses(store, recording_id)
    return remove_runs(store.home, recording_id)


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


def _remove_quarantined(store: Store, keys: frozenset[EntryKey]) -> int:
    away = quarantined_entries(store.path)
    names = [item.name for key in keys for item in away.get(key, ())]
    for name in names:
        remove_quarantined(store.path, name)
    return len(names)


def forget_all(store: Store, chosen: Sequence[ToForget]) -> None:
    """Forget recordings; their entries stay until they are collected. Raises as ``forget``."""
    for recording in chosen:
        forget(store, recording.recording, purge=False, remove_runs=lambda _home, _id: 0)
