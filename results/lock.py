"""Who is writing a run: a lock that the system lets go of when its process ends, however it ends.

So a run that was killed does not stay "running", and no process id has to be believed.
"""

import errno
import fcntl
import os
import time
from pathlib import Path
from typing import Self

from cache.errors import InputError

_NAME = ".lock"
_UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
# A reader that asks who holds a lock holds it for an instant itself.
_TRIES = 20
_PAUSE_S = 0.01


def lock_file(descriptor: int) -> bool:
    """Lock an open file for this process; False when another has it. Filesystems without locks allow all."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE_S)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            return True
        else:
            return True
    return False


class RunLock:
    """The right to write into a run's folder; use as a context manager."""

    def __init__(self, run: Path) -> None:
        """Take the lock.

        Raises:
            InputError: another process has it.
            OSError: the folder cannot be written.
        """
        self._descriptor = os.open(run / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not lock_file(self._descriptor):
            os.close(self._descriptor)
            raise InputError(f"The run {run.name} goes on in another process: wait for it, or stop it.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def is_held(run: Path) -> bool:
    """Tell whether a process is writing into a run's folder now."""
    try:
        descriptor = os.open(run / _NAME, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
