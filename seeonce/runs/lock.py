"""Who is writing a run: a lock that the system lets go of when its process ends, however it ends.

So a run that was killed does not stay "running", and no process id has to be believed.
"""

import errno
import fcntl
import os
import time
from pathlib import Path
from typing import Self

from cache.base.errors import InputError, disk_error

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
    """The right to write into a run's folder, and to read it as it will stay; use as a context manager."""

    def __init__(self, run: Path) -> None:
        """Take the lock; the folder is made when it is not there.

        Raises:
            InputError: another process has it.
            StoreError: the folder cannot be written.
        """
        try:
            run.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            run.mkdir(mode=0o700, exist_ok=True)
            self._descriptor = os.open(run / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise disk_error(run.parent, f"The run cannot be written to {run}", error) from error
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
        descriptor = os.open(run / _NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Shared: two readers that ask at once must not take each other for a writer.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
