"""Every error that seeonce raises on purpose, grouped by what the user does next.

A message is one line: what is wrong, what was expected, what was found, and the command or
setting that helps. The command line prints it and exits with ``exit_code``; ``--debug`` adds
the traceback. Anything that is not a ``SeeonceError`` is a bug of ours.
"""

import errno
import shutil
from contextlib import suppress
from pathlib import Path

EXIT_ERROR = 1
EXIT_PARTLY = 3
EXIT_INTERRUPTED = 130


class SeeonceError(Exception):
    """Root of all errors meant for the user."""

    exit_code: int = 1


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

    exit_code = 2


class StalePictureError(SeeonceError):
    """A frame's picture is no longer the one that was encoded; the user encodes again."""


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_CANNOT_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY})


def disk_error(home: Path, what: str, error: OSError) -> StoreError:
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
