"""Remembered pixel digests of files, so that an unchanged file is not even decoded.

Owns: one SQLite file in ``index/`` and when its word is good. Does not own: decoding. It is only a
memory: when it is corrupt it starts anew, when it cannot be written it is silently off.
"""

import os
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cache.files import Folder
from cache.home import Home
from cache.key import FieldHasher, PixelDigest
from cache.layout import INDEX
from cache.remembered import RememberedFile

__all__ = ["FileStamp", "KnownPixels", "PixelIndex"]

# A file changed twice within the granularity of its timestamps looks unchanged, as in git's index.
RACY_NS = 2_000_000_000
_FILE = "pixels-1.sqlite"
_CHECK = "seeonce 2026-11 pixel index row, format 1"
_BATCH = 500
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    path BLOB NOT NULL, position TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    inode TEXT NOT NULL, ctime_ns INTEGER NOT NULL, pixels BLOB NOT NULL, width INTEGER NOT NULL,
    height INTEGER NOT NULL, row_digest BLOB NOT NULL, PRIMARY KEY (path, position)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes (
    name TEXT PRIMARY KEY, text TEXT NOT NULL, row_digest BLOB NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What tells a changed file from an unchanged one; take it before the file is read.

    ``position`` is a place in it, such as a video's timestamp; ``taken_ns`` is when it was taken.
    """

    path: str
    size: int
    mtime_ns: int
    inode: int
    position: str = ""
    ctime_ns: int = 0
    taken_ns: int = field(default=0, compare=False)

    @classmethod
    def of(cls, path: Path, position: str = "") -> Self:
        """Take the stamp of a file.

        Raises:
            OSError: there is no such file.
        """
        taken_ns = time.time_ns()
        found = path.stat()
        absolute = os.path.abspath(path)  # noqa: PTH100 - resolve() would stat every parent
        return cls(
            absolute, found.st_size, found.st_mtime_ns, found.st_ino, position, found.st_ctime_ns, taken_ns
        )

    @property
    def racy(self) -> bool:
        """Whether the file was changed so shortly before that another change may go unseen."""
        taken_ns = self.taken_ns or time.time_ns()
        return taken_ns - max(self.mtime_ns, self.ctime_ns) < RACY_NS


@dataclass(frozen=True, slots=True)
class KnownPixels:
    """The digest and the size of a decoded picture."""

    pixels: PixelDigest
    width: int
    height: int


class PixelIndex:
    """The memory of one home; threads and processes may share it. ``close`` it, or use ``with``."""

    def __init__(self, home: Home) -> None:
        """Nothing is opened until it is asked."""
        self._folder = home.store / INDEX
        self._file = RememberedFile(self._folder / _FILE, _SCHEMA, self._prepare_folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; the next call opens it again."""
        self._file.close()

    def get(self, stamp: FileStamp) -> KnownPixels | None:
        """Return what is known of an unchanged file, or None."""
        return self.get_many([stamp]).get(stamp)

    def get_many(self, stamps: Sequence[FileStamp]) -> dict[FileStamp, KnownPixels]:
        """Return what is known of those files that are unchanged."""

        def work(connection: sqlite3.Connection) -> dict[FileStamp, KnownPixels]:
            found = ((stamp, _find(connection, stamp)) for stamp in stamps)
            return {stamp: known for stamp, known in found if known is not None}

        return self._file.work(work) or {}

    def put_many(
        self, known: Mapping[FileStamp, KnownPixels] | Iterable[tuple[FileStamp, KnownPixels]]
    ) -> None:
        """Remember files; one that was changed within the last two seconds is left out."""
        pairs = known.items() if isinstance(known, Mapping) else known
        rows = [_row(stamp, pixels) for stamp, pixels in pairs if not stamp.racy]

        def work(connection: sqlite3.Connection) -> None:
            for start in range(0, len(rows), _BATCH):
                with connection:  # one transaction: other writers wait no longer than for a batch
                    connection.executemany(
                        "INSERT OR REPLACE INTO files VALUES (?,?,?,?,?,?,?,?,?,?)",
                        rows[start : start + _BATCH],
                    )

        self._file.work(work)

    def get_note(self, name: str) -> str | None:
        """Return the text last put under a name, or None."""

        def work(connection: sqlite3.Connection) -> str | None:
            row = connection.execute("SELECT text, row_digest FROM notes WHERE name = ?", (name,)).fetchone()
            return row[0] if row is not None and row[1] == _note_digest(name, row[0]) else None

        return self._file.work(work)

    def put_note(self, name: str, text: str) -> None:
        """Remember a small text under a name."""

        def work(connection: sqlite3.Connection) -> None:
            with connection:
                row = (name, text, _note_digest(name, text))
                connection.execute("INSERT OR REPLACE INTO notes VALUES (?,?,?)", row)

        self._file.work(work)

    def _prepare_folder(self) -> None:
        with Folder.open(self._folder):  # a symlink would lead out of the store
            pass


def _find(connection: sqlite3.Connection, stamp: FileStamp) -> KnownPixels | None:
    row = connection.execute(
        "SELECT * FROM files WHERE path = ? AND position = ?", (os.fsencode(stamp.path), stamp.position)
    ).fetchone()
    if row is None:
        return None
    known = KnownPixels(PixelDigest(row[6]), row[7], row[8])
    # The row's own digest: SQLite does not notice a flipped bit, and a wrong digest is a wrong answer.
    return known if row == _row(stamp, known) else None


def _row(
    stamp: FileStamp, known: KnownPixels
) -> tuple[bytes, str, int, int, str, int, bytes, int, int, bytes]:
    path, inode = os.fsencode(stamp.path), str(stamp.inode)  # inodes may exceed SQLite's 63 bits
    hasher = FieldHasher(_CHECK)
    hasher.add((path, stamp.position, stamp.size, stamp.mtime_ns, inode, stamp.ctime_ns))
    hasher.add((known.pixels.raw, known.width, known.height))
    return (
        path,
        stamp.position,
        stamp.size,
        stamp.mtime_ns,
        inode,
        stamp.ctime_ns,
        known.pixels.raw,
        known.width,
        known.height,
        hasher.digest()[:16],
    )


def _note_digest(name: str, text: str) -> bytes:
    hasher = FieldHasher(_CHECK)
    hasher.add((name, text))
    return hasher.digest()[:16]
