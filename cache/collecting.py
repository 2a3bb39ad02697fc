"""The collection of what nobody needs: ``seeonce store gc``.

Owns: which entries go, and in which order things are looked at. Does not own: leases
(``cache.leases``), what manifests name (``cache.references``), the way out (``cache.trash``), times in the
future (``cache.first_sight``).

An entry goes when no manifest names it, nobody used it for 24 hours, and no lease is alive from that
time. No lock keeps others away, so each entry is first renamed into ``trash/`` and everything is
looked at again there. Whoever relies on an entry does the opposite: he touches it, or writes the
manifest that names it, and then looks whether the entry is in its place. One of the two sees the other:
the collection, which puts the entry back, or he, who then has a miss.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path

from cache.errors import StoreError
from cache.files import Durability, Folder
from cache.first_sight import date_by_first_sight
from cache.inventory import StoredEntry, stored_entries
from cache.key import EntryKey, PixelDigest
from cache.layout import FRAMES, THUMBS, TRASH, group_name
from cache.leases import Lease, living_leases
from cache.references import References
from cache.store import Store
from cache.sweeping import Leftovers, find_leftovers, remove_leftovers
from cache.thumbs import Thumbnails
from cache.tmp import leftovers
from cache.trash import TrashBatch, new_batch, old_batch

GRACE_S = 24 * 3600
_AT_ONCE = 256  # entries that lie in trash/ together before they are looked at again


class CollectStep(StrEnum):
    """The points of a collection at which a test lets others act."""

    planned = "planned"
    moved = "moved"
    judged = "judged"
    removed = "removed"


OnStep = Callable[[CollectStep], None]


@dataclass(frozen=True, slots=True)
class Collection:
    """What a collection removed, or would remove. ``num_kept`` came to be needed before they were gone."""

    num_entries: int
    num_bytes: int
    num_kept: int
    num_tmp: int
    num_trash: int
    num_quarantined: int
    num_files: int
    num_thumbnails: int
    leases: tuple[Lease, ...]
    dry_run: bool


def collect(
    store: Store,
    *,
    dry_run: bool = False,
    only: frozenset[EntryKey] | None = None,
    on_step: OnStep = lambda _: None,
    on_progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Collection:
    """Remove what nobody needs, or count it. With ``only``, of these entries, used today or not.

    Raises:
        StoreError: a manifest cannot be read, or the store is read-only; nothing is removed then.
    """
    if not store.writable and not dry_run:
        raise StoreError(f"the store {store.path} is read-only: nothing can be removed from it")
    try:
        return _collect(store, dry_run, only, on_step, on_progress)
    except OSError as error:
        raise StoreError(f"the collection stopped: {error}; check the disk and its permissions") from error


def _collect(
    store: Store,
    dry_run: bool,
    only: frozenset[EntryKey] | None,
    on_step: OnStep,
    on_progress: Callable[[int, int], None],
) -> Collection:
    judge = _Judge(store, only)
    entries = list(stored_entries(store.path))
    found = [entry for entry in entries if judge.condemns(entry.key, entry.used_s)]
    leases = tuple(living_leases(store.path))
    pictures: list[PixelDigest] = []
    left, num_trash, removed = Leftovers((), (), ()), 0, found
    if dry_run:
        left, num_trash = find_leftovers(store.path), len(leftovers(store.path / TRASH))
        pictures = judge.unneeded_thumbnails()
    else:
        on_step(CollectStep.planned)
        removed = list(_remove_entries(store.path, found, judge, on_step, on_progress))
        if only is None:
            date_by_first_sight(store.home, entries, judge.references)
            left, num_trash = remove_leftovers(store.path), _empty_old_batches(store.path, judge)
            pictures = [
                digest for digest in judge.unneeded_thumbnails() if Thumbnails(store.home).remove(digest)
            ]
    return Collection(
        num_entries=len(removed),
        num_bytes=sum(entry.num_bytes for entry in removed),
        num_kept=sum(store.is_there(key) for key in {e.key for e in found} - {e.key for e in removed}),
        num_tmp=len(left.tmp),
        num_trash=num_trash,
        num_quarantined=len(left.quarantined),
        num_files=len(left.files),
        num_thumbnails=len(pictures),
        leases=leases,
        dry_run=dry_run,
    )


def reclaimable(store: Store) -> Collection:
    """Return what ``collect`` would remove now. Raises as it does."""
    return collect(store, dry_run=True)


class _Judge:
    """Says whether an entry may go, by what is known now."""

    def __init__(self, store: Store, only: frozenset[EntryKey] | None) -> None:
        self._store, self._only = store, only
        self._before_s = 0.0
        self._look_at_leases()
        self.references = References(store.home)

    def look_again(self) -> None:
        # Leases first: whose lease has just ended has written his manifest before that.
        self._look_at_leases()
        self.references.refresh()

    def condemns(self, key: EntryKey, used_s: float) -> bool:
        chosen = self._only is None or key in self._only
        return chosen and used_s < self._before_s and key not in self.references

    def unneeded_thumbnails(self) -> list[PixelDigest]:
        """Return the old pictures that no manifest names. Only reports miss one that is needed again."""
        folder, found = self._store.path / THUMBS, []
        for digest in Thumbnails(self._store.home).digests():
            with suppress(FileNotFoundError):
                is_old = os.lstat(folder / digest.hex).st_mtime < self._before_s
                if is_old and digest not in self.references.names.pixels:
                    found.append(digest)
        return found

    def _look_at_leases(self) -> None:
        """Set the time before which an entry must have been used last: a lease stops this clock."""
        leases = living_leases(self._store.path)
        if self._only is not None and not leases:
            self._before_s = math.inf
            return
        self._before_s = min([time.time(), *(lease.since_s for lease in leases)]) - GRACE_S


def _remove_entries(
    store: Path,
    found: list[StoredEntry],
    judge: _Judge,
    on_step: OnStep,
    on_progress: Callable[[int, int], None],
) -> Iterator[StoredEntry]:
    """Remove entries that are still not needed once they lie in ``trash/``; yield those."""
    remaining, num_done = iter(found), 0
    with Folder.open(store / FRAMES) as frames, new_batch(store) as batch:
        while part := list(islice(remaining, _AT_ONCE)):
            # What came to be needed since it was found is not even moved: nobody should miss it meanwhile.
            judge.look_again()
            part = [entry for entry in part if judge.condemns(entry.key, _used_s(store, entry.key))]
            taken: list[StoredEntry] = []
            try:
                # One by one into the list: what was taken before an interruption must go back.
                taken.extend(entry for entry in part if _take(batch, frames, entry.key))
                on_step(CollectStep.moved)
                judge.look_again()
                gone = [entry for entry in taken if judge.condemns(entry.key, batch.used_s(entry.key.hex))]
                on_step(CollectStep.judged)
            except BaseException:
                _put_back(batch, frames, [entry.key for entry in taken])
                raise
            condemned = {entry.key for entry in gone}
            _put_back(batch, frames, [entry.key for entry in taken if entry.key not in condemned])
            for entry in gone:
                batch.remove(entry.key.hex)
            yield from gone
            num_done = min(num_done + _AT_ONCE, len(found))
            on_progress(num_done, len(found))
            on_step(CollectStep.removed)


def _used_s(store: Path, key: EntryKey) -> float:
    try:
        return os.lstat(store / FRAMES / group_name(key) / key.hex).st_mtime
    except FileNotFoundError:  # another collection took it
        return math.inf


def _take(batch: TrashBatch, frames: Folder, key: EntryKey) -> bool:
    try:
        with frames.folder(group_name(key)) as group:
            return batch.take(group, key.hex)
    except FileNotFoundError:
        return False


def _put_back(batch: TrashBatch, frames: Folder, keys: list[EntryKey]) -> None:
    refused: OSError | None = None
    for key in keys:
        try:
            with frames.folder(group_name(key)) as group:
                batch.put_back(key.hex, group)
                group.sync(Durability.batch)  # it was durable here: only the move away may be so by now
        except OSError as error:  # it stays in the batch, which a later collection judges again
            refused = error
    if refused is not None:
        raise refused


def _empty_old_batches(store: Path, judge: _Judge) -> int:
    names = leftovers(store / TRASH)
    for name in names:
        with suppress(FileNotFoundError):  # another collection was first
            _empty_old_batch(store, name, judge)
    return len(names)


def _empty_old_batch(store: Path, name: str, judge: _Judge) -> None:
    """Finish what a killed collection began: it may have died before it looked again."""
    judge.look_again()
    with Folder.open(store / FRAMES) as frames, old_batch(store, name) as batch:
        for item in batch.names():
            try:
                key = EntryKey.from_hex(item)
            except ValueError:
                batch.remove(item)
                continue
            if judge.condemns(key, batch.used_s(item)):
                batch.remove(item)
            else:
                _put_back(batch, frames, [key])
