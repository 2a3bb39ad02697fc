"""Files and folders of the home: private modes, no symlinks, durable renames.

Objects in a bucket: cache/objects.py.

All names are looked up relative to an open folder and no symlink is followed, so nothing that lies in a
store can lead a reader or a writer out of it.
"""

import errno
import fcntl
import os
import secrets
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import IO, Self

from cache.base.errors import InputError
from cache.base.text import output_path

PRIVATE_FOLDER = 0o700
PRIVATE_FILE = 0o600
# What `rename` raises when something else has that name.
OCCUPIED = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR})

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a fifo planted in the place of a file must not hang the reader.
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# Filesystems without hard links (exFAT, some network shares) answer with one of these.
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})

_CANNOT_PREALLOCATE = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.ENODEV})
# What a filesystem says that has no such command (exFAT says ENOTTY). Any other error is a disk that failed.
_NO_FLUSH = frozenset(
    {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENODEV, errno.ENOSYS}
)
_F_BARRIERFSYNC = 85  # <sys/fcntl.h> of macOS; Python has no name for it


class Durability(StrEnum):
    """What an acknowledged write survives."""

    none = "none"  # the process being killed
    batch = "batch"  # a power cut; several entries are made durable and acknowledged together
    full = "full"  # a power cut; each entry by itself, every step through the drive's own cache


def sync_fd(fd: int, durability: Durability) -> None:
    """Make an open file or folder durable before anything that is written later; ``none`` does nothing.

    On macOS fsync leaves the bytes in the drive's own cache, which may keep them in any order. At
    ``batch`` a barrier keeps the order and costs little; ``flush_fd`` empties the cache once, at the end.
    """
    if durability is Durability.none:
        return
    if sys.platform == "darwin":
        try:
            fcntl.fcntl(fd, _F_BARRIERFSYNC if durability is Durability.batch else fcntl.F_FULLFSYNC)
            return
        except OSError as error:  # network filesystems refuse both; fsync is what they have
            if error.errno not in _NO_FLUSH:
                raise
    os.fsync(fd)


def flush_fd(fd: int, durability: Durability) -> None:
    """Make an open file or folder durable, and all that ``sync_fd`` was called for before it."""
    sync_fd(fd, Durability.full if durability is Durability.batch else durability)


def preallocate(fd: int, num_bytes: int) -> None:
    """Reserve the disk space of a new file at once: a full disk says so early, and writing is faster.

    Raises:
        OSError: there is no room for the file.
    """
    if sys.platform != "linux":  # macOS has no posix_fallocate
        return
    try:
        os.posix_fallocate(fd, 0, num_bytes)
    except OSError as error:
        if error.errno not in _CANNOT_PREALLOCATE:
            raise


def write_back(fd: int) -> None:
    """Have the system begin to write out a new file, and let go of those of its pages that are written.

    A transfer larger than memory would else take fresh pages for all of it, and write them out at the end.
    """
    if sys.platform == "linux":  # macOS has no posix_fadvise
        with suppress(OSError):  # advice only
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


class Folder:
    """An open folder. Close it, or use it in ``with``."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a folder by its path, whose last component may not be a symlink."""
        return cls(os.open(path, _FOLDER_FLAGS))

    @classmethod
    def open_root(cls, path: Path | str) -> Self:
        """Open a folder that the user named: there may be a symlink."""
        return cls(os.open(path, _FOLDER_FLAGS & ~os.O_NOFOLLOW))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self.fd)

    def folder(self, name: str) -> "Folder":
        """Open a folder inside this one."""
        return Folder(os.open(name, _FOLDER_FLAGS, dir_fd=self.fd))

    def make_folder(self, name: str, *, exist_ok: bool = False) -> None:
        """Make a folder of mode 0700 inside this one, whatever the umask."""
        try:
            os.mkdir(name, PRIVATE_FOLDER, dir_fd=self.fd)
        except FileExistsError:
            if not exist_ok:
                raise
            return
        if stat.S_IMODE(os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode) != PRIVATE_FOLDER:
            with self.folder(name) as made:
                os.fchmod(made.fd, PRIVATE_FOLDER)

    @contextmanager
    def create(self, name: str) -> Iterator[int]:
        """Yield the descriptor of a new file of mode 0600; it must not exist yet."""
        fd = os.open(name, _CREATE_FLAGS, PRIVATE_FILE, dir_fd=self.fd)
        try:
            if stat.S_IMODE(os.fstat(fd).st_mode) != PRIVATE_FILE:
                os.fchmod(fd, PRIVATE_FILE)
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def open_file(self, name: str) -> Iterator[int]:
        """Yield the descriptor of a regular file, for reading."""
        fd = os.open(name, _READ_FLAGS, dir_fd=self.fd)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.ENXIO, "not a regular file", name)
            yield fd
        finally:
            os.close(fd)

    def read(self, name: str, limit: int) -> bytes:
        """Return a whole file of at most ``limit`` bytes; a larger one is refused unread (EFBIG)."""
        with self.open_file(name) as fd:
            size = os.fstat(fd).st_size
            if size > limit:
                raise OSError(errno.EFBIG, f"{size} bytes, at most {limit} expected", name)
            content = os.read(fd, size + 1)
            while len(content) != size and (part := os.read(fd, size + 1)):
                content += part
            return content

    def write(self, name: str, content: bytes, durability: Durability) -> None:
        """Write a new file."""
        with self.create(name) as fd:
            write_all(fd, memoryview(content))
            sync_fd(fd, durability)

    def replace(self, name: str, content: bytes, durability: Durability) -> None:
        """Write a file so that a reader sees the old content or the new, nothing between."""
        with self._temporary(name, content, durability) as temporary:
            os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        self.sync(durability)

    def write_once(self, name: str, content: bytes, durability: Durability) -> bool:
        """Write a file unless it exists; of several writers exactly one gets True."""
        with self._temporary(name, content, durability) as temporary:
            try:
                os.link(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd, follow_symlinks=False)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                if self.file_size(name) is not None:
                    return False
                os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        self.sync(durability)
        return True

    def link(self, name: str, target: "Folder") -> bool:
        """Give a file of this folder the same name in another; False when it cannot be done."""
        try:
            os.link(name, name, src_dir_fd=self.fd, dst_dir_fd=target.fd, follow_symlinks=False)
        except FileExistsError:
            return True
        except OSError as error:
            if error.errno not in _NO_LINKS and error.errno != errno.ENOENT:
                raise
            return False
        return True

    @contextmanager
    def _temporary(self, name: str, content: bytes, durability: Durability) -> Iterator[str]:
        temporary = f".{name}.{secrets.token_hex(8)}"
        try:
            self.write(temporary, content, durability)
            yield temporary
        finally:
            with suppress(OSError):  # gone when it was renamed; else best effort, it holds no entry
                os.unlink(temporary, dir_fd=self.fd)

    def rename(self, name: str, target: "Folder", target_name: str) -> None:
        """Move an entry of this folder into another folder of the same filesystem."""
        os.rename(name, target_name, src_dir_fd=self.fd, dst_dir_fd=target.fd)

    def file_size(self, name: str) -> int | None:
        """Return the length of a regular file in bytes; None when there is nothing of that name."""
        try:
            found = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.ENXIO, "not a regular file", name)
        return found.st_size

    def identity(self) -> tuple[int, int]:
        """Return (device, inode) of this folder."""
        found = os.fstat(self.fd)
        return found.st_dev, found.st_ino

    def identity_of(self, name: str) -> tuple[int, int] | None:
        """Return (device, inode) of a name in this folder, or None."""
        try:
            found = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def touch(self, older_than_s: float) -> bool:
        """Set this folder's time to now when it is older than that; True when it was. Best effort."""
        with suppress(OSError):
            if time.time() - os.fstat(self.fd).st_mtime > older_than_s:
                os.utime(self.fd)
                return True
        return False

    def modified_s(self, name: str) -> float:
        """Return when a name in this folder was last changed or touched, in POSIX seconds."""
        return os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mtime

    def moved_s(self, name: str) -> float:
        """Return when a name came here or was last changed, whichever is later, in POSIX seconds."""
        found = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        return max(found.st_ctime, found.st_mtime)

    def names(self) -> list[str]:
        """Return the names in this folder."""
        return os.listdir(self.fd)  # noqa: PTH208

    def unlink(self, name: str) -> None:
        """Remove a file; nothing when it is gone."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)

    def remove_empty(self, name: str) -> None:
        """Remove a folder if nothing is in it; best effort."""
        with suppress(OSError):
            os.rmdir(name, dir_fd=self.fd)

    def sync(self, durability: Durability) -> None:
        """Make the names in this folder durable, and all that was synced before."""
        flush_fd(self.fd, durability)

    def remove_tree(self, name: str) -> None:
        """Remove a file or a folder with all that is in it; best effort, never through a symlink."""
        with suppress(OSError):
            with self.folder(name) as folder:
                for child in folder.names():
                    folder.remove_tree(child)
            os.rmdir(name, dir_fd=self.fd)
            return
        with suppress(OSError):
            os.unlink(name, dir_fd=self.fd)


def write_all(fd: int, content: memoryview) -> None:
    """Write every byte, however often the system writes less than asked."""
    while content.nbytes:
        content = content[os.write(fd, content) :]


def open_private(path: Path, mode: str) -> IO[bytes]:
    """Open a file as ``open`` does in a binary mode; one that is new its user alone can read."""
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_CLOEXEC, PRIVATE_FILE))


def write_private(path: Path, content: bytes) -> None:
    """Write a file that its user alone can read at once: the old content or the new, nothing between.

    What is there and no file, such as a pipe or /dev/null, is written to and not replaced.

    Raises:
        InputError: it cannot be written; what was there is still there.
    """
    target = output_path(path, "--output")
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            target.write_bytes(content)
            return
        try:
            with open_private(fresh, "xb") as file:
                file.write(content)
            fresh.replace(target)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): give another --output") from error
