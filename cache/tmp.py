"""Names of unfinished work under ``tmp/``, and the removal of what dead processes left there.

Owns: whose a folder under ``tmp/`` is, and when it is a leftover. Does not own: what is built in it
(``cache.commit``).
"""

import os
import platform
import re
import secrets
import time
from pathlib import Path

from blake3 import blake3

from cache.files import Folder
from cache.layout import TMP

LEFTOVER_AGE_S = 24 * 3600

_NAME = re.compile(r"(\d{1,10})\.([0-9a-f]{16})\.[0-9a-f]{16}")


def tmp_name() -> str:
    """Return a fresh name that says which process of which machine it belongs to."""
    return f"{os.getpid()}.{_machine()}.{secrets.token_hex(8)}"


def leftovers(store: Path, min_age_s: float = LEFTOVER_AGE_S) -> list[str]:
    """Return the names under ``tmp/`` that are older than that and whose process is gone.

    Of a process on another machine that shares the store only the age is known.
    """
    oldest = time.time() - min_age_s
    with os.scandir(store / TMP) as found:
        return [
            item.name
            for item in found
            if item.stat(follow_symlinks=False).st_mtime < oldest and not _alive(item.name)
        ]


def sweep(store: Path, min_age_s: float = LEFTOVER_AGE_S) -> int:
    """Remove leftovers and return how many there were."""
    names = leftovers(store, min_age_s)
    with Folder.open(store / TMP) as tmp:
        for name in names:
            tmp.remove_tree(name)
    return len(names)


def _machine() -> str:
    return blake3(platform.node().encode("utf-8", "surrogateescape")).hexdigest(8)


def _alive(name: str) -> bool:
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
