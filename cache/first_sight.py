"""What a wrong clock dated in the future, and nobody needs: it is dated by the first sight of it.

Owns the new dates. Does not own what goes (``cache.collecting``): without this, such a thing never would.
A date that is moved to now keeps everything at least as long as if it had just been used.
"""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cache.home import Home
from cache.inventory import StoredEntry
from cache.layout import FRAMES, THUMBS, group_name
from cache.references import References
from cache.thumbs import Thumbnails


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
