"""Names of unfinished work, which say whose it is.

Owns: when something under ``tmp/`` or ``trash/`` is a leftover. Does not own: what is built there
(``cache.commit``), its removal (``cache.collecting``).
"""

import math
import os
import platform
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

LEFTOVER_AGE_S = 24 * 3600

_NAME = re.compile(r"(\d{1,10})\.([0-9a-f]{16})\.[0-9a-f]{16}(\.json)?")


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
    except FileNotFoundError:  # removed by who made it
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
