"""Files of recordings that lie in a bucket: listed, stamped by their ETag, fetched while they are needed."""

import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cache.base.errors import InputError, NotEncodedError, StoreError
from cache.base.text import megabytes, printable
from cache.objects import Objects, Stream, check_address
from cache.pixel_index import FileStamp

if TYPE_CHECKING:
    from obstore import ObjectMeta

NUM_READERS = 16  # requests at once: their latency counts, not the processor
_MAX_PICTURE_BYTES = 256 << 20


def list_folder(address: str) -> tuple[list[FileStamp], Sequence[str]]:
    """Return the files right below an address, and the names of its folders, each with a slash.

    Raises:
        InputError: it cannot be listed, for the reason that it says.
    """
    address = check_address(address)
    with _in_words():
        files, folders = _objects(address).folder()
    taken_ns = time.time_ns()
    return [_stamp(f"{address}/{found['path']}", found, taken_ns) for found in files], folders


def stamps_of(addresses: Sequence[str]) -> list[FileStamp]:
    """Return what tells changed objects from unchanged ones; of one that is not there, its name alone.

    Raises:
        InputError: a bucket cannot be read.
    """

    def look(address: str) -> FileStamp:
        objects, name = _place_of(address)
        taken_ns = time.time_ns()
        found = objects.head(name)
        return FileStamp(address, 0, 0, 0) if found is None else _stamp(address, found, taken_ns)

    with _in_words(), ThreadPoolExecutor(NUM_READERS) as threads:
        return list(threads.map(look, addresses))


def read_picture(stamp: FileStamp) -> bytes:
    """Return the bytes of a picture, the same that were there when it was stamped.

    Raises:
        InputError: it is gone, was replaced, or is too large for a picture.
        StoreError: the bucket cannot be read.
    """
    if stamp.size > _MAX_PICTURE_BYTES:
        raise InputError(f"{printable(stamp.path)}: {megabytes(stamp.size)}, too large for a picture")
    content = np.empty(stamp.size, np.uint8)
    _opened(stamp).readinto(content)
    return content.tobytes()


class Copy:
    """A file of a bucket on this disk, until nobody holds this any more."""

    def __init__(self, address: str) -> None:
        """Fetch it into a temporary folder.

        Raises:
            InputError: it is not there or cannot be read, or the disk has no room for it.
        """
        (self.stamp,) = stamps_of([check_address(address)])
        self.address = self.stamp.path
        folder = Path(tempfile.mkdtemp(prefix="seeonce-")).resolve()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.path = folder / Path(self.address).name
        if (free := shutil.disk_usage(folder).free) < self.stamp.size:
            raise InputError(
                f"{printable(self.address)}: {megabytes(self.stamp.size)}, and {folder.parent} has room for "
                f"{megabytes(free)}: set TMPDIR to a folder on a larger disk"
            )
        try:
            with _in_words(), self.path.open("xb") as file:
                stream, left = _opened(self.stamp), self.stamp.size
                while left:
                    left -= file.write(stream.read(left).data)
        except OSError as error:
            raise InputError(f"{printable(self.address)}: cannot be copied ({error.strerror})") from error
        os.utime(self.path, ns=(self.stamp.mtime_ns, self.stamp.mtime_ns))

    def at(self, position: str) -> FileStamp:
        """Return the stamp of a place in it."""
        return replace(self.stamp, position=f"{self.stamp.position} {position}")

    @contextmanager
    def named(self) -> Iterator[None]:
        """Let errors name the address in the place of the copy."""
        try:
            yield
        except InputError as error:
            raise InputError(self.rename(str(error))) from None

    def rename(self, text: str) -> str:
        """Return a text with the address in the place of the copy's path."""
        return text.replace(printable(self.path), printable(self.address))


def _opened(stamp: FileStamp) -> Stream:
    """Begin to read an object, which is still the one that was stamped."""
    objects, name = _place_of(stamp.path)
    stream = objects.stream(name)
    if stream is None:
        raise InputError(f"{printable(stamp.path)}: no such object (moved or deleted?)")
    if (_position(stream.etag), stream.size) != (stamp.position, stamp.size):
        raise InputError(f"{printable(stamp.path)}: was replaced while it was encoded: encode it again")
    return stream


def _place_of(address: str) -> tuple[Objects, str]:
    folder, _, name = address.rpartition("/")
    return _objects(folder), name


@lru_cache(maxsize=64)
def _objects(address: str) -> Objects:
    return Objects.open(address)


def _stamp(address: str, found: "ObjectMeta", taken_ns: int) -> FileStamp:
    changed_ns = int(found["last_modified"].timestamp() * 1e9)
    position = _position(found["e_tag"] or "")
    return FileStamp(address, found["size"], changed_ns, 0, position, taken_ns=taken_ns)


def _position(etag: str) -> str:
    return f"etag={etag}"


@contextmanager
def _in_words() -> Iterator[None]:
    """Make what a bucket refuses an error of this one recording: the others go on."""
    try:
        yield
    except (NotEncodedError, StoreError) as error:
        raise InputError(str(error)) from None
