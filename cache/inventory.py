"""What lies under ``frames/``, by looking at names and sizes alone.

Owns: listing entries with their bytes on disk and their last use. Does not own: whether an entry is
right (``cache.store``), nor who needs it (``cache.references``). One look costs three stats an entry.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cache.entry_json import CHUNK_NAME, METADATA_NAME
from cache.key import EntryKey
from cache.layout import FRAMES


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An entry's folder. ``used_s`` is when it was written or hit, in POSIX seconds.

    ``changed_s`` is when it came to its place or was hit, whichever is later; nobody can set it.
    """

    key: EntryKey
    num_bytes: int
    used_s: float
    changed_s: float


def stored_entries(store: Path) -> Iterator[StoredEntry]:
    """Yield every entry of a store, in no particular order; what vanishes meanwhile is left out."""
    for group in _groups(store / FRAMES):
        folder = f"{store}/{FRAMES}/{group}"
        for name in names_in(folder):
            with suppress(ValueError, FileNotFoundError, NotADirectoryError):
                key = EntryKey.from_hex(name)
                if name.startswith(group):
                    found = os.lstat(f"{folder}/{name}")
                    size = size_of_entry(f"{folder}/{name}")
                    yield StoredEntry(key, size, found.st_mtime, found.st_ctime)


def _groups(frames: Path) -> list[str]:
    """Return the group folders: one that is a symlink holds no entry, as for a reader."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(frames) as items:
        return [item.name for item in items if item.is_dir(follow_symlinks=False)]
    return []


def stored_bytes(store: Path) -> int:
    """Return the bytes of all entries."""
    return sum(entry.num_bytes for entry in stored_entries(store))


def size_of_entry(folder: str) -> int:
    """Return the bytes of an entry's two files; a missing one takes none."""
    size = 0
    for name in (CHUNK_NAME, METADATA_NAME):
        with suppress(OSError):
            size += os.lstat(f"{folder}/{name}").st_size
    return size


def names_in(path: Path | str) -> list[str]:
    """Return the names in a folder; none when it is not there."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as items:
        return [item.name for item in items]
    return []
