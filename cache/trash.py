"""Where things go before they are removed: one rename takes a folder away whole.

Nothing is removed in place: whoever still builds or renames such a folder would publish a torn one. Once
an item is called ``.gone`` nobody puts it back, so no file is removed below a live name either.
"""

import errno
import math
import os
import platform
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from blake3 import blake3

from cache.base.files import Folder
from cache.layout import TMP, TRASH

LEFTOVER_AGE_S = 24 * 3600

_NAME = re.compile(r"(\d{1,10})\.([0-9a-f]{16})\.[0-9a-f]{16}(\.json)?")
GONE = ".gone"
_OCCUPIED = frozenset({errno.ENOTEMPTY, errno.EEXIST})


def tmp_name() -> str:
    """Return a fresh name that says which process of which machine it belongs to."""
    return f"{os.getpid()}.{_machine()}.{secrets.token_hex(8)}"


def leftovers(folder: Path, min_age_s: float = LEFTOVER_AGE_S) -> list[str]:
    """Return the names in ``tmp/`` or ``trash/`` that are older than that and whose process is gone.

    Of a process on another machine that shares the store only the age is known.
    """
    oldest = time.time() - min_age_s
    with suppress(FileNotFoundError), os.scandir(folder) as found:
        return [item.name for item in found if _modified_s(item) < oldest and not is_alive(item.name)]
    return []


def _modified_s(item: "os.DirEntry[str]") -> float:
    try:
        return item.stat(follow_symlinks=False).st_mtime
    except FileNotFoundError:  # removed by whoever made it
        return math.inf


def _machine() -> str:
    return blake3(platform.node().encode("utf-8", "surrogateescape")).hexdigest(8)


def is_alive(name: str) -> bool:
    """Say whether a name that ``tmp_name`` made belongs to a living process of this machine."""
    match = _NAME.fullmatch(name)
    if match is None or match[2] != _machine():
        return False
    try:
        os.kill(int(match[1]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def is_ended(name: str) -> bool:
    """Say whether a name that ``tmp_name`` made belongs to a process of this machine that has ended."""
    match = _NAME.fullmatch(name)
    return match is not None and match[2] == _machine() and not is_alive(name)


@contextmanager
def new_batch(store: Path) -> Iterator[Folder]:
    """Make a folder of this process under ``trash/``, and remove it afterwards when it is empty."""
    with Folder.open_root(store) as root:
        root.make_folder(TRASH, exist_ok=True)
        with root.folder(TRASH) as trash:
            name = tmp_name()
            trash.make_folder(name)
            try:
                with trash.folder(name) as batch:
                    yield batch
            finally:
                trash.remove_empty(name)


def move_to(batch: Folder, source: Folder, name: str) -> bool:
    """Move ``name`` into a batch at once; False when somebody else has moved it."""
    try:
        source.rename(name, batch, name)
    except FileNotFoundError:
        return False
    return True


def put_back(batch: Folder, name: str, target: Folder) -> None:
    """Move an item back; when its place was taken meanwhile, what is there stays and this one goes."""
    try:
        batch.rename(name, target, name)
    except FileNotFoundError:
        return  # another collection, which found this batch left over, was first
    except OSError as error:
        if error.errno not in _OCCUPIED:
            raise
        remove_from(batch, name)


def remove_from(batch: Folder, name: str) -> None:
    """Remove an item for good; best effort, a later collection takes what is left."""
    with suppress(FileNotFoundError):  # another collection found this batch left over, and was first
        batch.rename(name, batch, name + GONE)
    batch.remove_tree(name + GONE)


def sweep_tmp(store: Path, min_age_s: float = LEFTOVER_AGE_S) -> int:
    """Remove what dead processes left under ``tmp/`` and return how many there were.

    It goes through ``trash/``: a writer that was only suspended finds its folder gone, and cannot rename
    a half removed one into place.
    """
    names = leftovers(store / TMP, min_age_s)
    if not names:
        return 0
    with Folder.open(store / TMP) as tmp, new_batch(store) as batch:
        taken = [name for name in names if move_to(batch, tmp, name)]
        for name in taken:
            remove_from(batch, name)
    return len(taken)
