"""The collection of what nobody needs: ``seeonce store gc``.

An entry goes when no manifest names it, nobody used it for 24 hours, and no lease is alive from that
time. No lock keeps others away, so each entry is first renamed into ``trash/`` and everything is looked
at again there. A process that relies on an entry does the opposite: it touches it, or writes the manifest
that names it, and then looks whether the entry is in its place. One of the two sees the other: the
collection, which puts the entry back, or the other, which then has a miss.
"""

import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path

from cache.base.errors import StoreError
from cache.base.files import Durability, Folder
from cache.base.home import Home
from cache.key import EntryKey, PixelDigest
from cache.layout import (
    FRAMES,
    INDEX,
    LEASES,
    RECORDINGS,
    THUMBS,
    TMP,
    TRASH,
    USAGE,
    StoredEntry,
    group_name,
    names_in,
    stored_entries,
)
from cache.leases import Lease, dead_leases, living_leases
from cache.manifest import ManifestNames, manifest_files, manifest_names
from cache.quarantine import old_quarantined, remove_quarantined
from cache.store import Store
from cache.thumbnails import Thumbnails
from cache.trash import LEFTOVER_AGE_S, TrashBatch, leftovers, new_batch, old_batch, sweep_tmp

QUARANTINE_S = 30 * 24 * 3600
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}")  # as cache.files names them


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Names in ``tmp/`` and ``quarantine/``, and paths of single files, relative to the store."""

    tmp: tuple[str, ...]
    quarantined: tuple[str, ...]
    files: tuple[str, ...]


def find_leftovers(store: Path) -> Leftovers:
    """Return what can be removed without a look at any entry."""
    files = [*_unfinished_files(store), *(f"{LEASES}/{name}" for name in dead_leases(store))]
    return Leftovers(tuple(leftovers(store / TMP)), tuple(old_quarantined(store, QUARANTINE_S)), tuple(files))


def remove_leftovers(store: Path) -> Leftovers:
    """Remove what ``find_leftovers`` finds, and return it; best effort."""
    found = find_leftovers(store)
    sweep_tmp(store)
    for name in found.quarantined:
        remove_quarantined(store, name)
    for path in map(Path, found.files):
        with suppress(OSError), _opened(store, path.parent) as folder:
            folder.unlink(path.name)
    return found


def _unfinished_files(store: Path) -> list[str]:
    """Return temporary files that killed writers left more than a day ago."""
    folders = ["", THUMBS, INDEX, USAGE]
    folders += [
        f"{RECORDINGS}/{recording}/{encoder}"
        for recording in names_in(store / RECORDINGS)
        for encoder in names_in(store / RECORDINGS / recording)
    ]
    return [str(Path(folder) / name) for folder in folders for name in _old_temporaries(store, Path(folder))]


def _old_temporaries(store: Path, path: Path) -> list[str]:
    oldest = time.time() - LEFTOVER_AGE_S
    with suppress(OSError), _opened(store, path) as folder:
        names = [name for name in folder.names() if _TEMPORARY.fullmatch(name)]
        return [name for name in names if folder.modified_s(name) < oldest]
    return []


@contextmanager
def _opened(store: Path, path: Path) -> Iterator[Folder]:
    """Open a folder of the store name by name: a symlink on the way would lead out of it."""
    with ExitStack() as opened:
        folder = opened.enter_context(Folder.open_root(store))
        for name in path.parts:
            folder = opened.enter_context(folder.folder(name))
        yield folder


_Stamp = tuple[int, int, int]


class References:
    """The keys, and all that the manifests of a home name as ``names``."""

    def __init__(self, home: Home, leave_out: str = "") -> None:
        """Read every manifest, but of the recording ``leave_out``. Raises as ``refresh``."""
        self._home, self._left_out = home, home.store / RECORDINGS / leave_out if leave_out else None
        self._known: dict[Path, tuple[_Stamp, ManifestNames]] = {}
        self.names = ManifestNames()
        self.refresh()

    def refresh(self) -> None:
        """Look at every manifest again.

        Raises:
            StoreError: one cannot be read, so nobody knows what it names.
        """
        try:
            os.lstat(self._home.store / RECORDINGS)  # when it is not there, nothing can be concluded
            paths = [path for path in manifest_files(self._home) if path.parent.parent != self._left_out]
            found = dict(filter(None, map(self._look, paths)))
        except OSError as error:
            raise StoreError(
                f"cannot read {error.filename}: {error.strerror}; nothing is collected while manifests "
                "cannot be read: check its permissions"
            ) from error
        if found != self._known:
            self._known = found
            self.names = ManifestNames.of_all(names for _, names in found.values())

    def __contains__(self, key: EntryKey) -> bool:
        """Say whether a manifest names the entry."""
        return key in self.names.keys

    def _look(self, path: Path) -> tuple[Path, tuple[_Stamp, ManifestNames]] | None:
        try:
            stamp = _stamp(path)
            known = self._known.get(path)
            return path, known if known and known[0] == stamp else (stamp, manifest_names(path))
        except (OSError, StoreError):
            if os.path.lexists(path):
                raise
            return None  # forgotten between two looks


def _stamp(path: Path) -> _Stamp:
    found = os.lstat(path)
    return found.st_mtime_ns, found.st_size, found.st_ino


def date_by_first_sight(home: Home, entries: Iterable[StoredEntry], needed: References) -> None:
    """Set the times of entries and thumbnails that lie in the future to now; best effort."""
    now_s = time.time()
    for entry in entries:
        if entry.used_s > now_s and entry.key not in needed:
            _touch(home.store / FRAMES / group_name(entry.key) / entry.key.hex)
    for digest in Thumbnails(home).digests():
        path = home.store / THUMBS / digest.hex
        if digest not in needed.names.pixels and _modified_s(path) > now_s:
            _touch(path)


def _modified_s(path: Path) -> float:
    with suppress(OSError):
        return os.lstat(path).st_mtime
    return 0.0


def _touch(path: Path) -> None:
    with suppress(OSError):
        os.utime(path, follow_symlinks=False)


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
        # Leases first: a process whose lease has just ended has written its manifest before that.
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
