"""Every error that seeonce raises on purpose, grouped by what the user does next.

A message is one line: what is wrong, what was expected, what was found, and the command or
setting that helps. The command line prints it and exits with 1 (verify-cache with 2);
``--debug`` adds the traceback. Anything that is not a ``SeeonceError`` is a bug of ours.
"""

import errno
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

EXIT_ERROR = 1
EXIT_PARTLY = 3
EXIT_INTERRUPTED = 130
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM})
_CANNOT_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY})


def code_of_all(codes: Sequence[int]) -> int:
    """Return the exit code of several things: an interruption's, the one they share, else partly done."""
    if EXIT_INTERRUPTED in codes:
        return EXIT_INTERRUPTED
    return codes[0] if len(set(codes)) == 1 else EXIT_PARTLY


class SeeonceError(Exception):
    """Root of all errors meant for the user."""


class InputError(SeeonceError):
    """The user names something else: a recording, a prompt, an option, an image."""


class CheckpointError(SeeonceError):
    """The user picks or repairs a model, or installs a backend for it."""


class StoreError(SeeonceError):
    """The user frees space, fixes permissions, or points SEEONCE_HOME elsewhere."""


class NotEncodedError(SeeonceError):
    """The user runs ``seeonce encode`` first."""


class CannotCheckError(SeeonceError):
    """The verifier lacks what it needs (frames, a model, entries): neither equal nor different."""


class StalePictureError(SeeonceError):
    """A frame's picture is no longer the one that was encoded; the user encodes again."""


def disk_error(place: Path, what: str, error: Exception) -> StoreError:
    """Return the error that says what could not be done under ``place``, why, and what helps."""
    number, reason = getattr(error, "errno", None), getattr(error, "strerror", None) or str(error)
    advice = "check the disk and its permissions"
    if number in _FULL or "disk is full" in reason:
        free = 0
        with suppress(OSError):
            free = shutil.disk_usage(place).free
        advice = f"{free / 1e6:.0f} MB are free: free some space, or see seeonce store gc"
    elif number == errno.EROFS:
        advice = "nothing can be written to that disk: use another, for the store by SEEONCE_HOME"
    elif number in _NOT_ALLOWED:
        advice = f"check the permissions of {place}, or, for the store and runs, "
        advice += "set SEEONCE_HOME to a folder that you can write to"
    elif number in _CANNOT_SYNC:
        advice = "its filesystem may not be able to make a folder durable: encode with --durability none, or "
        advice += "set SEEONCE_HOME to a disk of this machine"
    return StoreError(f"{what}: {reason}; {advice}")
