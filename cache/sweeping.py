"""What processes that died left in a store, and its removal; entries are not looked at.

Owns: leftovers under ``tmp/``, old ``quarantine/``, files that were not renamed into place, dead leases.
Does not own: when work is unfinished (``cache.tmp``), ``trash/``, which may hold entries that are needed
(``cache.collecting``).
"""

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cache.files import Folder
from cache.inventory import names_in
from cache.layout import INDEX, LEASES, RECORDINGS, THUMBS, TMP, USAGE
from cache.leases import dead_leases
from cache.quarantine import old_quarantined, remove_quarantined
from cache.tmp import LEFTOVER_AGE_S, leftovers
from cache.trash import sweep_tmp

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
