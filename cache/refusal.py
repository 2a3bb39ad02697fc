"""What the user is told when the disk refuses.

Owns: the one line, with the advice that fits the reason. Does not own: which refusals are damage of an
entry instead (``cache.reading``).
"""

import errno
import shutil
from contextlib import suppress
from pathlib import Path

from cache.errors import StoreError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_CANNOT_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY})


def refused(home: Path, what: str, error: OSError) -> StoreError:
    """Return the error that says what could not be done under ``home``, why, and what helps."""
    advice = "check the disk and its permissions"
    if error.errno in _FULL:
        free = 0
        with suppress(OSError):
            free = shutil.disk_usage(home).free
        advice = f"{free / 1e6:.0f} MB are free: free some space, or see seeonce store gc"
    elif error.errno in _CANNOT_SYNC:
        advice = "its filesystem may not be able to make a folder durable: encode with --durability none, or "
        advice += "set SEEONCE_HOME to a disk of this machine"
    return StoreError(f"{what}: {error.strerror or error}; {advice}")
