"""Garbage collection: ``seeonce store gc``.

An entry goes when no manifest names it, nobody used it for 24 hours, and no lease is active from that
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
from functools import reduce
from itertools import islice
from operator import or_
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
    entry_folder,
    group_name,
    names_in,
    stored_entries,
)
from cache.leases import Lease, active_leases, expired_leases
from cache.manifest import ManifestNames, manifest_files, manifest_names
from cache.prefixes import collect_prefixes
from cache.quarantine import old_quarantined, remove_quarantined
from cache.store import Store
from cache.thumbnails import Thumbnails
from cache.trash import LEFTOVER_AGE_S, leftovers, move_to, new_batch, put_back, remove_from, sweep_tmp

GRACE_S = 24 * 3600
QUARANTINE_S = 30 * 24 * 3600
_AT_ONCE = 256  # entries that lie in trash/ together before they are looked at again
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}")  # as cache.base.files names them


class CollectStep(StrEnum):
    """The points of a collection at which a test lets others act."""

    planned = "planned"
    moved = "moved"
    judged = "judged"
    removed = "removed"


OnStep = Callable[[CollectStep], None]
OnProgress = Callable[[int, int], None]
"""Receives how much is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class Collection:
    """What a collection removed, or would remove. ``num_kept`` were needed again before they were gone."""

    num_entries: int
    num_bytes: int
    num_kept: int
    num_tmp: int = 0
    num_trash: int = 0
    num_quarantined: int = 0
    num_files: int = 0
    num_thumbnails: int = 0
    num_prefixes: int = 0
    prefix_bytes: int = 0
    leases: tuple[Lease, ...] = ()
    dry_run: bool = False


class References:
    """What the manifests of a home name, and before which time an entry must have been used last to go."""

    def __init__(self, home: Home, *, only: frozenset[EntryKey] | None = None, leave_out: str = "") -> None:
        """Look at leases and all manifests, except those of ``leave_out``. Raises as ``refresh``.

        With ``only``, no other entry may go; while no lease is active, these may go even if used today.
        """
        self._home, self._only = home, only
        self._left_out = home.store / RECORDINGS / leave_out if leave_out else None
        self._known: dict[Path, tuple[tuple[int, int, int], ManifestNames]] = {}
        self.names = ManifestNames()
        self.refresh()

    def refresh(self) -> None:
        """Look again at leases and at manifests that have changed.

        Raises:
            StoreError: a manifest cannot be read, so nobody knows what it names.
        """
        # Leases first: a process whose lease has just ended has written its manifest before that.
        leases = active_leases(self._home.store)
        self.before_s = min([time.time(), *(lease.since_s for lease in leases)]) - GRACE_S
        if self._only is not None and not leases:
            self.before_s = math.inf
        try:
            os.lstat(self._home.store / RECORDINGS)  # when it is not there, nothing can be concluded
            paths = [path for path in manifest_files(self._home) if path.parent.parent != self._left_out]
            known = dict(filter(None, map(self._read, paths)))
        except OSError as error:
            raise StoreError(
                f"cannot read {error.filename}: {error.strerror}; nothing is collected while manifests "
                "cannot be read: check its permissions"
            ) from error
        if known != self._known:
            self._known = known
            self.names = reduce(or_, (names for _, names in known.values()), ManifestNames())

    def _read(self, path: Path) -> tuple[Path, tuple[tuple[int, int, int], ManifestNames]] | None:
        try:
            found = os.lstat(path)
            stamp = found.st_mtime_ns, found.st_size, found.st_ino
            known = self._known.get(path)
            return path, known if known and known[0] == stamp else (stamp, manifest_names(path))
        except (OSError, StoreError):
            if os.path.lexists(path):
                raise
            return None  # forgotten between two looks

    def is_garbage(self, key: EntryKey, used_s: float) -> bool:
        """Say whether nobody needs an entry that was last used then."""
        chosen = self._only is None or key in self._only
        return chosen and used_s < self.before_s and key not in self.names.keys


def collect(
    store: Store,
    *,
    dry_run: bool = False,
    only: frozenset[EntryKey] | None = None,
    on_step: OnStep = lambda _: None,
    on_progress: OnProgress = lambda _done, _all: None,
) -> Collection:
    """Remove what nobody references, or count it. With ``only``, of these entries, used today or not.

    Raises:
        StoreError: a manifest cannot be read, or the store is read-only; nothing is removed then.
    """
    if not store.writable and not dry_run:
        raise StoreError(f"the store {store.path} is read-only: nothing can be removed from it")
    try:
        references = References(store.home, only=only)
        entries = list(stored_entries(store.path))
        found = [entry for entry in entries if references.is_garbage(entry.key, entry.used_s)]
        leases = tuple(active_leases(store.path))
        removed = found
        if not dry_run:
            on_step(CollectStep.planned)
            removed = list(_remove_entries(store.path, found, references, on_step, on_progress))
            if only is None:
                _clamp_future_times(store.home, entries, references.names)
        others = _remove_others(store, references, dry_run) if only is None else {}
    except OSError as error:
        raise StoreError(f"the collection stopped: {error}; check the disk and its permissions") from error
    return Collection(
        num_entries=len(removed),
        num_bytes=sum(entry.num_bytes for entry in removed),
        num_kept=sum(store.exists(key) for key in {e.key for e in found} - {e.key for e in removed}),
        leases=leases,
        dry_run=dry_run,
        **others,
    )


def _remove_entries(
    store: Path, found: list[StoredEntry], references: References, on_step: OnStep, on_progress: OnProgress
) -> Iterator[StoredEntry]:
    """Remove entries that are still not needed once they lie in ``trash/``; yield those."""
    remaining, num_done = iter(found), 0
    with Folder.open(store / FRAMES) as frames, new_batch(store) as batch:
        while part := list(islice(remaining, _AT_ONCE)):
            # What is needed again since it was found is not even moved: nobody should miss it meanwhile.
            references.refresh()
            part = [entry for entry in part if references.is_garbage(entry.key, _used_s(store, entry.key))]
            taken: list[StoredEntry] = []
            try:
                # One by one into the list: what was taken before an interruption must go back.
                taken.extend(entry for entry in part if _take(batch, frames, entry.key))
                on_step(CollectStep.moved)
                references.refresh()
                gone = [
                    entry
                    for entry in taken
                    if references.is_garbage(entry.key, batch.modified_s(entry.key.hex))
                ]
                on_step(CollectStep.judged)
            except BaseException:
                _restore(batch, frames, [entry.key for entry in taken])
                raise
            condemned = {entry.key for entry in gone}
            _restore(batch, frames, [entry.key for entry in taken if entry.key not in condemned])
            for entry in gone:
                remove_from(batch, entry.key.hex)
            yield from gone
            num_done = min(num_done + _AT_ONCE, len(found))
            on_progress(num_done, len(found))
            on_step(CollectStep.removed)


def _used_s(store: Path, key: EntryKey) -> float:
    try:
        return os.lstat(entry_folder(store, key)).st_mtime
    except FileNotFoundError:  # another collection took it
        return math.inf


def _take(batch: Folder, frames: Folder, key: EntryKey) -> bool:
    try:
        with frames.folder(group_name(key)) as group:
            return move_to(batch, group, key.hex)
    except FileNotFoundError:
        return False


def _restore(batch: Folder, frames: Folder, keys: list[EntryKey]) -> None:
    failure: OSError | None = None
    for key in keys:
        try:
            with frames.folder(group_name(key)) as group:
                put_back(batch, key.hex, group)
                group.sync(Durability.batch)  # it was durable here: only the move away may be so by now
        except OSError as error:  # it stays in the batch, which a later collection judges again
            failure = error
    if failure is not None:
        raise failure


def _clamp_future_times(home: Home, entries: Iterable[StoredEntry], needed: ManifestNames) -> None:
    """Set the times of entries and thumbnails that lie in the future to now; best effort."""
    paths = [entry_folder(home.store, entry.key) for entry in entries if entry.key not in needed.keys]
    paths += [
        f"{home.store}/{THUMBS}/{digest.hex}"
        for digest in Thumbnails(home).digests()
        if digest not in needed.pixels
    ]
    now_s = time.time()
    for path in paths:
        with suppress(OSError):
            if os.lstat(path).st_mtime > now_s:
                os.utime(path, follow_symlinks=False)


def _remove_others(store: Store, references: References, dry_run: bool) -> dict[str, int]:
    """Remove what killed processes left and pictures that no manifest names, or count them; best effort."""
    path, thumbnails = store.path, Thumbnails(store.home)
    unfinished, batches = leftovers(path / TMP), leftovers(path / TRASH)
    quarantined = old_quarantined(path, QUARANTINE_S)
    files = [*_unfinished_files(path), *(Path(LEASES, name) for name in expired_leases(path))]
    if not dry_run:
        sweep_tmp(path)
        for name in quarantined:
            remove_quarantined(path, name)
        for file in files:
            with suppress(OSError), _opened(path, file.parent) as folder:
                folder.unlink(file.name)
        for name in batches:
            with suppress(FileNotFoundError):  # another collection was first
                _finish_batch(path, name, references)
    pictures = list(_unneeded_pictures(path, thumbnails, references))
    prefixes = collect_prefixes(
        store.home, references.names.keys, before_s=references.before_s, dry_run=dry_run
    )
    return {
        "num_tmp": len(unfinished),
        "num_trash": len(batches),
        "num_quarantined": len(quarantined),
        "num_files": len(files),
        "num_prefixes": prefixes[0],
        "prefix_bytes": prefixes[1],
        "num_thumbnails": sum(dry_run or thumbnails.remove(digest) for digest in pictures),
    }


def _unfinished_files(store: Path) -> list[Path]:
    """Return temporary files that killed writers left more than a day ago."""
    folders = ["", THUMBS, INDEX, USAGE]
    folders += [
        f"{RECORDINGS}/{recording}/{encoder}"
        for recording in names_in(store / RECORDINGS)
        for encoder in names_in(store / RECORDINGS / recording)
    ]
    oldest, found = time.time() - LEFTOVER_AGE_S, list[Path]()
    for path in map(Path, folders):
        with suppress(OSError), _opened(store, path) as folder:
            names = [name for name in folder.names() if _TEMPORARY.fullmatch(name)]
            found += [path / name for name in names if folder.modified_s(name) < oldest]
    return found


@contextmanager
def _opened(store: Path, path: Path) -> Iterator[Folder]:
    """Open a folder of the store name by name: a symlink on the way would lead out of it."""
    with ExitStack() as opened:
        folder = opened.enter_context(Folder.open_root(store))
        for name in path.parts:
            folder = opened.enter_context(folder.folder(name))
        yield folder


def _unneeded_pictures(store: Path, thumbnails: Thumbnails, references: References) -> Iterator[PixelDigest]:
    """Yield the old pictures that no manifest names. Only reports miss one that is needed again."""
    for digest in thumbnails.digests():
        with suppress(FileNotFoundError):
            is_old = os.lstat(store / THUMBS / digest.hex).st_mtime < references.before_s
            if is_old and digest not in references.names.pixels:
                yield digest


def _finish_batch(store: Path, name: str, references: References) -> None:
    """Finish what a killed collection began: it may have died before it looked again."""
    references.refresh()
    with Folder.open(store / FRAMES) as frames, Folder.open(store / TRASH) as trash:
        with trash.folder(name) as batch:
            for item in batch.names():
                with suppress(ValueError):
                    if not references.is_garbage(key := EntryKey.from_hex(item), batch.modified_s(item)):
                        _restore(batch, frames, [key])
                        continue
                remove_from(batch, item)
        trash.remove_empty(name)
